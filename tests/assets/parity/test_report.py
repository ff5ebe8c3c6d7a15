"""The report: complete, self-contained, and safe with whatever a model or a user wrote."""

import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from assets import tables
from assets.eval_set.ledger import ReaderCount
from assets.eval_set.suites import join_protected
from assets.parity.formatting import TextTable
from assets.parity.metrics import METRICS, SLICES
from assets.parity.report import ReportContents, render_report, tabulate_points
from assets.parity.report_cases import MAXIMUM_WORST_CASES, find_neighbours, find_worst_cases
from assets.parity.report_charts import view_guard, view_routing, view_spending_charts
from assets.parity.report_facts import list_tables, report_json
from assets.parity.report_sections import (
    Line,
    LinePlot,
    Mark,
    MoneyMap,
    ReportSection,
    view_map,
    view_plot,
)
from assets.parity.report_tables import list_reasons
from assets.parity.report_targets import describe_targets
from assets.parity.suites import describe_unmeasured
from assets.releases.reporting import draw_parity_chart, write_report
from tests.assets.labels.soft_answers import tabulate


@dataclass(frozen=True)
class Gate:
    """A stand-in for the gate's result, which lives in a later stage."""

    name: str = "pooled_non_inferiority"
    outcome: str = "FAIL"
    number: float | None = -0.123
    limit: float | None = -0.1
    relation: str = "above"
    unit: str = "points"
    n: int = 50
    detail: str = "0 gained, 5 lost"
    is_gating: bool = True


@dataclass(frozen=True)
class Verdict:
    """A stand-in for the verdict."""

    verdict: str = "HOLD"
    gates: tuple[Gate, ...] = (Gate(), Gate(name="slice_boundary", is_gating=False, number=None))
    statement: str = "1 gate fails."
    more_cases: int | None = None
    losses: tuple[str, ...] = ("the student's exact match is below <b>",)


@dataclass(frozen=True)
class ComparedGate:
    """A stand-in for a gate's number, now and then."""

    name: str = "cost_ratio"
    unit: str = "times"
    number: float | None = 0.5
    parent_number: float | None = 0.6


@dataclass(frozen=True)
class Parent:
    """A stand-in for the comparison with the release in service."""

    statement: str = "The same ruler."
    parent: str | None = "abc"
    gates: tuple[ComparedGate, ...] = (ComparedGate(),)


LINE = Line(label="line", points=((0.0, 0.5), (1.0, 1.0)))
MARK = Mark(name="routed_80_20", label="80/20", x=0.2, y=0.6)


@pytest.fixture(scope="module")
def protected_cases(golden_cases: pl.DataFrame) -> pl.DataFrame:
    suite = {"case_id": ["r1"], "question": ["Bist du böse? <i>"], "suite": ["refusal"]}
    return join_protected(golden_cases, pl.DataFrame(suite))


@pytest.fixture
def contents(
    protected_cases: pl.DataFrame,
    parity_report: pl.DataFrame,
    arm_answers: pl.DataFrame,
    graded_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    chunks: pl.DataFrame,
) -> ReportContents:
    return ReportContents(
        product="docs</title><script>alert(0)</script>",
        recipe="compact",
        generated_at="2026-11-21 12:00 UTC",
        parity_report=parity_report,
        arm_answers=arm_answers,
        graded_answers=graded_answers,
        golden_cases=golden_cases,
        chunks=chunks,
        leakage_cosine_limit=0.92,
        margin_ratio=0.10,
        readers=(
            ReaderCount(reader="arm_answers:compact", count=7, last_read_at="2026-11-21T12:00:00"),
        ),
        guarded_questions=pl.DataFrame(
            {
                "question_id": ["q1", "q2", "q3", "q4", "q5", "q6"],
                "text": ["one", "two", "three", "four", "five", "six"],
                "nearest_case_id": ["g001", "refusal:r1", "g002", "g003", "g004", "g005"],
                "nearest_cosine": [0.10, 0.86, 0.9199, 0.92, 0.99, 0.3],
                "verdict": ["kept", "kept", "kept", "rejected", "rejected", "rejected"],
            }
        ),
        protected_cases=protected_cases,
        trained_question_ids=frozenset({"q1", "q2"}),
        training_curve=pl.DataFrame(
            {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "soft_loss": [None, None, None]},
            schema_overrides={"soft_loss": pl.Float64},
        ),
        verdict=Verdict(),
        provenance={"base_model": "m@1", "seed": 7, "note": "<script>alert(2)</script>"},
    )


def find_worst(contents: ReportContents) -> list[dict[str, object]]:
    return find_worst_cases(
        contents.arm_answers, contents.graded_answers, contents.golden_cases, contents.chunks
    )


class TagCollector(HTMLParser):
    """Collects tags and the attributes that could load or run something; checks the nesting."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_nothing_written_by_a_model_or_a_user_becomes_markup(contents: ReportContents) -> None:
    html = render_report(contents)
    page = TagCollector()
    page.feed(html)
    assert not page.open
    assert not page.tags & {"script", "iframe", "object", "img", "link", "form", "base"}
    assert not {name for name in page.attributes if name.startswith("on")} | (
        page.attributes & {"src", "srcset"}
    )
    assert html.count("&lt;script&gt;") >= 5
    assert "alert(&#39;x&#39;)" in html


def test_the_file_needs_no_network(contents: ReportContents) -> None:
    html = render_report(contents)
    assert "default-src 'none'" in html
    assert not re.search(r"(?:https?:)?//[a-z]", html.replace("https://docs.example", ""))
    assert set(re.findall(r'href="(.)', html)) == {"#"}
    for target in re.findall(r'href="#(\w+)"', html):
        assert f'id="{target}"' in html


def test_the_verdict_comes_first_and_every_gate_is_listed(contents: ReportContents) -> None:
    html = render_report(contents)
    body = html[html.index("<body>") :]
    assert body.index("HOLD") < body.index('id="gates"') < body.index('id="parity"')
    assert "\u221212.3 pp" in body
    assert "above \u221210.0 pp" in body
    assert "NOT GATED" in body
    assert "below &lt;b&gt;" in body


def test_every_metric_slice_and_piece_of_evidence_is_shown(contents: ReportContents) -> None:
    html = render_report(contents)
    for metric in METRICS:
        # once with the arms, once with their distances to the teacher
        assert html.count(f'<th scope="row">{metric.label}<') == 2 * len(SLICES)
        assert f"<dt>{metric.label}</dt>" in html
    for text in (
        "read 7 times",
        "arm_answers:compact",
        "limit 0.92",
        "m@1",
        "prefers-color-scheme: dark",
    ):
        assert text in html


def test_a_report_can_be_written_before_the_gate_and_without_extras(
    contents: ReportContents,
) -> None:
    bare = replace(contents, verdict=None, guarded_questions=None, training_curve=None)
    html = render_report(bare)
    for text in ("NOT GATED", "No gate has run", "No guarded questions", "No training curve"):
        assert text in html
    assert report_json(bare)["verdict"] is None


def test_worst_cases_show_both_sides_with_their_chunks(contents: ReportContents) -> None:
    worst = find_worst(contents)
    assert [case["case_id"] for case in worst] == ["g003", "g013", "g023", "g033", "g043"]
    teacher, student = worst[0]["sides"]
    assert (teacher["arm"], student["arm"]) == ("teacher", "student")
    assert "missing: option 3 is 300" in student["details"]
    assert student["chunks"][0]["chunk_id"] == "docs:quickstart/3"
    assert student["chunks"][0]["heading"] == "Quickstart > Options"
    assert worst[-1]["should_refuse"]
    assert worst[-1]["sides"][1]["chunks"][0]["heading"] == "not in this corpus"
    assert [side["chunks_are"] for side in worst[-1]["sides"]] == ["retrieved", "cited"]


def test_a_refusal_is_shown_with_the_chunks_it_was_given(contents: ReportContents) -> None:
    """Case 43 should be refused; the teacher does, and cites nothing."""
    teacher = find_worst(contents)[-1]["sides"][0]
    assert teacher["refused"]
    assert [chunk["chunk_id"] for chunk in teacher["chunks"]] == [
        "docs:configuration/43", "docs:serving/2",
    ]  # fmt: skip
    html = render_report(contents)
    assert "It cites nothing; the best of 2 chunks retrieved:" in html
    assert "<summary>The other 1</summary>" in html


def test_a_long_chunk_is_cut_on_the_page_and_whole_in_the_json(contents: ReportContents) -> None:
    tail = "the very end of it"
    longer = contents.chunks.with_columns(text=pl.col("text") + " word" * 200 + tail)
    long = replace(contents, chunks=longer)
    assert tail not in render_report(long)
    assert tail in json.dumps(report_json(long))


def test_at_most_eight_worst_cases(contents: ReportContents) -> None:
    grades = contents.graded_answers.with_columns(
        value=pl.when(pl.col("arm") == "student", pl.col("metric") == "exact_match")
        .then(0.0)
        .otherwise("value")
    )
    worst = find_worst(replace(contents, graded_answers=grades))
    assert len(worst) == MAXIMUM_WORST_CASES


def test_the_guard_counts_what_stands_at_the_limit_as_rejected_side(
    contents: ReportContents,
) -> None:
    guard = view_guard(contents.guarded_questions, 0.92)
    assert guard is not None
    bins = {round(b["start"], 2): b["count"] for b in guard["bins"]}
    assert (bins[0.90], bins[0.92], bins[0.98]) == (1, 1, 1)
    assert sum(bins.values()) == 6
    assert guard["near_miss_count"] == 2
    assert guard["highest_kept"] == 0.9199
    assert guard["verdicts"] == {"kept": 3, "rejected": 3}


def test_routing_shares_add_up(arm_answers: pl.DataFrame) -> None:
    routing = view_routing(arm_answers)
    assert routing["served_by"] == [
        {"name": "student", "count": 40, "ratio": 0.8},
        {"name": "teacher", "count": 10, "ratio": 0.2},
    ]
    assert [row["name"] for row in routing["route_reason"]] == ["default", "low_retrieval"]


def test_the_json_is_strict_and_unrounded(contents: ReportContents) -> None:
    facts = json.loads(json.dumps(report_json(contents), allow_nan=False))
    sections = facts["sections"]
    assert facts["verdict"]["verdict"] == "HOLD"
    rows = sections["parity"]["tables"]["parity"] + sections["slices"]["tables"]["slices"]
    assert len(rows) == contents.parity_report.height
    assert {row["value"] for row in rows} == set(contents.parity_report["value"].to_list())
    assert facts["golden_set_reads"] == 7
    assert sections["gates"]["tables"]["gates"][0]["number"] == -0.123
    assert sections["losses"]["losses"] == list(Verdict().losses)
    worst = sections["worst"]["tables"]["worst_cases"]
    assert [(row["case_id"], row["arm"]) for row in worst][:2] == [
        ("g003", "teacher"), ("g003", "student"),
    ]  # fmt: skip
    assert worst[1]["chunks"][0]["text"].startswith("Option 3 is 300.")
    assert worst[1]["exact_match"] == 0.0
    assert sections["training"]["tables"]["training_curve"][2]["loss"] == 1.0
    assert sections["provenance"]["seed"] == 7


def find_sections(html: str) -> list[str]:
    return re.findall(r'<section id="([\w-]+)"', html)


def test_every_section_of_the_page_has_its_part_in_the_json_and_its_tables(
    contents: ReportContents,
) -> None:
    """Whatever the page is given, the JSON has it too, section by section, never an empty one."""
    points = pl.DataFrame(
        [{"arm": "routed_80_20", "min_retrieval_score": 0.4, "case_count": 9, "invalid_count": 0}],
        schema=tables.OPERATING_POINTS,
    )
    curve = pl.DataFrame({"teacher_ratio": [0.0, 1.0], "quality": [0.1 + 0.2, 1.0]})
    section = ReportSection(
        anchor="router", title="Router", lead="What it buys", notes=("One note.",),
        frames={"router_curve": curve}, facts={"strategy": "distilled"},
        plots=(LinePlot(title="Curve", x_label="x", y_label="y", lines=(LINE,), marks=(MARK,)),),
    )  # fmt: skip
    full = replace(contents, operating_points=points, sections=(section,), parent=Parent())
    stated = report_json(full)["sections"]
    assert list(stated) == find_sections(render_report(full))
    assert [name for name, part in stated.items() if set(part) == {"tables"} and not any(
        part["tables"].values())] == []  # fmt: skip
    assert stated["router"] == {
        "strategy": "distilled", "lead": "What it buys", "notes": ["One note."],
        "plots": {"Curve": {"line": [(0.0, 0.5), (1.0, 1.0)], "80/20": [(0.2, 0.6)]}},
        "tables": {"router_curve": curve.to_dicts()},
    }  # fmt: skip
    found = list_tables(full)
    assert {table for part in stated.values() for table in part["tables"]} == set(found)
    assert found["router_curve"]["quality"][0] == 0.1 + 0.2
    assert found["guard_histogram"]["count"].sum() == 6
    assert stated["gates"]["parent"]["release"] == "abc"


def test_the_files_hold_every_table_and_none_of_an_earlier_report(
    contents: ReportContents, tmp_path: Path
) -> None:
    files = write_report(tmp_path / "compact", contents)
    assert "training_curve" in {path.stem for path in files.tables.iterdir()}
    files = write_report(tmp_path / "compact", replace(contents, training_curve=None))
    kept = {path.stem: pl.read_parquet(path) for path in files.tables.iterdir()}
    assert set(kept) == set(list_tables(replace(contents, training_curve=None)))
    assert kept["worst_cases"].height == 10
    assert pl.read_parquet(files.parquet).equals(contents.parity_report)
    assert json.loads(files.json.read_text())["sections"]["training"] == {"tables": {}}


def test_sections_of_other_tables_are_shown_where_they_exist(contents: ReportContents) -> None:
    section = ReportSection(
        anchor="router-curve",
        title="Router curve",
        lead="Quality against the teacher's share <script>",
        tables=(TextTable(columns=("point", "share"), rows=(("80/20", "20 %"),)),),
        plots=(
            LinePlot(title="APGR", x_label="share", y_label="quality", is_unit=True,
                     lines=(Line(label="router", points=((0.0, 0.5), (1.0, 1.0))),)),
        ),
        notes=("Chosen on validation.",),
    )  # fmt: skip
    html = render_report(replace(contents, sections=(section,)))
    page = TagCollector()
    page.feed(html)
    assert not page.open
    assert "script" not in page.tags
    for text in ('<section id="router-curve">', 'href="#router-curve"', "80/20",
                 'points="0.00,50.00 100.00,0.00"', "Chosen on validation."):  # fmt: skip
        assert text in html
    assert "router-curve" not in render_report(contents)


def test_a_plot_that_fits_its_points_starts_at_zero_and_survives_one_point() -> None:
    plot = LinePlot(title="t", x_label="x", y_label="y",
                    lines=(Line(label="l", points=((2.0, 4.0), (6.0, 8.0))),))  # fmt: skip
    assert view_plot(plot)["ends"] == ["2", "6", "0", "8"]
    assert view_plot(plot)["lines"][0]["points"] == "0.00,50.00 100.00,0.00"
    lone = replace(plot, lines=(Line(label="l", points=((3.0, 0.0),)),))
    assert view_plot(lone)["lines"][0]["points"] == "-1.50,100.00 1.50,100.00"


def test_operating_points_are_dots_among_the_lines(contents: ReportContents) -> None:
    plot = LinePlot(title="t", x_label="x", y_label="y", lines=(LINE,), marks=(MARK,), is_unit=True)
    assert view_plot(plot)["marks"] == [
        {"name": "routed_80_20", "label": "80/20", "at": "20.00 40.00", "text": "0.2, 0.6"}
    ]
    section = ReportSection(anchor="router", title="Router", lead="", plots=(plot,))
    html = render_report(replace(contents, sections=(section,)))
    assert '<path class="mark routed_80_20" d="M20.00 40.00h0"/>' in html


def test_a_money_map_shows_every_amount_and_tells_gain_from_loss(contents: ReportContents) -> None:
    money = MoneyMap(title="Saved", row_label="utilisation", column_label="volume",
                     rows=("5 %", "80 %"), columns=("10k", "1M"),
                     amounts=((-100.0, 0.0), (0.254, 12_345.6)))  # fmt: skip
    rows = view_map(money)["rows"]
    assert [[cell["text"] for cell in row["cells"]] for row in rows] == [
        ["\u2212100", "0.00"], ["0.25", "12,346"],
    ]  # fmt: skip
    assert [cell["is_loss"] for row in rows for cell in row["cells"]] == [True, False, False, False]
    assert [row["cells"][1]["strength"] for row in rows] == [0.0, 1.0]
    section = ReportSection(anchor="economics", title="Economics", lead="", maps=(money,))
    html = render_report(replace(contents, sections=(section,)))
    assert '<td class="loss" style="--heat:0.09">\u2212100</td>' in html


def test_unpriced_answers_are_inconclusive_and_never_cheap(contents: ReportContents) -> None:
    rows = contents.parity_report.with_columns(
        value=pl.when(pl.col("metric") != "usd_per_1k").then("value"),
        n=pl.when(pl.col("metric") != "usd_per_1k").then("n").otherwise(0),
        inconclusive_count=pl.when(pl.col("metric") != "usd_per_1k")
        .then("inconclusive_count")
        .otherwise(50),
    )
    charts = {chart["title"]: chart for chart in view_spending_charts(rows)}
    assert charts["US$ per 1,000"]["groups"] == []
    assert charts["Latency p50, ms"]["groups"]
    html = render_report(replace(contents, parity_report=rows))
    assert "Inconclusive: no answer has a price" in html
    assert "inconclusive (50 failed)" in html
    assert "$0.00" not in html


def test_neighbours_are_the_nearest_question_trained_on_of_each_protected_case(
    contents: ReportContents, protected_cases: pl.DataFrame
) -> None:
    guarded = pl.DataFrame(
        {
            "question_id": ["q1", "q2", "q3", "q4", "q5", "q6", "q7"],
            "text": ["near", "nearer", "not taught", "rejected", "far", "unknown", "of a suite"],
            "nearest_case_id": ["g001", "g001", "g001", "g001", "g002", "g003", "refusal:r1"],
            "nearest_cosine": [0.7, 0.8, 0.9, 0.95, 0.2, None, 0.75],
            "verdict": ["kept", "kept", "kept", "rejected", "kept", "kept", "kept"],
        }
    )
    trained = frozenset({"q1", "q2", "q4", "q5", "q6", "q7"})
    found = find_neighbours(guarded, protected_cases, trained)
    assert [(row["case_id"], row["suite"], row["trained_on"], row["cosine"]) for row in found] == [
        ("g001", "golden", "nearer", 0.8),
        ("refusal:r1", "refusal", "of a suite", 0.75),
        ("g002", "golden", "far", 0.2),
    ]
    assert found[1]["question"] == "Bist du böse? <i>"
    html = render_report(replace(contents, guarded_questions=guarded, trained_question_ids=trained))
    assert "nearer" in html
    assert "not taught" not in html
    assert "Bist du böse? &lt;i&gt;" in html
    assert "This student learned from 6 of the questions kept, the nearest of them at 0.950" in html
    assert find_neighbours(None, protected_cases, trained) == []


def test_operating_points_show_what_was_wanted_and_what_came(contents: ReportContents) -> None:
    points = pl.DataFrame(
        [
            {"arm": "routed_80_20", "target_teacher_ratio": 0.2, "quantile": 0.1,
             "min_retrieval_score": 0.41, "confidence_threshold": None, "teacher_ratio": 0.203,
             "lower": 0.12, "upper": 0.31, "case_count": 64, "invalid_count": 9,
             "adapter_sha256": "a"}
        ],
        schema=tables.OPERATING_POINTS,
    )  # fmt: skip
    table = tabulate_points(points, contents.arm_answers)
    assert table is not None
    assert table.rows == (
        ("routed 80/20", "20.0 %", "20.3 % (12.0 % to 31.0 %)", "\u2013", "0.410",
         "no confidence", "64, 9 invalid"),
    )  # fmt: skip
    assert tabulate_points(None, contents.arm_answers) is None
    facts = report_json(replace(contents, operating_points=points))
    sections = facts["sections"]
    assert sections["routing"]["tables"]["operating_points"][0]["arm"] == "routed_80_20"
    assert sections["provenance"]["tables"]["golden_set_readers"][0]["count"] == 7


def test_the_reasons_stand_with_the_verdict(contents: ReportContents) -> None:
    unmeasured = Gate(
        name="refusal_critical", outcome="INCONCLUSIVE", number=None, unit="count",
        detail=describe_unmeasured("the refusal suite"),
    )  # fmt: skip
    late = Gate(name="latency_p50", outcome="INCONCLUSIVE", number=20.0, unit="ms", limit=17.0)
    held = replace(Verdict(), gates=(Gate(), late, unmeasured))
    assert [gate["name"] for gate in list_reasons(held)] == ["pooled_non_inferiority"]
    open_one = replace(held, verdict="INCONCLUSIVE", gates=(late, unmeasured))
    assert [gate["name"] for gate in list_reasons(open_one)] == ["latency_p50"]
    html = render_report(replace(contents, verdict=held))
    card = html[html.index('class="word"') : html.index('class="tiles"')]
    assert "must be above" in card
    assert "0 gained, 5 lost" in card
    assert "1 gates on suites were not measured" in html


def test_an_arm_retired_since_the_run_is_shown_by_its_name(contents: ReportContents) -> None:
    """Tables of an older run name arms that `parity.arms` knows no more."""
    report = contents.parity_report.with_columns(pl.col("arm").str.replace("student", "old_arm"))
    answers = contents.arm_answers.with_columns(pl.col("arm").str.replace("student", "old_arm"))
    older = replace(contents, parity_report=report, arm_answers=answers)
    assert "old arm" in render_report(older)
    assert "old arm" in [group["label"] for group in view_spending_charts(report)[0]["groups"]]
    assert draw_parity_chart(report).startswith("![parity](data:image/png")
    points = [{"arm": "routed_70_30", "target_teacher_ratio": 0.3, "teacher_ratio": 0.3,
               "lower": 0.2, "upper": 0.4, "min_retrieval_score": 0.5, "case_count": 9,
               "invalid_count": 0}]  # fmt: skip
    frame = pl.DataFrame(points, schema=tables.OPERATING_POINTS)
    table = tabulate_points(frame, contents.arm_answers)
    assert table is not None
    assert table.rows[0][0] == "routed 70 30"


def test_soft_targets_by_data_set_stand_in_the_page(contents: ReportContents) -> None:
    scored = pl.concat([tabulate("scorer", 1.0, count=3), tabulate("scorer", 0.5, first=3)])
    sets = scored.select("example_id", data_set=pl.lit("reworded"))
    full = replace(contents, sections=(describe_targets(scored, sets),))
    html, stated = render_report(full), report_json(full)["sections"]["targets"]
    assert '<section id="targets"><h2>Soft targets</h2>' in html
    for title in ("Coverage of soft targets", "Tail mass outside the top K"):
        assert title in html
        assert list(stated["plots"][title]) == ["reworded"]
    measured = stated["tables"]["soft_targets_by_set"]
    assert [row["data_set"] for row in measured] == ["reworded"]
    assert "<script" not in html
