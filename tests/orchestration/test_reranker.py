"""A reranker that the configuration names reaches the request path and every release."""

from pathlib import Path

import pytest

from orchestration.bindings import Bindings
from orchestration.config import Config, load_config, read_config
from serving.errors import InvalidInputError
from serving.models.protocols import NoProgress
from tests.serving.models.test_cross_encoder import make_cross_encoder
from tests.serving.pipeline.test_retrieval import LetterEmbedder

DEFAULT = load_config({})


def make_bindings(config: Config) -> Bindings:
    bindings = Bindings(config, NoProgress())
    vars(bindings)["embedder"] = LetterEmbedder()  # no model is loaded to see what is bound
    return bindings


def test_none_is_the_default() -> None:
    bindings = make_bindings(DEFAULT)
    assert bindings.pipeline_parts.reranker is None
    assert bindings.release_terms.reranker is None


def test_the_named_one_orders_candidates_and_is_pinned(tmp_path: Path) -> None:
    folder = make_cross_encoder(tmp_path / "cross")
    section = {"k": 3, "reranker": {"model": str(folder), "revision": "5fdd7d1f"}}
    data = {**DEFAULT.model_dump(), "source": DEFAULT.source, "retrieval": section}
    bindings = make_bindings(Config.model_validate(data))
    reranker, entry = bindings.pipeline_parts.reranker, bindings.release_terms.reranker
    assert reranker is not None
    assert entry is not None
    assert (entry.model, entry.fingerprint) == (str(folder), reranker.fingerprint)


@pytest.mark.parametrize("broken", ["{model: m}", "{model: m, revision: main}", "{revision: a1}"])
def test_one_without_a_pinned_revision_is_refused(tmp_path: Path, broken: str) -> None:
    text = DEFAULT.source.read_text(encoding="utf-8")
    file = tmp_path / "understudy.yaml"
    file.write_text(text.replace("  k: 3", f"  k: 3\n  reranker: {broken}"), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"retrieval\.reranker"):
        read_config(file)
