"""The report's sections on worth: router curve, economics, suitability, experiments.

Belongs here: which numbers of those tables a reader is shown. Does not belong here: computing them
(`router_curve`, `economics`, `suitability`, `experiments`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from assets import tables
from assets.parity.arms import CANDIDATE, label_arm
from assets.parity.economics import SCENARIOS
from assets.parity.economics_chart import map_savings
from assets.parity.formatting import DASH, TextTable, format_value
from assets.parity.report_sections import Line, LinePlot, Mark, ReportSection
from assets.parity.report_targets import read_targets_section
from assets.parity.router_curve import list_lines
from serving.home import Home

FIGURES = {
    "apgr": "Average share of the gap recovered (APGR; lots recover 50 %)",
    "cpt_50": "Teacher share that recovers 50 % of the gap (CPT 50)",
    "cpt_80": "Teacher share that recovers 80 % (CPT 80)",
    "cpt_95": "Teacher share that recovers 95 % (CPT 95)",
    "paraphrase_flip_ratio": "Seeds whose paraphrases change the route",
}
QUANTITIES = (
    ("asks_per_month", "Questions a month", "{:,.0f}"),
    ("teacher_usd_per_1k", "Teacher, USD per 1,000", "{:,.2f}"),
    ("routed_usd_per_1k", "Routed, USD per 1,000", "{:,.2f}"),
    ("double_paid_usd_per_month", "Paid twice (fallbacks), USD a month", "{:,.2f}"),
    ("upkeep_usd_per_month", "Upkeep, USD a month", "{:,.2f}"),
    ("saving_usd_per_month", "Saved, USD a month", "{:,.2f}"),
    ("one_off_usd", "One-off costs, USD", "{:,.2f}"),
    ("payback_weeks", "Payback, weeks", "{:,.1f}"),
    ("break_even_calls", "Break-even, questions", "{:,.0f}"),
    ("roi_ratio", "Return over the horizon", "{:,.1f} x"),
    ("is_worth_investing", "Broken even within a week's questions", "{}"),
)
SUITABILITY_SHARES = {
    "volume": "questions", "cost": "cost", "repetitive": "repeats", "checkable": "checkable",
    "high_stakes": "high stakes",
}  # fmt: skip
NEVER = "never"


def describe_router(
    curve: pl.DataFrame, figures: pl.DataFrame, points: pl.DataFrame
) -> ReportSection:
    """Return the section on the router, from router_curve, router_figures and `curve_points`."""
    rows = []
    for row in figures.iter_rows(named=True):
        limits = DASH
        if row["lower"] is not None:
            limits = " to ".join(format_value(row[end], "ratio") for end in ("lower", "upper"))
        value = DASH if row["value"] is None else format_value(row["value"], "ratio")
        rows.append((FIGURES[row["figure"]], value, limits, str(row["n"])))
    lines = [
        Line(label=label, points=list(zip(*points, strict=True)))
        for label, points in list_lines(curve).items()
    ]
    return ReportSection(
        anchor="router",
        title="Router curve",
        lead="What the teacher's share buys: agreement with the teacher's labels on validation "
        "questions, from the student alone to the teacher alone. A router that draws lots runs "
        "along the lower line, one that knows which answers are wrong along the upper.",
        tables=(TextTable(columns=("figure", "value", "95 % interval", "n"), rows=tuple(rows)),),
        plots=(
            LinePlot(
                title="Agreement by the teacher's share",
                x_label="share of questions the teacher is asked",
                y_label="agreement",
                lines=lines,
                marks=[
                    Mark(
                        name=row["arm"],
                        label=label_arm(row["arm"]),
                        x=row["teacher_ratio"],
                        y=row["quality"],
                    )
                    for row in points.iter_rows(named=True)
                ],
                is_unit=True,
            ),
        ),
        notes=(
            f"{curve['case_count'][0]} questions of the validation split. Golden cases are left "
            "out, and so is the calibration split: confidence was fitted and tested there.",
            "A dot is an operating point, at the share and the agreement that its thresholds give "
            "on these questions; they were chosen on the calibration split too, so the share is "
            "not quite the one that was wanted.",
        ),
        frames={"router_curve": curve, "router_figures": figures, "curve_points": points},
    )


def describe_economics(
    economics: pl.DataFrame,
    *,
    strategy: str,
    reason: str,
    remarks: Sequence[str] = (),
    sensitivity: pl.DataFrame | None = None,
) -> ReportSection:
    """Return the section on money, of the arm `routed`, with what to do about it.

    Where a price or a timing is missing it says which, and shows no sums. `remarks` say how prices
    are to be read: which is stated as 0, and what is priced otherwise than under Parity.
    `sensitivity` is what a month saves by volume and utilisation.
    """
    lead = f"Strategy: {strategy.replace('_', ' ')}. {reason[:1].upper()}{reason[1:]}."
    missing = economics["inconclusive_reason"].drop_nulls().unique().to_list()
    frames, facts = {"economics": economics}, {"strategy": strategy, "reason": reason}
    if missing:
        note = f"INCONCLUSIVE: {missing[0]}."
        return ReportSection(anchor="economics", title="Economics", lead=lead, notes=(note,),
                             frames=frames, facts=facts)  # fmt: skip
    if sensitivity is not None:
        frames["sensitivity"] = sensitivity
    by_scenario = {
        row["scenario"]: row for row in economics.filter(arm=CANDIDATE).iter_rows(named=True)
    }
    rows = tuple(
        (label, *(_write(column, by_scenario[name][column], wanted) for name in SCENARIOS))
        for column, label, wanted in QUANTITIES
    )
    return ReportSection(
        anchor="economics",
        title="Economics",
        lead=lead,
        tables=(TextTable(columns=(CANDIDATE, *SCENARIOS), rows=rows), _compare_arms(economics)),
        maps=() if sensitivity is None else (map_savings(sensitivity),),
        frames=frames,
        facts=facts,
        notes=(
            *remarks,
            "Ranges: volume, utilisation, and the 95 % interval of the measured saving. Volume and "
            "rents are declared in the config, and people's time only where it stands there.",
        ),
    )


def _compare_arms(economics: pl.DataFrame) -> TextTable:
    return TextTable(
        columns=("arm", "teacher's share", "USD per 1,000", "saved, USD a month"),
        rows=tuple(
            (
                label_arm(row["arm"]),
                format_value(row["teacher_share_ratio"], "ratio"),
                f"{row['routed_usd_per_1k']:,.2f}",
                f"{row['saving_usd_per_month']:,.2f}",
            )
            for row in economics.filter(scenario="expected").iter_rows(named=True)
        ),
    )


def describe_suitability(suitability: pl.DataFrame) -> ReportSection:
    """Return the section on kinds of question."""
    rows = tuple(
        (
            row["kind"],
            *(format_value(row[f"{name}_ratio"], "ratio") for name in SUITABILITY_SHARES),
            row["advice"].replace("_", " "),
            row["reason"],
        )
        for row in suitability.iter_rows(named=True)
    )
    source = (
        "traffic" if suitability["source"][0] == "traffic" else "seeds: there is little traffic"
    )
    return ReportSection(
        anchor="suitability",
        title="Suitability",
        lead="Which kinds of question are worth distilling: frequent, repetitive ones whose "
        "answers can be checked. Each kind is named by its most cited page.",
        tables=(
            TextTable(columns=("kind", *SUITABILITY_SHARES.values(), "advice", "why"), rows=rows),
        ),
        frames={"suitability": suitability},
        notes=(
            f"Read from {source}. The limits are judgement; a parity report decides.",
            "A kind is what is asked about. What is done with the answer (format conversion, "
            "extraction, drafting) no trace names, so no such type of task is told apart here.",
        ),
    )


def describe_experiments(report: pl.DataFrame) -> ReportSection | None:
    """Return the section on experiments; None where none was measured."""
    measured = report.filter(pl.col("outcome") != "unmeasured")
    if measured.is_empty():
        return None
    rows = tuple(
        (
            row["experiment"].replace("_", " "),
            row["metric"].replace("_", " "),
            f"{row['predicted_delta']:+.3f}",
            describe_registration(row),
            f"{row['measured_delta']:+.3f}",
            f"{row['lower']:+.3f} to {row['upper']:+.3f}",
            str(row["n"]),
            row["outcome"],
        )
        for row in measured.iter_rows(named=True)
    )
    columns = ("experiment", "metric", "predicted", "registered", "measured", "95 % interval", "n",
               "outcome")  # fmt: skip
    return ReportSection(
        anchor="experiments",
        title="Experiments",
        lead="What was predicted before the run, and what came out: nulls and contradictions too.",
        tables=(TextTable(columns=columns, rows=rows),),
        frames={"experiment_report": report},
        notes=(
            "A prediction is registered when its student is first asked; what is judged is what "
            "was registered, and an edit since is named.",
        ),
    )


def describe_registration(row: Mapping[str, Any]) -> str:
    """Say when a prediction was registered, under which hash, and what became of it since."""
    if row["registered_at"] is None:
        when = "not registered before the run"
    else:
        when = f"{row['registered_at'][:10]}, {row['prediction_hash'][:8]}"
    changed = f"; changed since to {row['declared_delta'] or 0.0:+.3f}"
    since = {
        "changed": "; of another comparison" if row["outcome"] == "unpredicted" else changed,
        "withdrawn": "; withdrawn since",
        "added": "; added after the run",
        "retired": "; retired since",
    }
    return when + since.get(row["registration"], "")


def read_optional_sections(home: Home) -> tuple[ReportSection, ...]:
    """Return the sections on soft targets, suitability and experiments, where their tables lie.

    No inputs of the verdict: a new trace or another experiment makes no release stale.
    """
    sections: list[ReportSection | None] = [read_targets_section(home)]
    for name, describe in (
        ("suitability", describe_suitability),
        ("experiment_report", describe_experiments),
    ):
        path, schema = home.table(f"parity/{name}"), tables.BY_KEY["parity", name]
        found = pl.read_parquet(path) if path.exists() else schema.to_frame()
        if found.schema == schema and not found.is_empty():  # another version's is left out
            sections.append(describe(found))
    return tuple(section for section in sections if section is not None)


def _write(column: str, value: float | None, wanted: str) -> str:
    if column == "is_worth_investing":
        return "yes" if value else "no"
    if value is None:
        return DASH if column == "roi_ratio" else NEVER
    return wanted.format(value)
