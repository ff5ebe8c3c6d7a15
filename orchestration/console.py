"""What a run looks like in a terminal: one line per asset and check, problems in full.

Belongs here: turning Dagster's log records into rich output. Does not belong here: what is run.
"""

import logging
from typing import Any

import dagster as dg
from rich.console import Console
from rich.markup import escape

CONSOLE = Console(stderr=True, highlight=False)
QUIET_METADATA = frozenset({"path", "dagster/uri", "estimated_size_mb", "dagster/column_schema"})
LONGEST_VALUE = 60
SKIPPED_STEP = "Dependencies for step"  # one per asset after a failure: the failure says it all


class RunLines(logging.Handler):
    """Prints materializations, checks, warnings and messages of a run; the rest stays in the UI."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record if a person would want to see it."""
        event = _find_event(record)
        if event is None:
            message = _find_message(record)
            if record.levelno >= logging.WARNING and not message.startswith(SKIPPED_STEP):
                self._console.print(f"  [yellow]![/] {escape(message)}", soft_wrap=True)
            return
        line = describe_event(event)
        if line:
            self._console.print(line, soft_wrap=True)


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
    detail = escape(evaluation.description or "")
    return f"[red]✗ {name} failed[/] [dim]{facts}[/] {detail}"


def _find_event(record: logging.LogRecord) -> dg.DagsterEvent | None:
    event = getattr(record, "dagster_meta", {}).get("dagster_event")
    return event if isinstance(event, dg.DagsterEvent) else None


def _find_message(record: logging.LogRecord) -> str:
    return str(getattr(record, "dagster_meta", {}).get("orig_message") or record.getMessage())


def make_logger(_context: dg.InitLoggerContext) -> logging.Logger:
    """Return the logger the CLI's runs print through."""
    logger = logging.Logger("understudy.run", logging.DEBUG)
    logger.addHandler(RunLines(CONSOLE))
    return logger


CONSOLE_LOGGER = dg.LoggerDefinition(
    make_logger, description="One line per asset, problems in full."
)
