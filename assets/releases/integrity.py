"""What must hold before any number counts: the frozen set, the guard, the student's calibration.

Belongs here: counting the evidence from tables. Does not belong here: the gates (`gate`).
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from assets.eval_set.guard import is_too_near
from assets.eval_set.overlap import EvalTexts
from assets.releases.gates import IntegrityEvidence
from assets.students.threshold_in_force import describe_threshold


def gather_integrity(
    golden_cases: pl.DataFrame,
    protected_cases: pl.DataFrame,
    guarded_questions: pl.DataFrame,
    training_set: pl.DataFrame,
    labelled_examples: pl.DataFrame,
    *,
    locked_sha256: str,
    calibration: Mapping[str, Any],
    adapter: Mapping[str, Any],
    maximum_risk_ratio: float | None,
) -> IntegrityEvidence:
    """Return the evidence of the golden set, of what was trained on, and of the calibration.

    Args:
        golden_cases: carries the hash of the file it was read from.
        protected_cases: golden cases and those of the suites, which training must not come near.
        guarded_questions: what was kept is compared anew with every protected case's text.
        training_set: of the student; what no guarded label stands behind is leaked.
        labelled_examples: made of guarded questions alone.
        locked_sha256: what the lock says at the time of the verdict.
        calibration: the calibration row.
        adapter: the student_adapter row.
        maximum_risk_ratio: the risk that the router's policy promises.
    """
    cases = EvalTexts.index(*(protected_cases[name].to_list() for name in ("case_id", "question")))
    kept = guarded_questions.filter(pl.col("verdict") == "kept")
    near = is_too_near(kept["nearest_cosine"].to_numpy())  # null is NaN: in doubt, leaked
    trained = training_set.filter(split="train")
    return IntegrityEvidence(
        golden_lock_matches=golden_cases["set_hash"].unique().to_list() == [locked_sha256],
        golden_case_count=golden_cases.height,
        training_question_count=kept.height,
        trained_example_count=trained.height,
        unguarded_example_count=trained.join(labelled_examples, on="example_id", how="anti").height,
        leaked_question_count=sum(
            bool(is_near) or cases.match(text) is not None
            for text, is_near in zip(kept["text"], near, strict=True)
        ),
        calibrated_case_count=calibration["fit_count"] + calibration["certify_count"],
        calibration_is_of_student=calibration["adapter_sha256"] == adapter["adapter_sha256"],
        threshold=describe_threshold(calibration, maximum_risk_ratio),
        lane=adapter["lane"],
    )
