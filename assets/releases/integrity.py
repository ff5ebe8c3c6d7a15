"""What must hold before any number counts: the frozen set and the guard.

Belongs here: counting the evidence from tables. Does not belong here: the gates (`gate`).
"""

import polars as pl

from assets.eval_set.guard import is_too_near
from assets.eval_set.overlap import EvalTexts
from assets.releases.gate import IntegrityEvidence


def gather_integrity(
    golden_cases: pl.DataFrame, guarded_questions: pl.DataFrame, *, locked_sha256: str
) -> IntegrityEvidence:
    """Return the evidence of golden_cases and guarded_questions.

    Args:
        golden_cases: carries the hash of the file it was read from.
        guarded_questions: what was kept is compared anew with every case's text.
        locked_sha256: what the lock says at the time of the verdict.
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
    )
