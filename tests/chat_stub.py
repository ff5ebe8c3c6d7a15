"""A chat completions server that misbehaves on demand and keeps a bill, on a real socket.

It bills what a provider would: every answer it made, whether or not the client received it.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

ANSWER = "Put environment variables in a .env file. [1]"
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 20


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How to fail a call: with a status, cut off after the first bytes, or with a wrong body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, object] | str = field(default_factory=lambda: {"error": {"message": "no"}})
    is_cut: bool = False
    delay_seconds: float = 0.0

    @property
    def is_billed(self) -> bool:
        """An answer was made, or may have been, before it failed."""
        return self.status in (200, 500, 502, 504)

    def to_response(self) -> Response:
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        if not self.is_cut:
            return Response(text, self.status, self.headers, media_type="application/json")

        async def half() -> object:
            yield text[: len(text) // 2]

        headers = {"content-length": str(len(text)), **self.headers}
        return StreamingResponse(half(), self.status, headers, media_type="application/json")


@dataclass
class ChatStub:
    """The server; what it saw is read from the test's own thread.

    Args:
        latency_seconds: of every answer.
        faults: for each question (the last message's text), how its first calls fail.
        capacity: calls at once before it answers 429; None: any.
        is_idempotent: a call with a known `Idempotency-Key` gets the first answer, unbilled.
    """

    latency_seconds: float = 0.0
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    capacity: int | None = None
    is_idempotent: bool = False
    calls: Counter = field(default_factory=Counter)
    billed: Counter = field(default_factory=Counter)
    refused: int = 0
    under_way: int = 0
    most_under_way: int = 0
    arrivals: list[float] = field(default_factory=list)
    failed_at: list[float] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    calls_by_key: Counter = field(default_factory=Counter)

    def make_app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            body = await request.json()
            self.arrivals.append(time.monotonic())
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            try:
                return await self._answer(
                    body["messages"][-1]["content"], request.headers.get("idempotency-key", "")
                )
            finally:
                self.under_way -= 1

        return app

    async def _answer(self, question: str, key: str) -> Response:
        if self.capacity is not None and self.under_way > self.capacity:
            self.refused += 1
            headers = {"retry-after-ms": "30"}
            return JSONResponse({"error": {"message": "slow down"}}, 429, headers=headers)
        self.calls[question] += 1
        self.calls_by_key[key] += 1
        planned = self.faults.get(question)
        if planned:
            fault = planned.pop(0)
            self.billed[question] += fault.is_billed
            self.failed_at.append(time.monotonic())
            await asyncio.sleep(fault.delay_seconds)
            return fault.to_response()
        if not (self.is_idempotent and key in self.keys):
            self.billed[question] += 1
            self.keys.add(key)
        await asyncio.sleep(self.latency_seconds)
        return JSONResponse(make_body(ANSWER))


def make_body(text: str | None, *, finish_reason: str = "stop") -> dict[str, object]:
    """The body of one answer in OpenAI's format."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
        "usage": {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": COMPLETION_TOKENS,
            "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
        },
    }


@contextlib.contextmanager
def serve(stub: ChatStub) -> Iterator[str]:
    """Serve the stub on a free port of this machine and yield its base URL."""
    config = uvicorn.Config(stub.make_app(), port=0, log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
