"""Arguments that no command can mean are refused at once, with what it could mean."""

import pytest
from typer.testing import CliRunner

from assets.traces.deciding import REASON_CODES
from orchestration import cli


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "400")
    return tmp_path / "home"


def refuse(*arguments: str) -> str:
    """Return what is told to who types this, in one line."""
    told = CliRunner().invoke(cli.app, list(arguments))
    assert told.exit_code == 2, told.output
    return " ".join(told.output.split())


@pytest.mark.parametrize(
    "words",
    [
        ("--decision", "perhaps"),
        ("--reason-code", "boring"),
        ("--decision", "accepted", "--reason-code", "unclear"),
        ("--decision", "accepted", "--automation"),
        ("--automation",),
        ("--decision", ""),
    ],
)
def test_words_of_no_rubric_are_refused_before_a_trace_is_looked_up(home, words):
    told = refuse("curate", "decide", "some-trace", "--reviewer", "ada", *words)
    for verdict, reasons in REASON_CODES.items():
        assert f"{verdict}: {', '.join(reasons)}" in told
    assert "some-trace" not in told
    assert not home.exists()


@pytest.mark.parametrize(
    "command", [("report",), ("report", "--json"), ("run",), ("demo",), ("eval", "new-version")]
)
@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "compact.yaml", "nosuch", ""])
def test_a_recipe_nobody_wrote_is_told_the_ones_there_are(home, command, name):
    told = refuse(*command, "--recipe", name)
    assert f"found {name!r}" in told
    assert "one of all_sources, " in told
    assert "compact" in told
    assert str(home) not in told


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        (("router", "replay"), "--min-retrieval-score", ("7", "-0.1", "nan", "inf")),
        (("router", "replay"), "--maximum-risk-ratio", ("1.5", "-1", "nan")),
        (("router", "replay"), "--long-context-tokens", ("0", "-5")),
        (("keys", "create", "--tenant", "a"), "--days", ("-1", "999999999999")),
        (("keys", "create", "--tenant", "a"), "--requests-per-minute", ("0", "-1")),
        (("keys", "create", "--tenant", "a"), "--teacher-calls-per-minute", ("-1",)),
        (("keys", "create", "--tenant", "a"), "--teacher-calls-per-day", ("-1",)),
        (("index", "prune"), "--days", ("-1", "nan", "0.5", "999999999999")),
        (("curate", "list"), "--limit", ("0", "-1")),
        (("curate", "plant"), "--count", ("0",)),
        (("traffic",), "--days", ("0", "nan", "1e9")),
        (("traffic",), "--asks-per-day", ("0", "999999999999")),
        (("traffic",), "--pace", ("-1", "nan", "inf")),
        (("traffic",), "--concurrency", ("0",)),
        (("serve",), "--port", ("0", "-1", "65536")),
        (("ui",), "--port", ("0", "65536")),
        (("teacher", "serve"), "--port", ("0", "65536")),
    ],
)
def test_numbers_out_of_their_range_are_refused_by_name(home, command, option, values):
    for value in values:
        told = refuse(*command, f"{option}={value}")
        assert f"Invalid value for '{option}'" in told
    assert not home.exists()
