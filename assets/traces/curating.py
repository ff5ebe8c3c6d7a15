"""What a reviewer works through: candidates for training, and traces that must be forgotten.

Belongs here: who is a candidate and in which order, and what a deletion reaches. Does not belong
here: decisions (`deciding`), printing (`orchestration/curate_cli`).
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from assets import tables
from assets.traces.deciding import forget_quotes, is_asked, open_decisions
from assets.traces.deleting import COLUMN_OF_KIND, KINDS, find_deleted, match_deleted
from assets.traces.forgetting import (
    SEEDS,
    Descendants,
    find_adapters,
    find_descendants,
    purge_descendants,
)
from assets.traces.hours import find_folder, list_hours
from assets.traces.journal import Journal
from assets.traces.planting import open_plants
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.home import Home

Forget = Callable[[Descendants], int]


def open_deletions(home: Home) -> Journal:
    """Return the journal of tombstones."""
    return Journal(find_folder(home) / "deletions.jsonl", tables.DELETIONS)


def find_candidates(records: pl.LazyFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """Return the traces worth a decision, hardest for the student first, each question once.

    A candidate is answered production traffic that may be trained on, was not escalated, carries no
    sign of injection and has no decision yet. First what fell back to the teacher, then refusals,
    then by rising retrieval score: what the student could not handle. `asked_count` says how often
    the same question came.
    """
    eligible = records.filter(
        is_asked()
        & (pl.col("env") == "prod")
        & pl.col("trainable")
        & ~pl.col("is_injection")
        & (pl.col("outcome") == "answered")
        & ~pl.col("trace_id").is_in(decisions["trace_id"].to_list())
    )
    why = (
        pl.when(pl.col("selection_mode") == "fallback").then(pl.lit("fallback"))
        .when("refused").then(pl.lit("refused"))
        .when(pl.col("route_reason") != "default").then("route_reason")
        .otherwise(pl.lit("answered"))
    )  # fmt: skip
    rank = {"fallback": 0, "low_confidence": 1, "low_retrieval": 2, "refused": 3}
    return (
        eligible.select("trace_id", "asked_at", "question", "question_hash", "key_id", "max_score",
                        why.alias("why"))
        .sort("asked_at", "trace_id")
        .group_by("question_hash", maintain_order=True)
        .agg(pl.len().alias("asked_count"), pl.all().exclude("question_hash").last())
        .sort(
            pl.col("why").replace_strict(rank, default=9, return_dtype=pl.Int64),
            pl.col("max_score"),
            "trace_id",
        )
        .select("trace_id", "why", "asked_count", "asked_at", "key_id", "max_score", "question")
        .collect()
    )  # fmt: skip


def request_deletion(
    home: Home,
    *,
    kind: str,
    value: str,
    reason: str,
    requested_by: str,
    requested_at: datetime,
    stores: Sequence[Forget] = (),
) -> dict[str, Any]:
    """Write a tombstone and return it with what it reaches: traces, adapters, kept answers, rows.

    Kept answers and vectors, the rows of later stages that grew from the traces, and what decisions
    quote of them are gone at once; segments, hours and tables of traces follow with the next
    compaction. Weights cannot forget: the adapters are named, for training without the rows.

    Args:
        home: whose traces.
        kind: one of KINDS.
        value: the id of that kind.
        reason: for the record.
        requested_by: for the record.
        requested_at: what is asked later by the same key or conversation stays.
        stores: each removes what it keeps of the descendants and returns how many entries.

    Raises:
        InvalidInputError: the kind is unknown, or nothing was ever stored under that name.
    """
    if kind not in KINDS:
        raise InvalidInputError(
            "reading what to forget",
            expected=f"one of {', '.join(KINDS)}",
            found=repr(kind),
            next_step="name a trace, a conversation or a key",
        )
    folder = find_folder(home)
    row = {
        "deletion_id": content_hash(kind, value, requested_at.isoformat()),
        "kind": kind,
        "value": value,
        "reason": reason,
        "requested_by": requested_by,
        "requested_at": requested_at,
        "trace_ids": [],
        "adapters": [],
    }
    tombstone = pl.DataFrame([row], schema=tables.DELETIONS)
    stored = find_deleted(list_hours(folder), tombstone)["trace_id"].to_list()
    decisions = open_decisions(home).read()
    quoted = decisions.filter(match_deleted(tombstone, decisions.columns))["trace_id"].to_list()
    found = sorted({*stored, *quoted} - {None})
    # Nothing grows from a planted error, and its question may be another person's.
    descendants = find_descendants(home, found)
    # A decision about a planted error quotes the question of the trace that it was made of.
    plants = open_plants(folder).read()
    made_of = pl.any_horizontal(pl.col("question_trace_id", "answer_trace_id").is_in(found))
    found += plants.filter(made_of)["trace_id"].to_list()
    if not found and kind == "trace":
        raise InvalidInputError(
            f"forgetting the {kind} {value!r}",
            expected=f"a stored trace or a decision with this {COLUMN_OF_KIND['trace']}",
            found="none",
            next_step="take the id from the answer's trace_id; an open segment is compacted once "
            "it is sealed",
        )
    whole = row | {"trace_ids": found, "adapters": find_adapters(home, descendants)}
    open_deletions(home).append(whole)
    kept = sum(forget(descendants) for forget in stores)
    purged = purge_descendants(home, descendants)
    open_decisions(home).rewrite(lambda line: forget_quotes(line, trace_ids=frozenset(found)))
    return whole | {"kept_count": kept, "rows_by_table": purged}


def find_remains(home: Home, tombstones: pl.DataFrame) -> Mapping[str, int]:
    """Return where deleted traces are still stored, by place; empty once they are gone.

    Counted are hours, the tables of traces, and seeds.
    """
    if tombstones.is_empty():
        return {}
    folder = find_folder(home)
    remains = {"hours": find_deleted(list_hours(folder), tombstones).height}
    for path in sorted((home.lake / "traces").glob("*.parquet")):
        schema = pl.read_parquet_schema(path)
        texts = [name for name in ("question", "answer", "comment") if name in schema]
        if "trace_id" in schema and texts:
            rows = pl.scan_parquet(path, hive_partitioning=False).filter(
                match_deleted(tombstones, list(schema))
                & pl.any_horizontal(pl.col(texts).is_not_null())
            )
            remains[f"traces/{path.stem}"] = int(rows.select(pl.len()).collect().item())
    seeds = _read(home, SEEDS)
    if seeds is not None:
        named = seeds.rename({"source_trace_id": "trace_id"})
        remains["seeds/seed_questions"] = named.filter(
            match_deleted(tombstones, ("trace_id",))
        ).height
    return {place: count for place, count in remains.items() if count}


def _read(home: Home, key: str, partition: str | None = None) -> pl.DataFrame | None:
    path: Path = home.table(key, partition)
    return pl.read_parquet(path) if path.is_file() else None
