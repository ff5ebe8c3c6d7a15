"""Soft targets of every kind for the small training: student tokens, groups of them, none.

They are spread unevenly: in most batches some answers have one kind, some another, some none.
"""

from pathlib import Path

import polars as pl

from assets.labels.local_scoring import LocalScorer
from serving.models.protocols import ChatRequest
from tests.assets.labels.test_soft_targets import LIMIT, Teacher, buy, gather, in_words
from tests.assets.students.training_cases import SPLITS
from tests.tiny_student import make_base, make_labelled

SOFT = {"alpha": 0.3}


def make_soft_table(folder: Path) -> pl.DataFrame:
    """Return the targets of 20 training examples: 4 scored, 10 in the teacher's words, 6 hard.

    The scorer and what the teacher said are kept in the folder.
    """
    other = LocalScorer.load(make_base(folder / "base", seed=1), scorer_id="o", dtype="float32")
    examples = make_labelled(24, splits=SPLITS).filter(pl.col("split") == "train")
    keys = [
        ChatRequest(messages=tuple(messages), max_tokens=LIMIT).content_key("m")
        for messages in examples["messages"].to_list()
    ]
    examples = examples.with_columns(pl.Series("content_key", keys))
    kept = buy(folder, Teacher(other, examples, in_words, top_k=150), examples.head(14))
    frame = gather(other, examples, kept, scorer=other, maximum_examples=4).frame
    if set(frame["alignment"]) != {"exact", "bytes", "none"}:
        raise AssertionError(f"a kind is missing: {frame['alignment'].value_counts().rows()}")
    return frame


def write_soft_table(folder: Path) -> Path:
    """Write that table where a training reads it."""
    path = folder / "teacher_logprobs.parquet"
    make_soft_table(folder).write_parquet(path)
    return path
