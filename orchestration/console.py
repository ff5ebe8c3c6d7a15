"""What a run looks like in a terminal: one line per asset and check, problems in full.

Belongs here: turning Dagster's log records into rich output. Does not belong here: what is run.
"""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import dagster as dg
from rich.console import Console
from rich.markup import escape

from orchestration.failures import describe_offenders, is_stopping
from resources.progress import LogProgress, RichProgress
from serving.models.protocols import Progress


def open_console() -> Console:
    """Return the console of the command line, on standard error.

    During a step Dagster sends standard error to a file and copies that to the terminal, where no
    bar can be drawn then. A terminal is therefore held by a handle of its own.
    """
    if not sys.stderr.isatty():
        return Console(stderr=True, highlight=False)
    terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8")
    return Console(file=terminal, highlight=False)


CONSOLE = open_console()
QUIET_METADATA = frozenset({"path", "dagster/uri", "estimated_size_mb", "dagster/column_schema"})
LONGEST_VALUE = 60
SKIPPED_STEP = "Dependencies for step"  # one per asset after a failure: the failure says it all
PIPES_NOTICE = "[pipes]"  # Dagster about its own plumbing
SILENCE_SECONDS = 2.0
STEP_ENDS = frozenset(
    {
        dg.DagsterEventType.STEP_SUCCESS,
        dg.DagsterEventType.STEP_FAILURE,
        dg.DagsterEventType.ASSET_MATERIALIZATION,
    }
)


class RunLines(logging.Handler):
    """Prints materializations, checks, warnings and messages of a run; the rest stays in the UI.

    A step that takes more than two seconds is named, so that no wait is unexplained. Messages about
    progress become dim lines.
    """

    def __init__(self, console: Console, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        super().__init__()
        self._console = console
        self._silence_seconds = silence_seconds
        self._waiting: dict[str, threading.Timer] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record if a person would want to see it."""
        event = _find_event(record)
        if event is None:
            self._print_message(record)
            return
        if event.event_type == dg.DagsterEventType.STEP_START:
            self._announce_later(event.step_key or "")
        elif event.event_type in STEP_ENDS:
            self._stop_waiting(event.step_key or "")
        line = describe_event(event)
        if line:
            self._console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Forget the steps that are still waited for."""
        for step in list(self._waiting):
            self._stop_waiting(step)
        super().close()

    def _print_message(self, record: logging.LogRecord) -> None:
        message = _find_message(record)
        if record.levelno >= logging.WARNING and not message.startswith(SKIPPED_STEP):
            self._console.print(f"  [yellow]![/] {escape(message)}", soft_wrap=True)
        # Training speaks from its own process, and so in lines; other steps have bars.
        if record.levelno == logging.INFO and not message.startswith(PIPES_NOTICE):
            self._console.print(f"  [dim]{escape(message)}[/]", soft_wrap=True)

    def _announce_later(self, step: str) -> None:
        line = f"[dim]… {escape(step.replace('__', '/', 1))}[/]"
        timer = threading.Timer(self._silence_seconds, self._console.print, [line])
        timer.daemon = True
        self._waiting[step] = timer
        timer.start()

    def _stop_waiting(self, step: str) -> None:
        timer = self._waiting.pop(step, None)
        if timer is not None:
            timer.cancel()


def describe_event(event: dg.DagsterEvent) -> str:
    """Return the line that tells a person about an event, or an empty string."""
    if event.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION:
        materialization = event.materialization
        facts = describe_metadata(dict(materialization.metadata))
        return f"[green]✓[/] {materialization.asset_key.to_user_string():<32} [dim]{facts}[/]"
    if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        return _describe_check(event.asset_check_evaluation_data)
    return ""


def describe_metadata(metadata: dict[str, Any]) -> str:
    """Return the numbers and short texts of a materialization, as `name value` pairs."""
    shown = []
    for name, entry in metadata.items():
        value = getattr(entry, "value", entry)
        if (
            name in QUIET_METADATA
            or value is None
            or "/" in name
            or len(str(value)) > LONGEST_VALUE
        ):
            continue
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        shown.append(f"{name.replace('_', ' ')} {text}")
    return escape(" · ".join(shown[:6]))


def _describe_check(evaluation: Any) -> str:
    if evaluation.passed:
        return ""
    name = f"{evaluation.asset_key.to_user_string()}: {evaluation.check_name}"
    facts = describe_metadata(dict(evaluation.metadata))
    detail = escape(evaluation.description or describe_offenders(evaluation.metadata))
    verdict = "[red]✗ {} failed[/]" if is_stopping(evaluation) else "[yellow]! {} warns[/]"
    return f"{verdict.format(escape(name))} [dim]{facts}[/] {detail}"


def _find_event(record: logging.LogRecord) -> dg.DagsterEvent | None:
    event = getattr(record, "dagster_meta", {}).get("dagster_event")
    return event if isinstance(event, dg.DagsterEvent) else None


def _find_message(record: logging.LogRecord) -> str:
    return str(getattr(record, "dagster_meta", {}).get("orig_message") or record.getMessage())


def make_logger(_context: dg.InitLoggerContext | None = None) -> logging.Logger:
    """Return the logger the CLI's runs print through."""
    logger = logging.Logger("understudy.run", logging.DEBUG)
    logger.addHandler(RunLines(CONSOLE))
    return logger


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """Give bars on a terminal; without one the same progress is told in lines."""
    bars = RichProgress(CONSOLE)
    try:
        yield bars if CONSOLE.is_terminal else LogProgress(make_logger())
    finally:
        bars.close()


CONSOLE_LOGGER = dg.LoggerDefinition(
    make_logger, description="One line per asset, problems in full."
)
