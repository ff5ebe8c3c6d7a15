"""The compiled embedder gives torch's vectors, whatever the model is made of, or is not used."""

import importlib.metadata
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import HashMismatchError
from serving.hashing import folder_sha256
from serving.models import compiled_embedder, embedder_conversion
from serving.models.compiled_embedder import CompiledEmbedder, batch_by_length
from serving.models.embedder import SentenceEmbedder, load_embedder
from serving.models.protocols import Embedder
from tests.tiny_embedder import make_embedder

ROOT = Path(__file__).resolve().parents[3]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = [
    *(
        "Set the key in the .env file.",
        "restart",
        "What is a trace?",
        "A Longer One. " * 30,
        "é 🙂",
    ),
    *(f"{'word ' * (n % 23)}number {n}" for n in range(60)),
]
MAKES = (
    {},
    {"pooling": "cls", "is_normalized": True},
    {"pooling": "max", "dense": 12},
    {"pooling": "weightedmean"},
    {"kind": "distilbert", "pooling": "mean_sqrt_len_tokens"},
    {"kind": "llama", "pooling": "lasttoken"},
    {"prompt": "passage: "},
)


def original(folder: Path) -> SentenceEmbedder:
    return SentenceEmbedder(folder, sha256=folder_sha256(folder))


def refusals(models: Path) -> list[str]:
    return [json.loads(path.read_text())["reason"] for path in models.glob("*/refused.json")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny BERT with mean pooling, its folder and the folder of prepared models."""
    base = tmp_path_factory.mktemp("tiny")
    folder = make_embedder(base / "model")
    embedder = load_embedder(str(folder), "any", base / "models")
    assert isinstance(embedder, CompiledEmbedder), refusals(base / "models")
    return embedder, folder, base / "models"


@pytest.mark.parametrize(
    "make", MAKES, ids=lambda make: " ".join(map(str, make.values())) or "bert"
)
def test_any_make_is_compiled_to_the_same_vectors_and_token_counts(tmp_path, make):
    folder = make_embedder(tmp_path / "model", **make)
    compiled = load_embedder(str(folder), "any", tmp_path / "models")
    assert isinstance(compiled, CompiledEmbedder), refusals(tmp_path / "models")
    expected = original(folder)
    vectors = compiled.embed(TEXTS)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - expected.embed(TEXTS)).max() <= 1e-5
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert compiled.count_tokens(TEXTS) == expected.count_tokens(TEXTS)
    assert compiled.dimension == expected.dimension == make.get("dense", 32)
    assert compiled.maximum_tokens == expected.maximum_tokens
    assert compiled.fingerprint == expected.fingerprint
    assert isinstance(compiled, Embedder)


@pytest.mark.parametrize("make", [{}, {"kind": "llama"}, {"prompt": "passage of a page: "}])
def test_a_text_of_the_maximum_is_read_to_its_end_and_hardly_further(tmp_path, make):
    folder = make_embedder(tmp_path / "model", **make)
    compiled = load_embedder(str(folder), "any", tmp_path / "models")
    for embedder in (compiled, original(folder)):
        longest = " ".join(["set"] * 60)
        while embedder.count_tokens([longest])[0] > embedder.maximum_tokens:
            longest = longest[:-1]
        texts = [longest, longest[:-4], f"{longest}{' a b' * 2}", f"{longest}{' a b' * 4}"]
        full, shorter, longer, longest_of_all = embedder.embed(texts)
        assert embedder.count_tokens([longest]) == [embedder.maximum_tokens]
        assert np.abs(full - shorter).max() > 1e-4
        assert np.abs(longer - longest_of_all).max() <= 1e-6


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        # Pooling that leaves out the prompt's tokens is not in the graph.
        ({"prompt": "passage: ", "include_prompt": False}, "does not agree with torch"),
        ({"kind": "llama", "pooling": "lasttoken", "has_chat_template": True}, "chat template"),
    ],
    ids=["prompt left out", "chat template"],
)
def test_a_model_that_would_come_out_different_is_refused_once_and_runs_on_torch(
    tmp_path, caplog, make, reason
):
    folder = make_embedder(tmp_path / "model", **make)
    embedder = load_embedder(str(folder), "any", tmp_path / "models")
    assert isinstance(embedder, SentenceEmbedder)
    assert reason in caplog.text
    assert np.array_equal(embedder.embed(TEXTS), original(folder).embed(TEXTS))
    caplog.clear()
    assert isinstance(load_embedder(str(folder), "any", tmp_path / "models"), SentenceEmbedder)
    assert caplog.text == ""  # the refusal is kept, not tried again
    assert len(refusals(tmp_path / "models")) == 1
    assert not list((tmp_path / "models").glob("*/model.bin"))


def test_a_model_that_cannot_be_traced_runs_on_torch(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise TypeError("an operation nobody knows")

    monkeypatch.setattr(embedder_conversion, "_write_graph", fail)
    folder = make_embedder(tmp_path / "model")
    assert isinstance(load_embedder(str(folder), "any", tmp_path / "models"), SentenceEmbedder)
    assert refusals(tmp_path / "models") == ["TypeError: an operation nobody knows"]


@pytest.mark.parametrize("error", [RuntimeError("not enough memory"), MemoryError()])
def test_a_failure_that_may_pass_is_tried_again_at_the_next_start(
    tmp_path, monkeypatch, caplog, error
):
    def fail(*_: object) -> None:
        raise error

    folder = make_embedder(tmp_path / "model")
    with monkeypatch.context() as patched:
        patched.setattr(embedder_conversion, "_write_graph", fail)
        embedder = load_embedder(str(folder), "any", tmp_path / "models")
    assert isinstance(embedder, SentenceEmbedder)
    assert repr(error) in caplog.text
    assert refusals(tmp_path / "models") == []
    assert isinstance(load_embedder(str(folder), "any", tmp_path / "models"), CompiledEmbedder)


def test_a_full_disk_is_an_error_and_not_a_refusal(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedder_conversion, "_write_graph", fail)
    folder = make_embedder(tmp_path / "model")
    with pytest.raises(OSError, match="No space"):
        load_embedder(str(folder), "any", tmp_path / "models")
    assert refusals(tmp_path / "models") == []


def test_without_openvino_torch_does_it(tmp_path, monkeypatch):
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(embedder_conversion.importlib.metadata, "version", absent)
    folder = make_embedder(tmp_path / "model")
    embedder = load_embedder(str(folder), "any", tmp_path / "models")
    assert isinstance(embedder, SentenceEmbedder)
    assert embedder.embed([]).shape == (0, 32)
    assert embedder.count_tokens([]) == []


def test_it_is_compiled_once_and_verified_every_time(tiny):
    _, folder, models = tiny
    (compiled,) = models.iterdir()
    stamp = (compiled / "prepared.json").stat().st_mtime_ns
    load_embedder(str(folder), "any", models)
    assert (compiled / "prepared.json").stat().st_mtime_ns == stamp
    weights = (compiled / "model.bin").read_bytes()
    (compiled / "model.bin").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(HashMismatchError, match=r"model\.bin.*remove"):
        load_embedder(str(folder), "any", models)
    (compiled / "model.bin").write_bytes(weights)


def test_a_compiled_embedder_needs_no_torch(tiny):
    _, folder, models = tiny
    code = (
        "import sys\nfrom pathlib import Path\nfrom serving.models.embedder import load_embedder\n"
        f"embedder = load_embedder({str(folder)!r}, 'any', Path({str(models)!r}))\n"
        "embedder.embed(['a text'])\nembedder.count_tokens(['a text'])\n"
        "print({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "set()"


def test_a_vector_does_not_depend_on_its_company(tiny, monkeypatch):
    embedder, *_ = tiny
    together = embedder.embed(TEXTS)
    order = np.random.default_rng(5).permutation(len(TEXTS))
    shuffled = embedder.embed([TEXTS[n] for n in order])
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    monkeypatch.setattr(compiled_embedder, "WINDOW_TEXTS", 9)
    in_windows = embedder.embed(TEXTS)
    for vectors in (shuffled[np.argsort(order)], alone, in_windows):
        assert np.abs(vectors - together).max() <= 1e-6
    assert np.array_equal(embedder.embed(TEXTS), in_windows)  # the same call, the same bits
    assert embedder.embed([]).shape == (0, 32)


def test_threads_share_it(tiny):
    embedder, folder, models = tiny
    fresh = load_embedder(str(folder), "any", models)  # loaded by whoever comes first
    expected = embedder.embed(TEXTS)
    apart: list[float] = []

    def ask(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(TEXTS))
        vectors = fresh.embed([TEXTS[n] for n in order])
        apart.append(float(np.abs(vectors - expected[order]).max()))
        assert fresh.count_tokens(["a text"]) == embedder.count_tokens(["a text"])

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(apart) == 8
    assert max(apart) <= 1e-6


@given(
    lengths=st.lists(st.integers(min_value=1, max_value=300), max_size=80),
    limit=st.integers(min_value=1, max_value=1000),
    mixes=st.booleans(),
)
def test_batches_hold_every_row_once_and_stay_under_the_limit(lengths, limit, mixes):
    batches = list(batch_by_length(lengths, limit, mixes=mixes))
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= limit
        assert mixes or len({lengths[n] for n in batch}) == 1


@pytest.mark.real_models
def test_minilm_compiled_gives_the_vectors_of_minilm(tmp_path):
    compiled = load_embedder(MINILM, "embedded", tmp_path)
    assert isinstance(compiled, CompiledEmbedder), refusals(tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if "openvino" not in path.name)
    expected = original(folder)
    pages = sorted((ROOT / "docs").rglob("*.mdx"))
    texts = [part for page in pages for part in page.read_text("utf-8").split("\n\n")][::8]
    assert len(texts) > 100
    vectors, reference = compiled.embed(texts), expected.embed(texts)
    assert np.abs(vectors - reference).max() <= 1e-5
    assert (vectors * reference).sum(axis=1).min() >= 0.99999
    assert compiled.count_tokens(texts) == expected.count_tokens(texts)
    assert (compiled.dimension, compiled.maximum_tokens) == (384, 254)  # 256 with [CLS], [SEP]
