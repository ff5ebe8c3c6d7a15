"""Which adapters may have learned from deleted traces: weights cannot forget, so they are named.

Belongs here: telling by an adapter's own papers, by the training set they name, and by its date.
Does not belong here: what grew from a trace (`forgetting`), training without it (`students`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from assets.traces.deciding import open_decisions
from assets.traces.forgetting import Descendants, count_rows
from serving.home import Home

HashTrainingSet = Callable[[pl.DataFrame], str]
"""Returns what a provenance calls `data_hash` of the training set."""


@dataclass(frozen=True, kw_only=True)
class TaintedAdapters:
    """What has to be trained again: what has learned from deleted rows, and what may have."""

    learned: frozenset[str]
    doubtful: frozenset[str]


def find_adapters(
    home: Home, descendants: Descendants, hash_training_set: HashTrainingSet
) -> TaintedAdapters:
    """Return the adapters that must be trained again without these rows.

    An adapter whose own files quote a deleted text has learned from it; else the examples decide
    that its papers name, or the training set whose hash they name. Where that set is no longer at
    hand, an adapter is in doubt unless it is older than the first acceptance of a deleted question.
    """
    sets = {
        hash_training_set(pl.read_parquet(path)): count_rows(
            path, pl.col("example_id").is_in(descendants.example_ids)
        )
        for path in sorted((home.lake / "students" / "training_set").glob("*.parquet"))
    }
    quotes = [json.dumps(text, ensure_ascii=False)[1:-1].encode() for text in descendants.quotes]
    accepted = _find_acceptance(home, descendants)
    learned, doubtful = set(), set()
    for path in home.adapters.glob("*/provenance.json"):
        told: Mapping[str, Any] = json.loads(path.read_bytes())
        has_learned = _has_learned(told, sets, descendants)
        if has_learned or _is_quoted(path.parent, quotes):
            learned.add(path.parent.name)
        elif has_learned is None and _is_since(told.get("trained_at"), accepted):
            doubtful.add(path.parent.name)
    return TaintedAdapters(learned=frozenset(learned), doubtful=frozenset(doubtful))


def find_published(home: Home) -> list[str]:
    """Return the adapters of the release that CURRENT points at; none without a release."""
    pointer = home.releases / "CURRENT"
    if not pointer.is_file():
        return []
    release = home.releases / str(json.loads(pointer.read_bytes())["release_id"])
    students = json.loads((release / "manifest.json").read_bytes())["students"]
    return sorted(str(entry["adapter"]) for entry in students.values())


def _has_learned(
    told: Mapping[str, Any], sets: Mapping[str, int], descendants: Descendants
) -> bool | None:
    """Return whether deleted rows were among what made an adapter; None: nobody can tell."""
    if "example_ids" in told:  # a prompt names what it shows
        return not descendants.example_ids.isdisjoint(told["example_ids"])
    count = sets.get(told.get("data_hash", ""))
    return None if count is None else count > 0


def _find_acceptance(home: Home, descendants: Descendants) -> datetime | None:
    """Return when the first of the deleted questions was accepted; None: none ever was.

    What grew without a decision of this home's journal may have been there from the beginning.
    """
    decisions = open_decisions(home).read().filter(pl.col("decision") == "accepted")
    named = decisions.filter(pl.col("trace_id").is_in(descendants.trace_ids))
    first = named["decided_at"].min()
    if isinstance(first, datetime):
        return first
    return datetime.min.replace(tzinfo=UTC) if descendants.question_ids else None


def _is_since(trained_at: str | None, accepted: datetime | None) -> bool:
    if accepted is None:
        return False
    return not trained_at or datetime.fromisoformat(trained_at) >= accepted


def _is_quoted(folder: Path, quotes: Sequence[bytes]) -> bool:
    texts = (path.read_bytes() for path in folder.iterdir() if path.suffix in {".json", ".yaml"})
    return any(quote in text for text in texts for quote in quotes)
