"""Pairs: what student and teacher answered to the same real question, and by which pipeline.

Alike means what confidence was calibrated for: a valid student answer with the teacher's decision
to refuse and, where both answer, its citations. Belongs here: pairing traces, whose conversation
one is of. Does not belong here: which pairs are evidence of whom, bounds (`shadow`).
"""

from typing import Any

import polars as pl

from assets.students.agreement import compare_row

COMPARED = (
    "served_by", "attempts", "refused", "citations", "answer", "model", "index_fingerprint",
    "prompt_version",
)  # fmt: skip
"""What is read of both sides of a pair."""
ASKED = ("trace_id", "asked_at", "question", "question_hash")

PAIRS = pl.Schema(
    {
        "trace_id": pl.String(),
        "asked_at": pl.Datetime("us", "UTC"),
        "question": pl.String(),
        "question_hash": pl.String(),
        "conversation": pl.String(),
        "student": pl.String(),
        "asked": pl.List(pl.String()),
        "teacher": pl.String(),
        "indexes": pl.List(pl.String()),
        "prompts": pl.List(pl.String()),
        "agrees": pl.Boolean(),
    }
)


def name_conversation() -> pl.Expr:
    """Return whose conversation a trace is of; one of none is its own.

    Clients choose the ids, so that those of two keys may be equal.
    """
    own = pl.concat_str(pl.col("key_id").fill_null(""), "conversation_id", separator="/")
    return pl.coalesce(own, "trace_id").alias("conversation")


def pair_answers(asks: pl.DataFrame, shadows: pl.DataFrame) -> pl.DataFrame:
    """Return one row per question that both models answered, oldest first.

    Models, indexes and prompt versions are those of the two traces, which a release in between sets
    apart; `asked` are the students it was put to, in turn. A question that the same role answered
    twice (a fallback in between) is no pair.
    """
    joined = asks.select(*ASKED, name_conversation(), *COMPARED).join(
        shadows.select("parent_trace_id", *COMPARED),
        left_on="trace_id",
        right_on="parent_trace_id",
        suffix="_shadow",
    )
    rows = []
    for row in joined.sort("asked_at").iter_rows(named=True):
        sides = {row["served_by"]: "", row["served_by_shadow"]: "_shadow"}
        if set(sides) == {"student", "teacher"}:
            rows.append(_compare(row, student=sides["student"], teacher=sides["teacher"]))
    return pl.DataFrame(rows, schema=PAIRS)


def _compare(row: dict[str, Any], *, student: str, teacher: str) -> dict[str, Any]:
    attempts = row[f"attempts{student}"] or []
    compared = compare_row(
        {
            "verdict": attempts[-1]["verdict"] if attempts else None,
            "refused": bool(row[f"refused{student}"]),
            "label_refused": bool(row[f"refused{teacher}"]),
            "citations": row[f"citations{student}"] or [],
            "label_citations": row[f"citations{teacher}"] or [],
            "answer": row[f"answer{student}"] or "",
            "label_answer": row[f"answer{teacher}"] or "",
        }
    )
    return {
        "trace_id": row["trace_id"],
        "asked_at": row["asked_at"],
        "question": row["question"],
        "question_hash": row["question_hash"],
        "conversation": row["conversation"],
        "student": row[f"model{student}"],
        "asked": [one["model"] for one in attempts if one["role"] == "student"],
        "teacher": row[f"model{teacher}"],
        "indexes": [row["index_fingerprint"], row["index_fingerprint_shadow"]],
        "prompts": [row["prompt_version"], row["prompt_version_shadow"]],
        "agrees": compared["agrees"],
    }
