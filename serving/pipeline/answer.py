"""The request path: retrieve -> route -> model -> validate -> fallback. One for three callers.

Production answers users with it, labelling asks it for the teacher's answers, evaluation runs every
arm through it. Belongs here: the order of the steps and what is recorded of each. Does not belong
here: HTTP, traces on disk, caching (a `ChatModel` may cache).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from serving.errors import ModelError
from serving.models.protocols import (
    ChatModel,
    ChatRequest,
    Completion,
    Hit,
    Retriever,
    ServedBy,
)
from serving.pipeline.confidence import (
    ConfidenceCalibration,
    estimate_confidence,
    read_signals,
)
from serving.pipeline.prompt import DraftAnswer, PromptFormat, read_answer, write_refusal
from serving.pipeline.questions import normalise_question
from serving.pipeline.router import Phase, Route, RouterPolicy, choose_route, doubt_answer
from serving.pipeline.validator import ValidatorPolicy, Verdict, validate

Mode = Literal["routed", "teacher", "student"]
"""`routed`: the router decides, and student answers that are invalid or not sure enough fall back
to the teacher. `teacher` and `student`: that model answers alone (the arms of the report); an
invalid answer is shown as a refusal, as it would be to a user."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One call of one model within a request."""

    role: ServedBy
    completion: Completion | None
    verdict: Verdict | None
    error: str | None = None
    raised: ModelError | None = field(default=None, compare=False, repr=False)
    model: str
    started_ms: float
    """Milliseconds from the start of the request."""
    confidence: float | None = None
    """Calibrated probability that a student's valid answer is the teacher's; None: unknown."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Everything a request produced: the body's fields and what a trace or a label needs."""

    question: str
    answer: str
    cited: tuple[Hit, ...]
    refused: bool
    served_by: ServedBy
    model: str
    route: Route
    retrieved: tuple[Hit, ...]
    request: ChatRequest
    attempts: tuple[Attempt, ...]
    prompt_tokens_estimate: int
    retrieval_ms: float
    total_ms: float

    @property
    def max_score(self) -> float:
        """Best cosine among the retrieved, 0 when nothing was."""
        return max((hit.score for hit in self.retrieved), default=0.0)

    @property
    def last(self) -> Attempt:
        """The attempt whose text was used (or that failed last).

        A doubted answer of the student is valid: it is used where the teacher has none.
        """
        return choose_last(self.attempts)

    @property
    def confidence(self) -> float | None:
        """How sure the student was, whoever's answer was used in the end."""
        return self.attempts[0].confidence

    @property
    def cost_usd(self) -> float:
        """Every attempt paid for, the wasted student call of a fallback included."""
        return sum(a.completion.cost_usd for a in self.attempts if a.completion)

    @property
    def model_ms(self) -> float:
        """Time spent in models as they reported it (a cached answer keeps its first latency)."""
        return sum(a.completion.latency_ms for a in self.attempts if a.completion)

    @property
    def used_fallback(self) -> bool:
        """True when the teacher was asked after the student."""
        return len(self.attempts) > 1


@dataclass(frozen=True, kw_only=True)
class AnswerPipeline:
    """The assembled path. `count_tokens` counts with the student's tokenizer.

    Without a `calibration` of the student its answers have no confidence, and none is doubted.
    """

    retriever: Retriever
    teacher: ChatModel
    student: ChatModel | None
    prompt: PromptFormat
    router: RouterPolicy
    validator: ValidatorPolicy
    phase: Phase = "switch"
    count_tokens: Callable[[str], int]
    calibration: ConfidenceCalibration | None = None

    async def answer(
        self, question: str, *, prefer_quality: bool = False, mode: Mode = "routed", seed: int = 0
    ) -> Answered:
        """Answer one question; another `seed` is another draw, never taken from this one's cache.

        Never returns an invalid answer: what no model could answer validly becomes a refusal.

        Raises:
            ModelError: no attempt produced any text (upstream down, deadline, budget). When only
                the fallback fails, the user gets a refusal and both attempts are recorded.
        """
        started = time.perf_counter()
        question = normalise_question(question)
        hits = await self.retriever.retrieve(question)
        retrieval_ms = _elapsed_ms(started)
        request = replace(self.prompt.write_request(question, hits), seed=seed)
        prompt_tokens = sum(self.count_tokens(m["content"]) for m in request.messages)
        route = self._choose_route(hits, prompt_tokens, prefer_quality=prefer_quality, mode=mode)
        attempts = [await self._attempt(route.to, request, hits, started)]
        if mode == "routed" and route.to == "student":
            if _is_usable(attempts[-1]):
                route = doubt_answer(route, attempts[-1].confidence, self._find_threshold())
            if route.reason == "low_confidence" or not _is_usable(attempts[-1]):
                attempts.append(await self._attempt("teacher", request, hits, started))
        return self._conclude(
            question,
            hits=hits,
            request=request,
            route=route,
            attempts=tuple(attempts),
            prompt_tokens=prompt_tokens,
            retrieval_ms=retrieval_ms,
            started=started,
        )

    def _choose_route(
        self, hits: tuple[Hit, ...], prompt_tokens: int, *, prefer_quality: bool, mode: Mode
    ) -> Route:
        if mode != "routed":
            return Route(to=mode, reason="default")
        return choose_route(
            prompt_tokens=prompt_tokens,
            max_score=max((hit.score for hit in hits), default=0.0),
            prefer_quality=prefer_quality,
            phase=self.phase if self.student else "hitchhiker",
            policy=self.router,
        )

    async def _attempt(
        self, role: ServedBy, request: ChatRequest, hits: tuple[Hit, ...], started: float
    ) -> Attempt:
        model = self.teacher if role == "teacher" else self.student
        if model is None:
            raise ValueError("the student was asked, but this pipeline has none")
        began = _elapsed_ms(started)
        try:
            completion = await model.complete(request)
        except ModelError as error:
            return Attempt(
                role=role,
                completion=None,
                verdict=None,
                error=str(error),
                raised=error,
                model=model.name,
                started_ms=began,
            )
        draft = read_answer(completion.text, hits, self.prompt)
        verdict = validate(draft, hits, self.validator)
        confidence = None
        if role == "student" and verdict.is_valid and self.calibration is not None:
            signals = read_signals(completion, hits, is_refusal=draft.refused)
            confidence = estimate_confidence(signals, self.calibration)
        return Attempt(
            role=role,
            completion=completion,
            verdict=verdict,
            model=model.name,
            started_ms=began,
            confidence=confidence,
        )

    def _find_threshold(self) -> float | None:
        if self.calibration is None:
            return None
        return self.calibration.find_threshold(self.router.maximum_risk_ratio)

    def _conclude(
        self,
        question: str,
        *,
        hits: tuple[Hit, ...],
        request: ChatRequest,
        route: Route,
        attempts: tuple[Attempt, ...],
        prompt_tokens: int,
        retrieval_ms: float,
        started: float,
    ) -> Answered:
        raised = attempts[-1].raised
        if all(a.completion is None for a in attempts) and raised is not None:
            raise raised
        draft = DraftAnswer(text="", cited=(), refused=True)
        last = choose_last(attempts)
        if last.completion is not None and _is_usable(last):
            draft = read_answer(last.completion.text, hits, self.prompt)
        return Answered(
            question=question,
            answer=write_refusal(question) if draft.refused else draft.text,
            cited=draft.cited,
            refused=draft.refused,
            served_by=last.role,
            model=last.model,
            route=route,
            retrieved=hits,
            request=request,
            attempts=attempts,
            prompt_tokens_estimate=prompt_tokens,
            retrieval_ms=retrieval_ms,
            total_ms=_elapsed_ms(started),
        )


def choose_last(attempts: tuple[Attempt, ...]) -> Attempt:
    """Return the last attempt that may be shown; where none may, the last one."""
    return next(filter(_is_usable, reversed(attempts)), attempts[-1])


def _is_usable(attempt: Attempt) -> bool:
    return attempt.verdict is not None and attempt.verdict.is_valid


def _elapsed_ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000
