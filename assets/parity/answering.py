"""The arms: every golden case asked of teacher, student and the routed pair.

Belongs here: which arms exist and the shape of their rows. Does not belong here: grading
(`graders`).
"""

from collections.abc import Sequence
from typing import Any

from assets.labels.answering import tabulate_hits
from serving.aio import map_bounded
from serving.errors import BudgetExceededError, ModelError
from serving.models.protocols import Progress
from serving.pipeline.answer import Answered, AnswerPipeline, Mode

CONCURRENCY = 16  # requests in flight; an in-process student batches them
LATENCY_SAMPLE = 20  # cases timed one by one, per arm
ARM_MODES: dict[str, Mode] = {"teacher": "teacher", "student": "student", "routed": "routed"}


async def answer_arm(
    cases: Sequence[tuple[str, str]], *, arm: str, pipeline: AnswerPipeline, progress: Progress
) -> list[dict[str, Any]]:
    """Return the arm_answers rows of one arm.

    Repeat 0 answers every case, several at a time, and is what quality is read from. Repeat 1 asks
    an even sample again, one at a time and never from a cache of repeat 0: only these rows carry a
    latency, because a request that waits for its batch says nothing about how long an answer takes.
    """
    answers = await answer_cases(
        cases, arm=arm, repeat=0, pipeline=pipeline, concurrency=CONCURRENCY, progress=progress
    )
    sample = cases[:: max(1, len(cases) // LATENCY_SAMPLE)][:LATENCY_SAMPLE]
    timed = await answer_cases(
        sample, arm=arm, repeat=1, pipeline=pipeline, concurrency=1, progress=progress
    )
    return [row | {"latency_ms": None, "retrieval_ms": None} for row in answers] + timed


async def answer_cases(
    cases: Sequence[tuple[str, str]],
    *,
    arm: str,
    repeat: int,
    pipeline: AnswerPipeline,
    concurrency: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return one row per (case_id, question), in order.

    A model that fails on a case gives a row with `error` and no answer: inconclusive, never a zero.
    So does a fallback that fails: the user is shown a refusal, but nobody decided to refuse.

    Raises:
        BudgetExceededError: every later case would fail alike, and the arm would seem weak.
    """

    async def answer(case: tuple[str, str]) -> dict[str, Any]:
        case_id, question = case
        identity = {"arm": arm, "case_id": case_id, "repeat": repeat, "question": question}
        try:
            answered = await pipeline.answer(question, mode=ARM_MODES[arm], seed=repeat)
            if failed := answered.last.raised:
                raise failed
        except BudgetExceededError:
            raise
        except ModelError as error:
            return identity | {"error": str(error)}
        return identity | tabulate_answer(answered)

    description = f"{'timing' if repeat else 'arm'} {arm}"
    return await map_bounded(
        answer, cases, concurrency=concurrency, progress=progress, description=description
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
        "used_fallback": answered.used_fallback,
        "model": answered.model,
        "prompt_tokens": sum(c.prompt_tokens for c in completions),
        "completion_tokens": sum(c.completion_tokens for c in completions),
        "cost_usd": answered.cost_usd,
        "retrieval_ms": answered.retrieval_ms,
        "latency_ms": answered.retrieval_ms + answered.model_ms,
        "error": None,
    }
