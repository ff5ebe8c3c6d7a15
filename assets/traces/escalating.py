"""Escalations: answers that a person must look at, and the contract under which one is closed.

The contract is versioned and outlives whoever reads the queue: it says who may close an escalation
and what counts as having looked. Belongs here: who is escalated, and the audit of closings. Does
not belong here: making decisions (`deciding`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from assets import tables

MINIMUM_SECONDS = 3.0  # a decision faster than this was not read
HASTY_LIMIT_RATIO = 0.01  # more hasty decisions than this: alarm
CONTEST_WINDOW_MINUTES = 30  # asking again within it contests the refusal

HIGH_STAKES, FAILED_TWICE, CONTESTED = "high_stakes", "failed_twice", "contested_refusal"


@dataclass(frozen=True, kw_only=True)
class EscalationContract:
    """What whoever closes an escalation is bound by."""

    version: str
    may_close: tuple[str, ...]
    shown: tuple[str, ...]
    """The fields of the trace that are shown before a decision is taken."""


CONTRACT = EscalationContract(
    version="1",
    may_close=("human",),
    shown=("asked_at", "question", "answer", "refused", "citations", "outcome", "attempts"),
)


@dataclass(frozen=True, kw_only=True)
class HumanLoop:
    """How the queue was worked off."""

    closed_count: int
    by_automation: tuple[str, ...]
    """Escalations that automation closed, or decided about after a person had."""
    hasty: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    """Open escalations whose trace automation had accepted before it was escalated."""

    @property
    def hasty_ratio(self) -> float:
        """The share of closings that came too fast, or that nobody was shown anything for."""
        return len(self.hasty) / self.closed_count if self.closed_count else 0.0

    @property
    def is_human(self) -> bool:
        """True when nothing was closed by automation."""
        return not self.by_automation


def find_escalations(records: pl.LazyFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    """Return the review queue, oldest first: one row per trace, with its closing.

    Reasons: `high_stakes` (the router says so), `failed_twice` (two attempts or more, one of which
    failed, and the user got a problem or a refusal), `contested_refusal` (the same conversation
    asks again within 30 minutes of a refusal); the first that holds is told. Only production
    traffic is escalated.

    Args:
        records: rows of `tables.STORED_TRACES`.
        decisions: rows of `tables.CURATION_DECISIONS`; the first about an escalation closes it.
    """
    asked = records.filter(
        pl.col("selection_mode").ne_missing("shadow") & (pl.col("env") == "prod")
    ).sort("asked_at", "trace_id")
    again = pl.col("asked_at").shift(-1).over("key_id", "conversation_id") - pl.col("asked_at")
    has_failed = pl.element().struct.field("verdict").ne_missing("valid")
    reasons = {
        HIGH_STAKES: pl.col("route_reason") == HIGH_STAKES,
        FAILED_TWICE: (pl.col("attempts").list.len() >= 2)
        & pl.col("attempts").list.eval(has_failed).list.any()  # doubting a valid answer is none
        & (pl.col("refused").fill_null(value=False) | (pl.col("outcome") != "answered")),
        CONTESTED: pl.col("refused").fill_null(value=False)
        & pl.col("conversation_id").is_not_null()
        & (again <= pl.duration(minutes=CONTEST_WINDOW_MINUTES)),
    }
    opened = pl.concat(
        [
            asked.filter(condition.fill_null(value=False)).select(
                "trace_id", pl.lit(reason).alias("reason"), pl.col("asked_at").alias("opened_at")
            )
            for reason, condition in reasons.items()
        ]
    ).collect()
    identity = pl.concat_str("trace_id", "reason", separator=":")
    queue = opened.unique("trace_id", keep="first", maintain_order=True).with_columns(
        identity.alias("escalation_id"), pl.lit(CONTRACT.version).alias("contract_version")
    )
    return _close(queue, decisions)


def audit_loop(escalations: pl.DataFrame, decisions: pl.DataFrame) -> HumanLoop:
    """Return who closed what how fast, under the contract each closing names.

    A closing that names no moment at which the trace was shown counts as hasty. Closings are read
    from the decisions too, so that one about an escalation that is gone is audited all the same.
    """
    closings = decisions.filter(pl.col("escalation_id").is_not_null())
    seconds = (pl.col("decided_at") - pl.col("shown_at")).dt.total_milliseconds() / 1000
    hasty = closings.filter((seconds < MINIMUM_SECONDS).fill_null(value=True))
    automated = closings.filter(pl.col("reviewer_kind").ne_missing("human"))
    about = decisions.filter(pl.col("reviewer_kind").ne_missing("human")).join(
        escalations.select("trace_id", "closed_at", id_of_trace="escalation_id"), on="trace_id"
    )
    overridden = about.filter(pl.col("decided_at") > pl.col("closed_at"))
    unseen = about.filter(pl.col("closed_at").is_null(), decision="accepted")
    closed = escalations.filter(pl.col("closed_at").is_not_null())["escalation_id"].to_list()
    return HumanLoop(
        closed_count=len({*closed, *closings["escalation_id"].to_list()}),
        by_automation=_unique([*automated["escalation_id"], *overridden["id_of_trace"]]),
        hasty=_unique(hasty["escalation_id"]),
        unseen=_unique(unseen["id_of_trace"]),
    )


def _close(queue: pl.DataFrame, decisions: pl.DataFrame) -> pl.DataFrame:
    first = (
        decisions.filter(pl.col("escalation_id").is_not_null())
        .sort("decided_at")
        .unique("escalation_id", keep="first", maintain_order=True)
        .select(
            "escalation_id",
            "shown_at",
            pl.col("decided_at").alias("closed_at"),
            pl.col("reviewer").alias("closed_by"),
            "reviewer_kind",
            "decision",
        )
    )
    joined = queue.join(first, on="escalation_id", how="left", maintain_order="left")
    return joined.select(tables.ESCALATIONS.names()).sort("opened_at", "escalation_id")


def _unique(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(ids)))
