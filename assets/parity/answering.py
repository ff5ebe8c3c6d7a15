"""Asking the arms: every golden case put to every arm that a model has to answer.

Belongs here: the order of asking, and the shape of the rows. Does not belong here: which arms exist
(`arms`), arms that are derived from others' answers (`deriving`), grading (`graders`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from assets.labels.answering import read_index, tabulate_hits
from assets.parity.arms import BY_NAME, SMALLER, ArmPlan
from assets.parity.baselines import StudentShelf, open_untrained
from assets.parity.tiers import TierStudent, assemble_tiers
from serving.aio import map_bounded, run_blocking
from serving.errors import BudgetExceededError, ModelError
from serving.models.protocols import ChatModel, Progress
from serving.pipeline.answer import Answered, AnswerPipeline
from serving.pipeline.assembly import PipelineParts
from serving.pipeline.tiers import Tier

CONCURRENCY = 16  # requests in flight; an in-process student batches them
LATENCY_SAMPLE = 20  # cases timed one by one, per arm
TIMES = ("latency_ms", "retrieval_ms", "first_token_ms")

Question = tuple[str, str]
"""A case's id and what it asks."""


def ask_models(
    frames: Mapping[str, pl.DataFrame],
    *,
    plan: ArmPlan,
    parts: PipelineParts,
    tiers: Sequence[TierStudent],
    students: StudentShelf,
    adapters_folder: Path,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return the rows of the arms that models answer: all but those derived of others.

    `frames` are golden_cases, labelled_examples and vector_index.
    """
    index = frames["vector_index"].row(0, named=True)
    index_fingerprint = read_index(frames["vector_index"], parts.embedder)
    untrained = open_untrained(
        plan.choose("untrained"),
        adapter=dict(tiers[-1].adapter),
        labelled_examples=frames["labelled_examples"],
        index=index,
        students=students,
        adapters_folder=adapters_folder,
        progress=progress,
    )
    return run_blocking(
        answer_plan(
            list(frames["golden_cases"].select("case_id", "question").iter_rows()),
            plan=plan,
            parts=parts,
            index_fingerprint=index_fingerprint,
            tiers=[tier.open(students) for tier in tiers],
            untrained=untrained,
            progress=progress,
        )
    )


async def answer_plan(
    cases: Sequence[Question],
    *,
    plan: ArmPlan,
    parts: PipelineParts,
    index_fingerprint: str,
    tiers: Sequence[Tier],
    untrained: Mapping[str, ChatModel],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return the arm_answers rows of every arm of the plan that models answer.

    The arms of production share one pipeline, which asks the `tiers` that a release would hold. An
    untrained arm has one with its model as student, and so has a student before the last tier.
    """
    asked = plan.choose_released(tiers)
    pipeline = await assemble_tiers(parts, index_fingerprint, asked)
    pipelines = {
        arm.name: replace(pipeline, student=untrained[arm.name], calibration=None, smaller=())
        if arm.name in untrained
        else pipeline
        for arm in plan.choose("production", "untrained")
    }
    for tier in tiers[:-1]:
        pipelines[SMALLER] = replace(
            pipeline, student=tier.model, calibration=tier.calibration, smaller=()
        )
    return await answer_arms(cases, pipelines=pipelines, progress=progress)


async def answer_arms(
    cases: Sequence[Question], *, pipelines: Mapping[str, AnswerPipeline], progress: Progress
) -> list[dict[str, Any]]:
    """Return the arm_answers rows of the arms, each asked through its pipeline.

    Repeat 0 answers every case, several at a time, and is what quality is read from. Repeat 1 asks
    an even sample again, one at a time and never from a cache of repeat 0: only these rows carry a
    latency, because a request that waits for its batch says nothing about how long an answer takes.
    """
    rows = []
    for arm, pipeline in pipelines.items():
        asked = [(arm, case) for case in cases]
        rows += await answer_cases(
            asked,
            repeat=0,
            pipelines={arm: pipeline},
            concurrency=CONCURRENCY,
            progress=progress,
            description=f"arm {BY_NAME[arm].label}",
        )
    timed = await answer_cases(
        interleave(sample_evenly(cases), tuple(pipelines)),
        repeat=1,
        pipelines=pipelines,
        concurrency=1,
        progress=progress,
        description="timing the arms",
    )
    return [row | dict.fromkeys(TIMES) for row in rows] + timed


def sample_evenly(cases: Sequence[Question]) -> Sequence[Question]:
    """Return the cases that are timed: so many, spread over all."""
    return cases[:: max(1, len(cases) // LATENCY_SAMPLE)][:LATENCY_SAMPLE]


def interleave(cases: Sequence[Question], arms: Sequence[str]) -> list[tuple[str, Question]]:
    """Return every arm's turn at every case: case by case, another arm first each time.

    A machine that is busy for a minute, or warm for one, then slows or speeds all arms alike.
    """
    return [
        (arm, case)
        for number, case in enumerate(cases)
        for arm in (*arms[number % len(arms) :], *arms[: number % len(arms)])
    ]


async def answer_cases(
    asked: Sequence[tuple[str, Question]],
    *,
    repeat: int,
    pipelines: Mapping[str, AnswerPipeline],
    concurrency: int,
    progress: Progress,
    description: str,
) -> list[dict[str, Any]]:
    """Return one row per (arm, (case_id, question)), in order.

    A model that fails on a case gives a row with `error` and no answer: inconclusive, never a zero.
    So does a fallback that fails: the user is shown a refusal, but nobody decided to refuse.

    Raises:
        BudgetExceededError: every later case would fail alike, and the arm would seem weak.
    """

    async def answer(one: tuple[str, Question]) -> dict[str, Any]:
        arm, (case_id, question) = one
        spec = BY_NAME[arm]
        identity = {"arm": arm, "case_id": case_id, "repeat": repeat, "question": question}
        try:
            answered = await pipelines[arm].answer(
                question, mode=spec.mode, seed=spec.seed + repeat
            )
            if failed := answered.last.raised:
                raise failed
        except BudgetExceededError:
            raise
        except ModelError as error:
            return identity | {"error": str(error)}
        return identity | tabulate_answer(answered)

    return await map_bounded(
        answer, asked, concurrency=concurrency, progress=progress, description=description
    )


def tabulate_answer(answered: Answered) -> dict[str, Any]:
    """Return the answer columns of an arm_answers row.

    Latency is retrieval plus every attempt as the models reported it: an answer taken from the
    cache keeps the latency it had when it was made.
    """
    completions = [a.completion for a in answered.attempts if a.completion]
    last = answered.last.completion
    return {
        "answer": answered.answer,
        "raw": last.text if last else None,
        "messages": [dict(message) for message in answered.request.messages],
        "refused": answered.refused,
        "citations": [hit.chunk_id for hit in answered.cited],
        "retrieved": tabulate_hits(answered.retrieved),
        "served_by": answered.served_by,
        "route_reason": answered.route.reason,
        "verdict": str(answered.attempts[0].verdict),
        "confidence": answered.confidence,
        "used_fallback": answered.used_fallback,
        "model": answered.model,
        "prompt_tokens_estimate": answered.prompt_tokens_estimate,
        "prompt_tokens": sum(c.prompt_tokens for c in completions),
        "completion_tokens": sum(c.completion_tokens for c in completions),
        "cost_usd": answered.cost_usd,
        "retrieval_ms": answered.retrieval_ms,
        "latency_ms": answered.retrieval_ms + answered.model_ms,
        "first_token_ms": measure_first_token(answered),
        "error": None,
    }


def measure_first_token(answered: Answered) -> float | None:
    """Return when the model whose text was used said its first token, from the question on.

    An attempt that came before it was waited for to its end. None where the engine does not report
    its first token.
    """
    waited = answered.retrieval_ms
    for attempt in answered.attempts:
        if attempt is answered.last:
            break
        waited += attempt.completion.latency_ms if attempt.completion else 0.0
    completion = answered.last.completion
    if completion is None or completion.first_token_ms is None:
        return None
    return waited + completion.first_token_ms
