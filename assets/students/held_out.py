"""Held-out answers: validation and calibration questions asked of a student, as production asks it.

Never the golden set: what is chosen or fitted must not be chosen or fitted on it. Belongs here:
which questions are drawn, the baselines, the shape of the rows. Does not belong here: how a
question is answered (`serving/pipeline/answer`), what the answers are worth (`agreement`,
`calibration`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets.labels.answering import tabulate_hits
from serving.aio import map_bounded
from serving.errors import BudgetExceededError, InvalidInputError, ModelError
from serving.hashing import content_hash
from serving.models.protocols import Hit, Progress
from serving.pipeline.answer import Answered, AnswerPipeline
from serving.pipeline.confidence import SIGNALS, read_signals
from serving.pipeline.prompt import DraftAnswer, PromptFormat, read_answer
from serving.pipeline.router import choose_route, has_high_stakes
from serving.pipeline.sentences import split_units
from serving.pipeline.statements import content_words
from serving.pipeline.validator import ValidatorPolicy, validate

STUDENT, BASE, TOP_CHUNK = "student", "base", "top1"
ARMS = (STUDENT, BASE, TOP_CHUNK)
"""`base` is the student's base model without its adapter; `top1` quotes the best chunk, unasked."""

OUT_OF_SCOPE_TAG = "out_of_scope"
CONCURRENCY = 16  # requests in flight; an in-process student batches them


@dataclass(frozen=True, kw_only=True)
class HeldOutPlan:
    """How many cases are asked. A two-core machine answers one in about a second.

    Attributes:
        validation_cases: what a recipe is judged by.
        calibration_cases: what its confidence is fitted and certified on.
        base_cases: validation cases asked of the base model too; it talks to its limit each time,
            and 0 leaves it out.
    """

    validation_cases: int = 60
    calibration_cases: int = 60
    base_cases: int = 20


@dataclass(frozen=True, kw_only=True)
class HeldOutCase:
    """A held-out question with the teacher's label."""

    example_id: str
    seed_id: str
    question: str
    split: str
    is_out_of_scope: bool
    label_answer: str
    label_citations: tuple[str, ...]
    label_refused: bool


def draw_cases(
    labelled_examples: pl.DataFrame,
    teacher_answers: pl.DataFrame,
    seed_questions: pl.DataFrame,
    plan: HeldOutPlan,
    *,
    searched: Collection[str] = (),
) -> list[HeldOutCase]:
    """Return the cases of the plan: one of each seed, by hash, then the second of each, and so on.

    Questions of one seed resemble each other, so cases of many seeds say more. A case is out of
    scope by its seed's tag; in a product whose seeds have no such tag, by the teacher's refusal.

    Args:
        labelled_examples: all splits.
        teacher_answers: what the labels say.
        seed_questions: with their tags.
        plan: how many cases of each split.
        searched: example ids that a search chose the student by: left out with whatever else is of
            their seeds, which asks the same in other words.

    Raises:
        InvalidInputError: the search left no validation case.
    """
    unseen = leave_out_searched(labelled_examples, searched)
    answers = {
        row["question_id"]: row
        for row in teacher_answers.select(
            "question_id", "answer", "citations", "refused"
        ).iter_rows(named=True)
    }
    tagged = set(
        seed_questions.filter(pl.col("tags").list.contains(OUT_OF_SCOPE_TAG))["question_id"]
    )
    wanted = {"validation": plan.validation_cases, "calibration": plan.calibration_cases}
    cases = []
    for split, count in wanted.items():
        rows = unseen.filter(pl.col("split") == split).to_dicts()
        for row in spread_over_seeds(rows)[:count]:
            label = answers[row["question_id"]]
            is_tagged = row["seed_id"] in tagged if tagged else label["refused"]
            cases.append(
                HeldOutCase(
                    example_id=row["example_id"],
                    seed_id=row["seed_id"],
                    question=row["question"],
                    split=split,
                    is_out_of_scope=is_tagged,
                    label_answer=label["answer"],
                    label_citations=tuple(label["citations"]),
                    label_refused=label["refused"],
                )
            )
    return cases


def leave_out_searched(examples: pl.DataFrame, searched: Collection[str]) -> pl.DataFrame:
    """Return the examples of seeds that a search asked nothing of.

    Raises:
        InvalidInputError: the search left no validation case.
    """
    seeds = examples.filter(pl.col("example_id").is_in(list(searched)))["seed_id"].unique()
    left = examples.filter(~pl.col("seed_id").is_in(seeds.to_list()))
    if not seeds.is_empty() and left.filter(split="validation").is_empty():
        raise InvalidInputError(
            "drawing held-out cases for a searched prompt",
            expected="validation cases of seeds that the search did not ask",
            found=f"none: it asked of all {len(seeds)} seeds of the split",
            next_step="lower `calls` in the recipe, or add seeds: about 15 % of them validate",
        )
    return left


def spread_over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order rows so that any first part of them holds as many seeds as it can."""
    ranks: dict[str, int] = {}
    placed = []
    for row in sorted(rows, key=lambda row: content_hash("held_out", row["example_id"])):
        rank = ranks[row["seed_id"]] = ranks.get(row["seed_id"], -1) + 1
        placed.append((rank, row))
    return [row for _, row in sorted(placed, key=lambda item: item[0])]  # stable: by hash in a rank


async def answer_cases(
    cases: Sequence[HeldOutCase], *, arm: str, pipeline: AnswerPipeline, progress: Progress
) -> list[dict[str, Any]]:
    """Return the held_out_answers rows of the pipeline's student, in order.

    With the arm `student`, each validation case also gives the row of `top1`, which is written from
    what was retrieved for it. A case that the student fails on has `error` and no answer.

    Raises:
        BudgetExceededError: every later case would fail alike.
    """

    async def answer(case: HeldOutCase) -> list[dict[str, Any]]:
        try:
            answered = await pipeline.answer(case.question, mode="student")
        except BudgetExceededError:
            raise
        except ModelError as error:
            return [identify(case, arm) | {"error": str(error)}]
        rows = [identify(case, arm) | tabulate_answer(answered, pipeline)]
        if arm == STUDENT and case.split == "validation":
            rows.append(identify(case, TOP_CHUNK) | tabulate_top_chunk(answered, pipeline))
        return rows

    answers = await map_bounded(
        answer, cases, concurrency=CONCURRENCY, progress=progress, description=f"held out, {arm}"
    )
    return [row for rows in answers for row in rows]


def identify(case: HeldOutCase, arm: str) -> dict[str, Any]:
    """Return the columns that say whose row it is, and what the teacher answered."""
    return {"arm": arm, **vars(case), "label_citations": list(case.label_citations)}


def tabulate_answer(answered: Answered, pipeline: AnswerPipeline) -> dict[str, Any]:
    """Return the answer columns of a student's row.

    What it wrote is read anew: to a user an invalid answer is a refusal, which the student did not
    decide. Its latency holds the wait for its batch.
    """
    completion = answered.last.completion
    if completion is None:
        raise ValueError("no completion for a question that a student was asked")
    draft = read_answer(completion.text, answered.retrieved, pipeline.prompt)
    signals = read_signals(completion, answered.retrieved, is_refusal=draft.refused)
    return tabulate_draft(draft, answered.retrieved, pipeline.validator) | {
        "raw": completion.text,
        "model": completion.model,
        "prompt_tokens_estimate": answered.prompt_tokens_estimate,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "latency_ms": completion.latency_ms,
        "mean_logprob": completion.mean_logprob,
        "is_routed_to_student": _is_routed_to_student(answered, pipeline),
        **{name: signals.get(name) for name in SIGNALS},
    }


def _is_routed_to_student(answered: Answered, pipeline: AnswerPipeline) -> bool:
    """Whether production's rules would let the student answer: its confidence is read only then."""
    route = choose_route(
        prompt_tokens=answered.prompt_tokens_estimate,
        max_score=answered.max_score,
        prefer_quality=False,
        phase="switch",
        policy=pipeline.router,
        is_high_stakes=has_high_stakes(answered.question, answered.retrieved, pipeline.router),
    )
    return route.to == "student"


def tabulate_top_chunk(answered: Answered, pipeline: AnswerPipeline) -> dict[str, Any]:
    """Return the answer columns of the baseline that cites the chunk that was ranked first."""
    raw = cite_top_chunk(answered.retrieved, pipeline.prompt)
    draft = read_answer(raw, answered.retrieved, pipeline.prompt)
    columns = tabulate_draft(draft, answered.retrieved, pipeline.validator)
    return columns | {"raw": raw, "model": TOP_CHUNK, "latency_ms": 0.0}


def cite_top_chunk(hits: Sequence[Hit], prompt: PromptFormat) -> str:
    """Return the first unit of the first hit that says anything, cited; it reads no question.

    Without such a unit nothing is said. It never refuses: which chunk is right is what it guesses.
    """
    if not hits:
        return ""
    units = [unit for unit in split_units(hits[0].text) if content_words(unit)]
    return f"{units[0]} [{prompt.label(1, hits[0])}]" if units else ""


def tabulate_draft(
    draft: DraftAnswer, hits: Sequence[Hit], validator: ValidatorPolicy
) -> dict[str, Any]:
    """Return what the pipeline makes of a text, whoever wrote it."""
    return {
        "answer": draft.text,
        "citations": [hit.chunk_id for hit in draft.cited],
        "refused": draft.refused,
        "verdict": str(validate(draft, hits, validator)),
        "retrieved": tabulate_hits(hits),
        "error": None,
    }
