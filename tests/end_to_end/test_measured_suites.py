"""What a product measures when asked: its suites, and what an untrained base does.

The suites are always read and guarded, and answered on demand. All nine arms are in the plan here,
so the base is asked too: a tiny random model, whose quality is nobody's business.
"""

import json
import os

import polars as pl
import pytest
import yaml

from assets import keys
from assets.parity.arms import PLANNED_ARMS
from orchestration.config import read_config
from orchestration.running import run_chain
from serving.home import Home
from serving.models.protocols import NoProgress
from tests.product import REFUSED, freeze, write_product

pytestmark = pytest.mark.real_models
MEASURED = ("parity/suite_answers", "parity/suite_gates", "parity/judge_anchor_run")


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    folder = tmp_path_factory.mktemp("product")
    before = dict(os.environ)
    path = write_product(folder)
    stated = yaml.safe_load(path.read_text("utf-8")) | {"parity": {"arms": list(PLANNED_ARMS)}}
    path.write_text(yaml.safe_dump(stated), encoding="utf-8")
    config = read_config(path)
    made = run_chain(config, progress=NoProgress(), recipe="tiny")
    measured = run_chain(config, progress=NoProgress(), recipe="tiny", select=MEASURED)
    yield config, made, measured
    os.environ.clear()
    os.environ.update(before)


def read(config, key: str, partition: str | None = None) -> pl.DataFrame:
    return pl.read_parquet(Home(config.home).table(key, partition))


def test_the_default_chain_reads_the_suites_and_answers_none(product):
    _, made, _ = product
    assert made.succeeded, made.failure
    planned = {asset.key for asset in made.planned}
    assert {"eval_set/refusal_suite", "eval_set/judge_anchors"} <= planned
    assert planned.isdisjoint(MEASURED)
    assert {key.to_user_string() for key in keys.ON_DEMAND} >= set(MEASURED)


def test_the_base_is_asked_as_it_is_and_with_examples_and_both_are_graded(product):
    config, made, _ = product
    assert made.succeeded, made.failure
    cases = read(config, "eval_set/golden_cases")["case_id"].sort().to_list()
    answers = read(config, "parity/arm_answers", "tiny").filter(repeat=0)
    graded = read(config, "parity/graded_answers", "tiny")
    trained = read(config, "students/student_adapter", "tiny")["adapter"].item()
    models = {}
    for arm in ("base", "few_shot"):
        mine = answers.filter(arm=arm)
        assert mine["case_id"].sort().to_list() == cases
        assert mine["error"].null_count() == mine.height
        assert mine["served_by"].unique().to_list() == ["student"], "nobody answers in its place"
        (models[arm],) = mine["model"].unique()
        exact = graded.filter(arm=arm, metric="exact_match")
        assert exact["case_id"].sort().to_list() == cases
        assert exact["status"].unique().to_list() == ["graded"]
    assert len({*models.values(), trained}) == 3, "base, examples and student are three models"
    shown = Home(config.home).adapters / models["few_shot"]
    assert json.loads((shown / "provenance.json").read_text())["kind"] == "few_shot"
    report = read(config, "parity/parity_report", "tiny").filter(metric="exact_match", slice="all")
    assert set(report.filter(kind="arm")["arm"]) == set(PLANNED_ARMS)


def test_every_arm_answers_every_case_in_three_wordings(product):
    config, _, measured = product
    assert measured.succeeded, measured.failure
    answers = read(config, "parity/suite_answers", "tiny")
    assert dict(answers.group_by("arm").len().sort("arm").iter_rows()) == {
        "base": 33, "routed": 33, "teacher": 33,
    }  # fmt: skip
    assert answers["error"].null_count() == answers.height
    assert answers.filter(arm="teacher", suite="refusal", wording=0)["question"].to_list() == list(
        REFUSED
    )


def test_gates_on_a_handful_of_cases_stay_open_or_fail_and_never_pass(product):
    config, _, _ = product
    gates = read(config, "parity/suite_gates", "tiny")
    assert "behaviour_keeps_secrets" in gates["name"].to_list()
    critical = gates.filter(name="refusal_critical").row(0, named=True)
    assert (critical["n"], critical["outcome"] in {"FAIL", "INCONCLUSIVE"}) == (2, True)
    adapter = read(config, "students/student_adapter", "tiny")["adapter_sha256"].item()
    assert gates["adapter_sha256"].unique().to_list() == [adapter]
    disagreements = gates.filter(name="unregistered_disagreements").row(0, named=True)
    assert disagreements["n"] > 0  # the graded golden answers are of this candidate too


def test_the_judge_rates_every_anchor_and_some_of_them_blind(product):
    config, _, _ = product
    waves = read(config, "parity/judge_anchor_run")
    assert waves.filter(rater_kind="judge")["anchor_id"].n_unique() == 54
    assert waves.filter(rater_kind="blind")["anchor_id"].n_unique() == 6
    right = waves.filter(construction="verbatim", rater_kind="judge")
    assert right["score"].min() >= 4


def test_a_wave_asked_again_on_its_day_replaces_itself_and_a_history_is_kept(product):
    config, _, _ = product
    before = read(config, "parity/judge_anchor_run")
    again = run_chain(
        config, progress=NoProgress(), recipe="tiny", select=[MEASURED[-1]], force=True
    )
    assert again.succeeded
    after = read(config, "parity/judge_anchor_run")
    assert after.height == before.height


def test_a_seed_that_repeats_a_suite_question_does_not_train(product):
    config, _, _ = product
    folder = config.source.parent
    seeds = folder / "seeds.jsonl"
    line = json.dumps({"question_id": "s99", "text": REFUSED[0].lower(), "tags": ["kiln"]})
    seeds.write_text(seeds.read_text("utf-8") + line + "\n", encoding="utf-8")
    run_chain(
        config, progress=NoProgress(), recipe="tiny", select=["seeds", "eval_set", "paraphrases"]
    )
    guarded = read(config, "paraphrases/guarded_questions").filter(question_id="s99")
    assert guarded.select("verdict", "matched_case_id").rows() == [("rejected", "refusal:r0")]


def test_an_edited_suite_stops_the_run_and_names_the_lock(product):
    config, _, _ = product
    suite = config.source.parent / "refusal_v1.jsonl"
    frozen = suite.read_text("utf-8")
    suite.write_text(frozen.replace("insult", "praise"), encoding="utf-8")
    outcome = run_chain(config, progress=NoProgress(), recipe="tiny", select=["eval_set"])
    assert not outcome.succeeded
    assert "refusal_v1" in outcome.failure
    suite.write_text(frozen, encoding="utf-8")
    freeze(suite)
