"""A chat completions server on a real socket that fails in every way a server can.

Plain asyncio streams, not an HTTP framework: a framework would not send half a status line.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.serving.fakes import GOOD

Fault = str
FAULTS: tuple[Fault, ...] = (
    "429", "429-later", "500", "503", "reset", "hang", "drip", "endless", "half", "no_json",
    "bad_chunk",
)  # fmt: skip


class FaultyUpstream:
    """Fails as `fault` says ("" answers); counts its calls, keeps the names it was asked for."""

    def __init__(self, fault: Fault = "") -> None:
        self.fault = fault
        self.calls: Counter[str] = Counter()
        self.models: list[str] = []
        self.pieces: asyncio.Event | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            while body := await self._read(reader):
                self.calls[self.fault or "ok"] += 1
                self.models.append(json.loads(body).get("model", ""))
                await self._answer(writer, body)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._handlers.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(x.split(b":")[1]) for x in lines if x.startswith(b"content-length")), 0)
        return await reader.readexactly(length)

    async def _answer(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        broken = {
            "reset": self._reset, "hang": self._hang, "endless": self._send_endlessly,
            "drip": self._drip, "half": self._send_half, "bad_chunk": self._send_bad_chunk,
        }  # fmt: skip
        if self.fault in broken:
            await broken[self.fault](writer)
        elif self.fault == "no_json":
            self._send(writer, 200, b"<html>welcome</html>")
        elif self.fault:
            later = ("retry-after: 3600",) if self.fault == "429-later" else ()
            self._send(writer, int(self.fault[:3]), b'{"error": {"message": "no"}}', *later)
        elif json.loads(body).get("stream"):
            await self._stream(writer)
        else:
            self._send(writer, 200, json.dumps(make_answer()).encode())
        await writer.drain()

    async def _reset(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def _hang(self, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    async def _send_endlessly(self, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, "content-type: application/json"))
        while True:
            writer.write(b" " * 65536)
            await writer.drain()

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        text = json.dumps(make_answer()).encode()
        writer.write(_head(200, f"content-length: {len(text)}"))
        for byte in text:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1)

    async def _send_half(self, writer: asyncio.StreamWriter) -> None:
        text = json.dumps(make_answer()).encode()
        writer.write(_head(200, f"content-length: {len(text)}") + text[: len(text) // 2])
        await writer.drain()
        writer.transport.abort()

    async def _send_bad_chunk(self, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, "transfer-encoding: chunked") + b'2\r\n{"\r\n')
        await writer.drain()
        await asyncio.sleep(0.01)  # the reader has the head and waits for more
        writer.write(b"no size\r\n")

    def _send(self, writer: asyncio.StreamWriter, status: int, body: bytes, *more: str) -> None:
        fields = ("content-type: application/json", f"content-length: {len(body)}", *more)
        writer.write(_head(status, *fields) + body)

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        """Send the answer in words; after the first one wait until `pieces` is set."""
        writer.write(_head(200, "content-type: text/event-stream", "connection: close"))
        words = [word + " " for word in GOOD.split(" ")]
        for number, word in enumerate(words):
            choice = {"index": 0, "delta": {"content": word.rstrip() if word[0] == "[" else word}}
            writer.write(_event(make_chunk(choices=[choice])))
            await writer.drain()
            if number == 0 and self.pieces is not None:
                await self.pieces.wait()
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        writer.write(_event(make_chunk(choices=[end])))
        writer.write(_event(make_chunk(choices=[], usage=make_answer()["usage"])))
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()

    async def stop(self) -> None:
        for task in tuple(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)


def _head(status: int, *fields: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status} X", *fields, "", "")).encode()


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def make_answer() -> dict[str, Any]:
    message = {"role": "assistant", "content": GOOD}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def make_chunk(**fields: Any) -> dict[str, Any]:
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"} | fields


@asynccontextmanager
async def serve_upstream(upstream: FaultyUpstream) -> AsyncIterator[str]:
    """Serve it on a free port of this machine and yield its base URL."""
    server = await asyncio.start_server(upstream.handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await upstream.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), 5)
