"""A vLLM server as it is: the scorer, an adapter by its own name, and a teacher's logprobs.

Runs where `UNDERSTUDY_TEST_VLLM` names the command `vllm` of an environment of its own: it wants
another transformers than this repo. How to make one stands in docs/how-to/use-vllm.mdx.
"""

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import numpy as np
import polars as pl
import pytest

from assets.labels.local_scoring import LocalScorer
from assets.labels.scoring import score_answers
from resources.pacing import Pace
from resources.scorers import VLLMScorer
from serving.errors import ModelError, UpstreamRejectedError
from serving.models.embedded import resolve_model
from serving.models.local_student import LocalStudent
from serving.models.protocols import ChatModel, ChatRequest, Completion, Price
from serving.models.remote import connect_remote
from tests.tiny_student import make_adapter, make_labelled, make_messages

VLLM = os.environ.get("UNDERSTUDY_TEST_VLLM")
pytestmark = [
    pytest.mark.real_models,
    pytest.mark.skipif(not VLLM, reason="UNDERSTUDY_TEST_VLLM names no command"),
]

BASE, ADAPTER, ACTIVATED = "base", "compact@0123456789ab", "compact@ba9876543210"
START_SECONDS = 300
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
}
QUESTIONS = [make_messages(question) for question in ("How do I set the key?", "What is a trace?")]
FREE = {"minimum_mean_probability": 0.0}  # the labels are not this model's own words


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    models = tmp_path_factory.mktemp("models")
    return resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct", "embedded", models).path


@contextmanager
def serve(base_folder: Path, log: Path, *options: str) -> Iterator[str]:
    """Run `vllm serve` until the block ends; yield its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        VLLM, "serve", base_folder, "--served-model-name", BASE, "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024",
        "--max-num-seqs", "8", *options,
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}/v1"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | SETTINGS) as server,
    ):
        try:
            wait_for(url, server, log)
            yield url
        finally:
            server.terminate()


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text(encoding="utf-8")[-4000:]
        with suppress(httpx2.TransportError):
            if httpx2.get(f"{url}/models", timeout=5).is_success:
                return
        time.sleep(1)
    raise TimeoutError(log.read_text(encoding="utf-8")[-4000:])


@pytest.fixture(scope="module")
def scoring_server(base_folder, tmp_path_factory) -> Iterator[str]:
    with serve(base_folder, tmp_path_factory.mktemp("vllm") / "scoring.log") as url:
        yield url


@pytest.fixture(scope="module")
def adapters(base_folder, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(folder / name, base_folder, activation=activation, std=0.03)
        for name, activation in ((ADAPTER, "all"), (ACTIVATED, "question"))
    }


@pytest.fixture(scope="module")
def adapter_server(base_folder, adapters, tmp_path_factory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("vllm") / "adapters.log"
    module = f"{ADAPTER}={adapters[ADAPTER]}"
    with serve(base_folder, log, "--enable-lora", "--lora-modules", module) as url:
        yield url


def make_scorer(url: str, tokenizer: object) -> VLLMScorer:
    return VLLMScorer(
        model=BASE, revision="embedded", base_url=url, tokenizer=tokenizer,
        pace=Pace(4, deadline_seconds=120),
    )  # fmt: skip


def connect(url: str, model: str, **options) -> ChatModel:
    return connect_remote(
        provider="vllm", model=model, base_url=url, api_key=None, price=Price(),
        timeout_seconds=120, **options,
    )  # fmt: skip


def ask(model: ChatModel) -> Sequence[Completion]:
    async def ask_all() -> Sequence[Completion]:
        requests = [ChatRequest(messages=tuple(m), max_tokens=24) for m in QUESTIONS]
        return await asyncio.gather(*map(model.complete, requests))

    return asyncio.run(ask_all())


def ask_here(base_folder: Path, adapter: Path | None) -> list[str]:
    student = LocalStudent.load(
        base_folder, adapter, name="here", price=Price(), activation="all", context_tokens=1024,
        dtype="float32",
    )  # fmt: skip
    return [answer.text for answer in ask(student)]


def test_the_scorer_writes_the_table_of_the_local_one(base_folder, scoring_server):
    local = LocalScorer.load(base_folder, scorer_id=f"{BASE}@embedded", dtype="float32")
    remote = make_scorer(scoring_server, local.tokenizer)
    examples = make_labelled(6)
    here = score_answers(examples, local, top_k=20, **FREE)
    same = ["example_id", "token_hash", "tokenizer_id", "token_ids", "soft_ok", "cite"]
    for attempt in ("asked first", "asked again, with every prompt in the server's prefix cache"):
        there = score_answers(examples, remote, top_k=20, **FREE)
        assert there.select(same).equals(here.select(same)), attempt
        realised = [frame["y_logp"].explode().to_numpy() for frame in (there, here)]
        np.testing.assert_allclose(*realised, atol=1e-3, err_msg=attempt)
        tails = [frame["tail_logp"].explode().exp().to_numpy() for frame in (there, here)]
        np.testing.assert_allclose(*tails, atol=1e-4, err_msg=attempt)  # what 21 roundings leave
        tops = [
            frame["top_logprobs"].explode().explode().cast(pl.Float64).to_numpy()
            for frame in (there, here)
        ]
        np.testing.assert_allclose(*tops, atol=2e-2, err_msg=attempt)  # kept as float16


def test_more_logprobs_than_the_server_gives_are_refused_in_its_words(base_folder, scoring_server):
    local = LocalScorer.load(base_folder, scorer_id=f"{BASE}@embedded", dtype="float32")
    with pytest.raises(UpstreamRejectedError, match="40"):
        score_answers(make_labelled(1), make_scorer(scoring_server, local.tokenizer), top_k=40)


def test_a_teacher_reports_its_logprobs_with_bytes(scoring_server):
    for answer in ask(connect(scoring_server, BASE, top_logprobs=5)):
        assert answer.logprobs is not None
        assert answer.mean_logprob is not None
        assert answer.completion_tokens == len(answer.logprobs)
        assert all(len(token["top"]) == 5 for token in answer.logprobs)
        spoken = b"".join(bytes(token["bytes"] or ()) for token in answer.logprobs)
        assert spoken.decode().startswith(answer.text)


def test_an_adapter_by_its_own_name_answers_as_it_does_here(base_folder, adapters, adapter_server):
    texts = [answer.text for answer in ask(connect(adapter_server, ADAPTER))]
    assert texts == ask_here(base_folder, adapters[ADAPTER])
    base_texts = [answer.text for answer in ask(connect(adapter_server, BASE))]
    assert base_texts == ask_here(base_folder, None)
    assert base_texts != texts


def test_an_adapter_the_server_does_not_hold_is_refused(adapter_server):
    with pytest.raises(ModelError, match="compact@ffffffffffff"):
        ask(connect(adapter_server, "compact@ffffffffffff"))


def test_the_server_refuses_an_activated_adapter_as_the_release_does(adapters, adapter_server):
    """The reason for the rule of `StudentEntry`: the day vLLM takes one, it can be lifted."""
    body = {"lora_name": ACTIVATED, "lora_path": str(adapters[ACTIVATED])}
    answer = httpx2.post(f"{adapter_server}/load_lora_adapter", json=body, timeout=60)
    assert not answer.is_success
    assert "aLoRA" in json.dumps(answer.json())
