"""The student in process: a frozen base with a LoRA adapter, answering as a `ChatModel`.

The frozen base reads the prefix (its states are cached: many questions share sources), a merged
copy reads the question and decodes. Waiting requests are batched. Belongs here: the queue, from a
request to tokens and back. Does not belong here: the adapter (`adapters`), the forward passes
(`causal_lm`), what is kept of prefixes (`prefix_cache`), prompts (`pipeline.prompt`).
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import ModelError, UpstreamRejectedError
from serving.models.adapters import load_transformers, verify_adapter
from serving.models.causal_lm import Generation, load_tokenizer
from serving.models.chat_tokens import Activation, ChatTokens, split_chat
from serving.models.decoding_signs import read_signs
from serving.models.engines import LocalEngine, StudentEngine
from serving.models.prefix_cache import PREFIX_CACHE_BYTES, PrefixCache
from serving.models.protocols import ChatRequest, Completion, Price
from serving.models.shared_bases import SharedBases
from serving.models.text_pieces import TextPieces


@dataclass(eq=False, kw_only=True)
class _Job:
    """One request on its way through the queue."""

    tokens: ChatTokens
    max_tokens: int
    asked_at: float
    on_token: Callable[[int], None] = field(default=lambda _token: None)
    future: "Future[Generation]" = field(default_factory=Future)
    is_abandoned: bool = False

    @property
    def length(self) -> int:
        return len(self.tokens) + self.max_tokens


class LocalStudent:
    """A `ChatModel` that runs on this machine. Safe to call from any thread and any event loop.

    Make one with `LocalStudent.load`. Decoding is greedy: an answer depends on the request alone.
    """

    def __init__(
        self,
        *,
        engine: StudentEngine,
        tokenizer: Any,
        name: str,
        price: Price,
        activation: Activation,
        context_tokens: int,
        maximum_batch: int = 8,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """Take what runs the models, loaded; `prefixes` are those it shares with other adapters."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._name = name
        self._price = price
        self._activation = activation
        self._context_tokens = context_tokens
        self._maximum_batch = maximum_batch
        own_stop = {tokenizer.eos_token_id} - {None}
        self._stop_ids = frozenset({*own_stop, *engine.configured_stop_ids})
        self._prefixes = prefixes or PrefixCache(engine.read_prefix, PREFIX_CACHE_BYTES)
        self._lock = threading.Lock()
        self._waiting: list[_Job] = []
        self._is_working = False

    @classmethod
    def load(
        cls,
        base_folder: Path,
        adapter_folder: Path | None,
        *,
        name: str,
        price: Price,
        activation: Activation,
        context_tokens: int,
        dtype: str = "auto",
        maximum_batch: int = 8,
        local_engine: LocalEngine = "transformers",
        models_folder: Path | None = None,
        bases: SharedBases | None = None,
    ) -> "LocalStudent":
        """Load a base and, unless None, its adapter (None is the untrained base).

        `dtype` is for transformers; the other engines keep what they compile in `models_folder`.
        With `bases` the base and what is kept of prefixes are shared with its other adapters.

        Raises:
            ReleaseError: the adapter holds pickle files, lacks weights or provenance, was trained
                for another base or activation, or does not load completely; or the engine cannot
                run it.
        """
        if adapter_folder is not None:
            verify_adapter(adapter_folder, base_folder, activation)
        prefixes = None
        if local_engine == "transformers":
            bases = bases or SharedBases()
            running = load_transformers(base_folder, adapter_folder, dtype, load_base=bases.load)
            engine: StudentEngine = running
            prefixes = bases.find_prefixes(running.base)
        else:
            from serving.models.engine_conversion import prepare_engine

            folder = models_folder or base_folder.parent
            engine = prepare_engine(base_folder, adapter_folder, local_engine, folder)
        return cls(
            engine=engine,
            tokenizer=load_tokenizer(base_folder),
            name=name,
            price=price,
            activation=activation,
            context_tokens=context_tokens,
            maximum_batch=maximum_batch,
            prefixes=prefixes,
        )

    @property
    def name(self) -> str:
        """The pinned identity recorded with every answer."""
        return self._name

    @property
    def price(self) -> Price:
        """What a token is billed at."""
        return self._price

    @property
    def dtype(self) -> str:
        """The numbers it computes with, as `bfloat16`: what its confidence was calibrated for."""
        return self._engine.dtype

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return self._tokenizer

    def count_prompt_tokens(self, text: str) -> int:
        """Return how many tokens the student needs for a text, special tokens excluded."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request; it is batched with whatever else waits, and never waits to be.

        Raises:
            UpstreamRejectedError: prompt and answer do not fit the context, or the request asks for
                sampling or a response format.
            ModelError: the forward pass failed.
        """
        job = await self._open_job(request)
        return await self._describe(job, await self._run(job))

    async def stream(self, request: ChatRequest, on_text: Callable[[str], None]) -> Completion:
        """Answer one request as `complete` does, handing every piece of the text on as it comes."""
        job = await self._open_job(request)
        pieces = TextPieces(self._tokenizer)
        loop = asyncio.get_running_loop()

        def show(piece: str) -> None:
            # Looked at where it is set, on the loop: by now the draft may be somebody else's.
            if not job.is_abandoned:
                on_text(piece)

        def hand_on(token: int) -> None:
            if token not in self._stop_ids and (piece := pieces.add(token)):
                loop.call_soon_threadsafe(show, piece)

        job.on_token = hand_on
        completion = await self._describe(job, await self._run(job))
        if rest := pieces.finish(completion.text):
            on_text(rest)
        return completion

    async def _open_job(self, request: ChatRequest) -> _Job:
        """Tokenise in a thread: other questions would wait for a long prompt."""
        asked_at = time.perf_counter()
        tokens = await asyncio.to_thread(
            split_chat, self._tokenizer, request.messages, activation=self._activation
        )
        self._refuse_unanswerable(request, len(tokens))
        return _Job(tokens=tokens, max_tokens=request.max_tokens, asked_at=asked_at)

    async def _run(self, job: _Job) -> Generation:
        self._enqueue(job)
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            job.is_abandoned = True
            raise

    def _refuse_unanswerable(self, request: ChatRequest, prompt_tokens: int) -> None:
        attempted = f"answering with {self._name}"
        if prompt_tokens + request.max_tokens > self._context_tokens:
            raise UpstreamRejectedError(
                attempted,
                expected=f"prompt and answer within {self._context_tokens} tokens",
                found=f"{prompt_tokens} prompt tokens and up to {request.max_tokens} answer tokens",
                next_step="route long prompts to the teacher (router.long_context_tokens)",
            )
        if (
            request.temperature != 0
            or request.response_format is not None
            or request.max_tokens < 1
        ):
            raise UpstreamRejectedError(
                attempted,
                expected="temperature 0, no response_format, max_tokens of at least 1",
                found=f"temperature {request.temperature}, response_format "
                f"{request.response_format}, max_tokens {request.max_tokens}",
                next_step="ask the teacher, or ask for plain text decoded greedily",
            )

    async def _describe(self, job: _Job, generation: Generation) -> Completion:
        return await asyncio.to_thread(self._write_completion, job, generation)

    def _write_completion(self, job: _Job, generation: Generation) -> Completion:
        ids = generation.ids
        text_ids = ids[:-1] if generation.finish_reason == "stop" else ids
        text = self._tokenizer.decode(text_ids, skip_special_tokens=True)
        return Completion(
            text=text,
            model=self._name,
            prompt_tokens=len(job.tokens),
            completion_tokens=len(ids),
            finish_reason=generation.finish_reason,
            latency_ms=(time.perf_counter() - job.asked_at) * 1000,
            first_token_ms=(generation.first_token_at - job.asked_at) * 1000,
            cost_usd=self._price.cost_usd(len(job.tokens), len(ids)),
            mean_logprob=sum(generation.logprobs) / len(ids),
            signs=read_signs(
                self._tokenizer,
                text,
                text_ids,
                logprobs=generation.logprobs,
                margins=generation.margins,
            ),
        )

    def _enqueue(self, job: _Job) -> None:
        with self._lock:
            self._waiting.append(job)
            if not self._is_working:
                self._is_working = True
                threading.Thread(
                    target=self._work, name=f"{self._name}-worker", daemon=True
                ).start()

    def _work(self) -> None:
        """Answer batches until nothing waits; then end, so an unused student holds no thread."""
        while True:
            with self._lock:
                jobs = take_batch(self._waiting, self._maximum_batch)
                if not jobs:
                    self._is_working = False
                    return
            self._answer([job for job in jobs if job.future.set_running_or_notify_cancel()])

    def _answer(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        try:
            generations = self._engine.decode(
                [self._prefixes.read(job.tokens.prefix_ids) for job in jobs],
                [job.tokens.suffix_ids for job in jobs],
                max_tokens=[job.max_tokens for job in jobs],
                stop_ids=self._stop_ids,
                is_abandoned=lambda row: jobs[row].is_abandoned,
                on_token=lambda row, token: jobs[row].on_token(token),
            )
        except Exception as error:  # noqa: BLE001 - the worker must outlive any batch; callers get it
            for job in jobs:
                job.future.set_exception(_as_model_error(self._name, error))
            return
        for job, generation in zip(jobs, generations, strict=True):
            job.future.set_result(generation)


def take_batch(waiting: list[_Job], maximum_batch: int) -> list[_Job]:
    """Remove and return the oldest job and the waiting ones nearest to it in length."""
    if not waiting:
        return []
    oldest = waiting[0]
    chosen = sorted(waiting[1:], key=lambda job: abs(job.length - oldest.length))
    batch = [oldest, *chosen[: maximum_batch - 1]]
    waiting[:] = [job for job in waiting if job not in batch]
    return batch


def _as_model_error(name: str, error: Exception) -> ModelError:
    if isinstance(error, ModelError):
        return error
    wrapped = ModelError(
        f"answering with {name}",
        expected="a forward pass",
        found=f"{type(error).__name__}: {error}",
        next_step="see the traceback; if memory ran out, lower maximum_batch or context_tokens",
    )
    wrapped.__cause__ = error
    return wrapped
