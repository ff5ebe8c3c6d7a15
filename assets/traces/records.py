"""Trace records as a table: the JSON of `serving/tracing/record.py`, typed.

Belongs here: typing and order. Does not belong here: reading segments (`frames`), what a sound
record looks like (`expectations`).
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
import polars as pl

from assets import tables
from assets.traces.flags import INJECTION_PATTERN
from serving.tracing.frames import MAXIMUM_RECORD_BYTES, parse_record

if TYPE_CHECKING:
    import pyarrow as pa

WRITTEN = pl.Schema({**tables.TRACE_RECORDS, "asked_at": pl.String()})
NESTED: Mapping[str, frozenset[str]] = {
    name: frozenset(field.name for field in dtype.inner.fields)
    for name, dtype in WRITTEN.items()
    if isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct)
}
"""The columns that hold lists of records, and the fields of those."""

UNKNOWN = "unknown_fields"


def tabulate_records(records: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Return one row per record, sorted by trace id and so by time.

    Servers of different releases write side by side: a field that this release does not know is
    left out, one that a record lacks is null, and so is a value of another type. The table is
    checked afterwards and names such records; dropping them here would hide them.
    """
    known = [{name: record.get(name) for name in WRITTEN} for record in records]
    frame = pl.DataFrame(known, schema=WRITTEN, strict=False, orient="row")
    return _type_time(frame).sort("trace_id", nulls_last=True, maintain_order=True)


def tabulate_payloads(payloads: Sequence[bytes]) -> pl.DataFrame:
    """Return one row per JSON payload, in their order, with `unknown_fields` and `is_injection`.

    Payloads of this release's own shape are parsed at once. Others go one by one: what a newer
    release wrote more is kept as JSON in `unknown_fields`, and what is no record at all is a row of
    nulls, which has no time and so is quarantined.
    """
    frame = _parse_at_once(payloads)
    if frame is None:
        records = [_load(payload) for payload in payloads]
        known = [{name: record.get(name) for name in WRITTEN} for record in records]
        frame = pl.DataFrame(known, schema=WRITTEN, strict=False, orient="row").with_columns(
            pl.Series(UNKNOWN, [_keep_unknown(record) for record in records], dtype=pl.String)
        )
    injected = pl.col("question").str.contains(INJECTION_PATTERN).fill_null(value=False)
    return _type_time(frame).with_columns(injected.alias("is_injection"))


def _parse_at_once(payloads: Sequence[bytes]) -> pl.DataFrame | None:
    """Return the parsed payloads, or None when some need to be looked at one by one.

    Arrow refuses a field or a type that the columns do not have, in any row.
    """
    import pyarrow as pa
    from pyarrow import json

    if not all(_is_object(payload) for payload in payloads):
        return None
    try:
        table = json.read_json(
            pa.BufferReader(b"\n".join(payloads)),
            read_options=json.ReadOptions(block_size=2 * MAXIMUM_RECORD_BYTES),
            parse_options=json.ParseOptions(
                explicit_schema=_write_arrow_schema(), unexpected_field_behavior="error"
            ),
        )
    except pa.ArrowInvalid:
        return None
    frame = pl.DataFrame(pl.from_arrow(table))
    if frame.height != len(payloads):
        return None
    return frame.with_columns(pl.lit(None, dtype=pl.String).alias(UNKNOWN))


class _AnyObject(msgspec.Struct):
    """Decoding into it looks at every byte's syntax and builds nothing."""


_ANY_OBJECT = msgspec.json.Decoder(_AnyObject)


def _is_object(payload: bytes) -> bool:
    """Say whether a payload is one JSON object in UTF-8: Arrow crashes on some that are none."""
    try:
        payload.decode()
        _ANY_OBJECT.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


@cache
def _write_arrow_schema() -> "pa.Schema":
    """Return `WRITTEN` as Arrow parses JSON: with lists of 32-bit offsets."""
    import pyarrow as pa

    written = pl.DataFrame(schema=WRITTEN).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    return pa.schema(
        (field.name, pa.list_(field.type.value_type))
        if pa.types.is_large_list(field.type)
        else field
        for field in written
    )


def _load(payload: bytes) -> dict[str, Any]:
    return parse_record(payload) or {}


def _keep_unknown(record: Mapping[str, Any]) -> str | None:
    """Return what the columns cannot hold, as JSON: unknown fields, and lists that have any."""
    unknown = {name: value for name, value in record.items() if name not in WRITTEN}
    for name, fields in NESTED.items():
        entries = record.get(name)
        if isinstance(entries, list) and any(
            isinstance(entry, dict) and not fields.issuperset(entry) for entry in entries
        ):
            unknown[name] = entries
    return orjson.dumps(unknown).decode() if unknown else None


def _type_time(frame: pl.DataFrame) -> pl.DataFrame:
    asked_at = pl.col("asked_at").str.to_datetime(
        "%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us", strict=False
    )
    return frame.with_columns(asked_at.dt.replace_time_zone("UTC"))
