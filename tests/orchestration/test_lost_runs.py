"""A run whose process was killed: told from one under way, ended, and what it held is free."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest

import orchestration.lost_runs as lost_runs
from orchestration.config import prepare_environment, read_config
from orchestration.lost_runs import MACHINE_TAG, end_lost_runs, find_lost_runs, name_machine
from tests.product import write_product

ROOT = Path(__file__).resolve().parents[2]
TRAINING = """
import sys, time
from pathlib import Path
import dagster as dg
from orchestration.lost_runs import MACHINE_TAG, name_machine

@dg.op(pool="training")
def train():
    Path(sys.argv[1]).touch()
    time.sleep(600)

@dg.job(tags={MACHINE_TAG: name_machine()})
def retrain_student():
    train()

retrain_student.execute_in_process(
    instance=dg.DagsterInstance.get(), tags={"understudy/recipe": "r1"}
)
"""


@pytest.fixture
def instance(tmp_path):
    before = dict(os.environ)
    prepare_environment(read_config(write_product(tmp_path)))
    made = dg.DagsterInstance.get()
    yield made
    made.dispose()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def training(instance, tmp_path):  # noqa: ARG001 - its storage is the process's too
    """A run in a process of its own that is in the midst of its only step."""
    begun = tmp_path / "begun"
    with (tmp_path / "training.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(begun)], cwd=ROOT, stdout=log, stderr=log
        )
    deadline = time.monotonic() + 120
    while not begun.exists():
        assert process.poll() is None, (tmp_path / "training.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def count_claimed(instance) -> int:
    return instance.event_log_storage.get_concurrency_info("training").active_slot_count


def test_a_killed_run_has_failed_and_holds_no_pool(instance, training, monkeypatch):
    (run,) = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.STARTED
    assert end_lost_runs(instance) == ()
    assert count_claimed(instance) == 1
    with monkeypatch.context() as patch:  # of a process that has its id only since
        patch.setattr(lost_runs, "CLOCK_SLACK_SECONDS", -psutil.Process().create_time())
        assert [lost.run_id for lost in find_lost_runs(instance)] == [run.run_id]
    os.kill(training.pid, signal.SIGKILL)
    while psutil.Process(training.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)  # its parent, this test, has not looked yet: it is gone all the same
    with monkeypatch.context() as patch:  # whose processes nobody here can see
        patch.setattr(lost_runs, "name_machine", lambda: "another")
        assert end_lost_runs(instance) == ()
    assert end_lost_runs(instance) == (run.run_id,)
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    assert count_claimed(instance) == 0
    assert end_lost_runs(instance) == ()


def test_a_machine_has_one_name_that_fits_a_tag():
    assert name_machine() == name_machine()
    assert len(name_machine()) <= 63
    assert MACHINE_TAG.startswith("understudy/")
