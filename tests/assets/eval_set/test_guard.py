"""The guard: at the limit is rejected, repeated words are rejected, and no batch hides anything."""

import numpy as np
import polars as pl
import pytest

from assets.eval_set.golden import find_missing_facts
from assets.eval_set.guard import (
    LEAKAGE_COSINE_LIMIT,
    VERDICT_COLUMNS,
    EvalQuestions,
    guard_batches,
    judge_questions,
    reject_descendants,
)
from serving.errors import InvalidInputError
from serving.models.protocols import Vectors

PROTECTED = EvalQuestions.prepare(
    ["g1", "g2"],
    ["Where do traces go?", "What is the smallest number of seed questions I should write?"],
    np.eye(3, dtype=np.float32)[[0, 2]],
)


def at_cosine(value: float) -> np.ndarray:
    """A unit vector with this cosine to g1, and none to g2."""
    return np.array([value, np.sqrt(1 - value**2), 0.0], dtype=np.float32)


def judge(text: str, cosine: float = 0.1) -> dict[str, object]:
    return judge_questions([text], at_cosine(cosine)[None], PROTECTED).row(0, named=True)


@pytest.mark.parametrize(
    ("cosine", "verdict", "reason"),
    [
        (0.9201, "rejected", "cosine"),
        (0.9199, "kept", ""),
        (0.0, "kept", ""),
        (1.0, "rejected", "cosine"),
    ],
)
def test_the_limit_decides(cosine, verdict, reason):
    found = judge("another question", cosine)
    assert (found["verdict"], found["reason"]) == (verdict, reason)
    assert found["nearest_case_id"] == "g1"
    assert found["nearest_cosine"] == pytest.approx(cosine, abs=1e-4)
    assert found["matched_case_id"] == ("g1" if reason else None)


def test_exactly_at_the_limit_is_rejected():
    rest = np.sqrt(1 - LEAKAGE_COSINE_LIMIT**2)
    vector = np.array([[LEAKAGE_COSINE_LIMIT, rest, 0.0]], dtype=np.float64)
    found = judge_questions(["another question"], vector, PROTECTED).row(0, named=True)
    assert found["nearest_cosine"] == LEAKAGE_COSINE_LIMIT
    assert found["verdict"] == "rejected"


@pytest.mark.parametrize(
    ("text", "reason", "case_id", "ngram"),
    [
        ("Where do traces go?", "same_text", "g1", None),
        ("  where do TRACES go ", "same_words", "g1", None),
        (
            "Hi, what is the smallest number of seed questions? Thanks",
            "shared_ngram",
            "g2",
            "what is the smallest number of seed questions",
        ),
    ],
)
def test_repeated_words_are_rejected_whatever_the_vector_says(text, reason, case_id, ngram):
    found = judge(text)
    assert (found["verdict"], found["reason"]) == ("rejected", reason)
    assert (found["matched_case_id"], found["shared_ngram"]) == (case_id, ngram)
    assert found["nearest_case_id"] == "g1"  # the vector's nearest is told all the same


def test_words_are_stronger_evidence_than_a_cosine():
    assert judge("where do traces go", 1.0)["reason"] == "same_words"


@pytest.mark.parametrize("wrong", [[np.nan, 0, 0], [np.inf, 0, 0], [0, 0, 0], [0.5, 0, 0]])
def test_a_vector_that_is_not_of_unit_length_is_refused_on_either_side(wrong):
    broken = np.array([wrong], dtype=np.float32)
    with pytest.raises(InvalidInputError, match="found 1 of 1 that are not"):
        judge_questions(["q"], broken, PROTECTED)
    with pytest.raises(InvalidInputError, match="found 1 of 1 that are not"):
        EvalQuestions.prepare(["g1"], ["q"], broken)


@pytest.mark.parametrize(
    ("ids", "texts", "rows"), [([], [], 0), (["g1"], ["a", "b"], 1), (["g1"], ["a"], 2)]
)
def test_a_guard_with_nothing_or_half_a_case_to_guard_is_an_error(ids, texts, rows):
    vectors = np.eye(3, dtype=np.float32)[:rows]
    with pytest.raises(InvalidInputError, match="eval cases, each with a question and a vector"):
        EvalQuestions.prepare(ids, texts, vectors)


def test_every_question_needs_its_vector():
    with pytest.raises(InvalidInputError, match="2 questions and 1 vectors"):
        judge_questions(["a", "b"], at_cosine(0.1)[None], PROTECTED)


class CountingEmbedder:
    """Turns `3` into a vector at cosine 0.3 with g1, and remembers how many it was asked for."""

    fingerprint = "counting"
    dimension = 3
    maximum_tokens = 16

    def __init__(self) -> None:
        self.asked: list[int] = []

    def embed(self, texts: list[str]) -> Vectors:
        self.asked.append(len(texts))
        return np.array([at_cosine(int(text) / 100) for text in texts]).reshape(-1, 3)

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [1] * len(texts)


def test_batches_do_not_change_the_verdicts_and_only_one_is_embedded_at_a_time():
    pool = pl.DataFrame({"question_id": range(100), "text": [str(n) for n in range(100)]})
    embedder = CountingEmbedder()
    batches = guard_batches(pool.iter_slices(30), protected=PROTECTED, embedder=embedder)
    first = next(batches)
    assert embedder.asked == [30]
    guarded = pl.concat([first, *batches])
    assert embedder.asked == [30, 30, 30, 10]
    assert guarded.columns == ["question_id", "text", *VERDICT_COLUMNS.names()]
    whole = judge_questions(
        pool["text"].to_list(), embedder.embed(pool["text"].to_list()), PROTECTED
    )
    assert guarded.select(VERDICT_COLUMNS.names()).equals(whole)
    assert guarded.filter(verdict="rejected")["question_id"].to_list() == list(range(92, 100))


def test_no_candidates_need_no_verdict():
    found = judge_questions([], np.zeros((0, 3), dtype=np.float32), PROTECTED)
    assert (found.schema, found.height) == (VERDICT_COLUMNS, 0)


def store_vectors(fingerprint: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "case_id": ["g1"],
            "question": ["Where do traces go?"],
            "embedder_fingerprint": [fingerprint],
            "vector": [[0.0, 1.0, 0.0]],
        },
        schema_overrides={"vector": pl.List(pl.Float32)},
    )


def test_a_stored_table_of_embeddings_is_read_as_it_was_written():
    embedder = CountingEmbedder()
    table = store_vectors(embedder.fingerprint)
    assert EvalQuestions.read(table, embedder=embedder).vectors.tolist() == [[0.0, 1.0, 0.0]]
    with pytest.raises(InvalidInputError, match="0 ids, 0 texts, 0 vectors"):
        EvalQuestions.read(table.clear(), embedder=embedder)


@pytest.mark.parametrize("others", [["before"], ["before", "counting"]])
def test_vectors_of_another_embedder_of_equal_length_are_refused(others):
    table = pl.concat([store_vectors(fingerprint) for fingerprint in others])
    with pytest.raises(InvalidInputError) as refused:
        EvalQuestions.read(table, embedder=CountingEmbedder())
    assert refused.value.expected.endswith("counting")
    assert refused.value.found == f"vectors of {', '.join(others)}"
    assert "--select eval_set" in refused.value.next_step


def test_facts_are_found_whatever_case_spacing_and_markup():
    pages = {"a": "The **limit** is `0.92`\nor higher."}
    case = {"case_id": "g1", "must_include": ["limit is 0.92 OR higher"], "gold_pages": ["a"]}
    assert find_missing_facts([case], pages) == []
    lost = {**case, "must_include": ["0.93"]}
    assert [m.fact for m in find_missing_facts([case, lost], pages)] == ["0.93"]
    elsewhere = {**case, "gold_pages": ["b"]}
    assert [m.gold_pages for m in find_missing_facts([elsewhere], pages)] == [("b",)]


def test_what_was_made_from_a_rejected_seed_is_rejected_too():
    questions = pl.DataFrame(
        {"question_id": ["s1", "p1", "s2", "p2"], "seed_id": ["s1", "s1", "s2", "s2"]}
    )
    vectors = np.stack([at_cosine(value) for value in (0.93, 0.2, 0.2, 0.95)])
    judged = questions.hstack(judge_questions(["a", "b", "c", "d"], vectors, PROTECTED))
    found = reject_descendants(judged)
    assert found["question_id"].to_list() == ["s1", "p1", "s2", "p2"]
    assert found["reason"].to_list() == ["cosine", "rejected_seed", "", "cosine"]
    assert found["verdict"].to_list() == ["rejected", "rejected", "kept", "rejected"]
    assert found["matched_case_id"].to_list() == ["g1", "g1", None, "g1"]
