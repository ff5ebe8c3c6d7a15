"""A training that Dagster runs: its losses are in the event log before it ends, and drawn after."""

import base64
import os
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import polars as pl
import pytest

from assets import keys, tables
from assets.students import assets as declarations
from assets.students import reporting
from assets.students.curve_chart import describe_speed, draw_curve
from assets.students.student_folders import PROVENANCE
from serving.home import Home
from serving.models.student_rules import NO_RULES
from tests.assets.students.training_cases import FACTS, make_frame, make_recipe


@pytest.mark.parametrize("processes", [1, 2])
def test_while_it_trains_steps_are_observations_of_the_adapter(
    tiny_base, tmp_path, monkeypatch, processes
):
    monkeypatch.setattr(reporting, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    home = Home(tmp_path)
    table = home.table("students/training_set", "tiny")
    table.parent.mkdir(parents=True)
    make_frame().write_parquet(table)
    instance = dg.DagsterInstance.ephemeral()
    seen_before_the_end = []

    def count_observations():
        found = instance.fetch_observations(keys.STUDENT_ADAPTER, limit=100).records
        return [record.asset_observation for record in found]

    class Client(dg.PipesSubprocessClient):
        def run(self, **options):
            found = super().run(**options)
            seen_before_the_end.extend(count_observations())
            return found

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["tiny"]))
    def trained(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        outcome = declarations._train(
            context, Client(cwd=os.fspath(Path(__file__).parents[3])),
            make_recipe(processes=processes),
            students=SimpleNamespace(
                base=lambda _: SimpleNamespace(path=tiny_base),
                find=lambda _: SimpleNamespace(local_engine="transformers"),
            ),
            home=home, facts=FACTS, rules=NO_RULES,
        )  # fmt: skip
        return dg.MaterializeResult(metadata={"adapter": outcome["adapter"]})

    result = dg.materialize([trained], partition_key="tiny", instance=instance)
    (event,) = result.get_asset_materialization_events()
    assert (Path(event.materialization.metadata["adapter"].value) / PROVENANCE).is_file()
    observations = count_observations()
    assert seen_before_the_end, "stored while the asset was still running"
    steps = [o.metadata["step"].value for o in observations]
    assert steps == list(range(15, 0, -1)), "newest first, each once"
    assert {o.partition for o in observations} == {"tiny"}
    shown = observations[0].metadata
    assert {"loss", "hard_loss", "tokens_per_second", "peak_memory_mb", "eta_seconds"} <= set(shown)
    assert "validation_loss" in shown
    assert "soft_loss" not in shown, "a training without soft targets has none"
    assert shown["run_id"].value == result.run_id
    assert not [r for r in instance.fetch_materializations(keys.STUDENT_ADAPTER, limit=1).records]


def make_curve(count=40, **columns):
    steps = list(range(1, count + 1))
    values = {"loss": [5 - 0.1 * s for s in steps], "step": steps} | columns
    ones = [1.0] * count
    validation = [3.0 if s % 20 == 0 else None for s in steps]
    return pl.DataFrame(
        {
            name: values.get(name, validation if name == "validation_loss" else ones)
            for name in tables.TRAINING_CURVE
        },
        schema=tables.TRAINING_CURVE,
    )


def decode(markdown):
    return base64.b64decode(markdown.partition("base64,")[2].rstrip(")"))


def test_the_curve_is_drawn_with_the_lines_it_has():
    curve = make_curve()
    drawn = draw_curve(curve)
    assert decode(drawn).startswith(b"\x89PNG")
    assert draw_curve(curve) == drawn
    hard_only = make_curve(soft_loss=[None] * 40)
    assert draw_curve(hard_only) != drawn
    assert draw_curve(make_curve(1, validation_loss=[None]))


def test_speed_is_of_all_steps():
    curve = make_curve(
        2, step_seconds=[1.0, 3.0], tokens_per_second=[100.0, 20.0], floor_flops=[4e9, 4e9],
        peak_memory_mb=[10.0, 30.0],
    )  # fmt: skip
    assert describe_speed(curve) == {
        "step_seconds": 4.0, "mean_tokens_per_second": 40.0, "peak_memory_mb": 30.0,
        "floor_flops_per_second": 2e9,
    }  # fmt: skip
    assert describe_speed(curve.clear()) == {}
