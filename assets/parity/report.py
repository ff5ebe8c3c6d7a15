"""The report: one self-contained HTML file that says whether the student may replace the teacher.

Belongs here: choosing and arranging what a reader sees; the template beside it holds wording and
look. Does not belong here: computing what is not already in the tables, the same for machines
(`report_facts`). Answers and questions come from models and users, so the template escapes
everything and runs no script.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import polars as pl

from assets.eval_set.ledger import ReaderCount
from assets.eval_set.suites import join_protected
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
from assets.parity.report_sections import ReportSection, view_map, view_plot
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
SHOWN_CHUNK_CHARS = 420


@dataclass(frozen=True, kw_only=True)
class ReportContents:
    """Everything a report is made of.

    `verdict` is null before the gate has run, `guarded_questions`, `training_curve` and
    `operating_points` where there are none. `protected_cases` are what training is kept away from
    (null: the golden cases alone), and `trained_question_ids` what the student learned from all the
    same. `readers` counts the reads of the golden set in its ledger. `sections` are those of other
    tables: they are shown where they exist.
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
    protected_cases: pl.DataFrame | None = None
    trained_question_ids: frozenset[str] = frozenset()
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

    @cached_property
    def routing(self) -> dict[str, list[dict[str, Any]]]:
        """Who answered the routed arm's questions, and why."""
        return view_routing(self.arm_answers)

    @cached_property
    def guard(self) -> dict[str, Any] | None:
        """The histogram of the guard; null without guarded questions."""
        return view_guard(
            self.guarded_questions, self.leakage_cosine_limit, self.trained_question_ids
        )

    @cached_property
    def neighbours(self) -> list[dict[str, Any]]:
        """The protected cases that the student's training came nearest to."""
        protected = self.protected_cases
        if protected is None:
            protected = join_protected(self.golden_cases)
        return find_neighbours(self.guarded_questions, protected, self.trained_question_ids)

    @cached_property
    def worst_cases(self) -> list[dict[str, Any]]:
        """The cases the student loses to the teacher, worst first."""
        return find_worst_cases(
            self.arm_answers, self.graded_answers, self.golden_cases, self.chunks
        )


def render_report(contents: ReportContents) -> str:
    """Return the report as one HTML document that needs no network and runs no script."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda ratio: f"{100 * ratio:.2f}%"
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    environment.filters["arm"] = label_arm
    environment.filters["ratio"] = lambda value: format_value(value, "ratio")
    environment.filters["shorten"] = shorten
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    report, routing = contents.parity_report, contents.routing
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
        guard=contents.guard,
        neighbours=contents.neighbours,
        training=view_plot(training) if training else None,
        sections=[
            {"section": section, "plots": [view_plot(plot) for plot in section.plots],
             "maps": [view_map(one) for one in section.maps]}
            for section in contents.sections
        ],
        worst_cases=contents.worst_cases,
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


def shorten(text: str) -> str:
    """Return a chunk's text as far as a reader needs it; whole in the JSON."""
    return text if len(text) <= SHOWN_CHUNK_CHARS else text[:SHOWN_CHUNK_CHARS] + "…"
