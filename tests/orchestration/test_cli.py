"""The command line: exit codes, what is printed, and that nothing printed is read as markup."""

import errno
import io
import json
import socket

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestration import cli, demo, explaining, keys_cli, launching
from orchestration.planning import PlannedAsset
from orchestration.running import RunOutcome
from serving.access.keys import find_key, read_keys
from serving.errors import InvalidInputError

PLAN = (PlannedAsset(key="labels/teacher_answers", reason="never [made]"),)


@pytest.fixture
def screen(monkeypatch):
    text = io.StringIO()
    console = Console(file=text, width=200, highlight=False)
    for module in (cli, demo, explaining, keys_cli, launching):
        monkeypatch.setattr(module, "CONSOLE", console)
    return text


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments))


def replace_run(monkeypatch, behave):
    monkeypatch.setattr("orchestration.running.run_chain", lambda *_, **options: behave(options))


def test_the_plan_is_shown_first_and_a_dry_run_says_that_nothing_was_made(monkeypatch, screen):
    def behave(options):
        assert options["dry_run"]
        options["announce"](PLAN)
        return RunOutcome(planned=PLAN, succeeded=True)

    replace_run(monkeypatch, behave)
    assert invoke("run", "--dry-run").exit_code == 0
    text = screen.getvalue()
    assert "labels/teacher_answers           never [made]" in text
    assert text.endswith("Dry run: nothing was made.\n")


def test_an_interrupted_run_exits_with_130(monkeypatch, screen):
    def behave(_options):
        raise KeyboardInterrupt

    replace_run(monkeypatch, behave)
    assert invoke("run").exit_code == 130
    assert "What was bought and made so far is kept; run again." in screen.getvalue()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "bytes free"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "Read-only file system at /x"),
        (InvalidInputError("a [b]", expected="c", found="[d]", next_step="e"), "a [b]"),
    ],
)
def test_errors_are_told_in_parts_and_exit_with_2(monkeypatch, screen, error, expected):
    def behave(_options):
        raise error

    replace_run(monkeypatch, behave)
    assert invoke("run").exit_code == 2
    assert expected in screen.getvalue()
    assert "next" in screen.getvalue()


def test_a_port_in_use_is_refused_before_the_release_is_loaded(screen, tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert invoke("serve", "--port", port).exit_code == 2
    assert f"127.0.0.1:{port}" in screen.getvalue()
    assert "choose another with --port" in screen.getvalue()


def test_a_server_that_is_stopped_by_hand_ends_quietly(screen, tmp_path, monkeypatch):
    def stop(_settings):
        raise KeyboardInterrupt

    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    monkeypatch.setattr("serving.app.run", stop)
    assert invoke("serve", "--port", "18399").exit_code == 0
    assert "Interrupted" not in screen.getvalue()


def test_an_answer_is_printed_as_it_is(monkeypatch, screen):
    body = {
        "answer": "Use [bold] here [1].",
        "citations": [{"id": "docs:a/1", "url": "https://k/[a]/", "score": 0.5}],
        "served_by": "teacher", "model": "m[1]", "route_reason": "default", "trace_id": "t",
    }  # fmt: skip
    monkeypatch.setattr("orchestration.asking.ask_once", lambda *_, **__: body)
    assert invoke("ask", "what?").exit_code == 0
    text = screen.getvalue()
    assert "loading the release …" in text
    for part in ("Use [bold] here [1].", "https://k/[a]/", "m[1]"):
        assert part in text
    printed = invoke("ask", "what?", "--json")
    assert json.loads(printed.stdout) == body


def test_a_parity_table_keeps_its_brackets(monkeypatch, screen):
    import polars as pl

    class Rendered:
        columns = ("arm", "delta [low, high]")
        rows = (("student", "[no case differs]"),)

    gates = pl.DataFrame(
        [{"verdict": "HOLD", "statement": "[s]", "gate": "g", "outcome": "PASS", "detail": "[d]"}]
    )
    monkeypatch.setattr(demo, "_read", lambda *_: gates)
    monkeypatch.setattr(demo, "render_parity_table_text", lambda _frame: Rendered)
    demo.show_report(cli.load_config(), "compact")
    for part in ("delta [low, high]", "[no case differs]", "[s]", "[d]"):
        assert part in screen.getvalue()


def test_a_key_is_made_listed_and_revoked(monkeypatch, screen, tmp_path):
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    assert json.loads(invoke("keys", "list", "--json").stdout) == []
    made = json.loads(
        invoke("keys", "create", "--tenant", "support", "--scope", "ask", "--json").stdout
    )
    shown = invoke("keys", "create", "--tenant", "docs").stdout.strip()
    assert find_key({key.key_id: key for key in read_keys(tmp_path / "keys")}, shown) is not None
    assert invoke("keys", "revoke", made["key_id"]).exit_code == 0
    listed = {key["tenant"]: key for key in json.loads(invoke("keys", "list", "--json").stdout)}
    assert listed["support"]["revoked_at"] is not None
    assert listed["docs"]["revoked_at"] is None
    assert invoke("keys", "list").exit_code == 0
    assert "a revoked key" in screen.getvalue()
    assert shown not in screen.getvalue() + json.dumps(listed)


def test_wrong_keys_and_scopes_are_explained(monkeypatch, screen, tmp_path):
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    assert invoke("keys", "create", "--tenant", "docs", "--scope", "root").exit_code == 2
    assert invoke("keys", "revoke", "0" * 12).exit_code == 2
    text = screen.getvalue()
    assert "ask:prefer_quality" in text
    assert "understudy keys list" in text
