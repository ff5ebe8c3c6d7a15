"""The engines of a student side by side: the same adapter, the same prompts, this machine.

    python bench/student_engines.py [--home .understudy] [--recipe compact] [--prompts 12]
        [--rounds 1] [--limit-seconds 300] [--engines transformers openvino openvino_int8]
        [--server http://127.0.0.1:8000/v1 --served-model NAME]

Prompts are those the student was asked on the golden set of a finished run. Engines take turns
within a round and the best round counts: on a shared machine the noise only ever slows. An engine
that does not end its turn within the limit is given up, and the row says so: a run takes at most
engines x (rounds + 1) x limit. A server is asked for the same prompts; what it cannot say is left
out.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from serving.home import Home  # noqa: E402 - run as a script from anywhere
from serving.models.adapters import load_transformers  # noqa: E402
from serving.models.chat_tokens import split_chat  # noqa: E402
from serving.models.embedded import resolve_model  # noqa: E402
from serving.models.engine_conversion import compare  # noqa: E402
from serving.models.engines import LocalEngine  # noqa: E402
from serving.models.local_student import LocalStudent  # noqa: E402
from serving.models.openvino_engine import OpenVinoEngine  # noqa: E402
from serving.models.protocols import ChatModel, ChatRequest, Completion, Price  # noqa: E402
from serving.models.remote import connect_remote  # noqa: E402

REFERENCE = "transformers"
LONG_PROMPT, SHORT_PROMPT, DECODED, BATCH = 1000, 400, 32, 8
TOLD_EVERY = 4
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Equality:
    """How the answers of an engine compare with those of the reference on the same prompts."""

    equal_ratio: float | None
    """Null: nothing was answered by both."""
    first_difference_token: float | None
    """Median place of the first token that differs, among the answers that do."""


@dataclass(kw_only=True)
class Arm:
    """One engine: what is asked, and the best that was seen of it."""

    name: str
    model: ChatModel
    local: LocalStudent | None
    load_seconds: float
    best: dict[str, float] = field(default_factory=dict)
    answers: list[Completion] = field(default_factory=list)
    given_up: str | None = None
    """What it did not end in time; None: it ended everything."""

    def keep(self, figure: str, value: float) -> None:
        """Keep a duration if it is the shortest."""
        self.best[figure] = min(value, self.best.get(figure, float("inf")))


def compare_answers(
    encode: Callable[[str], Sequence[int]], expected: Sequence[str], found: Sequence[str]
) -> Equality:
    """Return how many texts are equal, and where the others part."""
    places = []
    for one, other in zip(expected, found, strict=True):
        if one == other:
            continue
        tokens = list(encode(one)), list(encode(other))
        same = [a == b for a, b in zip(*tokens, strict=False)]
        places.append(same.index(False) if False in same else len(same))
    return Equality(
        equal_ratio=1 - len(places) / len(expected) if expected else None,
        first_difference_token=statistics.median(places) if places else None,
    )


def read_prompts(home: Home, recipe: str, count: int) -> list[tuple[dict[str, str], ...]]:
    """Return an even sample of what the student was asked on the golden set."""
    path = home.table("parity/arm_answers", recipe)
    rows = pl.read_parquet(path).filter((pl.col("arm") == "student") & (pl.col("repeat") == 0))
    prompts = [tuple(messages) for messages in rows["messages"].to_list()]
    return prompts[:: max(1, len(prompts) // count)][:count]


def open_arm(
    name: LocalEngine, home: Home, adapter: dict[str, Any], context_tokens: int
) -> tuple[LocalStudent, float]:
    """Load the student for an engine, and say how long that took; compiling happens here, once."""
    base = resolve_model(adapter["base_model"], adapter["base_revision"], home.models).path
    started = time.perf_counter()
    student = LocalStudent.load(
        base,
        home.adapters / adapter["adapter"],
        name=name,
        price=Price(),
        activation=adapter["activation"],
        context_tokens=context_tokens,
        local_engine=name,
        models_folder=home.models,
    )
    return student, time.perf_counter() - started


async def open_arms(
    names: Sequence[LocalEngine],
    home: Home,
    adapter: dict[str, Any],
    context_tokens: int,
    seconds: float,
) -> list[Arm]:
    """Return the engines that load within the time there is; without the reference end here."""
    arms = []
    for name in names:
        tell(f"loading {name}")
        work = run_apart(partial(open_arm, name, home, adapter, context_tokens))
        try:
            student, took = await asyncio.wait_for(work, seconds)
        except TimeoutError:
            tell(f"gave {name} up: not loaded within {seconds:g} s; see --limit-seconds")
            if name == REFERENCE:
                raise SystemExit(f"{name} was not loaded: nothing to compare with") from None
            continue
        arms.append(Arm(name=name, model=student, local=student, load_seconds=took))
    return arms


def run_apart(work: Callable[[], Result]) -> "asyncio.Future[Result]":
    """Run work in a thread that nobody waits for at the end: what hangs is left behind."""
    future: Future[Result] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()  # from here on giving up leaves it alone
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  (whoever awaits it gets it)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(future)


def tell(message: str) -> None:
    """Say on stderr how far the run is."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def clock_engine(arm: Arm, prompts: Sequence[tuple[Any, ...]]) -> None:
    """Measure reading a prompt and decoding, alone and in a batch, without the queue."""
    if arm.local is None:
        return
    engine, tokenizer = arm.local._engine, arm.local.tokenizer
    chats = [split_chat(tokenizer, list(prompt)) for prompt in prompts]
    ids = [token for chat in chats for token in chat.whole]
    for length in (SHORT_PROMPT, LONG_PROMPT):
        started = time.perf_counter()
        state = engine.read_prefix((ids * LONG_PROMPT)[:length])
        arm.keep(f"read_{length}", time.perf_counter() - started)
    for rows in (1, BATCH):
        started = time.perf_counter()
        (first, *_) = engine.decode(
            [state] * rows,
            [chats[0].suffix_ids] * rows,
            max_tokens=[DECODED] * rows,
            stop_ids=frozenset(),
            is_abandoned=lambda _row: False,
            on_token=lambda _row, _token: None,
        )
        ended = time.perf_counter()
        arm.keep(f"decode_{rows}", (ended - first.first_token_at) / (rows * (DECODED - 1)))


async def ask_one_by_one(arm: Arm, requests: Sequence[ChatRequest]) -> None:
    """Ask every prompt alone; the best median latency of a round counts."""
    arm.answers = []
    for number, request in enumerate(requests, start=1):
        arm.answers.append(await arm.model.complete(request))
        if number % TOLD_EVERY == 0:
            tell(f"  {arm.name}: {number} of {len(requests)} prompts")
    arm.keep("answer", statistics.median(a.latency_ms for a in arm.answers))
    firsts = [a.first_token_ms for a in arm.answers if a.first_token_ms is not None]
    if firsts:
        arm.keep("first", statistics.median(firsts))


async def ask_together(arm: Arm, requests: Sequence[ChatRequest]) -> None:
    """Ask every prompt at once; prefixes that are kept would flatter, so the cache is emptied."""
    forget(arm)
    started = time.perf_counter()
    await asyncio.gather(*(arm.model.complete(request) for request in requests))
    arm.keep("together", (time.perf_counter() - started) / len(requests))


def forget(arm: Arm) -> None:
    """Drop the prefixes that were read."""
    if arm.local is not None:
        arm.local._prefixes.clear()


def report(arms: Sequence[Arm], differences: dict[str, float | None]) -> list[dict[str, Any]]:
    """Return a row for each arm; what an engine did not get to is null."""
    local = next(arm.local for arm in arms if arm.local is not None)
    expected = [answer.text for answer in arms[0].answers]
    rows = []
    for arm in arms:
        best = arm.best
        count = min(len(expected), len(arm.answers))
        equality = compare_answers(
            lambda text: local.tokenizer.encode(text, add_special_tokens=False),
            expected[:count],
            [answer.text for answer in arm.answers[:count]],
        )
        row = {
            "engine": arm.name,
            "load_seconds": round(arm.load_seconds, 1),
            **{
                f"prompt_{n}_tokens_per_second": round(n / best[f"read_{n}"])
                for n in (SHORT_PROMPT, LONG_PROMPT)
                if f"read_{n}" in best
            },
            **{
                f"decode_{n}_tokens_per_second": round(1 / best[f"decode_{n}"], 1)
                for n in (1, BATCH)
                if f"decode_{n}" in best
            },
            "first_token_ms": round(best["first"]) if "first" in best else None,
            "answer_ms": round(best["answer"]) if "answer" in best else None,
            "together_ms_per_answer": round(best["together"] * 1000)
            if "together" in best
            else None,
            "compared_count": count,
            **asdict(equality),
            "largest_logprob_difference": differences.get(arm.name),
            "given_up": arm.given_up,
        }
        rows.append(row)
    return rows


def find_differences(arms: Sequence[Arm], home: Home, adapter: dict[str, Any]) -> dict[str, Any]:
    """Return how far the logprobs of each engine are from those of transformers, on the probes."""
    base = resolve_model(adapter["base_model"], adapter["base_revision"], home.models).path
    original = load_transformers(base, home.adapters / adapter["adapter"], "float32")
    return {
        arm.name: round(compare(original, arm.local._engine).largest_difference, 5)
        for arm in arms
        if arm.local is not None and isinstance(arm.local._engine, OpenVinoEngine)
    }


def connect_server(base_url: str, model: str) -> Arm:
    """Return the arm of a server that speaks chat completions and holds the same student."""
    client = connect_remote(
        provider="openai", model=model, base_url=base_url, api_key=None, price=Price(),
        timeout_seconds=120.0, retries=0,
    )  # fmt: skip
    return Arm(name=f"server {model}", model=client, local=None, load_seconds=0.0)


async def measure(
    arms: Sequence[Arm], prompts: Sequence[Any], rounds: int, limit: int, *, seconds: float
) -> None:
    """Let the arms take turns; one whose turn takes too long has no further one."""
    requests = [ChatRequest(messages=prompt, max_tokens=limit) for prompt in prompts]
    for number in range(rounds):
        for arm in (*arms[number % len(arms) :], *arms[: number % len(arms)]):
            if arm.given_up is not None:
                continue
            tell(f"round {number + 1} of {rounds}: {arm.name}")
            try:
                async with asyncio.timeout(seconds):
                    await take_turn(arm, prompts, requests)
            except TimeoutError:
                arm.given_up = f"turn {number + 1} not ended within {seconds:g} s"
                tell(f"gave {arm.name} up: {arm.given_up}")


async def take_turn(
    arm: Arm, prompts: Sequence[tuple[Any, ...]], requests: Sequence[ChatRequest]
) -> None:
    """Measure everything of an engine once."""
    await run_apart(lambda: clock_engine(arm, prompts))
    forget(arm)
    await ask_one_by_one(arm, requests)
    await ask_together(arm, requests)


def main() -> None:
    """Measure and print one JSON line for each engine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=ROOT / ".understudy")
    parser.add_argument("--recipe", default="compact")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit-seconds", type=float, default=300.0, help="of an engine's turn")
    parser.add_argument("--max-answer-tokens", type=int, default=120)
    parser.add_argument("--context-tokens", type=int, default=2048)
    parser.add_argument("--engines", nargs="+", default=list(get_args(LocalEngine)))
    parser.add_argument("--server")
    parser.add_argument("--served-model", default="student")
    options = parser.parse_args()
    home = Home(options.home)
    (adapter,) = pl.read_parquet(home.table("students/student_adapter", options.recipe)).to_dicts()
    prompts = read_prompts(home, options.recipe, options.prompts)
    names = [REFERENCE, *(name for name in options.engines if name != REFERENCE)]
    asyncio.run(compare_engines(options, home, adapter, names, prompts))


async def compare_engines(
    options: argparse.Namespace,
    home: Home,
    adapter: dict[str, Any],
    names: Sequence[LocalEngine],
    prompts: Sequence[tuple[dict[str, str], ...]],
) -> None:
    """Load, measure, print."""
    seconds = options.limit_seconds
    arms = await open_arms(names, home, adapter, options.context_tokens, seconds)
    if options.server:
        arms.append(connect_server(options.server, options.served_model))
    await measure(arms, prompts, options.rounds, options.max_answer_tokens, seconds=seconds)
    answers = arms[0].answers
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "prompts": len(prompts),
        "median_prompt_tokens": statistics.median(a.prompt_tokens for a in answers)
        if answers
        else None,
        "mean_answer_tokens": float(np.mean([a.completion_tokens for a in answers]))
        if answers
        else None,
        **{name: version(name) for name in ("torch", "transformers", "openvino")},
    }
    print(json.dumps(machine))
    differences = await find_differences_in_time(arms, home, adapter, seconds)
    for row in report(arms, differences):
        print(json.dumps(row))


async def find_differences_in_time(
    arms: Sequence[Arm], home: Home, adapter: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Return what `find_differences` finds, or nothing where it takes too long."""
    tell("comparing logprobs with transformers")
    try:
        work = run_apart(lambda: find_differences(arms, home, adapter))
        return await asyncio.wait_for(work, seconds)
    except TimeoutError:
        tell(f"gave the comparison of logprobs up: not ended within {seconds:g} s")
        return {}


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # what was given up may still run native code, which an orderly exit would abort
