"""The model behind the gateways: an OpenAI-compatible server that quotes its first source.

Run by `bench/gateway.py` as a process of its own; it does as little as a server can, so that what
is measured is the gateway before it. Its answer cites the source, and so passes our validator.
"""

import argparse
import asyncio
import json
import re

from aiohttp import web

_FIRST_SOURCE = re.compile(r"^\[1\] [^\n:]*: ([^\n]*? \[1\])", re.MULTILINE)
NO_SOURCE = "REFUSE"


def make_app(delay_seconds: float) -> web.Application:
    """Return the server; each answer takes `delay_seconds`."""

    async def complete(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        await asyncio.sleep(delay_seconds)
        return web.json_response(write_answer(body["model"], body["messages"][0]["content"]))

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    return app


def write_answer(model: str, system: str) -> dict[str, object]:
    """Return a chat completion that quotes the first unit of the first source in `system`."""
    quoted = _FIRST_SOURCE.search(system)
    message = {"role": "assistant", "content": quoted[1] if quoted else NO_SOURCE}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 1200, "completion_tokens": 20, "total_tokens": 1220},
    }


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    options = parser.parse_args()
    web.run_app(
        make_app(options.delay_ms / 1000), host="127.0.0.1", port=options.port, print=None,
        access_log=None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
