"""The compiled engines against transformers: same adapter, same answers, alone and in a batch."""

import asyncio
import itertools

import numpy as np
import pytest
import torch

from serving.errors import HashMismatchError, ReleaseError
from serving.models import engine_conversion
from serving.models.adapters import load_transformers
from serving.models.engine_conversion import compare, prepare_engine, refuse_other_answers
from serving.models.local_student import LocalStudent
from serving.models.openvino_engine import hide_unreadable, pad_rows, read_steps
from serving.models.protocols import ChatRequest, Price
from tests.tiny_student import make_adapter, make_messages

PRICE = Price(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)
QUESTIONS = ["How do I set the key?", "What?", "A trace is written when, and where is it kept?"]
SOURCES = [f"[1] Page {n}: {'Put the key in the .env file. [1] ' * n}" for n in (1, 3)]


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory):
    root = tmp_path_factory.mktemp("engines")
    return tiny_base, make_adapter(root / "a", tiny_base), root / "models"


@pytest.fixture(scope="module")
def prepared(folders):
    return {
        name: prepare_engine(*folders[:2], name, folders[2]) for name in engine_conversion.DTYPES
    }


@pytest.fixture(scope="module")
def original(folders):
    return load_transformers(*folders[:2], "float32")


def load(folders, engine, adapter=True, activation="question"):
    base, folder, models = folders
    return LocalStudent.load(
        base, folder if adapter else None, name="tiny@1", price=PRICE, activation=activation,
        context_tokens=400, dtype="float32", local_engine=engine, models_folder=models,
    )  # fmt: skip


def ask_all(student):
    async def together():
        requests = [
            ChatRequest(messages=tuple(make_messages(q, s)), max_tokens=4 + number % 9)
            for number, (q, s) in enumerate(itertools.product(QUESTIONS, SOURCES))
        ]
        return await asyncio.gather(*map(student.complete, requests))

    return asyncio.run(together())


def test_answers_and_signals_are_those_of_transformers_with_the_adapter_and_without(folders):
    texts = {}
    for adapter in (True, False):
        expected = ask_all(load(folders, "transformers", adapter))
        found = ask_all(load(folders, "openvino", adapter))
        assert [c.text for c in found] == [c.text for c in expected]
        assert [c.finish_reason for c in found] == [c.finish_reason for c in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-3)
            assert one.signs == pytest.approx(other.signs, abs=1e-2)
            assert one.first_token_ms <= one.latency_ms
        texts[adapter] = [c.text for c in found]
    changed = sum(a != b for a, b in zip(texts[True], texts[False], strict=True))
    assert changed > len(texts[True]) / 2, "the adapter must change answers"


@pytest.mark.parametrize("name", ["openvino", "openvino_int8"])
def test_answers_in_a_batch_are_those_one_by_one(folders, name):
    student = load(folders, name)
    together = ask_all(student)
    asked = itertools.product(QUESTIONS, SOURCES)
    for number, (question, sources) in enumerate(asked):
        messages = tuple(make_messages(question, sources))
        request = ChatRequest(messages=messages, max_tokens=4 + number % 9)
        alone = asyncio.run(student.complete(request))
        if name == "openvino":
            assert alone.text == together[number].text
        assert alone.completion_tokens <= request.max_tokens
        assert alone.signs is not None


def test_every_engine_is_nearer_to_the_adapted_model_than_to_the_base(original, prepared):
    exact, rounded = (compare(original, prepared[n]) for n in ("openvino", "openvino_int8"))
    assert exact.largest_difference < 1e-3
    assert 0 < rounded.from_adapted < rounded.from_base / 2
    assert exact.from_base == pytest.approx(rounded.from_base, rel=0.5)


@pytest.mark.parametrize("name", ["openvino", "openvino_int8"])
def test_an_engine_that_lost_the_adapter_is_refused(folders, original, name):
    base, _, models = folders
    without = prepare_engine(base, None, name, models)
    agreement = compare(original, without)
    assert not agreement.has_adapter
    with pytest.raises(ReleaseError, match="local_engine to transformers"):
        refuse_other_answers(agreement, name)


def test_a_prefix_of_any_length_gives_the_states_of_transformers(original, prepared):
    for length in (1, 5, 90):
        ids = [(7 * n) % 380 for n in range(length)]
        expected = original.read_prefix(ids)
        found = prepared["openvino"].read_prefix(ids)
        assert len(found) == length
        assert found.nbytes == expected.nbytes
        np.testing.assert_allclose(found.states[0], expected.keys.numpy(), atol=1e-4)
        np.testing.assert_allclose(found.states[1], expected.values.numpy(), atol=1e-4)


def test_activation_all_has_no_prefix_and_answers_alike(tiny_base, tmp_path):
    adapter = make_adapter(tmp_path / "all", tiny_base, activation="all")
    paths = (tiny_base, adapter, tmp_path / "models")
    texts = [
        [c.text for c in ask_all(load(paths, name, activation="all"))]
        for name in ("transformers", "openvino")
    ]
    assert texts[0] == texts[1]


def test_what_is_compiled_is_kept_by_content_and_checked(folders, prepared, tmp_path):
    base, adapter, models = folders
    before = {p: p.stat().st_mtime_ns for p in models.rglob("*.xml")}
    prepare_engine(base, adapter, "openvino", models)
    assert {p: p.stat().st_mtime_ns for p in models.rglob("*.xml")} == before
    assert {e.dtype for e in prepared.values()} == {"openvino-float32", "openvino-int8"}
    other = prepare_engine(base, make_adapter(tmp_path / "b", base), "openvino", tmp_path / "m")
    assert other.configured_stop_ids == prepared["openvino"].configured_stop_ids
    (weights,) = (tmp_path / "m").glob("b.*/step.bin")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(HashMismatchError, match=r"step\.bin"):
        prepare_engine(base, tmp_path / "b", "openvino", tmp_path / "m")


def test_a_base_with_a_window_is_refused(folders, monkeypatch, tmp_path):
    original = load_transformers(*folders[:2], "float32")
    original.base.config.sliding_window = 16
    monkeypatch.setattr("serving.models.adapters.load_transformers", lambda *_: original)
    with pytest.raises(ReleaseError, match="sliding_window 16"):
        prepare_engine(*folders[:2], "openvino", tmp_path)


def test_rows_are_padded_on_the_left_and_read_only_what_came_before():
    ids, real = pad_rows([2, 0], [[5], [6, 7]])
    assert ids.tolist() == [[0, 5], [6, 7]]
    assert real.tolist() == [[1, 1, 0, 1], [0, 0, 1, 1]]
    hidden = hide_unreadable(real, 2)
    assert (hidden == 0)[:, 0].tolist() == [
        [[True, True, False, False], [True, True, False, True]],
        [[False, False, True, False], [False, False, True, True]],
    ]
    assert np.isfinite(hidden).all()


def test_steps_are_read_as_torch_reads_them():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(3)) * 5
    for row, (token, logprob, margin) in enumerate(read_steps(logits.numpy())):
        assert token == int(logits[row].argmax())
        assert logprob == pytest.approx(float(logits[row].log_softmax(-1).max()), abs=1e-5)
        best, second = logits[row].topk(2).values.tolist()
        assert margin == pytest.approx(best - second, abs=1e-5)
