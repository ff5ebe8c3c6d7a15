"""What must hold before any number counts: the frozen set, the guard, the student's calibration.

Belongs here: counting the evidence from tables. Does not belong here: the gates (`gate`).
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from assets.eval_set.guard import is_too_near
from assets.eval_set.overlap import EvalTexts
from assets.releases.gates import IntegrityEvidence


def gather_integrity(
    golden_cases: pl.DataFrame,
    guarded_questions: pl.DataFrame,
    *,
    locked_sha256: str,
    calibration: Mapping[str, Any],
    adapter: Mapping[str, Any],
) -> IntegrityEvidence:
    """Return the evidence of golden_cases, guarded_questions and the student's calibration.

    Args:
        golden_cases: carries the hash of the file it was read from.
        guarded_questions: what was kept is compared anew with every case's text.
        locked_sha256: what the lock says at the time of the verdict.
        calibration: the calibration row.
        adapter: the student_adapter row.
    """
    cases = EvalTexts.index(golden_cases["case_id"].to_list(), golden_cases["question"].to_list())
    kept = guarded_questions.filter(pl.col("verdict") == "kept")
    near = is_too_near(kept["nearest_cosine"].to_numpy())  # null is NaN: in doubt, leaked
    return IntegrityEvidence(
        golden_lock_matches=golden_cases["set_hash"].unique().to_list() == [locked_sha256],
        golden_case_count=golden_cases.height,
        training_question_count=kept.height,
        leaked_question_count=sum(
            bool(is_near) or cases.match(text) is not None
            for text, is_near in zip(kept["text"], near, strict=True)
        ),
        calibrated_case_count=calibration["fit_count"] + calibration["certify_count"],
        calibration_is_of_student=calibration["adapter_sha256"] == adapter["adapter_sha256"],
        lane=adapter["lane"],
    )
