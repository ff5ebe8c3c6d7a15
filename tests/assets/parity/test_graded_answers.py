"""The table of grades, made by its asset: what the embedder supports.

Inputs lie in a lake as a run finds them; the judge is a canned model behind the real cache.
"""

import json
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest

from assets import keys, tables
from assets.labels.judging import AXES
from assets.parity.assets import graded_answers
from assets.partitions import RECIPES
from resources.chat_models import CachedChatModel
from resources.lake import LakeIOManager
from serving.home import Home
from serving.models.protocols import NoProgress, Vectors
from tests.assets.labels.test_selection import PLAN
from tests.serving.fakes import CannedChatModel
from tests.tiny_student import make_messages

CHUNK = {
    "chunk_id": "docs:kiln/1",
    "heading_path": ["Kiln", "Heat"],
    "text": "The oven must not exceed 900 degrees.",
}
REWORDED = "Never fire hotter than nine hundred. [docs:kiln/1]"
INVENTED = "Bring your own lunch every Tuesday. [docs:kiln/1]"
CASE = {
    "case_id": "g1", "bucket": "answerable", "question": "How hot?", "must_include": ["900"],
    "gold_pages": ["kiln"], "gold_headings": [], "should_refuse": False,
}  # fmt: skip


class HeatEmbedder:
    """An embedder to which words about heat mean the same, and all others something else."""

    fingerprint, dimension, maximum_tokens = "heat", 2, 100

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed(self, texts: Any) -> Vectors:
        self.embedded += texts
        about = [any(word in text for word in ("degrees", "hotter")) for text in texts]
        return np.array([[1, 0] if hot else [0, 1] for hot in about], dtype=np.float32)

    def count_tokens(self, texts: Any) -> list[int]:
        return [len(text) for text in texts]


def write(home: Home, key: str, row: dict[str, Any], schema: pl.Schema, *part: str) -> None:
    path = home.table(key, *part)
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame([row], schema=schema).write_parquet(path)


@pytest.fixture
def grade(tmp_path):
    home, embedder = Home(tmp_path), HeatEmbedder()
    reply = json.dumps({**dict.fromkeys(AXES, 4), "rationale": "fine"})
    judge = CannedChatModel("judge-1", reply)
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("recipes", ["tiny"])
    write(home, "eval_set/golden_cases", CASE, tables.GOLDEN_CASES)
    write(home, "corpus/chunks", CHUNK, tables.CHUNKS)

    def run(answer: str) -> pl.DataFrame:
        row = {
            "arm": "teacher", "case_id": "g1", "repeat": 0, "question": CASE["question"],
            "answer": answer, "refused": False, "citations": ["docs:kiln/1"], "retrieved": [],
            "raw": answer, "messages": make_messages(CASE["question"], CHUNK["text"]),
        }  # fmt: skip
        write(home, "parity/arm_answers", row, tables.ARM_ANSWERS, "tiny")
        inputs = [
            dg.AssetSpec(key, partitions_def=RECIPES if key == keys.ARM_ANSWERS else None)
            for key in (keys.ARM_ANSWERS, keys.GOLDEN_CASES, keys.CHUNKS)
        ]
        done = dg.materialize(
            [*inputs, graded_answers],
            selection=[graded_answers],
            instance=instance,
            partition_key="tiny",
            resources={
                "io_manager": LakeIOManager(home.lake, tables.BY_KEY),
                "judge": CachedChatModel(judge, home.answer_cache, budget_usd=1.0),
                "embedder": embedder,
                "labelling_plan": PLAN,
                "home": home,
                "progress": NoProgress(),
            },
        )
        assert done.success
        return pl.read_parquet(home.table("parity/graded_answers", "tiny"))

    run.embedder = embedder
    return run


def read_groundedness(grades: pl.DataFrame) -> float:
    return grades.filter(metric="groundedness")["value"].item()


@pytest.mark.parametrize(("answer", "value"), [(REWORDED, 1.0), (INVENTED, 0.0)])
def test_a_statement_in_other_words_is_grounded_by_what_it_means(grade, answer, value):
    grades = grade(answer)
    assert read_groundedness(grades) == value


def test_what_its_words_support_is_not_embedded(grade):
    grades = grade("The oven must not exceed 900 degrees. [docs:kiln/1]")
    assert read_groundedness(grades) == 1.0
    assert grade.embedder.embedded == []
