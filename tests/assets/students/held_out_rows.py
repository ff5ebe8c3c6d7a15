"""Rows of held_out_answers made by hand: a student whose signals say how often it is right."""

import math
from typing import Any

import numpy as np
import polars as pl

from assets import tables
from serving.pipeline.confidence import find_logit

SHA = "a" * 64


def make_row(number: int, **changes: Any) -> dict[str, Any]:
    """A valid answer with the label's citation, unless `changes` say otherwise."""
    return {
        "arm": "student", "example_id": f"e{number:04d}", "seed_id": f"s{number:04d}",
        "split": "validation", "question": f"How {number}?", "is_out_of_scope": False,
        "label_answer": "It is red. [docs:a/1]", "label_citations": ["docs:a/1"],
        "label_refused": False, "raw": "It is red. [1]", "answer": "It is red. [docs:a/1]",
        "citations": ["docs:a/1"], "refused": False, "verdict": "valid", "retrieved": [],
        "model": "m", "adapter_sha256": SHA, "engine": "local", "dtype": "float32",
        "is_routed_to_student": True,
    } | changes  # fmt: skip


REFUSES = {"raw": "REFUSE", "answer": "", "citations": [], "refused": True}
SHOULD_REFUSE = {"label_refused": True, "label_citations": [], "label_answer": "I could not"}
WRONG = {"citations": ["docs:b/1"], "answer": "It is blue. [docs:b/1]"}


def make_answers(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=tables.HELD_OUT_ANSWERS)


def draw_answers(
    count: int, *, split: str, seed: int, sharpness: float = 1.0, per_seed: int = 1
) -> list[dict[str, Any]]:
    """Answers that are right with the probability that their raw logit times `sharpness` says."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        logprob = math.log(generator.uniform(0.2, 0.995))
        logit = find_logit(logprob)
        is_right = generator.random() < 1 / (1 + math.exp(-sharpness * logit))
        rows.append(
            make_row(
                number,
                **({} if is_right else WRONG),
                split=split,
                example_id=f"{split}{number:04d}",
                seed_id=f"{split}-s{number // per_seed:04d}",
                mean_logprob=logprob,
                raw_logit=logit,
                citation_logprob=-generator.random(),
                first_margin=generator.random(),
                mean_margin=generator.random(),
                retrieval_score=generator.random(),
                retrieval_margin=generator.random() / 10,
                is_refusal=0.0,
            )
        )
    return rows
