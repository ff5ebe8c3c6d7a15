"""Seed assets: the hand-written questions, as a table.

Belongs here: declarations. Does not belong here: reading the file (`resources/input_files`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

import dagster as dg
import polars as pl

from assets import keys, tables


class Seed(Protocol):
    """One hand-written question."""

    question_id: str
    text: str
    tags: tuple[str, ...]


class Seeds(Protocol):
    """The seed file."""

    def fingerprint(self) -> str:
        """Return the identity of the file."""
        ...

    def read(self) -> Sequence[Seed]:
        """Return the questions in file order."""
        ...


@dg.observable_source_asset(key=keys.SEED_FILE)
def seed_file(seeds: dg.ResourceParam[Seeds]) -> dg.DataVersion:
    """The hand-written seed file; its version is the hash of its bytes."""
    return dg.DataVersion(seeds.fingerprint())


@dg.asset(
    key=keys.SEED_QUESTIONS, deps=[keys.SEED_FILE], kinds={"jsonl", "polars"}, code_version="1"
)
def seed_questions(seeds: dg.ResourceParam[Seeds]) -> dg.MaterializeResult[pl.DataFrame]:
    """The questions everything that trains grows from, as users would type them."""
    now = datetime.now(UTC)
    rows = [
        {
            "question_id": seed.question_id,
            "text": " ".join(seed.text.split()),
            "source": "handwritten",
            "source_trace_id": None,
            "tags": list(seed.tags),
            "added_at": now,
        }
        for seed in seeds.read()
    ]
    frame = pl.DataFrame(rows, schema=tables.SEED_QUESTIONS)
    topics = frame["tags"].list.first().value_counts(sort=True).head(20)
    return dg.MaterializeResult(
        value=frame,
        metadata={"seed_count": frame.height, "seeds_by_topic": dict(topics.iter_rows())},
    )
