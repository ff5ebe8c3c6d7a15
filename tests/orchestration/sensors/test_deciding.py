"""What the sensors decide, from facts alone."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.sensors.deciding import (
    Attempt,
    EvalFacts,
    GiveUp,
    Launch,
    LoopPolicy,
    RetrainingFacts,
    Wait,
    decide_aged_report,
    decide_new_golden,
    decide_retraining,
)
from tests.serving.torture import count, report

POLICY = LoopPolicy(minimum_teacher_traces=10, minimum_after_drift=4, maximum_attempts=3)
MEASURED = datetime(2026, 3, 2, 12, tzinfo=UTC)


def ids(count: int) -> list[str]:
    return [f"t{number:03}" for number in range(count)]


def facts(count: int = 10, **changes) -> RetrainingFacts:
    return RetrainingFacts(
        recipe="compact", recipe_fingerprint="r1", has_student=True, teacher_traces=ids(count)
    ) if not changes else replace(facts(count), **changes)  # fmt: skip


def attempt(launch: Launch, state, number=None) -> Attempt:
    return Attempt(
        purpose=launch.purpose, dataset=launch.dataset,
        recipe_fingerprint=launch.recipe_fingerprint, number=number or launch.attempt,
        state=state, run_id="run-1",
    )  # fmt: skip


def launch(given_facts: RetrainingFacts) -> Launch:
    decision = decide_retraining(given_facts, POLICY)
    assert isinstance(decision, Launch), decision
    return decision


def wait(given_facts: RetrainingFacts) -> str:
    decision = decide_retraining(given_facts, POLICY)
    assert isinstance(decision, Wait), decision
    return decision.reason


def test_too_few_questions_wait_for_the_rest_by_number():
    assert wait(facts(7)).startswith("waits for 3 more: 7 of 10")
    assert wait(facts(0)).startswith("waits for 10 more")


def test_without_a_student_nothing_is_trained_again():
    assert "first student" in wait(facts(50, has_student=False))


def test_drift_lowers_what_is_waited_for_and_is_named():
    assert launch(facts(4, drifting=("traffic_drift",))).reason.endswith("drift (traffic_drift)")
    assert "waits for 1 more" in wait(facts(3, drifting=("traffic_drift",)))


def test_the_key_holds_dataset_recipe_and_attempt_and_each_changes_it():
    first = launch(facts())
    assert first.run_key == f"{first.dataset}:r1:1"
    assert launch(facts()).run_key == first.run_key
    assert launch(facts(recipe_fingerprint="r2")).run_key != first.run_key
    assert launch(facts(teacher_traces=ids(11)[1:])).dataset != first.dataset
    failed = launch(facts(attempts=[attempt(first, "failed")]))
    assert (failed.dataset, failed.attempt) == (first.dataset, 2)
    assert all(len(value) <= 63 for value in first.tags.values())


def test_questions_that_trickle_in_open_no_new_attempts_until_a_batch_is_full():
    first = launch(facts(10))
    assert {launch(facts(count)).dataset for count in range(10, 20)} == {first.dataset}
    assert launch(facts(20)).dataset != first.dataset


def test_a_run_under_way_is_waited_for_whatever_it_is_for():
    other = Attempt(
        purpose="aged_report", dataset="x", recipe_fingerprint="r1", number=1, state="active",
        run_id="run-9",
    )  # fmt: skip
    decision = decide_retraining(facts(attempts=[other]), POLICY)
    assert decision == Wait(reason="waits for run run-9 to end", run_id="run-9")


@pytest.mark.parametrize("state", ["requested", "failed", "succeeded"])
def test_what_another_decision_asked_for_is_no_attempt_of_this_one(state):
    due = decide_aged_report(
        measured(), now=MEASURED + timedelta(days=15), maximum_age=timedelta(days=14),
        maximum_attempts=3,
    )  # fmt: skip
    assert isinstance(due, Launch)
    others = [attempt(due, state, number) for number in (1, 2, 3)]
    assert wait(facts(0, attempts=others)).startswith("waits for 10 more")
    assert launch(facts(attempts=others)) == launch(facts())
    same_dataset = replace(attempt(launch(facts()), state, 3), purpose="new_golden")
    assert launch(facts(attempts=[same_dataset])) == launch(facts())


def test_a_run_that_was_never_launched_is_asked_for_under_its_own_key():
    first = launch(facts(10))
    cut_off = attempt(first, "requested")
    assert launch(facts(20, attempts=[cut_off])).run_key == first.run_key


def test_a_dataset_that_was_learnt_waits_for_something_new():
    assert "has succeeded" in wait(facts(attempts=[attempt(launch(facts()), "succeeded")]))


def test_attempts_are_capped_and_the_last_is_named():
    first = launch(facts())
    failed = [attempt(first, "failed", number) for number in (3, 2, 1)]
    decision = decide_retraining(facts(attempts=failed), POLICY)
    assert isinstance(decision, GiveUp)
    assert "3 of 3 attempts" in decision.reason
    assert "run-1" in decision.reason
    assert launch(facts(20, attempts=failed)).attempt == 1


def test_no_history_of_ticks_and_deaths_launches_a_key_twice():
    told = Counter()

    @settings(max_examples=count(100, 20_000), deadline=None)
    @given(
        ticks=st.lists(st.sampled_from(["tick", "succeed", "fail", "kill"]), max_size=40),
        growth=st.lists(st.integers(0, 12), min_size=40, max_size=40),
    )
    def check(ticks, growth):
        runs, keys = replay(ticks, growth)
        assert len(runs) == len(keys) == len(set(keys))
        assert sum(r.state in {"active", "requested"} for r in runs) <= 1
        assert max((r.number for r in runs), default=0) <= POLICY.maximum_attempts
        told.update(histories=1, ticks=ticks.count("tick") + ticks.count("kill"), runs=len(runs))

    check()
    report(f"{told['ticks']} ticks in {told['histories']} histories: {told['runs']} runs, 0 twice")
    assert told["runs"]


def replay(ticks, growth):
    """A storage that keeps what Dagster keeps: keys are spent for ever, runs have one end."""
    runs: list[Attempt] = []
    keys: list[str] = []
    rows = 0
    for tick, more in zip(ticks, growth, strict=False):
        rows += more
        if tick in {"succeed", "fail"}:
            end = "succeeded" if tick == "succeed" else "failed"
            runs = [replace(r, state=end) if r.state == "active" else r for r in runs]
            continue
        decision = decide_retraining(facts(rows, attempts=list(reversed(runs))), POLICY)
        if not isinstance(decision, Launch):
            continue
        state = "requested" if tick == "kill" else "active"
        if decision.run_key in keys:  # Dagster launches the recorded run; it makes no second one
            runs = [replace(r, state=state) if r.state == "requested" else r for r in runs]
            continue
        keys.append(decision.run_key)
        runs.append(attempt(decision, state))
    return runs, keys


def measured(**changes) -> EvalFacts:
    return replace(
        EvalFacts(
            recipe="compact", recipe_fingerprint="r1", golden_fingerprint="g1",
            measured_at=MEASURED, measured_golden="g1",
        ),
        **changes,
    )  # fmt: skip


@pytest.mark.parametrize("days", [0, 13.99])
def test_a_fresh_report_waits_for_the_day_it_has_aged(days):
    decision = decide_aged_report(
        measured(), now=MEASURED + timedelta(days=days), maximum_age=timedelta(days=14),
        maximum_attempts=3,
    )  # fmt: skip
    assert decision == Wait(reason="waits for 2026-03-16 12:00 UTC, when the report has aged")


def test_an_aged_report_is_measured_again_once_per_report():
    def decide(**changes):
        return decide_aged_report(
            measured(**changes), now=MEASURED + timedelta(days=14),
            maximum_age=timedelta(days=14), maximum_attempts=3,
        )  # fmt: skip

    first = decide()
    assert isinstance(first, Launch)
    assert decide(attempts=[attempt(first, "active")]) == Wait(
        reason="waits for run run-1 to end", run_id="run-1"
    )
    failed = [attempt(first, "failed", 3)]
    assert isinstance(decide(attempts=failed), GiveUp)


def test_another_golden_set_is_due_once_and_an_equal_one_never():
    assert isinstance(decide_new_golden(measured(), maximum_attempts=3), Wait)
    due = decide_new_golden(measured(golden_fingerprint="g2"), maximum_attempts=3)
    assert isinstance(due, Launch)
    done = [attempt(due, "succeeded")]
    assert isinstance(
        decide_new_golden(measured(golden_fingerprint="g2", attempts=done), maximum_attempts=3),
        Wait,
    )
    never = measured(measured_at=None, golden_fingerprint="g2")
    assert "first parity report" in decide_new_golden(never, maximum_attempts=3).reason


def test_a_golden_set_that_comes_back_is_due_again_each_time():
    """A to B, back to A, and to B once more: each measured set was read at its own time."""
    attempts, keys = [], []
    for day, (stands_on, today) in enumerate((("A", "B"), ("B", "A"), ("A", "B"))):
        now = measured(
            golden_fingerprint=today, measured_golden=stands_on, attempts=attempts,
            measured_golden_at=MEASURED + timedelta(days=day),
        )  # fmt: skip
        due = decide_new_golden(now, maximum_attempts=3)
        assert isinstance(due, Launch), due
        attempts = [attempt(due, "succeeded"), *attempts]
        keys.append(due.run_key)
    assert len(set(keys)) == 3
