"""A reranker in process: a cross-encoder of random weights, made here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from serving.engine import load_engine
from serving.errors import InvalidInputError, ReleaseError
from serving.models import embedder as embedder_module
from serving.models.cross_encoder import CrossEncoderReranker, load_reranker
from serving.models.protocols import Reranker
from tests.serving.fakes import make_manifest
from tests.serving.pipeline.test_retrieval import LetterEmbedder, find, open_index
from tests.serving.test_engine import _publish

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "backup", "sync"]


def make_cross_encoder(folder: Path, *, outputs: int = 1, seed: int = 0) -> Path:
    """Write a two-layer BERT whose weights are large enough that every text scores differently."""
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name}_token": token for name, token in names.items()}
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=outputs,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reranker(tmp_path_factory) -> CrossEncoderReranker:
    folder = make_cross_encoder(tmp_path_factory.mktemp("cross"))
    return load_reranker(str(folder), "unused", tmp_path_factory.mktemp("models"))


def test_scores_lie_in_0_to_1_and_tell_texts_apart(reranker):
    assert isinstance(reranker, Reranker)
    texts = ["backup a b", "sync c", "x y z"]
    scores = reranker.score("when is a backup taken", texts)
    assert scores.dtype == np.float32
    assert ((scores > 0) & (scores < 1)).all()
    assert len(set(scores.tolist())) == 3
    alone = [reranker.score("when is a backup taken", [text])[0] for text in texts]
    assert scores.tolist() == pytest.approx(alone, abs=1e-5)
    assert reranker.score("anything", []).shape == (0,)


def test_other_weights_are_another_identity(reranker, tmp_path):
    other = make_cross_encoder(tmp_path / "other", seed=1)
    loaded = load_reranker(str(other), "unused", tmp_path / "models")
    assert loaded.fingerprint != reranker.fingerprint


def test_a_classifier_is_refused(tmp_path):
    folder = make_cross_encoder(tmp_path / "classifier", outputs=3)
    with pytest.raises(InvalidInputError, match="3 outputs"):
        CrossEncoderReranker(folder, sha256="x").score("question", ["text"])


async def test_a_reranker_orders_the_candidates_and_leaves_their_cosines(reranker, tmp_path):
    plain = await open_index(tmp_path)
    question = "How often is a backup taken?"
    before = {hit.chunk_id: hit for hit in await plain.retrieve(question, k=8)}
    reranked = await open_index(tmp_path, reranker=reranker)
    hits = await reranked.retrieve(question, k=8)
    texts = [" > ".join(hit.heading_path) + "\n" + hit.text for hit in hits]
    scores = reranker.score(question, texts)
    assert [hit.relevance for hit in hits] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert {hit.chunk_id: hit.score for hit in hits} == pytest.approx(
        {chunk_id: hit.score for chunk_id, hit in before.items()}
    )
    assert [hit.chunk_id for hit in hits] != list(before)
    best = [hit.chunk_id for hit in hits[:2]]  # chosen among all candidates, not among the best two
    assert await find(reranked, question, k=2) == best


async def test_a_release_with_another_reranker_is_refused(tmp_path, monkeypatch):
    pinned = make_manifest().embedder.fingerprint
    embedder = LetterEmbedder(fingerprint=pinned)
    monkeypatch.setattr(embedder_module, "load_embedder", lambda *_: embedder)
    folder = make_cross_encoder(tmp_path / "cross")
    entry = {"model": str(folder), "revision": "unused", "fingerprint": "feed"}
    settings = _publish(tmp_path / "home", retrieval={"k": 3, "reranker": entry})
    with pytest.raises(ReleaseError, match=r"reranker .* feed"):
        await load_engine(settings)
