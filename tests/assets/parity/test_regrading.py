"""A new grader grades the kept answers again: no model is asked, and nothing is bought."""

import json
from typing import Any

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.eval_set.ledger import count_reads
from assets.labels.assets import LabellingPlan
from assets.labels.judging import AXES, Ruler
from assets.labels.selection import TeacherTerms
from assets.parity import assets as parity_assets
from assets.parity.graders import grade_answers
from assets.partitions import RECIPES
from resources.chat_models import CachedChatModel
from serving.home import Home
from serving.models.protocols import NoProgress, Price
from serving.pipeline.prompt import PromptFormat
from tests.counting_embedder import CountingEmbedder
from tests.serving.fakes import HITS, CannedChatModel

FINE = json.dumps(dict.fromkeys(AXES, 5) | {"rationale": "fine"})
PLAN = LabellingPlan(
    terms=TeacherTerms(teacher_id="t", license="Apache-2.0", is_trainable=True),
    concurrency=1,
    ruler=Ruler(rater_id="judge-1", epoch="2026-11"),
    judge_concurrency=2,
    minimum_score=4,
)


GIVEN = (
    dg.AssetSpec(keys.ARM_ANSWERS, partitions_def=RECIPES),
    dg.AssetSpec(keys.GOLDEN_CASES),
    dg.AssetSpec(keys.CHUNKS),
)


class Shelf(dg.IOManager):
    """Tables by the noun of their key."""

    def __init__(self, frames: dict[str, pl.DataFrame]) -> None:
        self.frames = frames

    def handle_output(self, context: dg.OutputContext, obj: pl.DataFrame) -> None:
        self.frames[context.asset_key.path[-1]] = obj

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        return self.frames[context.asset_key.path[-1]]


def write_answers(arm_answers: pl.DataFrame) -> pl.DataFrame:
    """The made-up answers of 5 cases as the table holds them: with what the judge reads."""
    cases = arm_answers.filter(pl.col("case_id").is_in([f"g{number:03}" for number in range(5)]))
    rows = [
        {
            name: value
            for name, value in row.items()
            if name in tables.ARM_ANSWERS and name != "retrieved"
        }
        | {
            "raw": row["answer"],
            "messages": list(PromptFormat().write_request(row["question"], HITS).messages),
            "adapter_sha256": "a",
            "pipeline_fingerprint": "p",
        }
        for row in cases.iter_rows(named=True)
    ]
    return pl.DataFrame(rows, schema=tables.ARM_ANSWERS)


def test_a_new_grader_re_grades_without_a_model_call(
    arm_answers, golden_cases, chunks, tmp_path, monkeypatch
):
    """Forced twice: as it is, and with graders that see everything wrong."""
    model = CannedChatModel("judge-1", FINE, price=Price(input_usd_per_mtok=1.0))
    answers, home = write_answers(arm_answers), Home(tmp_path / "home")

    shelf = Shelf({"arm_answers": answers, "golden_cases": golden_cases, "chunks": chunks})

    def force() -> pl.DataFrame:
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("recipes", ["compact"])
            dg.materialize(
                [parity_assets.graded_answers, *GIVEN],
                selection=[keys.GRADED_ANSWERS],
                partition_key="compact",
                instance=instance,
                resources={
                    "io_manager": shelf,
                    "judge": CachedChatModel(model, tmp_path / "judge", budget_usd=1.0),
                    "labelling_plan": PLAN,
                    "embedder": CountingEmbedder(),
                    "home": home,
                    "progress": NoProgress(),
                },
            )
        return shelf.frames["graded_answers"]

    def see_everything_wrong(*frames: pl.DataFrame, **more: Any) -> pl.DataFrame:
        return grade_answers(*frames, **more).with_columns(value=pl.lit(0.0))

    first = force()
    bought = len(model.requests)
    assert bought > 0
    assert first.filter(metric="exact_match")["value"].sum() > 0
    monkeypatch.setattr(parity_assets, "grade_answers", see_everything_wrong)
    second = force()
    assert len(model.requests) == bought
    assert second.filter(metric="exact_match")["value"].sum() == 0
    rubric = pl.col("metric").str.starts_with("rubric")
    assert second.filter(rubric).equals(first.filter(rubric))
    assert [(read.reader, read.count) for read in count_reads(home.ledger)] == [
        ("graded_answers:compact", 2)
    ]
