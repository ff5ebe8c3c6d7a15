"""The guard as assets: what is stored, what the UI shows, a check that catches a tampered row."""

import base64

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.eval_set.assets import guard_recall
from assets.eval_set.checks import guard_catches_every_copy
from assets.paraphrases.assets import guarded_questions
from assets.paraphrases.checks import no_training_text_near_eval_set
from serving.errors import InvalidInputError
from serving.models.protocols import Vectors
from serving.pipeline.questions import normalise_question, split_words

CASES = {
    "g1": "Where do I set the limit of the guard before I train?",
    "g2": "Which folder holds the adapters that were trained yesterday?",
}
SEEDS = {
    "s1": "How are answers cited?",
    "s2": "where do i set the limit of the guard before i train",
    "s3": "Tell me where do I set the limit of the guard, and how are answers cited at all?",
}


class WordEmbedder:
    """A bag of words, hashed: equal words, equal vectors; the fewer shared, the further apart."""

    fingerprint = "words"
    dimension = 512
    maximum_tokens = 256

    def embed(self, texts: list[str]) -> Vectors:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in split_words(text):
                vectors[row, int.from_bytes(word.encode()) % 509] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(split_words(text)) for text in texts]


class Dreams:
    """Questions written by night."""

    def __init__(self, *rows: tuple[str, str, str]) -> None:
        frame = pl.DataFrame(rows, ["question_id", "seed_id", "text"], orient="row")
        self._rows = frame if rows else tables.DREAMED_QUESTIONS.to_frame()

    def fingerprint(self) -> str:
        return "test"

    def read(self) -> pl.DataFrame:
        return self._rows


NO_DREAMS = Dreams()


@pytest.fixture
def eval_embeddings() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "case_id": list(CASES),
            "suite": "golden",
            "question": list(CASES.values()),
            "embedder_fingerprint": "words",
            "vector": WordEmbedder().embed(list(CASES.values())).tolist(),
        },
        schema=tables.EVAL_EMBEDDINGS,
    )


@pytest.fixture
def seed_questions() -> pl.DataFrame:
    texts = list(SEEDS.values())
    sources = ["handwritten"] * len(texts)
    return pl.DataFrame({"question_id": list(SEEDS), "text": texts, "source": sources})


@pytest.fixture
def guarded(seed_questions: pl.DataFrame, eval_embeddings: pl.DataFrame):
    paraphrases = pl.DataFrame(
        {"question_id": ["p1"], "seed_id": ["s1"], "text": ["In which way are answers cited?"]}
    )
    return guarded_questions(
        seed_questions, paraphrases, eval_embeddings, WordEmbedder(), NO_DREAMS
    )


def test_every_candidate_is_stored_with_its_evidence(guarded):
    assert guarded.value.schema == tables.GUARDED_QUESTIONS
    columns = ("question_id", "origin", "verdict", "reason", "matched_case_id")
    assert guarded.value.select(columns).rows() == [
        ("s1", "seed", "kept", "", None),
        ("s2", "seed", "rejected", "same_words", "g1"),
        ("s3", "seed", "rejected", "shared_ngram", "g1"),
        ("p1", "paraphrase", "kept", "", None),
    ]
    assert guarded.metadata["rejected_by_reason"] == {"same_words": 1, "shared_ngram": 1}


def test_the_guard_rejects_what_was_dreamed_near_a_golden_case_or_around_a_rejected_seed(
    seed_questions, eval_embeddings
):
    dreams = Dreams(
        ("d1", "s1", CASES["g2"]),
        ("d2", "s1", "Who cites the answers?"),
        ("d3", "s2", "Is there any upper bound?"),
    )
    nothing = tables.PARAPHRASES.to_frame()
    made = guarded_questions(seed_questions, nothing, eval_embeddings, WordEmbedder(), dreams)
    dreamed = made.value.filter(origin="dreamed")
    assert dreamed.select("question_id", "seed_id", "verdict", "reason").rows() == [
        ("d1", "s1", "rejected", "same_text"),
        ("d2", "s1", "kept", ""),
        ("d3", "s2", "rejected", "rejected_seed"),
    ]
    assert made.metadata["dreamed_count"] == 3


def test_the_ui_shows_a_plot_and_the_nearest_pairs(guarded):
    plot = guarded.metadata["nearest_cosines"].md_str
    assert base64.b64decode(plot.partition("base64,")[2][:-1]).startswith(b"\x89PNG")
    assert "s2: where do i set the limit" in guarded.metadata["nearest_rejected"].md_str
    assert "s1: How are answers cited?" in guarded.metadata["nearest_kept"].md_str


def test_many_rejected_questions_do_not_hide_the_near_misses(eval_embeddings):
    near = ["yesterday trained the adapters holds that folder", "were trained the adapters holds "
            "folder which"]  # fmt: skip
    texts = [*(f"{CASES['g1']} {number}" for number in range(25)), *near, "How are answers cited?"]
    seeds = pl.DataFrame(
        {"question_id": [f"s{n}" for n in range(28)], "text": texts, "source": "handwritten"}
    )
    nothing = tables.PARAPHRASES.to_frame()
    made = guarded_questions(seeds, nothing, eval_embeddings, WordEmbedder(), NO_DREAMS)
    assert (made.metadata["rejected_count"], made.metadata["near_miss_count"]) == (25, 2)
    rejected = made.metadata["nearest_rejected"].md_str.splitlines()[2:]
    assert len(rejected) == 20
    assert all("| rejected |" in line for line in rejected)
    kept = made.metadata["nearest_kept"].md_str.splitlines()[2:]
    assert len(kept) == 3
    assert all("| kept |" in line for line in kept)
    assert [text in line for text, line in zip(near, kept, strict=False)] == [True, True]


def test_vectors_of_another_embedder_are_compared_nowhere(guarded, seed_questions, eval_embeddings):
    after = WordEmbedder()
    after.fingerprint = "words of another model"
    for compare in (
        lambda: guarded_questions(
            seed_questions, tables.PARAPHRASES.to_frame(), eval_embeddings, after, NO_DREAMS
        ),
        lambda: no_training_text_near_eval_set(guarded.value, eval_embeddings, after),
        lambda: guard_recall(eval_embeddings, seed_questions, after),
    ):
        with pytest.raises(InvalidInputError, match="words of another model, found vectors of wor"):
            compare()


def test_what_is_judged_and_kept_is_the_text_that_training_will_see(eval_embeddings):
    texts = ["How are an\u00adswers \uff23ited?", CASES["g1"].replace("limit", "li\u200bmit")]
    seeds = pl.DataFrame({"question_id": ["s1", "s2"], "text": texts, "source": "handwritten"})
    nothing = tables.PARAPHRASES.to_frame()
    made = guarded_questions(seeds, nothing, eval_embeddings, WordEmbedder(), NO_DREAMS).value
    assert made["text"].to_list() == [normalise_question(text) for text in texts]
    assert made.select("verdict", "reason").rows() == [("kept", ""), ("rejected", "same_text")]


def test_a_users_words_are_not_shown_with_the_nearest_pairs(eval_embeddings):
    text = "Does ada@example.com set the limit of the guard?"
    seeds = pl.DataFrame({"question_id": ["s1"], "text": [text], "source": "harvested"})
    made = guarded_questions(
        seeds, tables.PARAPHRASES.to_frame(), eval_embeddings, WordEmbedder(), NO_DREAMS
    )
    shown = "".join(made.metadata[f"nearest_{side}"].md_str for side in ("rejected", "kept"))
    assert "s1: a user's" in shown
    assert "ada@" not in shown
    assert made.value["text"].to_list() == [text]


def test_the_check_judges_kept_rows_with_the_guard_itself(guarded, eval_embeddings):
    assert no_training_text_near_eval_set(guarded.value, eval_embeddings, WordEmbedder()).passed
    tampered = guarded.value.with_columns(verdict=pl.lit("kept"))
    result = no_training_text_near_eval_set(tampered, eval_embeddings, WordEmbedder())
    assert not result.passed
    assert [leak.partition(",")[0] for leak in result.metadata["leaks"].value] == [
        "s2 ~ g1: same_words",
        "s3 ~ g1: shared_ngram",
    ]
    nothing = guarded.value.filter(verdict="rejected")
    assert not no_training_text_near_eval_set(nothing, eval_embeddings, WordEmbedder()).passed


def test_recall_is_a_table_with_a_plot_for_each_rule(seed_questions, eval_embeddings):
    result = guard_recall(eval_embeddings, seed_questions, WordEmbedder())
    assert result.value.schema == tables.GUARD_RECALL
    assert set(result.value["kind"]) > {"word_order", "synonyms", "typos", "terse"}
    assert result.value.filter(kind="unrelated_seed")["n"].unique().to_list() == [3]
    for rule in ("cosine", "guard"):
        assert result.metadata[f"rejected_by_{rule}"].md_str.startswith("![")
    assert guard_catches_every_copy(result.value).passed
