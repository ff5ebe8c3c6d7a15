"""How much of the answers soft targets cover, and the promise about it."""

import dagster as dg
import polars as pl
import pytest

from assets import tables
from assets.labels.checks import logprob_rows_match_their_tokens, soft_targets_cover_the_answers
from assets.labels.coverage import describe_coverage, draw_charts, list_tokens, measure_coverage
from assets.labels.soft_targets import SoftTable
from assets.labels.teacher_tokens import TokenizerEvidence
from tests.assets.labels.soft_answers import TAIL, tabulate
from tests.tiny_student import make_labelled


@pytest.fixture(scope="module")
def mixed():
    return pl.concat(
        [
            tabulate("scorer", 1.0, count=3),
            tabulate("teacher", 0.5, alignment="bytes", first=3, count=4),
            tabulate("teacher", 0, reason="the texts differ", first=7, count=1),
            tabulate("none", 0, reason="no source was asked", first=8, count=4),
        ]
    )


def test_shares_are_of_answer_tokens(mixed):
    found = measure_coverage(mixed)
    lengths = dict(mixed.select("example_id", pl.col("token_ids").list.len()).iter_rows())
    soft = {row["example_id"]: sum(row["soft_ok"]) for row in mixed.iter_rows(named=True)}
    asked = mixed.filter(pl.col("source") != "none")["example_id"]
    assert found.token_count == sum(lengths.values())
    assert found.soft_ratio == pytest.approx(sum(soft.values()) / found.token_count)
    assert found.asked_soft_ratio == pytest.approx(
        sum(soft.values()) / sum(lengths[i] for i in asked)
    )
    assert sum(found.by_supply.values()) == pytest.approx(found.soft_ratio)
    assert found.by_supply.keys() == {"scorer exact", "teacher bytes"}
    assert found.tail_mass == pytest.approx({"scorer exact": TAIL, "teacher bytes": TAIL})
    assert found.hard_reasons == {"no source was asked": 4, "the texts differ": 1}


def test_tokens_know_what_they_are(mixed):
    kinds = dict(list_tokens(mixed)["kind"].value_counts().iter_rows())
    assert kinds["end of turn"] == mixed.height
    assert kinds["citation"] == mixed["cite"].explode().sum()
    assert sum(kinds.values()) == measure_coverage(mixed).token_count


def test_the_metadata_says_whose_tokens_the_teacher_speaks(mixed):
    evidence = TokenizerEvidence(answer_count=5, same_answer_count=1, known={b"a"}, unknown={b"b"})
    described = describe_coverage(SoftTable(frame=mixed, evidence=evidence))
    assert described["teacher_tokenizer"].startswith("another than the student's: 1 of 5 answers")
    assert "1 of 2 candidates" in described["teacher_tokenizer"]
    assert "teacher_tokenizer" not in describe_coverage(SoftTable(frame=mixed))
    assert described["soft_token_ratio_by_source"].keys() == {"scorer exact", "teacher bytes"}


def test_charts_are_drawn_where_there_is_something_to_draw(mixed):
    charts = draw_charts(mixed)
    assert list(charts) == ["coverage", "tail_mass"]
    assert all("](data:image/png;base64," in chart for chart in charts.values())
    assert draw_charts(mixed) == charts, "the same data gives the same bytes"
    assert draw_charts(tabulate("teacher", 0, reason="the texts differ")) == {}
    assert draw_charts(tables.TEACHER_LOGPROBS.to_frame()) == {}


@pytest.mark.parametrize(("share", "passed"), [(1.0, True), (0.6, True), (0.3, False), (0, False)])
def test_the_check_warns_when_most_tokens_are_hard(share, passed):
    result = soft_targets_cover_the_answers(tabulate("teacher", share, reason="the texts differ"))
    assert result.passed is passed
    assert result.severity is dg.AssetCheckSeverity.WARN
    assert result.metadata["minimum_soft_token_ratio"].value == 0.5
    assert result.metadata["soft_token_ratio"].value == pytest.approx(share, abs=0.1)


def test_answers_that_nobody_was_asked_about_do_not_count(mixed):
    assert soft_targets_cover_the_answers(tabulate("none", 0, reason="x")).passed
    assert soft_targets_cover_the_answers(tables.TEACHER_LOGPROBS.to_frame()).passed
    offenders = soft_targets_cover_the_answers(mixed).metadata["least_covered"].value
    assert next(iter(offenders)) == "e007"
    assert "e008" not in offenders


def test_lists_of_another_length_than_the_answer_block(mixed):
    examples = make_labelled(12)
    assert logprob_rows_match_their_tokens(mixed, examples).passed
    for name in ("group_low", "y_logp", "top_ids"):
        rows = mixed.to_dicts()
        rows[3][name] = rows[3][name][1:]
        broken = pl.DataFrame(rows, schema=tables.TEACHER_LOGPROBS)
        result = logprob_rows_match_their_tokens(broken, examples)
        assert not result.passed
        assert result.metadata["rows_of_wrong_length"].value == ["e003"]
    assert not logprob_rows_match_their_tokens(mixed, examples.head(5)).passed
