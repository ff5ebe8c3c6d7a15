"""What is decided before a student's model is asked: whether it is, and how much it reads.

A small model cannot tell a question its sources answer from one they leave open, while the score of
the best source nearly can; and it copies well from one source where it picks badly among three. The
rules lie in the student's folder. Belongs here: the rules, their file, the student behind them.
Does not belong here: fitting them (`assets/labels/refusals`), which questions the router keeps from
students (`pipeline.router`).
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.errors import ReleaseError
from serving.models.protocols import (
    ChatModel,
    ChatRequest,
    Completion,
    DecodingSigns,
    Price,
    StreamingChatModel,
)
from serving.pipeline.prompt import REFUSAL_WORD
from serving.pipeline.source_list import keep_sources

RULES_FILE = "rules.json"


class RefusalRule(BaseModel):
    """The odds that the teacher refuses are exp(intercept + weight * best score).

    Scores are 0-1 (`Hit.score`); the odds are those of traffic in which both outcomes are equally
    common. The student refuses where that is the likelier one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    intercept: float
    weight: float = Field(lt=0, description="a better source makes a refusal less likely")

    @property
    def minimum_score(self) -> float:
        """The score below which the student refuses."""
        return -self.intercept / self.weight

    def find_logit(self, best_score: float) -> float:
        """Return the log-odds that the teacher refuses."""
        return self.intercept + self.weight * best_score


class StudentRules(BaseModel):
    """What a student refuses by (None: its model decides), and how many sources it reads (all)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    refusal: RefusalRule | None = None
    sources: int | None = Field(default=None, ge=1)

    def write(self, folder: Path) -> None:
        """Write the rules into a student's folder."""
        (folder / RULES_FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


NO_RULES = StudentRules()


class RuledStudent:
    """A `ChatModel` that follows its rules and asks its student the rest.

    A refusal by the rule costs nothing, and is as sure as the rule.
    """

    def __init__(self, student: Any, rules: StudentRules) -> None:
        """Put the rules before a student, whatever runs it."""
        self._student = student
        self._rules = rules

    @property
    def name(self) -> str:
        """The student's pinned identity: the rules are part of its folder."""
        return str(self._student.name)

    @property
    def price(self) -> Price:
        """What a token of the student is billed at."""
        price: Price = self._student.price
        return price

    @property
    def dtype(self) -> str:
        """The numbers the student computes with."""
        return str(self._student.dtype)

    def count_prompt_tokens(self, text: str) -> int:
        """Return how many tokens the student needs for a text, special tokens excluded."""
        return int(self._student.count_prompt_tokens(text))

    async def close(self) -> None:
        """Close the student's connections, if it has any."""
        if (close := getattr(self._student, "close", None)) is not None:
            await close()

    async def complete(self, request: ChatRequest) -> Completion:
        """Refuse, or ask the student; raises what the student raises."""
        if (refusal := self._refuse(request)) is not None:
            return refusal
        model: ChatModel = self._student
        return await model.complete(self._shorten(request))

    async def stream(self, request: ChatRequest, on_text: Callable[[str], None]) -> Completion:
        """Answer as `complete` does, handing pieces on as they come; whole where it does not."""
        completion = self._refuse(request)
        if completion is None:
            shortened = self._shorten(request)
            if isinstance(self._student, StreamingChatModel):
                return await self._student.stream(shortened, on_text)
            completion = await self._student.complete(shortened)
        on_text(completion.text)
        return completion

    def _shorten(self, request: ChatRequest) -> ChatRequest:
        if self._rules.sources is None:
            return request
        return replace(request, messages=keep_sources(request.messages, self._rules.sources))

    def _refuse(self, request: ChatRequest) -> Completion | None:
        started = time.perf_counter()
        if self._rules.refusal is None or request.best_score is None:
            return None
        logit = self._rules.refusal.find_logit(request.best_score)
        if logit <= 0:
            return None
        latency_ms = (time.perf_counter() - started) * 1000
        return Completion(
            text=REFUSAL_WORD,
            model=self.name,
            prompt_tokens=0,
            completion_tokens=0,
            finish_reason="stop",
            latency_ms=latency_ms,
            first_token_ms=latency_ms,
            mean_logprob=-math.log1p(math.exp(-logit)),
            signs=DecodingSigns(
                minimum_citation_logprob=None, first_margin=logit, mean_margin=logit
            ),
        )


def read_rules(folder: Path) -> StudentRules:
    """Return the rules in a student's folder; without a file it has none.

    Raises:
        ReleaseError: the file does not hold rules.
    """
    path = folder / RULES_FILE
    if not path.is_file():
        return NO_RULES
    try:
        return StudentRules.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ReleaseError(
            f"reading the rules of the student {folder}",
            expected="`refusal` with an intercept and a weight below 0, `sources` of at least 1",
            found=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            next_step="materialize students/student_adapter again",
        ) from None


def follow_rules(student: Any, folder: Path) -> Any:
    """Return the student behind the rules of its folder, or itself where it has none.

    Raises:
        ReleaseError: the file does not hold rules.
    """
    rules = read_rules(folder)
    return student if rules == NO_RULES else RuledStudent(student, rules)
