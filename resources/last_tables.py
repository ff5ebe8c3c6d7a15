"""Tables as the last run left them, for assets that carry rows of their own over.

An input comes through the IO manager, which raises for what is not there. An asset's own last table
is a saving and no input: without it everything is made, and nothing is wrong. Belongs here: reading
what can be trusted. Does not belong here: which rows may be kept (the stages say so).
"""

import io
import logging
from collections.abc import Mapping, Sequence

import polars as pl

from serving.home import Home

_LOG = logging.getLogger(__name__)


class LastTables:
    """The unpartitioned tables of a home that have the columns declared today."""

    def __init__(self, home: Home, schemas: Mapping[tuple[str, ...], pl.Schema]) -> None:
        self._home = home
        self._schemas = schemas

    def read(self, key: Sequence[str]) -> pl.DataFrame:
        """Return a table, without rows where it is missing, damaged or of an earlier version."""
        schema = self._schemas[tuple(key)]
        path = self._home.table("/".join(key))
        try:
            found = pl.read_parquet(io.BytesIO(path.read_bytes()))
        except FileNotFoundError:
            return schema.to_frame()
        # Polars panics where damage contradicts what the file says of itself.
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            _LOG.warning("nothing of %s is kept, it cannot be read: %s", path, error)
            return schema.to_frame()
        if found.schema != schema:
            _LOG.warning("nothing of %s is kept, its columns are not those of today", path)
            return schema.to_frame()
        return found


class NoTables:
    """No table at all: every row is made anew."""

    def __init__(self, schemas: Mapping[tuple[str, ...], pl.Schema]) -> None:
        self._schemas = schemas

    def read(self, key: Sequence[str]) -> pl.DataFrame:
        """Return a table without rows."""
        return self._schemas[tuple(key)].to_frame()
