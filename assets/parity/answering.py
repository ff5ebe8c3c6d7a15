"""The arms: every golden case asked of teacher, student and the routed pair, one at a time.

Belongs here: which arms exist and the shape of their rows. Does not belong here: grading (`graders`).
"""

from collections.abc import Sequence
from typing import Any

from assets.labels.answering import tabulate_hits
from serving.aio import map_bounded
from serving.errors import ModelError
from serving.models.protocols import Progress
from serving.pipeline.answer import Answered, AnswerPipeline, Mode

ARM_MODES: dict[str, Mode] = {"teacher": "teacher", "student": "student", "routed": "routed"}


async def answer_cases(
    cases: Sequence[tuple[str, str]],
    *,
    arm: str,
    pipeline: AnswerPipeline,
    concurrency: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return one arm_answers row per (case_id, question), in order.

    Args:
        cases: the golden cases.
        arm: a key of `ARM_MODES`.
        pipeline: the request path with the student under test.
        concurrency: requests in flight; 1 measures latencies free of queueing.
        progress: told after each case.

    A model that fails on a case gives a row with `error` and no answer: inconclusive, never a zero.
    """

    async def answer(case: tuple[str, str]) -> dict[str, Any]:
        case_id, question = case
        identity = {"arm": arm, "case_id": case_id, "repeat": 0, "question": question}
        try:
            answered = await pipeline.answer(question, mode=ARM_MODES[arm])
        except ModelError as error:
            return identity | {"error": str(error)}
        return identity | tabulate_answer(answered)

    return await map_bounded(
        answer, cases, concurrency=concurrency, progress=progress, description=f"arm {arm}"
    )


def tabulate_answer(answered: Answered) -> dict[str, Any]:
    """Return the answer columns of an arm_answers row.

    Latency is retrieval plus every attempt as the models reported it: an answer taken from the cache
    keeps the latency it had when it was made.
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
