"""A request to forget: its tombstone, what it reaches at once, and what an interrupted one left.

The tombstone is written before anything goes, with all that was found. Until everything is gone it
keeps that, words included, so that the same request made again completes what was interrupted,
whatever the tables say by then. Belongs here: that order. Does not belong here: segments and hours
(`deleting`), what grew from a trace (`forgetting`), printing (`orchestration/curate_cli`).
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import polars as pl

from assets import tables
from assets.traces.deciding import forget_quotes, open_decisions
from assets.traces.deleting import (
    COLUMN_OF_KIND,
    KINDS,
    count_unblanked,
    find_deleted,
    match_deleted,
)
from assets.traces.forgetting import (
    FOUND,
    Descendants,
    count_descendants,
    find_descendants,
    purge_descendants,
)
from assets.traces.hours import find_folder, list_hours, scan_hours
from assets.traces.journal import Journal
from assets.traces.mending import find_set_aside
from assets.traces.planting import open_plants
from assets.traces.tainting import HashTrainingSet, TaintedAdapters, find_adapters
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.home import Home
from serving.tracing.segments import SEALED_SUFFIX

Forget = Callable[[Descendants], int]
UNFINISHED = tuple(name for name in FOUND if name != "trace_ids")
TOMBSTONES = pl.Schema({**tables.DELETIONS, **dict.fromkeys(UNFINISHED, pl.List(pl.String()))})
"""A line of the journal: `tables.DELETIONS`, and what was found, null once all of it is gone."""
LATE = frozenset({"key_id", "doubtful_adapters", *UNFINISHED})
"""What a line may lack: every command reads this journal, and a refused one would stop them all."""


@dataclass(frozen=True, kw_only=True)
class DeletionRequest:
    """What somebody wants forgotten.

    `key_id` says whose conversation, "" one that was asked without a key; None: there is but one,
    or it is no conversation. What is asked later than `requested_at` by the same key or
    conversation stays.
    """

    kind: str
    value: str
    reason: str
    requested_by: str
    requested_at: datetime
    key_id: str | None = None


def open_deletions(home: Home) -> Journal:
    """Return the journal of tombstones."""
    return Journal(find_folder(home) / "deletions.jsonl", TOMBSTONES, LATE)


def request_deletion(
    home: Home,
    request: DeletionRequest,
    *,
    hash_training_set: HashTrainingSet,
    stores: Sequence[Forget] = (),
) -> dict[str, Any]:
    """Write a tombstone and return it with what it reaches: traces, adapters, kept answers, rows.

    Kept answers and vectors, the rows of later stages that grew from the traces, and what decisions
    quote of them are gone at once; segments, hours and tables of traces follow with the next
    compaction. Weights cannot forget: the adapters are named, for training without the rows.

    Args:
        home: whose traces.
        request: what has to be gone.
        hash_training_set: how an adapter's papers name what it was trained on.
        stores: each removes what it keeps of the descendants and returns how many entries.

    Raises:
        InvalidInputError: the kind is unknown or takes no key, nothing was ever stored under that
            name, or several keys have a conversation of that name.
    """
    tombstone = _write_tombstone(home, request)
    journal = open_deletions(home)
    earlier = journal.read().filter(_is_same(tombstone))
    descendants, named = _find_reach(home, tombstone, earlier)
    if not named and request.kind == "trace":
        raise _refuse_unknown(request.value)
    tainted = find_adapters(home, descendants, hash_training_set)
    whole = tombstone | {"trace_ids": sorted(named)} | _mark_adapters(tainted, earlier)
    journal.append(whole | {name: sorted(getattr(descendants, name)) for name in UNFINISHED})
    kept = sum(forget(descendants) for forget in stores)
    purged = purge_descendants(home, descendants)
    open_decisions(home).rewrite(lambda line: forget_quotes(line, trace_ids=named))
    journal.rewrite(lambda line: _finish(line, whole))
    return whole | {"kept_count": kept, "rows_by_table": purged}


def find_remains(home: Home) -> Mapping[str, int]:
    """Return where deleted traces and what grew from them are still stored; empty once all is gone.

    Counted are hours, the tables of traces, the rows of later stages, records that segments still
    hold though the hours do not, and damaged hours that were moved aside: whole files, as nobody
    can say what is in them.
    """
    tombstones = open_deletions(home).read()
    if tombstones.is_empty():
        return {}
    remains = {"hours": find_deleted(list_hours(find_folder(home)), tombstones).height}
    for path in sorted((home.lake / "traces").glob("*.parquet")):
        schema = pl.read_parquet_schema(path)
        texts = [name for name in ("question", "answer", "comment") if name in schema]
        if "trace_id" in schema and texts:
            rows = pl.scan_parquet(path, hive_partitioning=False).filter(
                match_deleted(tombstones, list(schema))
                & pl.any_horizontal(pl.col(texts).is_not_null())
            )
            remains[f"traces/{path.stem}"] = int(rows.select(pl.len()).collect().item())
    sealed = {path.name: path for path in home.traces.glob(f"*{SEALED_SUFFIX}")}
    remains["traces/segments"] = count_unblanked(find_folder(home), sealed)
    remains["traces/quarantine"] = len(find_set_aside(find_folder(home)))
    remains |= count_descendants(home, find_descendants(home, _read_found(tombstones)))
    return {place: count for place, count in remains.items() if count}


def find_unfinished(home: Home) -> list[str]:
    """Return the commands that make interrupted requests again, safe to paste into a shell."""
    waiting = open_deletions(home).read().filter(pl.col("texts").is_not_null())
    return [_write_command(row) for row in waiting.iter_rows(named=True)]


def _write_command(row: Mapping[str, Any]) -> str:
    """Return the command of a tombstone, whose value a client chose: it may look like an option."""
    key = ("--key", row["key_id"] or "") if row["kind"] == "conversation" else ()
    told = ("--reviewer", row["requested_by"], "--reason", row["reason"], *key)
    return shlex.join(("understudy", "curate", "forget", *told, "--", row["kind"], row["value"]))


def _refuse_unknown(trace_id: str) -> InvalidInputError:
    return InvalidInputError(
        f"forgetting the trace {trace_id!r}",
        expected=f"a stored trace or a decision with this {COLUMN_OF_KIND['trace']}",
        found="none",
        next_step="take the id from the answer's trace_id; an open segment is compacted once "
        "it is sealed",
    )


def _write_tombstone(home: Home, request: DeletionRequest) -> dict[str, Any]:
    """Return the tombstone of a request, nothing named in it yet."""
    if request.kind not in KINDS:
        raise InvalidInputError(
            "reading what to forget",
            expected=f"one of {', '.join(KINDS)}",
            found=repr(request.kind),
            next_step="name a trace, a conversation or a key",
        )
    is_conversation = request.kind == "conversation"
    if request.key_id is not None and not is_conversation:
        raise InvalidInputError(
            f"forgetting the {request.kind} {request.value!r}",
            expected="no key beside it: a key says whose conversation is meant",
            found=f"the key {request.key_id!r}",
            next_step="leave --key out; to forget all that a key asked, name the kind key",
        )
    key_id = _resolve_key(home, request) if is_conversation else None
    return {
        "deletion_id": content_hash(
            request.kind, request.value, key_id, request.requested_at.isoformat()
        ),
        "kind": request.kind,
        "value": request.value,
        "key_id": key_id,
        "reason": request.reason,
        "requested_by": request.requested_by,
        "requested_at": request.requested_at,
        "trace_ids": [],
        "adapters": [],
        "doubtful_adapters": [],
    }


def _resolve_key(home: Home, request: DeletionRequest) -> str | None:
    """Return whose conversation is meant: clients choose the ids, so two keys may share one."""
    is_named = pl.col("conversation_id") == request.value
    asked = scan_hours(list_hours(find_folder(home))).filter(is_named).select("key_id").collect()
    decided = open_decisions(home).read().filter(is_named)
    before = (
        open_deletions(home)
        .read()
        .filter((pl.col("kind") == "conversation") & (pl.col("value") == request.value))
    )
    found = {key or "" for frame in (asked, decided, before) for key in frame["key_id"]}
    if request.key_id is None and len(found) == 1:
        return found.pop() or None
    if request.key_id is not None and (request.key_id in found or not found):
        return request.key_id or None
    told = ", ".join(repr(key) for key in sorted(found)) or "none"
    raise InvalidInputError(
        f"forgetting the conversation {request.value!r}",
        expected="the API key that it was asked with, since clients choose the ids of their "
        "conversations",
        found=f"conversations of that id under the keys {told} ('' stands for no key), and "
        f"{'none' if request.key_id is None else repr(request.key_id)} named",
        next_step="name one of them with --key",
    )


def _find_reach(
    home: Home, tombstone: Mapping[str, Any], earlier: pl.DataFrame
) -> tuple[Descendants, frozenset[str]]:
    """Return what grew from the traces that are meant; and these, with planted errors made of them.

    Nothing grows from a planted error, and its question may be another person's; but a decision
    about one quotes the question of the trace that it was made of.
    """
    known = _read_found(earlier)
    plants = open_plants(find_folder(home)).read()
    traces = (known.trace_ids | _find_traces(home, tombstone)) - {*plants["trace_id"]}
    made_of = pl.any_horizontal(pl.col("question_trace_id", "answer_trace_id").is_in(traces))
    descendants = find_descendants(home, replace(known, trace_ids=traces))
    return descendants, traces | {*plants.filter(made_of)["trace_id"]}


def _mark_adapters(tainted: TaintedAdapters, earlier: pl.DataFrame) -> dict[str, list[str]]:
    """Return the adapters to name: an interrupted request may have changed what told of them."""
    doubted = _collect(earlier, "doubtful_adapters")
    learned = tainted.learned | (_collect(earlier, "adapters") - doubted)
    doubtful = (tainted.doubtful | doubted) - learned
    return {"adapters": sorted(learned | doubtful), "doubtful_adapters": sorted(doubtful)}


def _find_traces(home: Home, tombstone: Mapping[str, Any]) -> frozenset[str]:
    frame = pl.DataFrame([tombstone], schema=tables.DELETIONS)
    stored = find_deleted(list_hours(find_folder(home)), frame)["trace_id"]
    decisions = open_decisions(home).read()
    quoted = decisions.filter(match_deleted(frame, decisions.columns))["trace_id"]
    return frozenset({*stored, *quoted} - {None})


def _is_same(tombstone: Mapping[str, Any]) -> pl.Expr:
    named = ("kind", "value", "key_id")
    return pl.all_horizontal(
        pl.col(name).eq_missing(pl.lit(tombstone[name], pl.String)) for name in named
    )


def _read_found(tombstones: pl.DataFrame) -> Descendants:
    """Return the traces that tombstones name, and what unfinished ones had found."""
    return Descendants(**{name: _collect(tombstones, name) for name in FOUND})


def _collect(tombstones: pl.DataFrame, column: str) -> frozenset[str]:
    return frozenset(tombstones[column].explode().drop_nulls())


def _finish(line: dict[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    is_same = all(line.get(name) == whole[name] for name in ("kind", "value", "key_id"))
    return line | dict.fromkeys(UNFINISHED) if is_same else line
