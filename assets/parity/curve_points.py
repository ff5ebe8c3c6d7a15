"""Where the operating points lie on the router curve: the questions the curve is judged on, again.

A point is chosen on more questions than the curve is swept over, so its share there is another
than the one it was chosen for. Belongs here: share and quality of given thresholds. Does not belong
here: choosing them (`operating_points`), the sweep (`router_curve`), drawing (`report_sections`).
"""

import polars as pl

from assets.parity.operating_points import is_asked_of_teacher, read_held_out, read_thresholds
from assets.parity.router_curve import SPLIT
from assets.students.agreement import compare_with_labels
from assets.students.held_out import STUDENT
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.router import RouterPolicy

CURVE_POINTS = pl.Schema(
    {"arm": pl.String, "teacher_ratio": pl.Float64, "quality": pl.Float64, "case_count": pl.Int32}
)


def place_points(
    operating_points: pl.DataFrame,
    held_out_answers: pl.DataFrame,
    calibration: ConfidenceCalibration | None,
    policy: RouterPolicy,
) -> pl.DataFrame:
    """Return of each operating point the teacher's share and the quality on validation questions.

    No row where the student answered none: then there is no curve either.
    """
    own = held_out_answers.filter(pl.col("error").is_null(), arm=STUDENT, split=SPLIT)
    if own.is_empty():
        return pl.DataFrame(schema=CURVE_POINTS)
    answers = read_held_out(own, calibration, policy)
    agrees = compare_with_labels(own)["agrees"].to_list()
    rows = []
    for row in operating_points.iter_rows(named=True):
        thresholds = read_thresholds(row, policy)
        asked = [is_asked_of_teacher(answer, thresholds) for answer in answers]
        right = sum(a or b for a, b in zip(asked, agrees, strict=True))
        rows.append((row["arm"], sum(asked) / len(asked), right / len(asked), len(asked)))
    return pl.DataFrame(rows, schema=CURVE_POINTS, orient="row")
