"""Curation decisions: what one holds, and how one is made about a stored trace.

A decision keeps what stood in the trace when it was made, so what it admits never depends on which
traces came since. Belongs here: the vocabulary and the making. Does not belong here: which
decisions admit a row to training (`admission`), asking a person (`orchestration/curate_cli`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from assets import tables
from assets.traces.escalating import CONTRACT, find_escalations
from assets.traces.hours import find_folder, list_hours
from assets.traces.journal import Journal
from assets.traces.planting import scan_reviewed
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.home import Home

RUBRIC_VERSION = "1"
Verdict = Literal["accepted", "rejected"]
ReviewerKind = Literal["human", "automation"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
REVIEWER_KINDS: tuple[ReviewerKind, ...] = get_args(ReviewerKind)
REASON_CODES: Mapping[Verdict, tuple[str, ...]] = {
    "accepted": ("recurring", "new_topic", "weak_spot", "wording"),
    "rejected": ("unclear", "off_topic", "personal", "injection", "duplicate", "wrong_answer"),
}
ANSWER_ALONE = "wrong_answer"
"""The reason that says nothing about the question: another answer to it is another matter."""
QUOTED = (
    "question", "question_hash", "env", "key_id", "conversation_id", "asked_at", "trainable",
    "escalation_requested", "is_injection",
)  # fmt: skip
"""What a decision keeps of its trace."""


@dataclass(frozen=True, kw_only=True)
class Reviewer:
    """Who decides, and whether a person did."""

    name: str
    kind: ReviewerKind


def open_decisions(home: Home) -> Journal:
    """Return the journal of decisions."""
    path = find_folder(home) / "curation_decisions.jsonl"
    return Journal(path, tables.CURATION_DECISIONS)


def find_trace(folder: Path, trace_id: str) -> dict[str, Any]:
    """Return the stored record of a trace, or a planted error; a shadow is not its parent's.

    Raises:
        InvalidInputError: no such trace is stored.
    """
    rows = (
        scan_reviewed(folder)
        .filter((pl.col("trace_id") == trace_id) & is_asked())
        .head(1)
        .collect()
    )
    if rows.is_empty():
        raise InvalidInputError(
            f"looking up the trace {trace_id!r}",
            expected="a trace that was compacted into the hours",
            found=f"none in {len(list_hours(folder))} hours under {folder}",
            next_step="see `understudy curate list`; a segment that is still open is compacted "
            "once its server seals it (after 300 s, or when it stops)",
        )
    return rows.row(0, named=True)


def is_asked() -> pl.Expr:
    """Return the predicate of records that answer a user, and not a shadow of one."""
    return pl.col("selection_mode").ne_missing("shadow")


def decide_trace(
    trace: Mapping[str, Any],
    *,
    verdict: str,
    reason_code: str,
    reviewer: Reviewer,
    shown_at: datetime | None,
    decided_at: datetime,
    escalation_id: str | None = None,
    reserved: str = "",
) -> dict[str, Any]:
    """Return a line for the journal: a decision about a trace, which may close an escalation.

    Args:
        trace: the stored trace, of which the line keeps what `QUOTED` names.
        verdict: of `VERDICTS`.
        reason_code: of `REASON_CODES`.
        reviewer: who decides.
        shown_at: when the trace was shown to a person.
        decided_at: when that was over.
        escalation_id: the open escalation that the decision closes.
        reserved: why else the decision is a person's, as `find_reservation` says.

    Raises:
        InvalidInputError: a word is none of the rubric's, the reviewer has no name, or the decision
            is one that the contract lets only people take.
    """
    _refuse_words(verdict, reason_code, reviewer)
    matter = f"closing the escalation {escalation_id}" if escalation_id else reserved
    if matter and reviewer.kind not in CONTRACT.may_close:
        raise InvalidInputError(
            matter,
            expected=f"a reviewer of the kind {' or '.join(CONTRACT.may_close)} "
            f"(contract {CONTRACT.version})",
            found=reviewer.kind,
            next_step="let a person decide: `understudy curate decide` without --automation",
        )
    quoted = {name: trace[name] for name in QUOTED}
    return {
        "decision_id": content_hash(trace["trace_id"], reviewer.name, decided_at.isoformat()),
        "trace_id": trace["trace_id"],
        "decision": verdict,
        "reviewer": reviewer.name.strip(),
        "reviewer_kind": reviewer.kind,
        "reason_code": reason_code,
        "rubric_version": RUBRIC_VERSION,
        "shown_at": shown_at,
        "decided_at": decided_at,
        "escalation_id": escalation_id,
        "contract_version": CONTRACT.version if escalation_id else None,
        **quoted,
    }


def find_open_escalation(folder: Path, decisions: pl.DataFrame, trace_id: str) -> str | None:
    """Return the id of the trace's open escalation, if it has one."""
    rows = find_escalations(scan_reviewed(folder), decisions)
    rows = rows.filter((pl.col("trace_id") == trace_id) & pl.col("closed_at").is_null())
    return None if rows.is_empty() else str(rows["escalation_id"][0])


def find_reservation(folder: Path, decisions: pl.DataFrame, trace_id: str) -> str:
    """Return why only a person may decide about a trace; empty: anybody may.

    What was ever escalated, or decided by a person, is not decided anew by automation.
    """
    queue = find_escalations(scan_reviewed(folder), decisions).filter(trace_id=trace_id)
    if not queue.is_empty():
        return f"deciding about the escalation {queue['escalation_id'][0]}"
    people = decisions.filter(trace_id=trace_id, reviewer_kind="human")
    if not people.is_empty():
        return f"deciding about {trace_id} after {people['reviewer'][-1]}"
    return ""


def forget_quotes(row: dict[str, Any], *, trace_ids: frozenset[str]) -> dict[str, Any]:
    """Return a journal line without what it quotes of a deleted trace; who decided stays."""
    if row["trace_id"] not in trace_ids:
        return row
    return row | {"question": None, "question_hash": None, "conversation_id": None}


def _refuse_words(verdict: str, reason_code: str, reviewer: Reviewer) -> None:
    legal = {str(name): words for name, words in REASON_CODES.items()}
    for name, found, expected in (
        ("the decision", verdict, VERDICTS),
        ("the kind of reviewer", reviewer.kind, REVIEWER_KINDS),
        (f"the reason of a decision {verdict!r}", reason_code, legal.get(verdict, ())),
    ):
        if found not in expected:
            raise InvalidInputError(
                f"reading {name}",
                expected=f"one of {', '.join(expected)} (rubric {RUBRIC_VERSION})",
                found=repr(found),
                next_step="choose a word of the rubric",
            )
    if not reviewer.name.strip():
        raise InvalidInputError(
            "reading the reviewer",
            expected="a name",
            found="none",
            next_step="say who decides with --reviewer",
        )
