"""Logs in JSON: one object per line, and no secret in it."""

import json
import logging
import subprocess
import sys

from serving.logs import JsonFormatter

LEAK = "sk-proj-abc123DEF456ghi789jkl012"


def _format(message: str, *args: object, error: Exception | None = None) -> dict[str, str]:
    info = (type(error), error, None) if error else None
    record = logging.LogRecord("serving.x", logging.WARNING, __file__, 1, message, args, info)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found: dict[str, str] = json.loads(line)
    return found


def test_a_line_says_when_what_and_where() -> None:
    found = _format("release %s\nin force", "a1")
    assert set(found) == {"at", "level", "logger", "message"}
    assert (found["level"], found["logger"], found["message"]) == (
        "warning", "serving.x", "release a1\nin force",
    )  # fmt: skip


def test_secrets_are_masked_in_messages_and_tracebacks() -> None:
    found = _format("key %s of jane@mail.example", LEAK, error=ValueError(f"bad {LEAK}"))
    assert LEAK not in json.dumps(found)
    assert found["message"] == "key [secret] of [email]"
    assert "ValueError" in found["error"]


def test_a_server_that_is_told_to_writes_every_logger_as_json() -> None:
    code = (
        "import logging; from serving.logs import write_logs_as; write_logs_as('json'); "
        "logging.getLogger('uvicorn.error').info('started'); "
        "logging.getLogger('serving.engine').warning('careful')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(x["logger"], x["message"]) for x in lines] == [
        ("uvicorn.error", "started"),
        ("serving.engine", "careful"),
    ]
