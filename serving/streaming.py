"""Server-sent events: an answer while it is written, for readers who ask for it.

`draft` adds text that nobody has judged yet, `correction` takes the draft back (another model
writes), `answer` or `problem` ends the stream. The last event says what a header cannot any more:
whether the trace is on disk. Belongs here: the wish in the request, the events, their order. Does
not belong here: answering (`exchange`), what of a draft may be shown (`pipeline.drafting`).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from starlette.responses import Response, StreamingResponse

from serving.exchange import Exchanged
from serving.pipeline.answered import is_usable
from serving.pipeline.circumstances import DraftReader
from serving.problems import ProblemError, unexpected, write_problem

EVENT_STREAM = "text/event-stream"
_HEADERS = {"X-Accel-Buffering": "no"}
"""Asks the usual proxy not to collect the events before it hands them on."""

Event = tuple[str, dict[str, Any]]


def wants_stream(accept: str | None) -> bool:
    """Say whether an `Accept` header asks for events, and no less than for JSON."""
    quality = {"json": 0.0, "events": 0.0}
    for part in (accept or "").lower().split(","):
        kind, _, parameters = part.partition(";")
        value = _read_quality(parameters)
        if kind.strip() == EVENT_STREAM:
            quality["events"] = value
        elif kind.strip() == "application/json":
            quality["json"] = value
    return quality["events"] > 0 and quality["events"] >= quality["json"]


def _read_quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


class _Events(DraftReader):
    """Collects the events of one answer; nothing grows beyond the answer itself."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[Event | None] = asyncio.Queue()
        self._has_draft = False

    def show(self, text: str) -> None:
        """Send the next piece of the draft."""
        self._has_draft = True
        self.waiting.put_nowait(("draft", {"text": text}))

    def start_over(self) -> None:
        """Take the draft back, if there is one."""
        if self._has_draft:
            self._has_draft = False
            self.waiting.put_nowait(("correction", {"reason": "another model answers"}))

    def correct(self) -> None:
        """Take back a draft that the final answer replaces."""
        if self._has_draft:
            self._has_draft = False
            self.waiting.put_nowait(("correction", {"reason": "the draft was not kept"}))


def stream_answer(
    answer: Callable[[DraftReader], Awaitable[Exchanged]],
    *,
    trace_id: str,
    tasks: set[asyncio.Task[None]],
) -> Response:
    """Return the response that streams `answer`.

    Args:
        answer: gives the whole answer to a reader of its draft. It runs to its end, trace included,
            also when whoever asked leaves.
        trace_id: of the question.
        tasks: where the run is kept until it ends, for a server that is shutting down.
    """
    events = _Events()

    async def run() -> None:
        try:
            events.waiting.put_nowait(await _conclude(answer, events, trace_id))
        finally:
            events.waiting.put_nowait(None)

    task = asyncio.create_task(run())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    headers = {**_HEADERS, "X-Trace-Id": trace_id}
    return StreamingResponse(_write(events), media_type=EVENT_STREAM, headers=headers)


async def _conclude(
    answer: Callable[[DraftReader], Awaitable[Exchanged]], events: _Events, trace_id: str
) -> Event:
    try:
        done = await answer(events)
    except ProblemError as problem:
        return "problem", _write_problem(problem, trace_id)
    except Exception as error:  # noqa: BLE001  (the stream has begun: it is told in an event)
        return "problem", _write_problem(unexpected(error), trace_id)
    last = done.answered.last
    is_last_draft_kept = last is done.answered.attempts[-1] and is_usable(last)
    if done.answered.refused or not is_last_draft_kept:
        events.correct()
    body = done.response.model_dump(mode="json")
    verdict = str(done.answered.served.verdict or "none")
    return "answer", body | {"verdict": verdict, "trace_persisted": done.is_persisted}


def _write_problem(problem: ProblemError, trace_id: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(bytes(write_problem(problem, trace_id).body))
    return document | {"trace_persisted": problem.headers.get("X-Trace-Persisted") == "true"}


async def _write(events: _Events) -> AsyncIterator[bytes]:
    while (event := await events.waiting.get()) is not None:
        name, data = event
        # JSON escapes line breaks, so an event's data is one line.
        yield b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"
