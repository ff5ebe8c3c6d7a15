"""The roles models play: what the pipeline asks of a chat model, an embedder, a retriever.

Belongs here: protocols and the plain data that crosses them. Does not belong here: any
implementation, SDK or price arithmetic beyond `Price.cost_usd`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
import numpy.typing as npt

from serving.hashing import content_hash

Vectors = npt.NDArray[np.float32]
ServedBy = Literal["teacher", "student"]


class Message(TypedDict):
    """One chat message in the OpenAI format."""

    role: Literal["system", "user", "assistant"]
    content: str


class ResponseFormat(TypedDict):
    """The OpenAI `response_format` of a request that wants JSON."""

    type: Literal["json_object", "json_schema"]
    json_schema: NotRequired[dict[str, object]]


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars per million tokens, as the provider lists them."""

    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what one call costs at this price."""
        return (
            prompt_tokens * self.input_usd_per_mtok + completion_tokens * self.output_usd_per_mtok
        ) / 1_000_000


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """Everything that decides what a model answers. `seed` and `temperature` are the sampling.

    `best_score` is that of the best source among the messages, where they hold any: a student may
    refuse by it unasked (`models.student_rules`). It is of the question and the sources, and so no
    part of the key.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    response_format: ResponseFormat | None = None
    best_score: float | None = None

    def content_key(self, model: str) -> str:
        """Return the key under which this request's answer by `model` is bought at most once.

        The messages hold the question, the retrieved texts and the prompt's wording, so a change in
        any of them is another key. 32 hex digits.
        """
        return content_hash(
            model,
            [dict(m) for m in self.messages],
            self.max_tokens,
            self.temperature,
            self.seed,
            self.response_format,
            digits=32,
        )


class TopLogprob(TypedDict):
    """A token that could have stood at a position. `bytes` is None where the server gives none."""

    token: str
    bytes: list[int] | None
    logprob: float


class TokenLogprob(TopLogprob):
    """An answer token as the server reported it, with the most likely ones at its position.

    Natural logs at temperature 1, neither renormalised nor sorted anew: what was bought is kept as
    it came. A logprob of -9999 means that the server does not know. Plain values, so that a kept
    answer is read back from JSON without loss.
    """

    top: list[TopLogprob]


class DecodingSigns(TypedDict):
    """How sure a model was while it wrote: natural logs at temperature 1, margins between them.

    A margin is the logprob of the token chosen minus that of the runner-up. Plain values, so that a
    kept answer is read back from JSON without loss.
    """

    minimum_citation_logprob: float | None
    """The least sure token of all citations; None: nothing is cited."""
    first_margin: float
    """Of the first token, where a refusal and an answer part."""
    mean_margin: float


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model answered, and what that took. Times are milliseconds, costs US dollars."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    latency_ms: float
    cost_usd: float = 0.0
    first_token_ms: float | None = None
    mean_logprob: float | None = None
    """Mean natural-log probability of the answer tokens, where the engine knows it."""
    is_cached: bool = False
    logprobs: list[TokenLogprob] | None = None
    """Per answer token, where they were asked for (`teacher.top_logprobs`); else None."""
    signs: DecodingSigns | None = None
    """What a student's confidence is read from beside `mean_logprob`, where the engine says it."""
    queue_ms: float | None = None
    """How long the request waited for its turn, where the engine knows it."""
    adapter_load_ms: float | None = None
    """What loading weights added to this answer; 0: they were there."""
    cold_start: bool | None = None
    """Whether this was the first answer of a model just loaded; None: the engine does not say."""


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Token ids to score: those of an answer, after those of its prompt (prefix, then suffix)."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The ids of the whole prompt."""
        return self.prefix_ids + self.suffix_ids


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenScores:
    """What a model gives the A tokens of an answer: row j is its prediction of token j.

    Natural logs at temperature 1, over the whole vocabulary, not renormalised. `top_ids` and
    `top_logprobs` are [A, K], most likely first; `y_logprobs` [A] are the answer's own tokens, not
    finite where the model does not say.
    """

    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float64]
    y_logprobs: npt.NDArray[np.float64]


KeepScores = Callable[[ScoreRequest, TokenScores], None]
"""Told of each answer's scores as they land, in any order."""


class TokenScorer(Protocol):
    """A frozen model that scores given tokens, and what is recorded about it."""

    @property
    def scorer_id(self) -> str:
        """The pinned model."""
        ...

    @property
    def scorer_hash(self) -> str:
        """Identity of its weights, or of the server that holds them."""
        ...

    @property
    def scorer_dtype(self) -> str:
        """What it computes in; `unknown` where a server does not say."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The student's tokenizer, which the scorer shares."""
        ...

    def score(
        self, requests: Iterable[ScoreRequest], *, top_k: int, keep: KeepScores | None = None
    ) -> Iterator[TokenScores]:
        """Yield the scores of each request's answer, in order; equal prefixes are neighbours."""
        ...


@runtime_checkable
class ChatModel(Protocol):
    """A pinned model that answers chat messages."""

    @property
    def name(self) -> str:
        """The pinned identity recorded with every answer: a snapshot, never an alias."""
        ...

    @property
    def price(self) -> Price:
        """What a token costs."""
        ...

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request. Raises `ModelError` (or a subclass) when no answer was produced."""
        ...


@runtime_checkable
class StreamingChatModel(Protocol):
    """A chat model that can hand its text on while it writes."""

    async def stream(self, request: ChatRequest, on_text: Callable[[str], None]) -> Completion:
        """Answer one request; `on_text` gets every piece of the text as it comes.

        The pieces joined are the completion's text. Raises what `complete` raises, also after the
        first piece: what was handed on by then is void.
        """
        ...


def is_stopped(model: ChatModel) -> bool:
    """Say whether a model would refuse a call at once, because it failed too often just now."""
    return bool(getattr(model, "is_stopped", False))


@runtime_checkable
class IdentifiedModel(Protocol):
    """A chat model whose name alone does not say whose answers it gives."""

    @property
    def identity(self) -> str:
        """What decides an answer beside the name and the request, such as where it is served."""
        ...


def identify_model(model: ChatModel) -> tuple[str, str]:
    """Return a model's name and what else decides its answers; empty where the name says it all."""
    return model.name, model.identity if isinstance(model, IdentifiedModel) else ""


@runtime_checkable
class Embedder(Protocol):
    """Maps texts to unit vectors."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides a vector: weights, tokenizer, normalisation."""
        ...

    @property
    def dimension(self) -> int:
        """Length of each vector."""
        ...

    @property
    def maximum_tokens(self) -> int:
        """Longest text that is read whole, counted as by `count_tokens`."""
        ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return [len(texts), dimension] float32 rows of unit length."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens excluded."""
        ...


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A retrieved chunk.

    `score` is the cosine with the question (of the chunk's best window), clipped to 0-1: the number
    thresholds are put on. `relevance`, also 0-1, is what hits are ordered by.
    """

    chunk_id: str
    content_hash: str
    text: str
    title: str
    url: str
    heading_path: tuple[str, ...] = field(default=())
    score: float = 0.0
    relevance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ChunkFilter:
    """Which chunks may be retrieved; what is left out restricts nothing, what is given all holds.

    `pages` are slugs (`how-to/install`), `below` is a slug prefix by whole parts (`how-to` finds
    `how-to` and `how-to/install`, not `how-tools`), `heading` is one exact heading of the path.
    Among no pages (`()`) nothing is found.
    """

    pages: tuple[str, ...] | None = None
    below: str | None = None
    heading: str | None = None


@runtime_checkable
class Reranker(Protocol):
    """Reads a question together with each text, and says how well they go together."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides a score."""
        ...

    def score(self, question: str, texts: Sequence[str]) -> Vectors:
        """Return [len(texts)] float32 scores in 0-1, higher for the better answer."""
        ...


@runtime_checkable
class Retriever(Protocol):
    """Finds the chunks that bear on a question."""

    @property
    def index_fingerprint(self) -> str:
        """Identity of the index snapshot that answers."""
        ...

    async def retrieve(
        self, question: str, *, k: int | None = None, where: ChunkFilter | None = None
    ) -> tuple[Hit, ...]:
        """Return at most k hits (the retriever's own k for None), best first."""
        ...


@runtime_checkable
class Progress(Protocol):
    """Where long work says how far it is; the CLI draws bars, Dagster logs lines."""

    def advance(self, description: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units are finished."""
        ...


class NoProgress:
    """Reports to nobody: the default for library callers and tests."""

    def advance(self, description: str, done: int, total: int, note: str = "") -> None:
        """Do nothing."""
