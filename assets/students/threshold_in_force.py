"""The confidence threshold in force, in words: what was certified, and what was not.

Belongs here: that sentence, for the gate and the report's provenance. Does not belong here: the
threshold itself (`serving/pipeline/confidence`), certifying (`certifying`).
"""

from collections.abc import Mapping
from typing import Any

from assets.students.calibration import read_calibrator

NONE_DOUBTED = "so no threshold is in force and no valid answer is doubted"


def describe_threshold(calibration: Mapping[str, Any], maximum_risk_ratio: float | None) -> str:
    """Return which threshold a calibration row puts in force for a risk, and why.

    Args:
        calibration: the row.
        maximum_risk_ratio: what the router's policy promises; None: nothing.
    """
    calibrator = read_calibrator(calibration)
    if calibrator is None:
        return f"no valid answer to fit a confidence on, {NONE_DOUBTED}"
    fitted = f"fitted on {calibration['fit_count']} valid answers (method {calibrator.method})"
    if maximum_risk_ratio is None:
        return f"{fitted}; `router.maximum_risk_ratio` promises nothing, {NONE_DOUBTED}"
    risk, threshold = f"{maximum_risk_ratio:.0%}", calibrator.find_threshold(maximum_risk_ratio)
    certified = [row for row in calibrator.thresholds if row.threshold is not None]
    if threshold is None:
        larger = min((row.risk_limit_ratio for row in certified), default=None)
        beside = "nor any larger risk" if larger is None else f"though one of {larger:.0%} was"
        return (
            f"{fitted}; a risk of {risk} was not certified on {calibration['certify_count']} "
            f"others, {beside}, {NONE_DOUBTED}"
        )
    row = max(
        (
            r
            for r in certified
            if r.threshold == threshold and r.risk_limit_ratio <= maximum_risk_ratio
        ),
        key=lambda r: r.risk_limit_ratio,
    )
    return (
        f"{fitted}; answers under a confidence of {threshold:.3f} are doubted, which is certified "
        f"for a risk of {row.risk_limit_ratio:.0%} ({row.wrong_count} of {row.accepted_count} "
        "wrong above it)"
    )
