"""What a request was and what became of it: the shapes that traces, labels and bodies are made of.

Belongs here: the records of one request and what can be read off them. Does not belong here: making
them (`answer`), storing them (`tracing`).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.errors import BudgetExceededError, CircuitOpenError, ModelError
from serving.models.protocols import ChatRequest, Completion, Hit, ServedBy
from serving.pipeline.circumstances import ORDINARY, Circumstances
from serving.pipeline.router import Route
from serving.pipeline.skills import Skill
from serving.pipeline.validator import Verdict


@dataclass(kw_only=True)
class Progress:
    """How far a question has come, noted on the way: what is known of one that got no answer."""

    asked: "Asked | None" = None
    route: Route | None = None
    attempts: "list[Attempt]" = field(default_factory=list)
    budget_wait_seconds: int = 0
    """After which the teacher's budget may have room again; 0: it has, or nobody looked."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question on its way: normalised, its chunks found, its request written."""

    question: str
    hits: tuple[Hit, ...]
    request: ChatRequest
    prompt_tokens: int
    retrieval_ms: float
    started: float
    """Of `time.perf_counter`."""
    around: Circumstances = ORDINARY
    skill: Skill | None = None
    progress: Progress = field(default_factory=Progress, compare=False, repr=False)


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

    @property
    def was_called(self) -> bool:
        """False where a spent budget or a breaker kept the question from the model."""
        return not isinstance(self.raised, BudgetExceededError | CircuitOpenError)

    @classmethod
    def given_up(
        cls, role: ServedBy, model: str, error: BaseException, *, started_ms: float
    ) -> "Attempt":
        """Describe a call that ended in what no model raises: by its kind, never its message."""
        return cls(
            role=role,
            completion=None,
            verdict=None,
            error=f"{type(error).__name__}: ended before it answered",
            model=model,
            started_ms=started_ms,
        )

    @classmethod
    def failed(
        cls,
        role: ServedBy,
        model: str,
        error: ModelError,
        asked: Asked,
        *,
        started_ms: float | None = None,
    ) -> "Attempt":
        """Describe a call that gave no text."""
        return cls(
            role=role,
            completion=None,
            verdict=None,
            error=str(error),
            raised=error,
            model=model,
            started_ms=elapsed_ms(asked.started) if started_ms is None else started_ms,
        )


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
    skill: str | None = None
    """The skill it was a question for; None: none, the general students'."""

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
    def served(self) -> Attempt:
        """The attempt whose text was shown, or was refused: the one `served_by` speaks of."""
        return choose_server(self.attempts)

    @property
    def confidence(self) -> float | None:
        """How sure the last student asked was, whoever's answer was used in the end."""
        students = [a for a in self.attempts if a.role == "student"]
        return students[-1].confidence if students else None

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
        """True when the teacher was asked after a student."""
        return has_fallback(self.attempts)


def has_fallback(attempts: Sequence[Attempt]) -> bool:
    """Say whether the teacher was asked after a student."""
    return {a.role for a in attempts if a.was_called} == {"student", "teacher"}


def choose_last(attempts: tuple[Attempt, ...]) -> Attempt:
    """Return the last attempt that may be shown; where none may, the last one."""
    return next(filter(is_usable, reversed(attempts)), attempts[-1])


def choose_server(attempts: tuple[Attempt, ...]) -> Attempt:
    """Return the attempt whose text was shown, or refused; without any text, the last attempt.

    A teacher that was not asked, or gave nothing, served nobody: the student's invalid text is why
    there is a refusal.
    """
    last = choose_last(attempts)
    texts = (a for a in reversed(attempts) if a.completion is not None)
    return last if last.completion is not None else next(texts, last)


def is_usable(attempt: Attempt) -> bool:
    """Say whether an attempt's text may be shown."""
    return attempt.verdict is not None and attempt.verdict.is_valid


def elapsed_ms(started: float) -> float:
    """Return the milliseconds since a moment of `time.perf_counter`."""
    return (time.perf_counter() - started) * 1000
