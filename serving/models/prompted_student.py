"""A student that is a prompt: instructions and examples around a model that nobody trained.

The pipeline's request is written anew as turns: the instructions, then each example as a question
with its sources and its answer, then the question with its own sources. What does not depend on the
question comes first, so that prefix states and a provider's prompt cache serve it again. Belongs
here: the prompt's file, the turns, the examples nearest to a question. Does not belong here: what
is put into the file (`assets.students`), the model that answers.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.errors import ReleaseError
from serving.models.protocols import (
    ChatModel,
    ChatRequest,
    Completion,
    Embedder,
    Message,
    Price,
    StreamingChatModel,
    Vectors,
)
from serving.pipeline.prompt import read_sources_text

StudentKind = Literal["lora", "alora", "qlora", "base", "few_shot", "prompt_optimised"]
TRAINED_KINDS: frozenset[StudentKind] = frozenset({"lora", "alora", "qlora"})
"""Kinds whose folder holds weights of an adapter; the folder of the others holds a prompt."""

PROMPT_FILE = "prompt.json"
VECTORS_FILE = "vectors.safetensors"
VECTORS_NAME = "questions"

TOKENS_PER_TURN = 8  # what a chat template adds to a turn; SmolLM2's adds 5

CountTokens = Callable[[str], int]


class Example(BaseModel):
    """A question with its sources as the model sees them, and the teacher's answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    example_id: str
    sources: str
    question: str
    answer: str
    refused: bool


class StudentPrompt(BaseModel):
    """What is put around a request.

    `plain` changes nothing. With `is_nearest` the examples are a pool: `shown` of them, `refusals`
    of these being refusals, are chosen for each question with the embedder of this fingerprint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Literal["plain", "turns-1"]
    instructions: str = ""
    examples: tuple[Example, ...] = ()
    is_nearest: bool = False
    shown: int = Field(default=0, ge=0)
    refusals: int = Field(default=0, ge=0)
    embedder_fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class OpenedBase:
    """A model as it came, ready to answer.

    `identity` is a hash of what decides its answers, `dtype` the numbers it computes with, where
    that is known.
    """

    model: ChatModel
    identity: str
    count_tokens: CountTokens
    context_tokens: int
    dtype: str = "unknown"


class PromptedStudent:
    """A `ChatModel` that asks a base model with a student's prompt.

    Args:
        name: the pinned identity recorded with every answer.
        base: who answers.
        prompt: what is put around each request.
        vectors: of the examples' questions, where they are chosen by nearness.
        embedder: of those vectors.
    """

    def __init__(
        self,
        *,
        name: str,
        base: OpenedBase,
        prompt: StudentPrompt,
        vectors: Vectors | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self._name = name
        self._base = base
        self._prompt = prompt
        self._vectors = vectors
        self._embedder = embedder
        self._sizes = [self._measure(write_example(example)) for example in prompt.examples]
        self._fixed_size = self._measure(_write_rules(prompt))

    @property
    def name(self) -> str:
        """The pinned identity recorded with every answer."""
        return self._name

    @property
    def price(self) -> Price:
        """What a token of the base is billed at."""
        return self._base.model.price

    @property
    def dtype(self) -> str:
        """The numbers the base computes with."""
        return self._base.dtype

    async def close(self) -> None:
        """Close the base's connections, if it has any."""
        if (close := getattr(self._base.model, "close", None)) is not None:
            await close()

    def count_prompt_tokens(self, text: str) -> int:
        """Return how many tokens the base needs for a text, special tokens excluded."""
        return self._base.count_tokens(text)

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request; raises what the base raises."""
        return await self._ask(request, self._base.model.complete)

    async def stream(self, request: ChatRequest, on_text: Callable[[str], None]) -> Completion:
        """Answer one request, handing pieces on as they come; whole where the base does not."""
        base = self._base.model

        async def stream_base(written: ChatRequest) -> Completion:
            if isinstance(base, StreamingChatModel):
                return await base.stream(written, on_text)
            completion = await base.complete(written)
            on_text(completion.text)
            return completion

        return await self._ask(request, stream_base)

    async def _ask(
        self, request: ChatRequest, ask_base: Callable[[ChatRequest], Awaitable[Completion]]
    ) -> Completion:
        started = time.perf_counter()
        if self._prompt.layout == "plain":
            completion = await ask_base(request)
            return replace(completion, model=self._name)
        messages = await self._write_turns(request)
        writing_ms = (time.perf_counter() - started) * 1000
        completion = await ask_base(replace(request, messages=messages))
        first = completion.first_token_ms
        return replace(
            completion,
            model=self._name,
            latency_ms=completion.latency_ms + writing_ms,
            first_token_ms=None if first is None else first + writing_ms,
        )

    async def _write_turns(self, request: ChatRequest) -> tuple[Message, ...]:
        question = request.messages[-1]["content"]
        sources = read_sources_text(request.messages)
        rows = await self._choose(question)
        asked: Message = {"role": "user", "content": _ask(sources, question)}
        taken = self._fixed_size + self._measure([asked]) + request.max_tokens
        rows = drop_until_fitting(rows, self._sizes, self._base.context_tokens - taken)
        examples = [self._prompt.examples[row] for row in rows]
        return (
            *_write_rules(self._prompt),
            *(turn for example in examples for turn in write_example(example)),
            asked,
        )

    async def _choose(self, question: str) -> list[int]:
        if not self._prompt.is_nearest or self._embedder is None or self._vectors is None:
            return list(range(len(self._prompt.examples)))
        (vector,) = await asyncio.to_thread(self._embedder.embed, [question])
        return choose_nearest(self._prompt, self._vectors @ vector)

    def _measure(self, turns: Sequence[Message]) -> int:
        return sum(self._base.count_tokens(t["content"]) + TOKENS_PER_TURN for t in turns)


def write_example(example: Example) -> tuple[Message, Message]:
    """Return an example as two turns."""
    return (
        {"role": "user", "content": _ask(example.sources, example.question)},
        {"role": "assistant", "content": example.answer},
    )


def choose_nearest(prompt: StudentPrompt, cosines: Vectors) -> list[int]:
    """Return the rows of the examples to show, the nearest last; refusals among them as asked."""
    order = [int(row) for row in np.argsort(-cosines, kind="stable")]
    refused = [row for row in order if prompt.examples[row].refused][: prompt.refusals]
    answered = [row for row in order if not prompt.examples[row].refused]
    return interleave(answered[: prompt.shown - len(refused)], refused)


def interleave(answered: Sequence[int], refused: Sequence[int]) -> list[int]:
    """Join two lists, each best first, into one with the best last and both spread evenly.

    A model leans towards what it read last, and what stands first is dropped first: neither must be
    all the refusals.
    """
    placed = [
        ((place + 0.5) / len(rows), is_refusal, row)
        for is_refusal, rows in enumerate((answered, refused))
        for place, row in enumerate(rows)
    ]
    return [row for *_, row in sorted(placed, key=lambda item: (-item[0], -item[1]))]


def drop_until_fitting(rows: list[int], sizes: Sequence[int], room: int) -> list[int]:
    """Return the last of the rows, as many as have room together: an example is never cut."""
    kept: list[int] = []
    for row in reversed(rows):
        room -= sizes[row]
        if room < 0:
            break
        kept.append(row)
    return kept[::-1]


def load_prompted_student(
    folder: Path,
    base: OpenedBase,
    *,
    name: str,
    base_identity: str,
    open_embedder: Callable[[], Embedder],
) -> PromptedStudent:
    """Load the prompt of a student's folder around its base.

    Args:
        folder: `<student>@<sha12>`.
        base: the model it was made for, opened.
        name: the student's pinned identity.
        base_identity: what the student's record says it was made for.
        open_embedder: called only where examples are chosen by nearness.

    Raises:
        ReleaseError: the folder has no readable prompt, or belongs to another base or embedder.
    """
    attempted = f"loading the student {folder}"
    if base.identity != base_identity:
        raise ReleaseError(
            attempted,
            expected=f"the base it was made for, {base_identity}",
            found=base.identity,
            next_step="configure the base it was made for, or make the student again",
        )
    prompt = _read_prompt(folder, attempted)
    if not prompt.is_nearest:
        return PromptedStudent(name=name, base=base, prompt=prompt)
    embedder = open_embedder()
    return PromptedStudent(
        name=name,
        base=base,
        prompt=prompt,
        vectors=_read_vectors(folder, prompt, embedder, attempted),
        embedder=embedder,
    )


def _read_prompt(folder: Path, attempted: str) -> StudentPrompt:
    try:
        return StudentPrompt.model_validate_json((folder / PROMPT_FILE).read_bytes())
    except OSError as error:
        found = str(error)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    raise ReleaseError(
        attempted,
        expected=f"a {PROMPT_FILE} that this version reads",
        found=found,
        next_step="materialize students/student_adapter again",
    )


def _read_vectors(
    folder: Path, prompt: StudentPrompt, embedder: Embedder, attempted: str
) -> Vectors:
    from safetensors.numpy import load_file

    if prompt.embedder_fingerprint != embedder.fingerprint:
        raise ReleaseError(
            attempted,
            expected=f"the embedder its examples were embedded with, {prompt.embedder_fingerprint}",
            found=embedder.fingerprint,
            next_step="configure that embedder, or make the student again",
        )
    path = folder / VECTORS_FILE
    tensors: dict[str, Any] = load_file(path) if path.is_file() else {}
    vectors = tensors.get(VECTORS_NAME)
    shape = (len(prompt.examples), embedder.dimension)
    if vectors is None or vectors.shape != shape:
        raise ReleaseError(
            attempted,
            expected=f"{VECTORS_FILE} with a vector of {shape[1]} for each of {shape[0]} examples",
            found="none" if vectors is None else f"shape {vectors.shape}",
            next_step="materialize students/student_adapter again",
        )
    found: Vectors = vectors.astype(np.float32)
    return found


def _write_rules(prompt: StudentPrompt) -> tuple[Message, ...]:
    return ({"role": "system", "content": prompt.instructions},) if prompt.instructions else ()


def _ask(sources: str, question: str) -> str:
    return f"Sources:\n{sources}\n\nQuestion: {question}"
