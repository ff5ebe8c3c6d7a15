"""The guard: at the limit is rejected, and nothing slips through in another block."""

import numpy as np
import pytest

from assets.eval_set import guard
from assets.eval_set.golden import find_missing_facts
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT, reject_near_duplicates


def at_cosine(value: float) -> np.ndarray:
    return np.array([value, np.sqrt(1 - value**2), 0.0], dtype=np.float32)


def judge(texts: list[str], vectors: np.ndarray):
    return reject_near_duplicates(
        texts,
        vectors,
        case_ids=["g1", "g2"],
        case_texts=["Where do traces go?", "What is a seed?"],
        case_vectors=np.eye(3, dtype=np.float32)[[0, 2]],
    )


@pytest.mark.parametrize(
    ("cosine", "verdict"),
    [(0.9201, "rejected"), (0.9199, "kept"), (0.0, "kept"), (1.0, "rejected")],
)
def test_the_limit_decides(cosine, verdict):
    (found,) = judge(["another question"], at_cosine(cosine)[None])
    assert (found.verdict, found.nearest_case_id) == (verdict, "g1")
    assert found.nearest_cosine == pytest.approx(cosine, abs=1e-4)


def test_exactly_at_the_limit_is_rejected():
    rest = np.sqrt(1 - LEAKAGE_COSINE_LIMIT**2)
    vector = np.array([[LEAKAGE_COSINE_LIMIT, rest, 0.0]], dtype=np.float64)
    (found,) = judge(["another question"], vector)
    assert found.nearest_cosine == LEAKAGE_COSINE_LIMIT
    assert found.verdict == "rejected"


@pytest.mark.parametrize("wrong", [[np.nan, 0, 0], [np.inf, 0, 0], [0, 0, 0], [0.5, 0, 0]])
def test_a_vector_that_is_not_of_unit_length_is_refused_on_either_side(wrong):
    fine, broken = at_cosine(0.5)[None], np.array([wrong], dtype=np.float32)
    for vectors, case_vectors in ((broken, fine), (fine, broken)):
        with pytest.raises(ValueError, match=r"1 of 1 .* vectors"):
            reject_near_duplicates(
                ["q"], vectors, case_ids=["g"], case_texts=["c"], case_vectors=case_vectors
            )


def test_a_cosine_that_is_no_number_rejects():
    assert guard._judge("q", "g1", float("nan"), set()).verdict == "rejected"


def test_no_candidates_need_no_verdict():
    assert judge([], np.zeros((0, 3), dtype=np.float32)) == []


def test_the_same_words_are_rejected_whatever_the_vector_says():
    (found,) = judge(["  where do TRACES go "], at_cosine(0.1)[None])
    assert (found.verdict, found.reason) == ("rejected", "same_text")


def test_blocks_do_not_change_the_verdicts(monkeypatch):
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(50, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [f"question {n}" for n in range(50)]
    whole = judge(texts, vectors)
    monkeypatch.setattr(guard, "BLOCK_ROWS", 7)
    assert [v.verdict for v in judge(texts, vectors)] == [v.verdict for v in whole]
    assert {v.verdict for v in whole} == {"kept", "rejected"}


def test_a_guard_with_nothing_to_guard_is_an_error():
    with pytest.raises(ValueError, match="eval cases"):
        reject_near_duplicates(
            ["q"], at_cosine(0.5)[None], case_ids=[], case_texts=[], case_vectors=np.zeros((0, 3))
        )


def test_facts_are_found_whatever_case_spacing_and_markup():
    pages = {"a": "The **limit** is `0.92`\nor higher."}
    case = {"case_id": "g1", "must_include": ["limit is 0.92 OR higher"], "gold_pages": ["a"]}
    assert find_missing_facts([case], pages) == []
    lost = {**case, "must_include": ["0.93"]}
    assert [m.fact for m in find_missing_facts([case, lost], pages)] == ["0.93"]
    elsewhere = {**case, "gold_pages": ["b"]}
    assert [m.gold_pages for m in find_missing_facts([elsewhere], pages)] == [("b",)]
