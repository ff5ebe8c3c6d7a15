"""The threshold in force is told in words: certified only where it was certified."""

from dataclasses import replace

import pytest

from assets.students.calibration import write_calibrator
from assets.students.threshold_in_force import describe_threshold
from serving.hashing import content_hash
from serving.pipeline.confidence import ConfidenceCalibration, RiskThreshold

CERTIFIED = RiskThreshold(
    risk_limit_ratio=0.10, threshold=0.8125, accepted_count=71, wrong_count=2, coverage_ratio=0.6,
    risk_upper_ratio=0.09,
)  # fmt: skip
NOT_CERTIFIED = tuple(
    RiskThreshold(risk_limit_ratio=risk, threshold=None) for risk in (0.05, 0.10, 0.15)
)
FITTED = ConfidenceCalibration(
    adapter_sha256="a", engine="local", dtype="float32", method="constant", case_count=17,
    thresholds=NOT_CERTIFIED,
)  # fmt: skip


def describe(calibration: ConfidenceCalibration | None, risk: float | None = 0.05) -> str:
    text = None if calibration is None else write_calibrator(calibration)
    row = {
        "recipe": "compact", "fit_count": 9, "certify_count": 8, "calibrator": text,
        "calibrator_hash": content_hash(text, digits=64),
    }  # fmt: skip
    return describe_threshold(row, risk)


@pytest.mark.parametrize(
    ("calibration", "risk", "told"),
    [
        (None, 0.05, "no valid answer to fit a confidence on"),
        (FITTED, None, "`router.maximum_risk_ratio` promises nothing"),
        (FITTED, 0.05, "a risk of 5% was not certified on 8 others, nor any larger risk"),
        (
            replace(FITTED, thresholds=(NOT_CERTIFIED[0], CERTIFIED)),
            0.05,
            "a risk of 5% was not certified on 8 others, though one of 10% was",
        ),
    ],
)
def test_where_nothing_is_certified_for_the_risk_no_threshold_is_in_force(calibration, risk, told):
    found = describe(calibration, risk)
    assert told in found
    assert found.endswith("so no threshold is in force and no valid answer is doubted")
    assert "is certified" not in found


def test_what_was_certified_is_told_with_its_counts():
    found = describe(replace(FITTED, thresholds=(NOT_CERTIFIED[0], CERTIFIED)), 0.12)
    assert found == (
        "fitted on 9 valid answers (method constant); answers under a confidence of 0.812 are "
        "doubted, which is certified for a risk of 10% (2 of 71 wrong above it)"
    )
