"""The report for machines: every section of the page, unrounded, as tables and as one JSON.

Belongs here: which facts and tables stand behind which section of the page. Does not belong here:
how they are shown (`report`), writing files (`assets/releases/reporting`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from assets.parity.arms import BY_NAME
from assets.parity.deriving import describe_routing
from assets.parity.metrics import METRICS, SUPPORTING_METRICS
from assets.parity.report import ReportContents
from assets.parity.report_cases import tabulate_worst_cases
from assets.parity.report_charts import SPENDING
from assets.parity.report_sections import LinePlot, ReportSection


@dataclass(frozen=True, kw_only=True)
class SectionFacts:
    """What stands behind one section of the page; the names of tables are unique in a report."""

    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)


def state_sections(contents: ReportContents) -> dict[str, SectionFacts]:
    """Return what stands behind each section, by its name in the page and in its order."""
    report = contents.parity_report
    is_all, is_spending = pl.col("slice") == "all", pl.col("metric").is_in(SPENDING)
    losses = [] if contents.verdict is None else list(contents.verdict.losses)
    return {
        "gates": _state_gates(contents),
        "parity": SectionFacts(tables={"parity": report.filter(is_all)}),
        "slices": SectionFacts(tables={"slices": report.filter(~is_all)}),
        "spending": SectionFacts(tables={"spending": report.filter(is_all & is_spending)}),
        "losses": SectionFacts(facts={"losses": losses}),
        "worst": SectionFacts(tables={"worst_cases": tabulate_worst_cases(contents.worst_cases)}),
        "routing": _state_routing(contents),
        "guard": _state_guard(contents),
        "training": SectionFacts(
            tables={} if contents.training_curve is None
            else {"training_curve": contents.training_curve}
        ),
        **{section.anchor: _state_section(section) for section in contents.sections},
        "read": _state_definitions(contents),
        "provenance": _state_provenance(contents),
    }  # fmt: skip


def report_json(contents: ReportContents) -> dict[str, Any]:
    """Return the report as JSON values: unrounded, null where there is no evidence."""
    verdict = contents.verdict
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
        },
        "golden_set_reads": contents.access_count,
        "sections": {
            name: {
                **stated.facts,
                "tables": {table: list_rows(frame) for table, frame in stated.tables.items()},
            }
            for name, stated in state_sections(contents).items()
        },
    }


def list_tables(contents: ReportContents) -> dict[str, pl.DataFrame]:
    """Return the tables of all sections by name; those without a row are left out."""
    return {
        table: frame
        for stated in state_sections(contents).values()
        for table, frame in stated.tables.items()
        if not frame.is_empty()
    }


def list_rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Return a table as JSON values: dates as text, null for what is no number."""
    rows: list[dict[str, Any]] = json.loads(frame.write_json())
    return rows


def _state_gates(contents: ReportContents) -> SectionFacts:
    verdict, parent = contents.verdict, contents.parent
    gates = () if verdict is None else verdict.gates
    return SectionFacts(
        tables={
            "gates": _tabulate([dict(vars(gate)) for gate in gates]),
            "parent_gates": _tabulate([dict(vars(g)) for g in (parent.gates if parent else ())]),
        },
        facts={
            "parent": None
            if parent is None
            else {"release": parent.parent, "statement": parent.statement}
        },
    )


def _state_routing(contents: ReportContents) -> SectionFacts:
    routed = [
        {"column": column, **row} for column, rows in contents.routing.items() for row in rows
    ]
    tables, points = {"routing": _tabulate(routed)}, contents.operating_points
    if points is not None:
        shares = describe_routing(contents.arm_answers)
        golden = [shares.get(f"{arm}_teacher_ratio") for arm in points["arm"]]
        column = pl.Series("golden_teacher_ratio", golden, dtype=pl.Float64)
        tables["operating_points"] = points.with_columns(column)
    return SectionFacts(tables=tables)


def _state_guard(contents: ReportContents) -> SectionFacts:
    guard = contents.guard
    if guard is None:
        return SectionFacts()
    return SectionFacts(
        tables={
            "guard_histogram": _tabulate(guard["bins"]),
            "nearest_training_questions": _tabulate(contents.neighbours),
        },
        facts={name: value for name, value in guard.items() if name != "bins"},
    )


def _state_section(section: ReportSection) -> SectionFacts:
    lines = {plot.title: _list_points(plot) for plot in section.plots}
    words = {"lead": section.lead, "notes": list(section.notes)}
    return SectionFacts(
        tables=dict(section.frames), facts={**section.facts, **words, "plots": lines}
    )


def _list_points(plot: LinePlot) -> dict[str, object]:
    marks = {mark.label: [(mark.x, mark.y)] for mark in plot.marks}
    return {**{line.label: [*line.points] for line in plot.lines}, **marks}


def _state_definitions(contents: ReportContents) -> SectionFacts:
    arms = [BY_NAME[arm] for arm in contents.parity_report["arm"].unique(maintain_order=True)
            if arm in BY_NAME]  # fmt: skip
    named = [{"arm": arm.name, "definition": arm.definition} for arm in arms]
    metrics = [asdict(metric) for metric in (*METRICS, *SUPPORTING_METRICS)]
    return SectionFacts(tables={"arms": _tabulate(named), "metrics": _tabulate(metrics)})


def _state_provenance(contents: ReportContents) -> SectionFacts:
    return SectionFacts(
        tables={"golden_set_readers": _tabulate([asdict(one) for one in contents.readers])},
        facts={
            name: value if isinstance(value, str | int | float | None) else str(value)
            for name, value in contents.provenance.items()
        },
    )


def _tabulate(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None)
