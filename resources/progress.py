"""Where long work says how far it is: bars in a terminal, lines in Dagster's log.

Belongs here: the two fillings of the `Progress` role, how fast work goes and when it ends. Does not
belong here: what is measured.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LOG_EVERY_SECONDS = 5.0
DRAW_EVERY_SECONDS = 0.1
SPEED_WINDOW_SECONDS = 60.0
"""Speed is that of the last minute: answers from a cache, which come first and fast after a
restart, must not promise an early end for those that are bought."""


@dataclass
class _Speed:
    """How many units a second were finished lately."""

    marks: deque[tuple[float, int]] = field(default_factory=deque)

    def mark(self, now: float, done: int) -> None:
        self.marks.append((now, done))
        while len(self.marks) > 2 and now - self.marks[0][0] > SPEED_WINDOW_SECONDS:
            self.marks.popleft()

    def per_second(self) -> float | None:
        (began, first), (now, last) = self.marks[0], self.marks[-1]
        return (last - first) / (now - began) if now > began and last > first else None


class LogProgress:
    """Says where the work stands at most every five seconds, and when it is done."""

    def __init__(
        self, logger: logging.Logger, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._clock = clock
        self._speeds: dict[str, _Speed] = {}

    def advance(self, description: str, done: int, total: int, note: str = "") -> None:
        """Log a line when enough time has passed, or at the end."""
        now = self._clock()
        speed = self._speeds.get(description)
        if speed is None or done < speed.marks[-1][1]:  # new, or begun again after a failure
            speed = self._speeds[description] = _Speed()
            speed.mark(now, done)
        if done < total and now - speed.marks[-1][0] < LOG_EVERY_SECONDS:
            return
        speed.mark(now, done)
        self._logger.info(
            "%s: %d of %d%s %s", description, done, total, _describe(speed, total - done), note
        )
        if done >= total:
            del self._speeds[description]


def _describe(speed: _Speed, left: int) -> str:
    rate = speed.per_second()
    if rate is None:
        return ""
    remaining = f", {describe_seconds(left / rate)} left" if left else ""
    return f" ({rate:.3g}/s{remaining})"


def describe_seconds(seconds: float) -> str:
    """Return a duration as a person would say it: 42 s, 3 min 20 s, 2 h 5 min."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    if hour:
        return f"{hour} h {minute} min"
    return f"{minute} min {second} s" if minute else f"{second} s"


class RateColumn(TextColumn):
    """Units a second, as rich measures them for the remaining time."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """Return the speed, or nothing before there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g}/s" if speed else "", style="dim")


class RichProgress:
    """Draws one bar per description on a terminal; finished bars become lines."""

    def __init__(self, console: Console) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._drawn: dict[str, float] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            transient=True,
            speed_estimate_period=SPEED_WINDOW_SECONDS,
        )

    def advance(self, description: str, done: int, total: int, note: str = "") -> None:
        """Draw the bar; the display starts with the first bar and stops when all are finished."""
        now = time.monotonic()
        with self._lock:
            if not self._tasks:
                self._progress.start()
            if description not in self._tasks:
                task = self._progress.add_task(description, total=total, note=note)
                self._tasks[description] = task
            elif done < total and now - self._drawn[description] < DRAW_EVERY_SECONDS:
                return  # thousands of steps a second are not worth a thousand drawings
            self._drawn[description] = now
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
