"""The vLLM scorer against a server of this process that computes real prompt logprobs."""

import json
import math

import httpx2
import numpy as np
import polars as pl
import pytest
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from assets import tables
from assets.labels.local_scoring import LocalScorer
from assets.labels.scoring import score_answers
from resources.pacing import Pace
from resources.scorers import VLLMScorer, read_scores
from serving.errors import InvalidInputError, UpstreamRejectedError
from tests.tiny_student import make_base, make_labelled

LOOSE = {"minimum_mean_probability": 0.0}  # a random model gives the teacher's tokens nothing
KEY = "vllm-secret"


class Server:
    """vLLM's `/v1/completions` with `prompt_logprobs`, over a tiny model; `planned` come first."""

    def __init__(self, scorer: LocalScorer, *planned: Response, decode=None) -> None:
        self.scorer, self.planned = scorer, list(planned)
        self.decode = decode or (lambda token_id: scorer.tokenizer.decode([token_id]))
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.app = FastAPI()

        @self.app.post("/v1/completions")
        async def complete(request: Request) -> Response:
            self.bodies.append(await request.json())
            self.headers.append(dict(request.headers))
            return self.planned.pop(0) if self.planned else self.answer(self.bodies[-1])

    def answer(self, body: dict) -> Response:
        prompt, top_k = body["prompt"], body["prompt_logprobs"]
        with torch.no_grad():
            logits = self.scorer.model(torch.tensor([prompt])).logits[0].double()
        logprobs = logits.log_softmax(dim=-1)
        entries: list[dict | None] = [None]
        for position, token_id in enumerate(prompt[1:]):
            row = logprobs[position]
            ids = [*row.topk(top_k).indices.tolist(), token_id]  # K entries, or K + 1
            entries.append(
                {
                    str(i): {
                        "logprob": row[i].item(),
                        "rank": int((row > row[i]).sum()) + 1,
                        "decoded_token": self.decode(i),
                    }
                    for i in dict.fromkeys(reversed(ids))  # in no useful order
                }
            )
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": entries}
        return JSONResponse({"id": "1", "object": "text_completion", "choices": [choice]})


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = make_base(tmp_path_factory.mktemp("scorer") / "base")
    return LocalScorer.load(folder, scorer_id="tiny@0", dtype="float32")


def connect(server: Server, **changes) -> VLLMScorer:
    return VLLMScorer(
        model="tiny",
        revision="0",
        base_url="http://vllm.invalid/v1",
        tokenizer=server.scorer.tokenizer,
        pace=Pace(3, deadline_seconds=30, draw=lambda: 0.0),
        api_key=KEY,
        transport=httpx2.ASGITransport(app=server.app),
        **changes,
    )


def test_both_scorers_write_the_same_table(local):
    examples = make_labelled(13)  # more than one batch of 4 * 3
    server = Server(local)
    remote = score_answers(examples, connect(server), top_k=5, **LOOSE)
    here = score_answers(examples, local, top_k=5, **LOOSE)
    assert remote.schema == tables.TEACHER_LOGPROBS
    assert len(server.bodies) == remote.height == 13
    same = ["example_id", "token_hash", "tokenizer_id", "token_ids", "top_ids", "soft_ok", "cite"]
    assert remote.select(same).equals(here.select(same))
    for column in ("y_logp", "tail_logp"):
        pair = [frame[column].explode().to_numpy() for frame in (remote, here)]
        np.testing.assert_allclose(*pair, atol=1e-4)
    tops = [
        frame["top_logprobs"].explode().explode().cast(pl.Float64).to_numpy()
        for frame in (remote, here)
    ]
    np.testing.assert_allclose(*tops, atol=4e-3)  # float16


def test_one_call_an_answer_with_ids_and_no_text(local):
    server = Server(local)
    score_answers(make_labelled(1), connect(server), top_k=5, **LOOSE)
    (body,) = server.bodies
    assert all(isinstance(token, int) for token in body.pop("prompt"))
    assert body == {"model": "tiny", "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 5}
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_what_is_recorded_of_a_server(local):
    row = score_answers(make_labelled(1), connect(Server(local)), top_k=5, **LOOSE).row(
        0, named=True
    )
    assert (row["scorer_id"], row["scorer_dtype"], row["source"]) == ("tiny@0", "unknown", "scorer")
    assert row["scorer_hash"] == connect(Server(local)).scorer_hash


def test_what_can_pass_is_asked_again_and_what_cannot_is_not(local):
    busy = JSONResponse({"error": "busy"}, status_code=503)
    server = Server(local, busy, busy)
    assert score_answers(make_labelled(1), connect(server), top_k=5, **LOOSE).height == 1
    assert len(server.bodies) == 3
    message = f"Requested prompt logprobs of 40, which is greater than max allowed: 20 {KEY}"
    server = Server(local, JSONResponse({"message": message}, status_code=400))
    with pytest.raises(UpstreamRejectedError, match=r"max allowed: 20 \*\*\*"):
        score_answers(make_labelled(1), connect(server), top_k=40, **LOOSE)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "document", [{}, [], {"choices": [{"text": "x"}]}, {"choices": [{"prompt_logprobs": [None]}]}]
)
def test_a_server_without_prompt_logprobs_is_refused(local, document):
    server = Server(local, JSONResponse(document))
    with pytest.raises(UpstreamRejectedError, match="prompt_logprobs"):
        score_answers(make_labelled(1), connect(server), top_k=5, **LOOSE)


def test_an_answer_that_is_scored_in_part_is_refused(local):
    class Caching(Server):
        def answer(self, body):
            document = json.loads(super().answer(body).body)
            document["choices"][0]["prompt_logprobs"][-2] = None
            return JSONResponse(document)

    with pytest.raises(UpstreamRejectedError, match="none at 1 of") as error:
        score_answers(make_labelled(1), connect(Caching(local)), top_k=5, **LOOSE)
    assert "--no-enable-prefix-caching" in error.value.next_step


def test_a_server_with_another_tokenizer_is_refused(local):
    server = Server(local, decode=lambda token_id: f"<{token_id}>")
    with pytest.raises(InvalidInputError, match="shares the student's tokenizer"):
        score_answers(make_labelled(1), connect(server), top_k=5, **LOOSE)


def test_recorded_entries_become_rows_by_rank():
    entries = [
        {
            "311": {"logprob": -2.5, "rank": 3, "decoded_token": " to"},
            "260": {"logprob": -0.25, "rank": 1, "decoded_token": " the"},
            "253": {"logprob": -1.5, "rank": 2, "decoded_token": " a"},
        },
        {
            "9": {"logprob": -9999.0, "rank": 49152, "decoded_token": "\t"},
            "260": {"logprob": -0.125, "rank": 1, "decoded_token": " the"},
            "253": {"logprob": -3.0, "rank": 2, "decoded_token": " a"},
        },
    ]
    scores = read_scores((311, 9), entries, top_k=2)
    assert scores.top_ids.tolist() == [[260, 253], [260, 253]]
    assert scores.top_logprobs.tolist() == [[-0.25, -1.5], [-0.125, -3.0]]
    assert scores.y_logprobs.tolist() == [-2.5, -math.inf]
