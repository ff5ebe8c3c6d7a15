"""What a server does not take is given up by name, one field at a time, and remembered."""

import asyncio
from dataclasses import replace

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from serving.errors import UpstreamRejectedError
from serving.models.concessions import adapt_arguments, find_concession, start_concessions
from serving.models.openai_chat import connect_in_process
from serving.models.protocols import ChatRequest, Price

SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
SENT = {"max_tokens": 9, "temperature": 0.0, "seed": 1, "response_format": SCHEMA}
REQUEST = ChatRequest(messages=({"role": "user", "content": "JSON?"},), response_format=SCHEMA)


class PickyServer:
    """Refuses what it does not take, in the words real servers use, and keeps what it was sent."""

    def __init__(self, takes: tuple[str, ...]) -> None:
        self.takes = takes
        self.formats: list[str] = []
        self.app = FastAPI()

        @self.app.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            body = await request.json()
            kind = body.get("response_format", {"type": "none"})["type"]
            self.formats.append(kind)
            if kind not in self.takes:
                message = f"This response_format type is unavailable now: {kind}"
                return JSONResponse({"error": {"message": message}}, status_code=400)
            answer = {"role": "assistant", "content": "{}"}
            return JSONResponse(
                {
                    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
                    "choices": [{"index": 0, "finish_reason": "stop", "message": answer}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                }
            )  # fmt: skip


@pytest.mark.parametrize(
    ("takes", "first", "later"),
    [
        (("json_schema",), ["json_schema"], "json_schema"),
        (("json_object", "none"), ["json_schema", "json_object"], "json_object"),
        (("none",), ["json_schema", "json_object", "none"], "none"),
    ],
)
async def test_a_server_is_asked_for_less_structure_until_it_takes_it(takes, first, later):
    server = PickyServer(takes)
    model = connect_in_process(server.app, model="m-1", price=Price())
    await asyncio.gather(model.complete(REQUEST))
    assert server.formats == first
    await asyncio.gather(*(model.complete(REQUEST) for _ in range(5)))
    assert server.formats[len(first) :] == [later] * 5


async def test_what_did_not_help_is_not_remembered():
    server = PickyServer(())
    model = connect_in_process(server.app, model="m-1", price=Price())
    with pytest.raises(UpstreamRejectedError, match="response_format"):
        await model.complete(REQUEST)
    assert server.formats == ["json_schema", "json_object", "none"]
    assert model.concessions == set()


async def test_the_configuration_says_where_to_start():
    server = PickyServer(("none",))
    model = replace(
        connect_in_process(server.app, model="m-1", price=Price()),
        concessions=start_concessions("none"),
    )
    await model.complete(REQUEST)
    assert server.formats == ["none"]


@pytest.mark.parametrize(
    ("refusal", "concession"),
    [
        ("response_format: Extra inputs are not permitted", "json_object"),
        ("'max_tokens' is not supported, use 'max_completion_tokens'", "max_completion_tokens"),
        ("Unsupported value: 'temperature' does not support 0", "no_temperature"),
        ("Unknown parameter: 'seed'", "no_seed"),
        ("context length exceeded", None),
        ("the seedling grows", None),
        ("model not found", None),
    ],
)
def test_a_refusal_costs_only_the_field_that_it_names(refusal, concession):
    assert find_concession(SENT, refusal) == concession


def test_what_was_conceded_is_not_sent_and_the_rest_is():
    conceded = {"json_object", "no_seed", "max_completion_tokens"}
    assert adapt_arguments(SENT, conceded) == {
        "max_completion_tokens": 9,
        "temperature": 0.0,
        "response_format": {"type": "json_object"},
    }
    assert find_concession(adapt_arguments(SENT, {"no_seed"}), "Unknown parameter: 'seed'") is None
