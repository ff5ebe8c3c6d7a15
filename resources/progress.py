"""Where long work says how far it is: bars in a terminal, lines in Dagster's log.

Belongs here: the two fillings of the `Progress` role. Does not belong here: what is measured.
"""

import logging
import threading
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_EVERY_SECONDS = 5.0


class LogProgress:
    """Says where the work stands at most every five seconds, and when it is done."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last: dict[str, float] = {}

    def advance(self, description: str, done: int, total: int, note: str = "") -> None:
        """Log a line when enough time has passed, or at the end."""
        now = time.monotonic()
        started = self._last.setdefault(description, now)
        if done < total and now - started < LOG_EVERY_SECONDS:
            return
        self._last[description] = now
        self._logger.info("%s: %d of %d %s", description, done, total, note)


class RichProgress:
    """Draws one bar per description on a terminal; finished bars become lines."""

    def __init__(self, console: Console) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            transient=True,
        )

    def advance(self, description: str, done: int, total: int, note: str = "") -> None:
        """Draw the bar; the display starts with the first bar and stops when all are finished."""
        with self._lock:
            if not self._tasks:
                self._progress.start()
            if description not in self._tasks:
                task = self._progress.add_task(description, total=total, note=note)
                self._tasks[description] = task
            self._progress.update(self._tasks[description], completed=done, total=total, note=note)
            if done >= total:
                self._progress.remove_task(self._tasks.pop(description))
            if not self._tasks:
                self._progress.stop()

    def close(self) -> None:
        """Take every bar away: a failed or interrupted step never says that it is done."""
        with self._lock:
            for task in self._tasks.values():
                self._progress.remove_task(task)
            self._tasks.clear()
            self._progress.stop()
