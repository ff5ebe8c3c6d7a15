"""The report: one self-contained HTML file that says whether the student may replace the teacher.

Belongs here: choosing and arranging what a reader sees; the template beside it holds wording and
look. Does not belong here: computing what is not already in the tables. Answers and questions
come from models and users, so the template escapes everything and runs no script.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import polars as pl

from assets.eval_set.ledger import ReaderCount
from assets.parity.arms import BY_NAME, label_arm
from assets.parity.deriving import describe_routing
from assets.parity.formatting import TextTable, format_value
from assets.parity.metrics import METRICS, SLICES, SUPPORTING_METRICS
from assets.parity.report_cases import find_neighbours, find_worst_cases
from assets.parity.report_charts import (
    plot_training,
    view_difference_chart,
    view_guard,
    view_quality_chart,
    view_routing,
    view_slice_chart,
    view_spending_charts,
)
from assets.parity.report_sections import ReportSection, view_plot
from assets.parity.report_tables import (
    ParentLike,
    VerdictLike,
    list_arms,
    list_differences,
    list_reasons,
    view_gates,
    view_parent,
    view_table,
    view_tiles,
)

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True, kw_only=True)
class ReportContents:
    """Everything a report is made of.

    `verdict` is null before the gate has run, `guarded_questions`, `training_curve` and
    `operating_points` where there are none. `readers` counts the reads of the golden set in its
    ledger. `sections` are those of other tables: they are shown where they exist.
    """

    product: str
    recipe: str
    generated_at: str
    parity_report: pl.DataFrame
    arm_answers: pl.DataFrame
    graded_answers: pl.DataFrame
    golden_cases: pl.DataFrame
    chunks: pl.DataFrame
    leakage_cosine_limit: float
    margin_ratio: float
    readers: Sequence[ReaderCount] = ()
    guarded_questions: pl.DataFrame | None = None
    training_curve: pl.DataFrame | None = None
    operating_points: pl.DataFrame | None = None
    verdict: VerdictLike | None = None
    parent: ParentLike | None = None
    sections: Sequence[ReportSection] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)

    @property
    def access_count(self) -> int:
        """How often runs have read the golden set."""
        return sum(reader.count for reader in self.readers)


def render_report(contents: ReportContents) -> str:
    """Return the report as one HTML document that needs no network and runs no script."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda ratio: f"{100 * ratio:.2f}%"
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    environment.filters["arm"] = label_arm
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    report, routing = contents.parity_report, view_routing(contents.arm_answers)
    arms, differences = list_arms(report), list_differences(report)
    case_count = contents.golden_cases.height
    training = plot_training(contents.training_curve)
    return template.render(
        contents=contents,
        verdict=contents.verdict,
        gates=view_gates(contents.verdict),
        reasons=list_reasons(contents.verdict),
        parent=view_parent(contents.parent),
        arms=arms,
        specs=[BY_NAME[arm] for arm in arms if arm in BY_NAME],
        tables={
            name: {"arms": view_table(report, arms, name),
                   "differences": view_table(report, differences, name)}
            for name in SLICES
        },
        supporting=view_table(report, arms, "all", SUPPORTING_METRICS),
        tiles=view_tiles(report, routing, case_count),
        quality_chart=view_quality_chart(report),
        slice_chart=view_slice_chart(report),
        difference_chart=view_difference_chart(report, contents.margin_ratio),
        spending_charts=view_spending_charts(report),
        routing=routing,
        points=tabulate_points(contents.operating_points, contents.arm_answers),
        guard=view_guard(contents.guarded_questions, contents.leakage_cosine_limit),
        neighbours=find_neighbours(contents.guarded_questions, contents.golden_cases),
        training=view_plot(training) if training else None,
        sections=[
            {"section": section, "plots": [view_plot(plot) for plot in section.plots]}
            for section in contents.sections
        ],
        worst_cases=_find_worst_cases(contents),
        metrics=METRICS,
        case_count=case_count,
    )  # fmt: skip


def tabulate_points(
    operating_points: pl.DataFrame | None, arm_answers: pl.DataFrame
) -> TextTable | None:
    """Return the operating points as text, with what came of them; null where none were chosen."""
    if operating_points is None or operating_points.is_empty():
        return None
    here, rows = describe_routing(arm_answers), []
    for row in operating_points.iter_rows(named=True):
        threshold = row["confidence_threshold"]
        limits = [format_value(row[end], "ratio") for end in ("lower", "upper")]
        rows.append(
            (
                label_arm(row["arm"]),
                format_value(row["target_teacher_ratio"], "ratio"),
                f"{format_value(row['teacher_ratio'], 'ratio')} ({' to '.join(limits)})",
                format_value(here.get(f"{row['arm']}_teacher_ratio"), "ratio"),
                f"{row['min_retrieval_score']:.3f}",
                "no confidence" if threshold is None else f"{threshold:.3f}",
                f"{row['case_count']}, {row['invalid_count']} invalid",
            )
        )
    return TextTable(
        columns=(
            "point", "teacher's share wanted", "held-out share", "golden share",
            "cosine at least",
            "confidence at least", "held-out answers",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def report_json(contents: ReportContents) -> dict[str, Any]:
    """Return the report's facts as JSON values: unrounded, null where there is no evidence."""
    verdict, parent, points = contents.verdict, contents.parent, contents.operating_points
    return {
        "product": contents.product,
        "recipe": contents.recipe,
        "generated_at": contents.generated_at,
        "case_count": contents.golden_cases.height,
        "verdict": None
        if verdict is None
        else {
            "verdict": verdict.verdict,
            "statement": verdict.statement,
            "more_cases": verdict.more_cases,
            "losses": list(verdict.losses),
            "gates": [dict(vars(gate)) for gate in verdict.gates],
        },
        "parent": None if parent is None else {"release": parent.parent, "statement":
                                               parent.statement},
        "arms": {arm: BY_NAME[arm].definition for arm in list_arms(contents.parity_report)
                 if arm in BY_NAME},
        "parity": contents.parity_report.to_dicts(),
        "routing": view_routing(contents.arm_answers),
        "operating_points": [] if points is None else points.to_dicts(),
        "guard": view_guard(contents.guarded_questions, contents.leakage_cosine_limit),
        "nearest_training_questions": find_neighbours(
            contents.guarded_questions, contents.golden_cases
        ),
        "worst_case_ids": [case["case_id"] for case in _find_worst_cases(contents)],
        "golden_set_reads": contents.access_count,
        "golden_set_readers": [dict(vars(reader)) for reader in contents.readers],
        "provenance": {
            name: value if isinstance(value, str | int | float | None) else str(value)
            for name, value in contents.provenance.items()
        },
    }  # fmt: skip


def _find_worst_cases(contents: ReportContents) -> list[dict[str, Any]]:
    return find_worst_cases(
        contents.arm_answers, contents.graded_answers, contents.golden_cases, contents.chunks
    )
