"""A whole turn on somebody else's product: real server processes, traffic, training, hot reload.

The student is a tiny random model, so its quality is nobody's business; that the loop closes is.
"""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import polars as pl
import pytest

from assets.paraphrases.dreaming import open_dreams
from assets.traces.hours import find_folder, list_hours, scan_hours
from orchestration.bindings import Bindings
from orchestration.config import read_config
from orchestration.definitions import build_defs
from orchestration.drill import ASKS_PER_DAY, DAYS, gather_drill, judge_drill
from orchestration.failures import describe_failure
from orchestration.flywheel import turn_flywheel
from orchestration.jobs import RETRAIN_STUDENT
from orchestration.misses import date_misses, read_misses
from orchestration.running import run_chain
from orchestration.sensors.facts import read_attempts, read_retraining_facts
from orchestration.status import read_release
from orchestration.traffic import PROFILES, plan_traffic
from orchestration.turning import find_memory
from serving.access.keys import read_keys
from serving.errors import InvalidInputError, UnderstudyError
from serving.home import Home
from serving.models.protocols import NoProgress
from tests.product import write_product

pytestmark = pytest.mark.real_models

ASKED = {
    "care": [
        "What must I replace when E4 shows?", "Two millimetres of glaze, is that right?",
        "After how many firings do shelves need a brush?", "Is a wire brush fine for shelves?",
        "Does E4 point to the thermocouple?", "What breaks when the thermocouple fails?",
    ],
    "firing": [
        "At which temperature do I stop a bisque firing?", "May I fire clay at 1250 degrees?",
        "Which setting changes the ramp?", "Nine hours of bisque, is that normal?",
        "Can the kiln reach 1300 degrees?", "How many degrees per hour is usual?",
        "How long until a bisque firing is over?", "Is 150 degrees per hour the default?",
    ],
}  # fmt: skip
READERS = tuple(profile for profile in PROFILES if profile.name == "developer")


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    before = dict(os.environ)
    config = read_config(write_product(tmp_path_factory.mktemp("flywheel")))
    outcome = run_chain(config, progress=NoProgress(), recipe="tiny")
    assert outcome.succeeded, outcome.failure
    first = read_release(Home(config.home))

    def turn(told, *, minimum):
        return turn_flywheel(
            config,
            recipe="tiny",
            plan=plan_traffic(
                ASKED, days=1, asks_per_day=60, seed=3, key_count=24, profiles=READERS
            ),
            drill=plan_traffic(
                ASKED, days=DAYS, asks_per_day=ASKS_PER_DAY, seed=3, key_count=24, profiles=READERS
            ),
            minimum_teacher_traces=minimum,
            progress=NoProgress(),
            announce=told.append,
        )

    failed, told = [], []
    with pytest.raises(InvalidInputError, match="turning the flywheel"):
        turn(failed, minimum=10_000)
    yield config, first, turn(told, minimum=3), (failed, told)
    os.environ.clear()
    os.environ.update(before)


def test_the_server_hot_loads_a_student_that_learnt_from_the_teachers_answers(turned):
    config, first, turn, _ = turned
    home = Home(config.home)
    assert turn.before.release_id == first.release_id != turn.after.release_id
    assert read_release(home).release_id == turn.after.release_id
    assert turn.before.ask_count == turn.after.ask_count >= 60
    assert turn.before.teacher_ratio == 1.0  # no random student is promoted: the teacher answers
    seeds = pl.read_parquet(home.table("seeds/seed_questions"))
    harvested = seeds.filter(pl.col("source") == "harvested")
    assert harvested.height >= 10
    # Some customers contest an answer: they ask it again behind a phrase of impatience.
    assert [
        t for t in harvested["text"] if not t.endswith((*ASKED["care"], *ASKED["firing"]))
    ] == []
    labels = pl.read_parquet(home.table("labels/labelled_examples"))
    assert not labels.filter(pl.col("seed_id").is_in(harvested["question_id"].to_list())).is_empty()


def test_a_turn_that_was_not_due_keeps_its_drill_asks_anew_and_says_what_it_does(turned):
    config, _, _, (failed, told) = turned
    done = [line for line in failed if ": done in" in line]
    assert [line.split(":")[0] for line in done] == ["1/6 drill", "2/6 serve", "3/6 curate"]
    assert failed[-1].startswith("4/6 decide")
    again = [line.split(":")[0] for line in told if ": done before" in line]
    assert again == ["1/6 drill"]
    assert sum(": done in" in line for line in told) == 5
    assert any("status 200" in line for line in told)
    assert not find_memory(Home(config.home)).exists()


def test_the_planted_drift_raised_the_alarm_that_made_the_training_due(turned):
    _, _, turn, (failed, _) = turned
    assert turn.drift.monitor == "traffic_drift"
    assert turn.drift.number > turn.drift.limit
    assert any("traffic_drift alarms on the planted drift" in line for line in failed)
    assert turn.reason.endswith("drift (traffic_drift)")


def test_weeks_without_a_shift_raise_no_alarm_and_say_so(turned):
    """The drill's own traces, each week's conversations dealt out to both weeks."""
    config, *_ = turned
    home = Home(config.home)
    plan = plan_traffic(
        ASKED, days=DAYS, asks_per_day=ASKS_PER_DAY, seed=3, key_count=24, profiles=READERS
    )
    week = DAYS * 43_200
    names = list(dict.fromkeys(ask.conversation_id for ask in plan))
    odd = set(names[1::2])
    dealt = [
        replace(ask, at_seconds=ask.at_seconds % week + (week if ask.conversation_id in odd else 0))
        for ask in plan
    ]
    now = datetime.now(UTC)
    traffic = gather_drill(home, dealt, since=now - timedelta(days=1), end=now)
    assert gather_drill(home, dealt, since=now, end=now).asks.is_empty(), "of an earlier drill"
    assert traffic.asks.height > 300 < traffic.before.height
    embedder = Bindings(config, NoProgress()).embedder
    with pytest.raises(UnderstudyError, match="drilling the monitor of drift"):
        judge_drill(traffic, embedder)


def test_what_the_teacher_answered_in_production_became_the_label_and_was_not_bought(turned):
    """Latencies are measured ones: an equal latency to the nanosecond is the very same call."""
    config, *_ = turned
    home = Home(config.home)
    labels = pl.read_parquet(home.table("labels/teacher_answers"))
    traces = scan_hours(list_hours(find_folder(home))).select(
        pl.col("question"), pl.col("attempts").list.last().struct.field("latency_ms")
    ).collect()  # fmt: skip
    harvested = pl.read_parquet(home.table("seeds/seed_questions")).filter(
        pl.col("source") == "harvested"
    )
    own = labels.filter(pl.col("question").is_in(harvested["text"].to_list()))
    reused = own.join(traces, on=["question", "latency_ms"], how="semi")
    assert reused.height == own.height > 0


def test_the_turn_is_one_tagged_run_and_nothing_is_due_after_it(turned):
    config, *_ = turned
    with dg.DagsterInstance.get() as instance:
        facts = read_retraining_facts(config, instance, "tiny")
        (attempt,) = read_attempts(instance, facts.recipe_fingerprint)
    assert attempt.state == "succeeded"
    assert attempt.number == 1
    assert facts.teacher_traces == ()


def test_the_ratchet_is_shown_and_the_simulated_customers_are_gone(turned):
    config, _, turn, _ = turned
    assert [step.quality for step in turn.ratchet] == [0.80, 0.90, 0.95]
    assert Home(config.home).reports.joinpath("tiny", "ratchet.png").read_bytes()[:4] == b"\x89PNG"
    assert read_keys(Home(config.home).keys) == ()


def test_what_is_dreamed_is_trained_on_by_the_job_of_the_sensor_and_says_where_it_is_from(turned):
    """In the phase `hitchhiker` production shows no weakness: the validation split does."""
    config, *_ = turned
    home = Home(config.home)
    outcome = run_chain(
        config, progress=NoProgress(), recipe="tiny", select=["paraphrases/dreamed_questions"]
    )
    assert outcome.succeeded, outcome.failure
    journal = open_dreams(home).read()
    assert journal.height > 0
    assert set(journal["evidence"]) == {"validation"}
    assert date_misses(home, "tiny") < journal["dreamed_at"].min()  # so no night repeats these
    missed = read_misses(home, "tiny").filter("is_weak")["question"]
    labels = pl.read_parquet(home.table("labels/labelled_examples"))
    asked = labels.filter(pl.col("question").is_in(missed.to_list()))
    assert set(asked["split"]) == {"validation"}
    before = read_release(home)
    job = build_defs(config, progress=NoProgress()).resolve_job_def(RETRAIN_STUDENT)
    with dg.DagsterInstance.get() as instance:  # what `enough_teacher_traces` asks the daemon for
        done = job.execute_in_process(
            instance=instance, partition_key="tiny", raise_on_error=False,
            run_config={"loggers": {"console": {}}},
        )  # fmt: skip
    assert done.success, describe_failure(done, config.home)
    assert read_release(home).release_id != before.release_id
    guarded = pl.read_parquet(home.table("paraphrases/guarded_questions"))
    labels = pl.read_parquet(home.table("labels/labelled_examples"))
    trained = pl.read_parquet(home.table("students/training_set", "tiny"))
    dreamed = guarded.filter(origin="dreamed", verdict="kept")
    assert set(dreamed["question_id"]) <= set(journal["question_id"])
    taught = labels.join(dreamed, left_on="question", right_on="text", how="semi").join(
        trained, on="example_id", how="semi"
    )
    assert not taught.is_empty()
    assert set(taught["seed_id"]) <= set(journal["seed_id"])
    assert set(taught["split"]) == {"train"}
