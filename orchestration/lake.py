"""Tables of the lake as commands read them: a missing or damaged one is an error with a next step.

Belongs here: that reading. Does not belong here: how assets exchange tables (`resources`).
"""

from pathlib import Path

import polars as pl

from serving.errors import InvalidInputError


def read_table(path: Path, *, attempted: str, next_step: str) -> pl.DataFrame:
    """Return a table.

    Raises:
        InvalidInputError: there is none yet, or its file is damaged.
    """
    if not path.exists():
        raise InvalidInputError(
            attempted, expected=str(path), found="nothing there", next_step=next_step
        )
    try:
        return pl.read_parquet(path)
    # Polars panics where damage contradicts what the file says of itself.
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise InvalidInputError(
            attempted,
            expected=f"a Parquet file at {path}",
            found=f"a damaged one: {str(error).splitlines()[0]}",
            next_step="remove the file; `understudy run` then makes it again",
        ) from error
