"""A small corpus with true answers, and two embedders: MiniLM, and hashed words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from serving.hashing import content_hash
from serving.models.embedder import SentenceEmbedder, load_embedder
from serving.models.extractive.sources import Source, read_sources
from serving.models.extractive.vectors import SentenceVectors
from serving.models.protocols import Hit, Vectors
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.statements import content_words

MINILM = "sentence-transformers/all-MiniLM-L6-v2"

PAGES = {
    ("Backups", "Schedule"): (
        "Tern takes a backup every 6 hours by default. "
        "The key `backup.interval_hours` changes how often a backup is taken. "
        "See the page about retention for more."
    ),
    ("Backups", "Restoring"): (
        "Run `tern restore --latest` to restore the newest backup. "
        "It asks for confirmation before files are overwritten."
    ),
    ("Sync", "Conflicts: who wins"): (
        "When two machines change the same file, the newer change wins. "
        "The older version is kept beside it with the ending `.conflict`."
    ),
    ("Limits",): (
        "| limit | default |\n|---|---|\n| maximum file size | 2 GB |\n| files per folder | 10000 |"
    ),
    ("Prompts",): (
        "A model writes `[1]` after each sentence. It declines with the word REFUSE. "
        "The default number of sources is 3."
    ),
}


@dataclass
class WordHashEmbedder:
    """Unit vectors from hashed words: texts that share words are close. Counts what it embeds."""

    dimension: int = 64
    maximum_tokens: int = 256
    fingerprint: str = "word-hash-1"
    embedded_count: int = 0

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.embedded_count += len(texts)
        rows = np.full((len(texts), self.dimension), 1e-6, dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in content_words(text):
                row[int(content_hash(word), 16) % self.dimension] += 1.0
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def make_hits(*titles: tuple[str, ...]) -> tuple[Hit, ...]:
    """Return the chunks under these heading paths, or all of them, as retrieval would."""
    chosen = [(path, PAGES[path]) for path in titles or tuple(PAGES)]
    return tuple(
        Hit(
            chunk_id=f"docs:tern/{number}",
            content_hash=content_hash(text),
            text=text,
            title=path[0],
            url="https://docs.example/tern/",
            heading_path=path,
            score=0.7,
        )
        for number, (path, text) in enumerate(chosen, start=1)
    )


def make_sources(*titles: tuple[str, ...]) -> tuple[Source, ...]:
    """Return the same chunks as a model reads them."""
    request = PromptFormat().write_request("?", make_hits(*titles))
    return read_sources(request.messages[0]["content"])


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> SentenceEmbedder:
    return load_embedder(MINILM, "embedded", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def minilm_vectors(minilm: SentenceEmbedder) -> SentenceVectors:
    return SentenceVectors(minilm)


@pytest.fixture
def word_vectors() -> SentenceVectors:
    return SentenceVectors(WordHashEmbedder())
