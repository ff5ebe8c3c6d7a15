"""What a person is told when the machine or a check is what failed."""

import errno
import io
import sqlite3
from types import SimpleNamespace

import dagster as dg
import pytest
import typer
from rich.console import Console

from orchestration import explaining
from orchestration.failures import (
    describe_failure,
    describe_offenders,
    explain_os_error,
    is_interrupted,
)
from serving.errors import UnderstudyError


def run_one(tmp_path, body, check=None):
    @dg.asset(name="thing")
    def thing():
        body()

    @dg.asset_check(asset=thing)
    def promise():
        return check

    checks = [promise] if check else []
    return dg.materialize(
        [thing, *checks],
        raise_on_error=False,
        instance=dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)),
    )


def fail_with(error: BaseException):
    def body():
        raise error

    return body


def test_a_full_disk_says_how_much_is_free_and_where(tmp_path):
    error = explain_os_error(OSError(errno.ENOSPC, "No space left", str(tmp_path / "x")), tmp_path)
    assert str(tmp_path / "x") in error.found
    assert "bytes free" in error.found
    assert "UNDERSTUDY_HOME" in error.next_step


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.EROFS, "writable"), (errno.EADDRINUSE, "--port"), (errno.EIO, "doctor")],
)
def test_other_errors_of_the_system_have_a_next_step(tmp_path, number, word):
    assert word in explain_os_error(OSError(number, "it failed"), tmp_path).next_step


@pytest.mark.parametrize(
    ("words", "step"),
    [
        ("database or disk is full", "free some gigabytes"),
        ("unable to open database file", "a folder that is writable"),
        ("attempt to write a readonly database", "a folder that is writable"),
    ],
)
def test_what_dagsters_storage_says_of_a_place_is_told_as_the_systems(
    tmp_path, monkeypatch, words, step
):
    error = sqlite3.OperationalError(words)
    result = run_one(tmp_path, fail_with(error))
    told = describe_failure(result, tmp_path)
    assert step in told
    assert str(tmp_path) in told
    text = io.StringIO()
    monkeypatch.setattr(explaining, "CONSOLE", Console(file=text, width=300))
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    with pytest.raises(typer.Exit) as exited:
        explaining.explain_errors(fail_with(error))()
    assert exited.value.exit_code == 2
    assert step in text.getvalue()
    with pytest.raises(sqlite3.OperationalError, match="syntax"):
        explaining.explain_errors(fail_with(sqlite3.OperationalError("syntax error")))()


def test_of_a_chain_our_own_error_is_told_and_not_what_lies_below_it(tmp_path):
    """What a library says below it names neither the page nor what to do."""

    class OddError(UnderstudyError):
        pass

    def body():
        full = OSError(errno.ENOSPC, "No space left on device", "/nowhere")
        raise OddError(
            "reading the page a.mdx", expected="a date", found="day 30", next_step="mend it"
        ) from full

    told = describe_failure(run_one(tmp_path, body), tmp_path)
    assert told == (
        "thing: While reading the page a.mdx: expected a date, found day 30. Next: mend it"
    )


@pytest.mark.parametrize(
    "message",
    ["[Errno 28] No space left on device: '/nowhere/x'", "No space left on device (os error 28)"],
)
def test_a_step_that_filled_the_disk_is_explained(tmp_path, message):
    result = run_one(tmp_path, fail_with(RuntimeError(message)))
    assert "bytes free" in describe_failure(result, tmp_path)


def test_a_failing_step_is_told_in_its_own_words(tmp_path):
    result = run_one(tmp_path, fail_with(ValueError("no kiln")))
    assert "no kiln" in describe_failure(result, tmp_path)
    assert not is_interrupted(result)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), dg.DagsterExecutionInterruptedError()])
def test_an_interrupt_is_told_from_a_failure(tmp_path, error):
    assert is_interrupted(run_one(tmp_path, fail_with(error)))


def test_a_check_without_a_description_names_what_it_objects_to(tmp_path):
    check = dg.AssetCheckResult(passed=False, metadata={"count": 9, "empty_pages": list("abcdefg")})
    text = describe_failure(run_one(tmp_path, lambda: None, check), tmp_path)
    assert text == "thing: promise failed. empty pages: a, b, c, d, e and 2 more"


def test_a_described_check_speaks_for_itself(tmp_path):
    check = dg.AssetCheckResult(passed=False, description="no", metadata={"pages": ["a"]})
    assert describe_failure(run_one(tmp_path, lambda: None, check), tmp_path).endswith("failed. no")


def test_lists_that_are_empty_are_nothing_to_object_to():
    assert describe_offenders({"a": SimpleNamespace(value=[]), "b": 3}) == ""
