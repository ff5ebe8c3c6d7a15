"""The wall between training and held-out questions: no seed's rewording stands on the other side.

The vectors are set by hand, so that each cosine is what the test says it is.
"""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT
from assets.labels.rejecting import describe_rejected
from assets.labels.selection import choose_split, select_examples
from assets.labels.separation import find_near_held_out
from assets.labels.split_checks import no_training_question_near_a_held_out_one
from tests.assets.labels.test_selection import RULER, TERMS, answer, scores

JUST_TOO_NEAR, JUST_FAR_ENOUGH = LEAKAGE_COSINE_LIMIT + 1e-4, LEAKAGE_COSINE_LIMIT - 1e-4


class AngleEmbedder:
    """A question is a direction: the number of degrees that its text ends with."""

    fingerprint = "angles"
    dimension = 2
    maximum_tokens = 64

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        radians = np.radians([float(text.split()[-1]) for text in texts])
        return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def name_seed(split: str, kind: str) -> str:
    return next(f"{kind}{n}" for n in range(1_000) if choose_split(f"{kind}{n}") == split)


def ask(question_id: str, seed_id: str, cosine: float, *, around: float = 0.0) -> dict:
    """An answer whose question has this cosine to the one at `around` degrees."""
    degrees = around + math.degrees(math.acos(cosine))
    return answer(question_id, seed_id) | {"question": f"How is it done at {degrees:.6f}"}


HAND, HELD = name_seed("train", "hand"), name_seed("validation", "held")
FITTED = name_seed("calibration", "fitted")
HARVESTED, OTHER = name_seed("train", "harvested"), name_seed("train", "other")
ROWS = [
    ask(HELD, HELD, 1.0),
    ask(FITTED, FITTED, 1.0, around=180.0),
    # a user's words for the held-out seed, and a rewording of these that is further away
    ask(HARVESTED, HARVESTED, JUST_TOO_NEAR),
    ask("harvested-p1", HARVESTED, 0.5),
    ask(OTHER, OTHER, JUST_FAR_ENOUGH),
    # written by night of a seed by hand, on the side of what the student missed
    ask(HAND, HAND, 0.0),
    ask("dream-1", HAND, JUST_TOO_NEAR, around=180.0),
    ask("dream-2", HAND, 0.5, around=180.0),
]


def select(rows: list[dict] = ROWS):
    return select_examples(
        pl.DataFrame(rows, schema=tables.TEACHER_ANSWERS),
        pl.DataFrame([row for one in rows for row in scores(one["question_id"], 5)],
                     schema=tables.JUDGED_ANSWERS),
        minimum_score=4, terms=TERMS, ruler=RULER, embedder=AngleEmbedder(),
    )  # fmt: skip


def test_a_harvested_and_a_dreamed_rewording_of_held_out_questions_do_not_train():
    selection = select()
    assert selection.examples["question_id"].to_list() == [
        HELD, FITTED, OTHER, HAND, "dream-2",
    ]  # fmt: skip
    assert selection.rejected_by_reason == {"near_held_out": 3}
    rejected = {row["question_id"]: row for row in selection.rejected.iter_rows(named=True)}
    assert {name: row["held_out_question_id"] for name, row in rejected.items()} == {
        HARVESTED: HELD, "harvested-p1": HELD, "dream-1": FITTED,
    }  # fmt: skip
    assert rejected["dream-1"]["held_out_cosine"] == pytest.approx(JUST_TOO_NEAR, abs=1e-6)
    shown = describe_rejected(selection.rejected, private_seeds=())
    assert f"near_held_out: cosine 0.920 to {HELD}" in shown


def test_what_was_rejected_for_its_answer_neither_falls_nor_protects():
    low = [row | {"validator_verdict": "empty"} if row["question_id"] == HELD else row
           for row in ROWS]  # fmt: skip
    selection = select(low)
    assert selection.rejected_by_reason == {"invalid": 1, "near_held_out": 1}
    assert HARVESTED in selection.examples["question_id"]


def test_held_out_questions_stay_however_near_each_other():
    twin = name_seed("calibration", "twin")
    selection = select([ask(HELD, HELD, 1.0), ask(twin, twin, 1.0), ask(HAND, HAND, 0.0)])
    assert selection.rejected.is_empty()


def test_without_a_held_out_question_nothing_is_embedded():
    selection = select([ask(HAND, HAND, 1.0)])
    assert selection.examples.height == 1
    assert find_near_held_out(selection.examples.clear(), AngleEmbedder()).is_empty()


def test_the_check_fails_for_a_row_that_came_in_another_way():
    examples = select().examples
    assert no_training_question_near_a_held_out_one(examples, AngleEmbedder()).passed
    row = examples.filter(pl.col("question_id") == "dream-2").row(0, named=True)
    planted = pl.DataFrame(
        [row | {"question": ROWS[2]["question"]}], schema=tables.LABELLED_EXAMPLES
    )
    result = no_training_question_near_a_held_out_one(
        pl.concat([examples, planted]), AngleEmbedder()
    )
    assert not result.passed
    assert result.metadata["largest_cosine"].value >= LEAKAGE_COSINE_LIMIT
