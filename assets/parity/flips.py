"""Paraphrase flips: how often two wordings of one question are sent different ways.

A router that flips on a comma is a lottery to the user. Belongs here: that rate, over every rule.
Does not belong here: the rules (`routes`), the curve (`router_curve`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from assets.parity.routes import choose_row_route
from assets.statistics import wilson_interval
from serving.pipeline.router import RouterPolicy

FIGURE = "paraphrase_flip_ratio"


def measure_flips(
    teacher_answers: pl.DataFrame, policy: RouterPolicy, *, count_tokens: Callable[[str], int]
) -> dict[str, Any]:
    """Return the paraphrase flip rate: seeds whose wordings the rules send both ways.

    Counted over the seeds that have at least two wordings. Whether an answer is valid or sure
    enough is no part of it: only the teacher's answers to paraphrases are known.

    Args:
        teacher_answers: of the wordings, with what was retrieved for each.
        policy: of the rules.
        count_tokens: as production counts a prompt.
    """
    wanted = ("seed_id", "question", "retrieved", "messages")
    routed = [
        {"seed_id": row["seed_id"], "is_teacher": _is_sent_to_teacher(row, policy, count_tokens)}
        for row in teacher_answers.select(wanted).iter_rows(named=True)
    ]
    schema = {"seed_id": pl.String, "is_teacher": pl.Boolean}
    to_teacher = pl.col("is_teacher")
    groups = (
        pl.DataFrame(routed, schema=schema)
        .group_by("seed_id")
        .agg(size=pl.len(), flips=to_teacher.any() & ~to_teacher.all())
        .filter(pl.col("size") > 1)
    )
    if groups.is_empty():
        return {"figure": FIGURE, "value": None, "n": 0, "method": "none"}
    interval = wilson_interval(int(groups["flips"].sum()), groups.height)
    return {"figure": FIGURE, **vars(interval), "method": "wilson"}


def _is_sent_to_teacher(
    row: Mapping[str, Any], policy: RouterPolicy, count_tokens: Callable[[str], int]
) -> bool:
    texts = [message["content"] for message in row["messages"] or ()]
    tokens = estimate_length(texts, policy.long_context_tokens, count_tokens)
    return choose_row_route({**row, "prompt_tokens_estimate": tokens}, policy).to == "teacher"


def estimate_length(texts: Sequence[str], limit: int, count_tokens: Callable[[str], int]) -> int:
    """Return the tokens of a prompt, counted only where they may pass the limit.

    A token stands for a byte at least, so a prompt of fewer bytes than the limit is not too long,
    and thousands of prompts need no tokenizer.
    """
    size = sum(len(text.encode()) for text in texts)
    return size if size <= limit else sum(map(count_tokens, texts))
