"""Which labels teach: valid, judged high on every axis, split by seed."""

import polars as pl
import pytest

from assets import tables
from assets.labels.selection import choose_split, select_examples
from serving.errors import InvalidInputError


def answer(question_id: str, seed_id: str = "s1", verdict: str = "valid") -> dict:
    row = dict.fromkeys(tables.TEACHER_ANSWERS.names())
    return row | {
        "question_id": question_id,
        "seed_id": seed_id,
        "question": "Where?",
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
        row | {"content_key": f"key-{question_id}", "axis": str(n), "score": value}
        for n, value in enumerate(values)
    ]


def select(answers: list[dict], judged: list[dict], **changes: object):
    return select_examples(
        pl.DataFrame(answers, schema=tables.TEACHER_ANSWERS),
        pl.DataFrame(judged, schema=tables.JUDGED_ANSWERS),
        minimum_score=4,
        teacher_license="MIT",
        **changes,
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
    assert selection.dropped_by_reason == {
        "below_minimum_score": 1,
        "judge_inconclusive": 2,
        "invalid": 1,
    }
    assert selection.examples.schema == tables.LABELLED_EXAMPLES


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
    with pytest.raises(InvalidInputError, match="trainable"):
        select([answer("good")], scores("good", 5), is_trainable=False)
