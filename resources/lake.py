"""The lake: every table as one Parquet file, schema checked, written atomically.

Belongs here: the IO manager. Does not belong here: schemas (`assets/tables`).
"""

import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from serving.errors import InvalidInputError
from serving.files import PRIVATE_MODE, atomic_path

if TYPE_CHECKING:
    from upath import UPath


class LakeIOManager(dg.UPathIOManager):
    """Stores Polars frames under `<lake>/<stage>/<asset>[/<partition>].parquet`.

    Dagster's own file system IO manager pickles, and not atomically; dagster-polars copies sample
    rows of private tables into the event log. This one does neither.
    """

    extension = ".parquet"

    def __init__(
        self,
        lake: Path,
        schemas: Mapping[tuple[str, ...], pl.Schema],
        *,
        private_stages: Collection[str] = (),
    ) -> None:
        from upath import UPath as Path_

        super().__init__(base_path=Path_(lake))
        self._schemas = schemas
        self._private_stages = private_stages

    def dump_to_path(self, context: dg.OutputContext, obj: pl.DataFrame, path: "UPath") -> None:
        """Check the frame against its declared schema and write it atomically."""
        key = tuple(context.asset_key.path)
        _check_schema(key, obj, self._schemas.get(key))
        with atomic_path(Path(str(path))) as temporary:
            if key[0] in self._private_stages:
                temporary.chmod(PRIVATE_MODE)
            obj.write_parquet(temporary, compression="zstd", statistics=True)

    def load_from_path(self, context: dg.InputContext, path: "UPath") -> pl.DataFrame:  # noqa: ARG002
        """Read the whole table."""
        return pl.read_parquet(io.BytesIO(Path(str(path)).read_bytes()))

    def get_metadata(self, context: dg.OutputContext, obj: pl.DataFrame) -> dict[str, Any]:  # noqa: ARG002
        """Record what Dagster plots over time; never rows."""
        return {"dagster/row_count": obj.height, "estimated_size_mb": obj.estimated_size("mb")}


def _check_schema(key: tuple[str, ...], frame: pl.DataFrame, declared: pl.Schema | None) -> None:
    name = "/".join(key)
    if declared is None:
        raise InvalidInputError(
            f"storing the table {name}",
            expected="a schema declared in assets/tables.py",
            found="none",
            next_step="declare the table before writing it",
        )
    if frame.schema != declared:
        wrong = {
            column: (str(frame.schema.get(column)), str(declared.get(column)))
            for column in sorted({*frame.schema, *declared})
            if frame.schema.get(column) != declared.get(column)
        }
        found = "; ".join(f"{c}: {f} (declared {d})" for c, (f, d) in wrong.items())
        raise InvalidInputError(
            f"storing the table {name}",
            expected="the declared columns, in order",
            found=found or f"another order: {frame.columns}",
            next_step="mend the asset, or declare the new column in assets/tables.py",
        )
