"""The student in process: a frozen base with a LoRA adapter, answering as a `ChatModel`.

The frozen base reads the prefix (its states are cached: many questions share sources), a merged
copy reads the question and decodes. Waiting requests are batched. Belongs here: loading and
trusting an adapter, the queue, the prefix cache. Does not belong here: the forward passes
(`causal_lm`), prompts (`pipeline.prompt`), training (`assets.students`).
"""

import asyncio
import copy
import json
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import ModelError, ReleaseError, UpstreamRejectedError
from serving.models.causal_lm import (
    PICKLE_SUFFIXES,
    Generation,
    hash_base_model,
    load_causal_lm,
    load_tokenizer,
)
from serving.models.chat_tokens import Activation, ChatTokens, split_chat
from serving.models.decoding_signs import read_signs
from serving.models.engines import LocalEngine, Prefix, StudentEngine, TransformersEngine
from serving.models.protocols import ChatRequest, Completion, Price

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX_CACHE_BYTES = 512 * 1024**2


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
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
    ) -> None:
        """Take what runs the models, loaded."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._name = name
        self._price = price
        self._activation = activation
        self._context_tokens = context_tokens
        self._maximum_batch = maximum_batch
        own_stop = {tokenizer.eos_token_id} - {None}
        self._stop_ids = frozenset({*own_stop, *engine.configured_stop_ids})
        self._prefixes = PrefixCache(engine.read_prefix, prefix_cache_bytes)
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
    ) -> "LocalStudent":
        """Load a base and, unless None, its adapter (None is the untrained base).

        `dtype` is for transformers; the other engines keep what they compile in `models_folder`.

        Raises:
            ReleaseError: the adapter holds pickle files, lacks weights or provenance, was trained
                for another base or activation, or does not load completely; or the engine cannot
                run it.
        """
        if adapter_folder is not None:
            verify_adapter(adapter_folder, base_folder, activation)
        if local_engine == "transformers":
            engine: StudentEngine = load_transformers(base_folder, adapter_folder, dtype)
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
        job = self._open_job(request)
        return self._describe(job, await self._run(job))

    async def stream(self, request: ChatRequest, on_text: Callable[[str], None]) -> Completion:
        """Answer one request as `complete` does, handing every piece of the text on as it comes."""
        job = self._open_job(request)
        pieces = TextPieces(self._tokenizer)
        loop = asyncio.get_running_loop()

        def hand_on(token: int) -> None:
            if token not in self._stop_ids and (piece := pieces.add(token)):
                loop.call_soon_threadsafe(on_text, piece)

        job.on_token = hand_on
        completion = self._describe(job, await self._run(job))
        if rest := pieces.finish(completion.text):
            on_text(rest)
        return completion

    def _open_job(self, request: ChatRequest) -> _Job:
        asked_at = time.perf_counter()
        tokens = split_chat(self._tokenizer, request.messages, activation=self._activation)
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

    def _describe(self, job: _Job, generation: Generation) -> Completion:
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


class PrefixCache:
    """The most recently used prefix states of a frozen model, bounded in bytes. For one thread."""

    def __init__(self, read: Callable[[tuple[int, ...]], Prefix], maximum_bytes: int) -> None:
        """Start empty; `read` computes what is not kept."""
        self._read = read
        self._maximum_bytes = maximum_bytes
        self._states: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self._bytes = 0
        self.hits = 0

    def read(self, prefix_ids: tuple[int, ...]) -> Prefix:
        """Return the states of a prefix, computing them unless they are kept."""
        known = self._states.get(prefix_ids)
        if known is not None:
            self.hits += 1
            self._states.move_to_end(prefix_ids)
            return known
        states = self._read(prefix_ids)
        self._states[prefix_ids] = states
        self._bytes += states.nbytes
        while self._bytes > self._maximum_bytes:
            _, dropped = self._states.popitem(last=False)
            self._bytes -= dropped.nbytes
        return states

    def clear(self) -> None:
        """Drop what is kept."""
        self._states.clear()
        self._bytes = 0


class TextPieces:
    """Turns tokens into pieces of text, each once it is certain. Joined, they are the text."""

    def __init__(self, tokenizer: Any) -> None:
        """Start before the first token."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._told = ""

    def add(self, token: int) -> str:
        """Return what the token adds; nothing while a character is still in parts."""
        self._ids.append(token)
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith("\ufffd") or not text.startswith(self._told):
            return ""
        piece, self._told = text[len(self._told) :], text
        return piece

    def finish(self, text: str) -> str:
        """Return what of the whole text was not told.

        Raises:
            ModelError: what was told is no part of it.
        """
        if not text.startswith(self._told):
            raise ModelError(
                "streaming an answer",
                expected=f"a text that begins as it was told, {self._told!r}",
                found=repr(text),
                next_step="ask without streaming: this tokenizer rewrites what stands before",
            )
        return text[len(self._told) :]


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder that holds a pickle: loading one runs its author's code.

    Raises:
        ReleaseError: a file ends in .bin, .pt, .pkl or another pickle suffix.
    """
    pickles = sorted(p.name for p in folder.rglob("*") if p.suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        raise ReleaseError(
            f"loading the adapter {folder}",
            expected="safetensors weights only",
            found=", ".join(pickles),
            next_step="remove the adapter, and train it again or convert it to safetensors",
        )


def verify_adapter(adapter_folder: Path, base_folder: Path, activation: Activation) -> None:
    """Check that an adapter is safe to load and belongs to this base and activation.

    Raises:
        ReleaseError: see `LocalStudent.load`.
    """
    refuse_pickles(adapter_folder)
    attempted = f"loading the adapter {adapter_folder}"
    missing = [
        name
        for name in (ADAPTER_WEIGHTS, "adapter_config.json", "provenance.json")
        if not (adapter_folder / name).is_file()
    ]
    if missing:
        raise ReleaseError(
            attempted,
            expected=f"{ADAPTER_WEIGHTS}, adapter_config.json and provenance.json",
            found=f"no {', '.join(missing)}",
            next_step="materialize students/student_adapter again",
        )
    provenance = json.loads((adapter_folder / "provenance.json").read_text(encoding="utf-8"))
    base_hash = hash_base_model(base_folder)
    if provenance.get("base_hash") != base_hash:
        raise ReleaseError(
            attempted,
            expected=f"an adapter trained for the loaded base {base_hash} ({base_folder})",
            found=f"one trained for base {provenance.get('base_hash')} "
            f"({provenance.get('base_model', 'unnamed')})",
            next_step="load the base it was trained on, or train an adapter for this one",
        )
    if provenance.get("activation") != activation:
        raise ReleaseError(
            attempted,
            expected=f"an adapter trained with activation {activation!r}",
            found=repr(provenance.get("activation")),
            next_step="serve it with the activation of its recipe",
        )


def merge_adapter(base: Any, adapter_folder: Path) -> Any:
    """Return a copy of `base` with the adapter added into its weights.

    Weights that the adapter does not touch are shared with `base`, which stays as it is.

    Raises:
        ReleaseError: a tensor of the adapter finds no place in the base, or has another shape.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(adapter_folder / ADAPTER_WEIGHTS)
    touched = {_module_of(key) for key in weights}
    shared = {
        id(parameter): parameter
        for name, parameter in base.named_parameters()
        if name.rpartition(".")[0] not in touched
    }
    config = PeftConfig.from_pretrained(str(adapter_folder))
    config.alora_invocation_tokens = None  # where it acts is decided here, by the split
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what peft warns of is checked below, as an error
            peft_model: Any = PeftModel.from_pretrained(
                copy.deepcopy(base, shared), adapter_folder, config=config
            )
    except (ValueError, RuntimeError, KeyError) as error:
        raise _unusable(adapter_folder, str(error)) from error
    # False: by default peft asks the hub whether the base's vocabulary was resized
    loaded: dict[str, Any] = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    if loaded.keys() != weights.keys():
        odd = sorted(loaded.keys() ^ weights.keys())
        raise _unusable(adapter_folder, f"{len(odd)} tensors without a counterpart, as {odd[0]}")
    try:
        merged: Any = peft_model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # a weight that is not a number
        raise _unusable(adapter_folder, str(error)) from error
    return merged.eval()


def _module_of(key: str) -> str:
    return key.removeprefix("base_model.model.").rpartition(".lora_")[0]


def _unusable(adapter_folder: Path, found: str) -> ReleaseError:
    return ReleaseError(
        f"merging the adapter {adapter_folder}",
        expected="LoRA tensors that match the base's modules one to one",
        found=found,
        next_step="train the adapter again for this base",
    )


def load_transformers(
    base_folder: Path, adapter_folder: Path | None, dtype: str
) -> TransformersEngine:
    """Load a base and the copy of it that the adapter is merged into."""
    base = load_causal_lm(base_folder, dtype)
    adapted = base if adapter_folder is None else merge_adapter(base, adapter_folder)
    return TransformersEngine(base=base, adapted=adapted)


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
