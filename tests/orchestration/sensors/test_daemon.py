"""The sensor under a real daemon that is killed in two moments and whose cursor is lost."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import psutil
import pytest

from orchestration.config import prepare_environment
from serving.home import Home
from tests.orchestration.sensors.curated import (
    accept,
    choose_rows,
    report_student,
    write_curated,
)

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_SECONDS = 120


@pytest.fixture
def loop(tmp_path):
    before = dict(os.environ)
    config = write_curated(
        tmp_path, minimum_teacher_traces=10, maximum_attempts=5, retrain="automatic"
    )
    accept(config, choose_rows(config, "teacher"))
    prepare_environment(config)
    instance = dg.DagsterInstance.get()
    report_student(instance)
    yield config, instance
    instance.dispose()
    os.environ.clear()
    os.environ.update(before)


@contextmanager
def running_daemon(home: Home, name: str):
    """Run a daemon; it is killed with all that it started, as by a lack of power."""
    log = home.root / f"{name}.log"
    program = Path(sys.executable).with_name("dagster-daemon")
    command = ["run", "-m", "tests.orchestration.sensors.location"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *command],
            cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        yield log
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        for child in started:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(started)
        process.wait()


def wait_for(condition, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")[-3000:]
        time.sleep(0.2)


def list_runs(instance) -> list[dg.DagsterRun]:
    return list(instance.get_runs())


def count_ticks(instance) -> int:
    states = [s for s in instance.all_instigator_state() if s.name == "enough_teacher_traces"]
    return sum(
        len(instance.get_ticks(state.instigator_origin_id, state.selector_id)) for state in states
    )


def test_killed_daemons_killed_trainings_and_a_lost_cursor_train_once(loop):
    config, instance = loop
    home = Home(config.home)
    with running_daemon(home, "first") as log:
        wait_for(lambda: list_runs(instance), log)  # recorded; whether launched is a race, meant so
    for state in instance.all_instigator_state():
        instance.delete_instigator_state(state.instigator_origin_id, state.selector_id)
    endless, trained = home.root / "endless", home.root / "trained.txt"
    endless.touch()
    before = trained.read_text().count("\n") if trained.exists() else 0
    with running_daemon(home, "second") as log:
        wait_for(lambda: trained.exists() and trained.read_text().count("\n") > before, log)
    (cut_off,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    endless.unlink()
    with running_daemon(home, "third") as log:
        wait_for(lambda: any(r.is_success for r in list_runs(instance)), log)
        seen = count_ticks(instance)
        wait_for(lambda: count_ticks(instance) >= seen + 2, log)
    runs = list_runs(instance)
    assert instance.get_run_by_id(cut_off.run_id).status == dg.DagsterRunStatus.FAILURE
    attempts = [run.tags["understudy/attempt"] for run in runs]
    assert sorted(attempts) == [str(number + 1) for number in range(len(runs))]
    assert sum(run.status == dg.DagsterRunStatus.SUCCESS for run in runs) == 1
    assert all(run.is_finished for run in runs)
    keys = [run.tags["dagster/run_key"] for run in runs]
    assert len(set(keys)) == len(keys)
