"""A student that refuses by how well retrieval did, before any model is asked.

A small model cannot tell a question its sources answer from one they leave open, while the score of
the best source nearly can: the rule is learnt from what the teacher refused
(`assets/labels/refusals`) and lies in the student's folder. Belongs here: the rule, its file, the
student around which it stands. Does not belong here: fitting it, which questions the router keeps
from students (`pipeline.router`).
"""

import math
import time
from collections.abc import Callable
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

RULE_FILE = "refusal.json"


class RefusalRule(BaseModel):
    """The teacher refuses with probability logistic(intercept + weight * best score).

    Scores are 0-1 (`Hit.score`). The student refuses where that is the likelier outcome.
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

    def write(self, folder: Path) -> None:
        """Write the rule into a student's folder."""
        (folder / RULE_FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


class RefusingStudent:
    """A `ChatModel` that refuses by a rule and asks its student the rest.

    A refusal by the rule costs nothing, and is as sure as the rule.
    """

    def __init__(self, student: Any, rule: RefusalRule) -> None:
        """Put the rule before a student, whatever runs it."""
        self._student = student
        self._rule = rule

    @property
    def name(self) -> str:
        """The student's pinned identity: the rule is part of its folder."""
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
        started = time.perf_counter()
        if (refusal := self._refuse(request, started)) is not None:
            return refusal
        model: ChatModel = self._student
        return await model.complete(request)

    async def stream(self, request: ChatRequest, on_text: Callable[[str], None]) -> Completion:
        """Answer as `complete` does, handing pieces on as they come; whole where it does not."""
        started = time.perf_counter()
        if (refusal := self._refuse(request, started)) is not None:
            on_text(refusal.text)
            return refusal
        if isinstance(self._student, StreamingChatModel):
            return await self._student.stream(request, on_text)
        completion = await self.complete(request)
        on_text(completion.text)
        return completion

    def _refuse(self, request: ChatRequest, started: float) -> Completion | None:
        if request.best_score is None:
            return None
        logit = self._rule.find_logit(request.best_score)
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


def read_rule(folder: Path) -> RefusalRule | None:
    """Return the rule in a student's folder; None: it has none.

    Raises:
        ReleaseError: the file is not a rule.
    """
    path = folder / RULE_FILE
    if not path.is_file():
        return None
    try:
        return RefusalRule.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ReleaseError(
            f"reading the refusal rule of the student {folder}",
            expected="an intercept and a weight below 0",
            found=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            next_step="materialize students/student_adapter again",
        ) from None
