"""What a running training shows, and that another process can follow it."""

import json
import logging
import sys

import pytest

from assets.students import reporting
from assets.students.progress import StepReport


def report(step=1, total_steps=100, **values):
    numbers = dict.fromkeys(
        ("loss", "hard_loss", "grad_norm", "tokens_per_second", "step_seconds", "floor_flops",
         "peak_memory_mb", "eta_seconds"), 1.0,
    )  # fmt: skip
    return StepReport(
        step=step, total_steps=total_steps, **(numbers | {"soft_loss": None} | values)
    )


def test_on_a_terminal_it_draws_a_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    told = report(soft_loss=0.5, validation_loss=1.5)
    with reporting.open_bar() as on_step:
        on_step(told)
    assert "validation 1.500" in told.to_line()
    assert "soft 0.500" in told.to_line()


def test_reports_are_about_every_five_percent():
    lines = []
    on_step = reporting.report_to_log(lines.append)
    for step in range(1, 101):
        on_step(report(step))
    assert len(lines) == 20
    assert lines[-1].startswith("step 100/100")


def test_a_slow_training_reports_between_and_a_validation_always(monkeypatch):
    monkeypatch.setattr(reporting, "REPORT_SECONDS", -1.0)
    lines = []
    on_step = reporting.report_to_log(lines.append)
    for step in range(1, 4):
        on_step(report(step, 1000))
    assert len(lines) == 3
    monkeypatch.undo()
    on_step(report(4, 1000))
    on_step(report(5, 1000, validation_loss=1.0))
    assert [line.split(" ")[1] for line in lines[3:]] == ["5/1000"]


def test_reports_in_a_file_are_told_while_it_grows_and_to_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "POLL_SECONDS", 0.01)
    path, told = tmp_path / "reports.jsonl", []
    on_step = reporting.report_to_file(path)
    with reporting.follow_reports(path, told.append):
        on_step(report(5))
        while not told:
            pass
        with path.open("a") as stream:
            stream.write('{"step": ')  # a line that is being written
            stream.flush()
            assert reporting._tell_new(path, 0, [].append) == len(path.read_bytes()) - 9
            stream.write("7}\n")
        on_step(report(10, loss=2.5))
    assert [row["step"] for row in told] == [5, 7, 10]
    assert told[-1]["loss"] == 2.5
    assert json.loads(path.read_text().splitlines()[0]) == told[0]


def test_a_file_that_never_comes_is_no_error(tmp_path):
    with reporting.follow_reports(tmp_path / "none", pytest.fail):
        pass


def test_warnings_reach_the_event_log_and_no_longer_after():
    source, target = logging.getLogger("understudy.train"), logging.getLogger("target")
    found = []
    handler = logging.Handler()
    handler.emit = found.append
    target.addHandler(handler)
    with reporting.forward_warnings(source, target):
        source.info("not this")
        source.warning("damaged %s", "x")
    source.warning("later")
    target.removeHandler(handler)
    assert [record.getMessage() for record in found] == ["damaged x"]


def test_a_listener_that_fails_is_no_failure_of_the_training(tmp_path, caplog):
    path = tmp_path / "reports.jsonl"
    reporting.report_to_file(path)(report(5))
    with reporting.follow_reports(path, lambda _: 1 / 0):
        pass
    assert "following the training" in caplog.text
    assert "ZeroDivisionError" in caplog.text
