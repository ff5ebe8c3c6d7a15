"""Operating points: the teacher's share that was wanted, on held-out questions, or the nearest."""

import polars as pl
import pytest

from assets import tables
from assets.parity.arms import (
    ARM_NAMES,
    DEFAULT_ARMS,
    OPERATING_POINTS,
    REQUIRED_ARMS,
    ArmPlan,
)
from assets.parity.operating_points import (
    HeldOutAnswer,
    choose_operating_points,
    measure_teacher_share,
    place_thresholds,
    read_held_out,
    read_thresholds,
)
from serving.errors import InvalidInputError
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.router import RouterPolicy

POLICY = RouterPolicy(min_retrieval_score=0.2)


def hit(chunk: str, score: float) -> dict[str, object]:
    return {"chunk_id": f"docs:{chunk}", "content_hash": "h", "score": score}


def held_out(count: int = 100, *, invalid: int = 0) -> pl.DataFrame:
    """Answers whose retrieval and confidence rise together but for every seventh."""
    rows = [
        {
            "arm": "student",
            "split": "validation" if number % 2 else "calibration",
            "verdict": "no_citation" if number < invalid else "valid",
            "question": f"question {number}",
            "retrieved": [hit("guide/1", 0.3 + number / 200)],
            "prompt_tokens_estimate": 400,
            "retrieval_score": 0.3 + number / 200,
            "is_refusal": 0.0 if number % 7 else 1.0,
            "retrieval_margin": (number * 37 % 100) / 100,
            "is_routed_to_student": True,
        }
        for number in range(count)
    ]
    return pl.DataFrame(rows, schema=tables.HELD_OUT_ANSWERS)


def calibrator(**changes) -> ConfidenceCalibration:
    fields = {
        "adapter_sha256": "a", "engine": "local", "dtype": "float32", "method": "platt",
        "case_count": 60, "signals": ("retrieval_margin",), "means": (0.5,), "scales": (0.2,),
        "weights": (1.0,),
    }  # fmt: skip
    return ConfidenceCalibration(**(fields | changes))


def test_each_point_gives_the_teacher_about_its_share():
    rows = choose_operating_points(held_out(), calibrator(), policy=POLICY)
    assert [row["arm"] for row in rows] == ["routed_90_10", "routed_80_20", "routed_60_40"]
    assert [row["teacher_ratio"] for row in rows] == pytest.approx([0.1, 0.2, 0.4], abs=0.01)
    assert all(row["lower"] <= row["teacher_ratio"] <= row["upper"] for row in rows)
    scores = [row["min_retrieval_score"] for row in rows]
    confidences = [row["confidence_threshold"] for row in rows]
    assert scores == sorted(scores)
    assert confidences == sorted(confidences)


def test_thresholds_are_read_back_as_the_router_takes_them():
    row = choose_operating_points(held_out(), calibrator(), policy=POLICY)[1]
    thresholds = read_thresholds(row, POLICY)
    assert thresholds.policy.min_retrieval_score == row["min_retrieval_score"]
    assert thresholds.policy.long_context_tokens == POLICY.long_context_tokens
    assert thresholds.confidence_threshold == row["confidence_threshold"]


def test_invalid_answers_are_the_least_share_that_can_be_reached():
    rows = choose_operating_points(held_out(invalid=30), calibrator(), policy=POLICY)
    assert [row["teacher_ratio"] for row in rows] == pytest.approx([0.3, 0.3, 0.4], abs=0.01)
    assert {row["invalid_count"] for row in rows} == {30}
    assert rows[0]["quantile"] == 0.0


def test_without_a_confidence_retrieval_decides_alone():
    rows = choose_operating_points(held_out(), None, policy=POLICY)
    assert {row["confidence_threshold"] for row in rows} == {None}
    assert [row["teacher_ratio"] for row in rows] == pytest.approx([0.1, 0.2, 0.4], abs=0.01)


def test_a_confidence_that_never_varies_doubts_nobody():
    constant = calibrator(method="constant", signals=(), means=(), scales=(), weights=())
    rows = choose_operating_points(held_out(), constant, policy=POLICY)
    assert [row["teacher_ratio"] for row in rows] == pytest.approx([0.1, 0.2, 0.4], abs=0.01)


def test_the_share_rises_with_the_quantile_from_none_to_all():
    answers = [
        HeldOutAnswer(
            retrieval_score=n / 50,
            is_ruled_out=False,
            is_valid=True,
            confidence=(n * 7 % 50) / 50,
            has_call=True,
        )
        for n in range(50)
    ]
    shares = [
        measure_teacher_share(answers, place_thresholds(answers, q, POLICY)) for q in range(51)
    ]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_too_long_questions_go_to_the_teacher_at_any_threshold():
    is_long = pl.col("retrieval_score") >= 0.75
    frame = held_out().with_columns(
        prompt_tokens_estimate=pl.when(is_long).then(7_000).otherwise(400).cast(pl.Int32)
    )
    rows = choose_operating_points(frame, None, policy=POLICY)
    assert rows[0]["teacher_ratio"] == pytest.approx(0.1, abs=0.011)
    assert rows[0]["quantile"] == 0.0


def test_a_long_question_is_the_teachers_though_its_chunks_match_badly():
    """It is below the configured cosine as well: no lower threshold brings it to the student."""
    strict = RouterPolicy(min_retrieval_score=0.6)
    frame = held_out(20).with_columns(prompt_tokens_estimate=pl.lit(7_000, dtype=pl.Int32))
    answers = read_held_out(frame, None, strict)
    assert max(answer.retrieval_score for answer in answers) < strict.min_retrieval_score
    assert measure_teacher_share(answers, place_thresholds(answers, 0, strict)) == 1.0


@pytest.mark.parametrize(
    "policy",
    [
        RouterPolicy(min_retrieval_score=0.2, high_stakes_terms=("question 7",)),
        RouterPolicy(min_retrieval_score=0.2, high_stakes_pages=("billing",)),
    ],
    ids=["by its words", "by its page"],
)
def test_high_stakes_are_the_teachers_at_any_threshold(policy):
    retrieved = pl.when(pl.col("question") == "question 7").then(
        pl.lit([hit("billing/refunds/1", 0.9)], dtype=tables.RETRIEVED)
    )
    frame = held_out(20).with_columns(retrieved=retrieved.otherwise("retrieved"))
    answers = read_held_out(frame, None, policy)
    assert [answer.is_ruled_out for answer in answers] == [n == 7 for n in range(20)]
    assert measure_teacher_share(answers, place_thresholds(answers, 0, policy)) == 1 / 20


def test_no_held_out_answer_is_an_error_and_no_threshold():
    for frame in (held_out(0), held_out().with_columns(error=pl.lit("down"))):
        with pytest.raises(InvalidInputError, match="held-out"):
            choose_operating_points(frame, None, policy=POLICY)


def test_a_plan_is_in_the_order_of_the_report():
    plan = ArmPlan(arms=("routed", "base", "student", "teacher", "routed_60_40"))
    assert [arm.name for arm in plan.choose("production", "untrained")] == [
        "teacher", "base", "student", "routed",
    ]  # fmt: skip
    assert [arm.name for arm in plan.choose("operating_point")] == ["routed_60_40"]
    assert len(ARM_NAMES) == 11
    assert set(REQUIRED_ARMS) <= set(DEFAULT_ARMS) <= set(ARM_NAMES)
    assert [arm.teacher_ratio for arm in OPERATING_POINTS] == [0.1, 0.2, 0.4]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (("teacher", "student", "routed", "oracle"), "unknown arms oracle; legal: teacher,"),
        (("teacher", "student", "routed", "cascade"), "unknown arms cascade; legal: teacher,"),
        (("teacher", "student", "routed", "routed"), "every arm once"),
        (("teacher", "student"), "the arms routed are missing"),
    ],
)
def test_a_plan_nobody_could_judge_is_refused(arms, message):
    with pytest.raises(ValueError, match=message):
        ArmPlan(arms=arms)
