"""Planted errors: obviously wrong answers in the review queue, which measure who reviews.

A planted error is a real question under the stored answer to one about other pages. It looks like
every other escalation, is told by the journal alone, and may never be trained on. Belongs here:
choosing, showing and auditing them. Does not belong here: the queue (`escalating`), decisions
(`deciding`).
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from assets import tables
from assets.traces.escalating import HIGH_STAKES
from assets.traces.hours import list_hours, scan_hours
from assets.traces.journal import Journal
from serving.errors import InvalidInputError
from serving.hashing import content_hash

LEAST_CAUGHT_RATIO = 0.90  # of the planted errors that were decided about; fewer: alarm
PLANTS = pl.Schema(
    {
        "trace_id": pl.String(),
        "question_trace_id": pl.String(),
        "answer_trace_id": pl.String(),
        "planted_at": pl.Datetime("us", "UTC"),
    }
)
SHOWN_OF_ANSWER = ("answer", "citations", "refused", "attempts")


@dataclass(frozen=True, kw_only=True)
class PlantAudit:
    """What reviewers said of planted errors, by their first decision."""

    planted_count: int
    decided_count: int
    missed: tuple[str, ...]

    @property
    def caught_ratio(self) -> float | None:
        """The share that was rejected; None before any was decided about."""
        if not self.decided_count:
            return None
        return 1 - len(self.missed) / self.decided_count

    @property
    def is_watchful(self) -> bool:
        """False where too many were let through."""
        return self.caught_ratio is None or self.caught_ratio >= LEAST_CAUGHT_RATIO


def open_plants(folder: Path) -> Journal:
    """Return the journal of planted errors, beside the hours."""
    return Journal(folder / "planted_errors.jsonl", PLANTS)


def plant_errors(folder: Path, count: int, *, planted_at: datetime) -> list[dict[str, Any]]:
    """Add planted errors to the queue and return their lines.

    Raises:
        InvalidInputError: fewer pairs of answered questions share no page.
    """
    journal = open_plants(folder)
    known = journal.read()
    chosen = choose_pairs(scan_hours(list_hours(folder)), known, count)
    if len(chosen) < count:
        raise InvalidInputError(
            f"planting {count} errors",
            expected="as many answered production questions, and answers about other pages",
            found=str(len(chosen)),
            next_step="plant fewer, or wait for more traffic",
        )
    lines = [
        {
            "trace_id": _name_plant(question, answer),
            "question_trace_id": question,
            "answer_trace_id": answer,
            "planted_at": planted_at,
        }
        for question, answer in chosen
    ]
    for line in lines:
        journal.append(line)
    return lines


def choose_pairs(
    records: pl.LazyFrame, known: pl.DataFrame, count: int, *, seed: int = 0
) -> list[tuple[str, str]]:
    """Return pairs of traces: a question, and an answer to one that retrieved none of its pages."""
    page = pl.element().struct.field("chunk_id").str.replace(r"/\d+$", "")
    rows = (
        records.filter(
            (pl.col("env") == "prod")
            & (pl.col("outcome") == "answered")
            & ~pl.col("refused").fill_null(value=True)
            & pl.col("route_reason").ne_missing(HIGH_STAKES)  # it waits in the queue itself
            & pl.col("selection_mode").ne_missing("shadow")
            & ~pl.col("trace_id").is_in(known["question_trace_id"].to_list())
        )
        .select("trace_id", pl.col("retrieved").list.eval(page).alias("pages"))
        .sort("trace_id")
        .collect()
    )
    ids, pages = rows["trace_id"].to_list(), [{*row} for row in rows["pages"].to_list()]
    order = np.random.default_rng([seed, known.height]).permutation(len(ids)).tolist()
    pairs = []
    for question in order:
        others = (other for other in reversed(order) if pages[other].isdisjoint(pages[question]))
        answer = next(others, None)
        if answer is not None and pages[question] and pages[answer]:
            pairs.append((ids[question], ids[answer]))
        if len(pairs) == count:
            break
    return pairs


def scan_reviewed(folder: Path) -> pl.LazyFrame:
    """Scan what reviewers see: every stored trace, and the planted errors whose traces are left."""
    stored = scan_hours(list_hours(folder))
    plants = open_plants(folder).read()
    return stored if plants.is_empty() else pl.concat([stored, _show_plants(stored, plants)])


def audit_plants(plants: pl.DataFrame, decisions: pl.DataFrame) -> PlantAudit:
    """Return how many planted errors reviewers caught: their first decision rejects it."""
    first = (
        decisions.filter(pl.col("trace_id").is_in(plants["trace_id"].to_list()))
        .sort("decided_at")
        .unique("trace_id", keep="first", maintain_order=True)
    )
    missed = first.filter(pl.col("decision") != "rejected")["trace_id"].sort()
    return PlantAudit(
        planted_count=plants.height, decided_count=first.height, missed=tuple(missed.to_list())
    )


def _show_plants(stored: pl.LazyFrame, plants: pl.DataFrame) -> pl.LazyFrame:
    """Return planted errors as stored traces that the router escalated and nobody may train on."""
    asked = stored.filter(pl.col("selection_mode").ne_missing("shadow"))
    answers = asked.select(pl.col("trace_id").alias("answer_trace_id"), *SHOWN_OF_ANSWER)
    named = plants.lazy().rename({"trace_id": "planted_id"}).drop("planted_at")
    return (
        asked.drop(SHOWN_OF_ANSWER)
        .join(named, left_on="trace_id", right_on="question_trace_id")
        .join(answers, on="answer_trace_id")
        .with_columns(
            pl.col("planted_id").alias("trace_id"),
            pl.lit(HIGH_STAKES).alias("route_reason"),
            pl.lit(value=False).alias("trainable"),
        )
        .select(tables.STORED_TRACES.names())
    )


def _name_plant(question: str, answer: str) -> str:
    """Return an id like that of a trace asked in the same moment."""
    digits = content_hash("planted", question, answer, digits=15)
    return f"{question[:20]}{digits[:3]}-{digits[3:]}"
