"""Planted paraphrases and what is made of them: the guard is measured by real rewordings."""

import numpy as np
import polars as pl
import pytest
from statsmodels.stats.proportion import proportion_confint

from assets.eval_set.checks import guard_catches_every_copy
from assets.eval_set.evidence import (
    draw_nearest_cosines,
    draw_recall,
    find_near_misses,
    render_pairs,
    render_recall,
)
from assets.eval_set.guard import EvalQuestions, judge_questions
from assets.eval_set.overlap import normalise_text
from assets.eval_set.planting import COPY, KINDS, plant
from assets.eval_set.recall import (
    ANY_KIND,
    RECALL_THRESHOLDS,
    RULES,
    UNRELATED,
    measure_recall,
    plant_paraphrases,
)
from serving.pipeline.questions import split_words

QUESTION = "How do I delete the stored settings folder when I serve it in production?"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_plant_is_another_text_and_always_the_same(kind):
    planted = plant(QUESTION, kind)
    assert planted is not None
    assert planted != QUESTION
    assert plant(QUESTION, kind) == planted


@pytest.mark.parametrize(
    ("kind", "question", "planted"),
    [
        (COPY, QUESTION, QUESTION.lower().rstrip("?")),
        (COPY, "already plain", None),
        (
            COPY,
            "C++: \u0939\u093f\u0928\u094d\u0926\u0940?",
            "c \u0939\u093f\u0928\u094d\u0926\u0940",
        ),
        ("word_order", "How do I reload it in production?", "In production, how do I reload it?"),
        ("word_order", "I changed a page. Is it seen?", "Is it seen? I changed a page."),
        ("word_order", "What does it do?", None),
        ("synonyms", "Which folder is big?", "Which directory is large?"),
        ("synonyms", "Which adapter?", None),
        ("typos", "Why so?", None),
        ("terse", "What is the limit of the guard?", "limit guard"),
        ("terse", "What is it?", None),
        ("question_form", "How do I reload it?", "What is the way to reload it?"),
        ("question_form", "a statement", None),
    ],
)
def test_kinds_change_what_they_say_and_nothing_where_they_find_nothing(kind, question, planted):
    assert plant(question, kind) == planted


def test_typos_swap_letters_and_leave_the_words_in_place():
    before, after = split_words(QUESTION), split_words(plant(QUESTION, "typos"))
    changed = [(b, a) for b, a in zip(before, after, strict=True) if b != a]
    assert 1 <= len(changed) <= 2
    assert all(sorted(b) == sorted(a) and b[0] == a[0] for b, a in changed)


def test_no_kind_but_the_copy_repeats_the_words():
    planted = plant_paraphrases([("g1", QUESTION)])
    same = normalise_text(QUESTION)
    repeats = {
        k for k, t in planted.select("kind", "text").iter_rows() if normalise_text(t) == same
    }
    assert repeats == {COPY}
    assert planted["kind"].to_list() == list(KINDS)


@pytest.fixture
def judged() -> pl.DataFrame:
    return pl.DataFrame(
        [
            ("typos", 0.96, "cosine"),
            ("typos", 0.92, "cosine"),
            ("typos", 0.86, "shared_ngram"),
            ("typos", 0.2, ""),
            ("terse", 0.9, ""),
            (UNRELATED, 0.91, ""),
            (UNRELATED, 0.1, ""),
        ],
        schema=["kind", "nearest_cosine", "reason"],
        orient="row",
    )


def caught(recall: pl.DataFrame, kind: str, rule: str) -> list[int]:
    return recall.filter(kind=kind, rule=rule).sort("threshold")["caught"].to_list()


def test_recall_counts_at_or_above_each_threshold(judged):
    recall = measure_recall(judged)
    assert sorted(set(recall["threshold"])) == list(RECALL_THRESHOLDS)
    assert caught(recall, "typos", "cosine") == [3, 2, 2, 1]
    assert caught(recall, "typos", "guard") == [3, 3, 3, 2]
    assert caught(recall, "terse", "cosine") == [1, 1, 0, 0]
    assert caught(recall, ANY_KIND, "guard") == [4, 4, 3, 2]
    assert caught(recall, UNRELATED, "guard") == [1, 1, 0, 0]
    assert recall.filter(~pl.col("is_planted"))["kind"].unique().to_list() == [UNRELATED]


def test_every_share_has_its_wilson_interval(judged):
    row = measure_recall(judged).row(
        by_predicate=(pl.col("kind") == "typos") & (pl.col("rule") == "cosine")
        & (pl.col("threshold") == 0.92),
        named=True,
    )  # fmt: skip
    assert (row["ratio"], row["n"]) == (0.5, 4)
    assert (row["lower"], row["upper"]) == proportion_confint(2, 4, method="wilson")


def test_a_missed_copy_fails_the_check_and_another_kind_does_not(judged):
    copies = pl.DataFrame({"kind": [COPY] * 2, "nearest_cosine": [0.1, 0.99],
                           "reason": ["same_words", "cosine"]})  # fmt: skip
    passing = guard_catches_every_copy(measure_recall(pl.concat([judged, copies])))
    assert passing.passed
    assert passing.metadata["missed_by_kind"].value["terse"] == 1
    missed = copies.with_columns(reason=pl.lit(""), nearest_cosine=pl.lit(0.1))
    failing = guard_catches_every_copy(measure_recall(pl.concat([judged, missed])))
    assert not failing.passed
    assert failing.metadata["missed_copies"].value == 2
    assert not guard_catches_every_copy(measure_recall(judged).clear()).passed


def test_the_pictures_and_tables_say_what_was_measured(judged):
    recall = measure_recall(judged)
    for rule in RULES:
        assert draw_recall(recall, rule).startswith(PNG)
    assert draw_recall(recall, "cosine") == draw_recall(recall, "cosine")
    assert draw_recall(recall, "cosine") != draw_recall(recall, "guard")
    assert "| typos | guard | 4 | 75 % (30 to 95) |" in render_recall(recall)


@pytest.fixture
def guarded() -> pl.DataFrame:
    cosines = [0.3, 0.86, 0.9199, 0.93]
    texts = ["a | b", "`code`\nin two lines", "near", "x" * 500]
    vectors = np.array([[c, np.sqrt(1 - c * c)] for c in cosines], dtype=np.float32)
    protected = EvalQuestions.prepare(["g1"], ["q*"], np.array([[1, 0]], dtype=np.float32))
    ids = ["s1", "s2", "s3", "s4"]
    pool = pl.DataFrame({"question_id": ids, "seed_id": ids, "text": texts})
    return pool.hstack(judge_questions(texts, vectors, protected))


def test_near_misses_are_kept_questions_nearest_first(guarded):
    assert find_near_misses(guarded)["question_id"].to_list() == ["s3", "s2"]


def test_pairs_are_shown_side_by_side_and_stay_in_their_cells(guarded):
    cases = pl.DataFrame({"case_id": ["g1"], "question": ["q*"]})
    lines = render_pairs(guarded, cases, private_seeds={"s3"}).splitlines()
    assert len(lines) == 6
    assert lines[2].startswith("| 0.930 | rejected | cosine | s4: xxx")
    assert len(lines[2]) < 250
    assert lines[3] == "| 0.920 | kept |  | s3: a user's | g1: q\\* |"
    assert lines[4] == "| 0.860 | kept |  | s2: \\`code\\` in two lines | g1: q\\* |"
    assert "a \\| b" in lines[5]


def test_the_histogram_is_drawn_for_any_pool(guarded):
    assert draw_nearest_cosines(guarded).startswith(PNG)
    assert draw_nearest_cosines(guarded.clear()).startswith(PNG)
