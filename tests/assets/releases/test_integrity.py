"""The evidence of integrity: counted anew, and in doubt against the release."""

import polars as pl
import pytest

from assets import tables
from assets.releases.gates import IntegrityEvidence
from assets.releases.integrity import gather_integrity

CASES = pl.DataFrame(
    {"case_id": ["g1"], "question": ["How do I reset the password?"], "set_hash": ["abc"]}
)


PROTECTED = pl.DataFrame(
    {
        "case_id": ["g1", "refusal:r1"],
        "question": ["How do I reset the password?", "Which colour has the moon at noon?"],
    }
)
LABELLED = pl.DataFrame({"example_id": ["1", "2", "3"]})


def count_leaks(text: str, cosine: float | None, verdict: str = "kept") -> int:
    row = {name: None for name in tables.GUARDED_QUESTIONS} | {
        "text": text, "nearest_cosine": cosine, "verdict": verdict,
    }  # fmt: skip
    guarded = pl.DataFrame([row], schema=tables.GUARDED_QUESTIONS)
    return gather(guarded).leaked_question_count


def gather(
    guarded: pl.DataFrame, lane: str = "clean", trained: tuple[str, ...] = (), **calibration
) -> IntegrityEvidence:
    training_set = {
        "example_id": [*trained, "3"],
        "split": ["train"] * len(trained) + ["validation"],
    }
    row = {"fit_count": 0, "certify_count": 0, "adapter_sha256": "a", "calibrator": None}
    return gather_integrity(
        CASES,
        PROTECTED,
        guarded,
        pl.DataFrame(training_set),
        LABELLED,
        locked_sha256="abc",
        calibration=row | calibration,
        adapter={"adapter_sha256": "a", "lane": lane},
        maximum_risk_ratio=0.05,
    )


@pytest.mark.parametrize("cosine", [0.92, 1.0, float("nan"), None])
def test_at_the_limit_or_without_a_number_a_kept_question_is_a_leak(cosine):
    assert count_leaks("Where is the kiln?", cosine) == 1
    assert count_leaks("Where is the kiln?", cosine, verdict="rejected") == 0


def test_the_text_is_compared_as_the_student_sees_it():
    assert count_leaks("Where is the kiln?", 0.9199) == 0
    assert count_leaks("How do I re\u200bset the pass\u00adword?", 0.1) == 1


def test_a_case_of_a_suite_is_protected_like_a_golden_one():
    assert count_leaks("which colour has the moon at noon", 0.1) == 1


def test_what_was_trained_on_is_counted_apart_from_what_might_have_been():
    nothing = pl.DataFrame(schema=tables.GUARDED_QUESTIONS)
    found = gather(nothing, trained=("1", "2"))
    assert (found.trained_example_count, found.unguarded_example_count) == (2, 0)
    leaking = gather(nothing, trained=("1", "leaked"))
    assert (leaking.trained_example_count, leaking.unguarded_example_count) == (2, 1)


def test_a_calibration_counts_its_cases_and_must_be_of_this_student():
    nothing = pl.DataFrame(schema=tables.GUARDED_QUESTIONS)
    found = gather(nothing, fit_count=30, certify_count=29)
    assert (found.calibrated_case_count, found.calibration_is_of_student) == (59, True)
    assert not gather(nothing, adapter_sha256="b").calibration_is_of_student


def test_the_lane_is_the_adapters_own():
    nothing = pl.DataFrame(schema=tables.GUARDED_QUESTIONS)
    assert gather(nothing).lane == "clean"
    assert gather(nothing, lane="contaminated").lane == "contaminated"
