"""Which labels teach: valid, judged high on every axis, split by seed."""

from dataclasses import replace

import polars as pl
import pytest

from assets import tables
from assets.labels.assets import LabellingPlan
from assets.labels.checks import every_answer_is_kept_or_rejected, every_example_may_train
from assets.labels.judging import Ruler
from assets.labels.rejecting import describe_rejected, draw_scores
from assets.labels.selection import TeacherTerms, choose_split, select_examples
from serving.errors import InvalidInputError
from tests.counting_embedder import CountingEmbedder

TERMS = TeacherTerms(teacher_id="t", license="MIT", is_trainable=True)
RULER = Ruler(rater_id="j", epoch="2026-11", rubric_version="r1")
PLAN = LabellingPlan(terms=TERMS, concurrency=1, ruler=RULER, judge_concurrency=1, minimum_score=4)


def answer(question_id: str, seed_id: str = "s1", verdict: str = "valid") -> dict:
    row = dict.fromkeys(tables.TEACHER_ANSWERS.names())
    return row | {
        "question_id": question_id,
        "seed_id": seed_id,
        "question": f"Where is {question_id}?",
        "messages": [{"role": "user", "content": "Where?"}],
        "raw": "Here. [1]",
        "refused": False,
        "validator_verdict": verdict,
        "teacher_id": "t",
        "prompt_version": "p",
        "index_fingerprint": "i",
        "content_key": f"key-{question_id}",
    }


def scores(question_id: str, *values: int | None) -> list[dict]:
    row = dict.fromkeys(tables.JUDGED_ANSWERS.names())
    return [
        row
        | {
            "content_key": f"key-{question_id}",
            "axis": f"axis {n}",
            "score": value,
            "status": "unreachable" if value is None else "judged",
            "rater_id": "j",
            "judge_epoch": "2026-11",
            "rubric_version": "r1",
            "rationale": f"why {question_id}",
        }
        for n, value in enumerate(values)
    ]


def select(answers: list[dict], judged: list[dict], **changes: object):
    changes.setdefault("embedder", CountingEmbedder())
    return select_examples(
        pl.DataFrame(answers, schema=tables.TEACHER_ANSWERS),
        pl.DataFrame(judged, schema=tables.JUDGED_ANSWERS),
        **{"minimum_score": 4, "terms": TERMS, "ruler": RULER, **changes},
    )


def test_the_lowest_axis_decides_and_every_loss_is_counted_by_reason():
    selection = select(
        [
            answer("good"),
            answer("low"),
            answer("open"),
            answer("bad", verdict="empty"),
            answer("un"),
        ],
        [*scores("good", 5, 4), *scores("low", 5, 3), *scores("open", 5, None), *scores("bad", 5)],
    )
    assert selection.examples["question_id"].to_list() == ["good"]
    assert selection.rejected_by_reason == {
        "judge_inconclusive": 2,
        "invalid": 1,
        "below_minimum_score": 1,
    }
    assert selection.examples.schema == tables.LABELLED_EXAMPLES
    assert selection.rejected.schema == tables.REJECTED_EXAMPLES


def test_every_rejection_says_why():
    rejected = select(
        [answer("low"), answer("open"), answer("bad", verdict="empty")],
        [*scores("low", 5, 2, 3), *scores("open", 5, None)],
    ).rejected
    low, undecided, bad = rejected.iter_rows(named=True)
    assert (low["reason"], low["lowest_axis"], low["lowest_score"]) == (
        "below_minimum_score", "axis 1", 2,
    )  # fmt: skip
    assert (low["rationale"], low["completion"]) == ("why low", "Here. [1]")
    assert (undecided["reason"], undecided["judge_status"]) == ("judge_inconclusive", "unreachable")
    assert undecided["lowest_axis"] is None
    assert (bad["reason"], bad["validator_verdict"]) == ("invalid", "empty")
    assert rejected["judge_epoch"].unique().to_list() == ["2026-11"]
    shown = describe_rejected(rejected, private_seeds=())
    assert shown.splitlines()[2:] == ["| Where is low? | 3 | Here. [1] | axis 1 2 | why low |"]
    apart = rejected.with_columns(pl.col("question_id").alias("seed_id"))
    others = describe_rejected(apart, private_seeds=())
    assert "judge_inconclusive: unreachable | why open" in others
    assert "invalid: empty |" in others
    by_id = describe_rejected(apart, private_seeds={"low"}).splitlines()
    assert by_id[2] == "| low | 1 |  | axis 1 2 |  |"
    assert by_id[3:] == others.splitlines()[3:]


def test_kept_and_rejected_add_up_to_all_answers():
    answers = [answer("good"), answer("low"), answer("open")]
    selection = select(answers, [*scores("good", 5), *scores("low", 1)])
    frame = pl.DataFrame(answers, schema=tables.TEACHER_ANSWERS)
    assert every_answer_is_kept_or_rejected(selection.rejected, frame, selection.examples).passed
    for rejected, examples in (
        (selection.rejected.head(1), selection.examples),
        (pl.concat([selection.rejected, selection.rejected.head(1)]), selection.examples),
        (selection.rejected, selection.examples.clear()),
    ):
        assert not every_answer_is_kept_or_rejected(rejected, frame, examples).passed


def test_the_scores_are_drawn_with_the_limit():
    judged = pl.DataFrame(
        [*scores("a", 5, 5), *scores("b", 5, 2), *scores("c", None)], schema=tables.JUDGED_ANSWERS
    )
    assert draw_scores(judged, minimum_score=4).startswith("![answers by the score")
    assert draw_scores(judged.clear(), minimum_score=4) == "No answer was judged."
    assert (
        describe_rejected(tables.REJECTED_EXAMPLES.to_frame(), private_seeds=())
        == "Nothing was rejected."
    )


def test_a_seed_and_its_paraphrases_share_a_split():
    selection = select(
        [answer(f"q{n}", seed_id=f"s{n % 7}") for n in range(70)],
        [row for n in range(70) for row in scores(f"q{n}", 5)],
    )
    splits = selection.examples.group_by("seed_id").agg(pl.col("split").n_unique())
    assert splits["split"].to_list() == [1] * 7


def test_splits_have_about_their_shares():
    counts = pl.Series([choose_split(f"seed-{n}") for n in range(4000)]).value_counts()
    shares = {split: count / 4000 for split, count in counts.iter_rows()}
    assert shares["train"] == pytest.approx(0.70, abs=0.03)
    assert shares["validation"] == pytest.approx(0.15, abs=0.02)


def test_an_untrainable_teacher_blocks_the_examples():
    terms = TeacherTerms(teacher_id="t", license="no training", is_trainable=False)
    with pytest.raises(InvalidInputError, match=r"trainable.*no training"):
        select([answer("good")], scores("good", 5), terms=terms)


def test_answers_of_another_teacher_are_not_mixed_in():
    stranger = answer("old") | {"teacher_id": "teacher-before"}
    with pytest.raises(InvalidInputError, match="1 of 2 answers of teacher-before"):
        select([answer("good"), stranger], scores("good", 5))


def test_scores_of_another_epoch_are_not_compared():
    with pytest.raises(InvalidInputError, match="2027-01"):
        select([answer("good")], scores("good", 5), ruler=Ruler(rater_id="j", epoch="2027-01"))


def test_each_example_records_its_terms_and_the_check_holds_them_to_the_configured():
    examples = select([answer("good")], scores("good", 5)).examples
    row = examples.row(0, named=True)
    assert (row["teacher_id"], row["teacher_license"], row["trainable"]) == ("t", "MIT", True)
    assert every_example_may_train(examples, PLAN).passed
    for change in (
        {"trainable": False}, {"trainable": None}, {"teacher_id": "teacher-before"},
        {"teacher_license": ""}, {"teacher_license": None}, {"teacher_license": "other"},
    ):  # fmt: skip
        spoilt = pl.DataFrame([row | change], schema=tables.LABELLED_EXAMPLES)
        result = every_example_may_train(spoilt, PLAN)
        assert not result.passed, change
        assert result.metadata["may_not_train"].value == [row["example_id"]]


def test_a_teacher_whose_terms_changed_blocks_examples_already_made():
    examples = select([answer("good")], scores("good", 5)).examples
    terms = TeacherTerms(teacher_id="t", license="MIT", is_trainable=False)
    result = every_example_may_train(examples, replace(PLAN, terms=terms))
    assert not result.passed
    assert "trainable is false" in result.description
