"""The ASGI app keeps OpenAI's manners: answers, usage, models, errors."""

import asyncio
import json
import time

import httpx2
import pytest
from fastapi import FastAPI

from assets.labels.judging import AXES, read_judgement, write_judge_request
from assets.paraphrases.rewriting import read_paraphrases, write_rewrite_request
from serving.models.extractive import ANSWER_MODEL, JUDGE_MODEL, create_app
from serving.models.openai_chat import connect_in_process
from serving.models.protocols import ChatRequest, Price
from serving.pipeline.prompt import PromptFormat
from tests.serving.models.extractive.conftest import WordHashEmbedder, make_hits

PRICE = Price(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0)
USER = [{"role": "user", "content": "Tern takes a backup every 6 hours by default"}]


@pytest.fixture
def app() -> FastAPI:
    return create_app(WordHashEmbedder())


async def post(app: FastAPI, body: object) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://x.invalid") as client:
        return await client.post("/v1/chat/completions", json=body)


def answer_request() -> ChatRequest:
    return PromptFormat().write_request(USER[0]["content"], make_hits())


async def test_the_client_gets_a_quoted_answer_with_usage_and_cost(app):
    model = connect_in_process(app, model=ANSWER_MODEL, price=PRICE)
    request = answer_request()
    completion = await model.complete(request)
    assert completion.text == "Tern takes a backup every 6 hours by default. [1]"
    assert completion.prompt_tokens == sum(len(m["content"].split()) for m in request.messages)
    assert completion.completion_tokens == len(completion.text.split())
    assert completion.cost_usd == PRICE.cost_usd(
        completion.prompt_tokens, completion.completion_tokens
    )
    assert (completion.model, completion.finish_reason) == (ANSWER_MODEL, "stop")


async def test_a_rewording_request_is_answered_with_as_many_as_asked(app):
    model = connect_in_process(app, model=ANSWER_MODEL, price=PRICE)
    question = "How do I change the interval?\nIt says </question> 3 times."
    request = write_rewrite_request(question, count=5, temperature=0.9, seed=3)
    first, again = await asyncio.gather(model.complete(request), model.complete(request))
    assert first.text == again.text
    assert len(read_paraphrases(first.text, original=question)) == 5


async def test_a_judge_request_is_answered_on_every_axis(app):
    model = connect_in_process(app, model=JUDGE_MODEL, price=PRICE)
    asked = answer_request()
    sources = asked.messages[0]["content"].partition("Sources:\n")[2]
    good = "Tern takes a backup every 6 hours by default. [1]"
    request = write_judge_request(USER[0]["content"], sources, good)
    judgement = read_judgement((await model.complete(request)).text)
    assert tuple(judgement.scores) == AXES
    assert judgement.scores["cites_right"] == 5
    assert "grounded 5" in judgement.rationale


async def test_both_models_are_listed_and_say_what_they_are(app):
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://x.invalid") as client:
        listed = (await client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == [ANSWER_MODEL, JUDGE_MODEL]
    assert all("no LLM" in model["owned_by"] for model in listed["data"])


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"logprobs": True}, 400, "returns no logprobs"),
        ({"top_logprobs": 5}, 400, "returns no logprobs"),
        ({"stream": True}, 400, "does not stream"),
        ({"n": 2}, 400, "one choice"),
        ({"tools": [{"type": "function"}]}, 400, "no tools"),
        ({"model": "gpt-4o"}, 404, "does not exist"),
        ({"messages": []}, 422, "messages"),
        ({"messages": "hello"}, 422, "messages"),
        ({"temperature": 9}, 422, "temperature"),
        ({"model": JUDGE_MODEL}, 400, "does not know this task"),
        ({"response_format": {"type": "json_object"}}, 400, "does not know this task"),
    ],
)
async def test_requests_it_cannot_serve_get_an_openai_error(app, changes, status, says):
    response = await post(app, {"model": ANSWER_MODEL, "messages": USER, **changes})
    assert response.status_code == status
    error = response.json()["error"]
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


async def test_a_body_that_is_no_json_gets_an_openai_error(app):
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://x.invalid") as client:
        response = await client.post(
            "/v1/chat/completions", content="{", headers={"content-type": "application/json"}
        )
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "invalid_request"


async def test_a_judge_request_without_its_tags_is_refused_with_the_reason(app):
    judged = {"type": "json_schema", "json_schema": {"name": "judgement"}}
    body = {"model": JUDGE_MODEL, "messages": USER, "response_format": judged}
    response = await post(app, body)
    assert response.status_code == 400
    assert "<question>" in response.json()["error"]["message"]


async def test_content_parts_are_read_like_text(app):
    request = answer_request()
    parts = [
        {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
        for m in request.messages
    ]
    response = await post(app, {"model": ANSWER_MODEL, "messages": parts, "seed": 1, "user": "x"})
    content = json.loads(response.text)["choices"][0]["message"]["content"]
    assert content == "Tern takes a backup every 6 hours by default. [1]"


async def test_the_event_loop_stays_free_while_a_request_is_computed():
    class SlowEmbedder(WordHashEmbedder):
        def embed(self, texts):
            time.sleep(0.2)
            return super().embed(texts)

    model = connect_in_process(create_app(SlowEmbedder()), model=ANSWER_MODEL, price=PRICE)
    task = asyncio.create_task(model.complete(answer_request()))
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 10
