"""Where a running training shows how far it is: log lines, a bar on a terminal, a file of reports.

Belongs here: showing `StepReport`s and why it failed, and reading them in the process above. Does
not belong here: what they say (`progress`), Dagster.
"""

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from assets.students.progress import OnStep, StepReport
from serving.errors import UnderstudyError
from serving.files import write_text_atomically

logger = logging.getLogger("understudy.train")

REPORTS_PER_RUN = 20
REPORT_SECONDS = 30.0
POLL_SECONDS = 1.0
FAILURE = "failure.json"
FAILURE_PARTS = ("attempted", "expected", "found", "next_step")


def report_now_and_then(tell: Callable[[StepReport], Any]) -> OnStep:
    """Return a callback that tells of about every 5 % of the steps, and every validation.

    Where 5 % take long, every half minute.
    """
    told_at = time.perf_counter()

    def on_step(report: StepReport) -> None:
        nonlocal told_at
        every = max(1, report.total_steps // REPORTS_PER_RUN)
        is_last = report.step == report.total_steps
        is_late = time.perf_counter() - told_at > REPORT_SECONDS
        if report.step % every == 0 or is_last or is_late or report.validation_loss is not None:
            told_at = time.perf_counter()
            tell(report)

    return on_step


def report_to_log(log: Callable[[str], Any]) -> OnStep:
    """Return a callback that logs a line now and then."""
    return report_now_and_then(lambda report: log(report.to_line()))


def report_to_file(path: Path) -> OnStep:
    """Return a callback that appends a JSON line now and then, for `follow_reports` to read."""

    def append(report: StepReport) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(report)) + "\n")

    return report_now_and_then(append)


def report_failure(spec: Path, error: UnderstudyError) -> None:
    """Leave beside a training's spec why it failed, for `raise_failure` in the process above.

    Where even that finds no room, the exit status has to do.
    """
    parts = {name: getattr(error, name) for name in FAILURE_PARTS}
    with contextlib.suppress(OSError):
        write_text_atomically(spec.parent / FAILURE, json.dumps(parts))


@contextlib.contextmanager
def raise_failure(spec: Path) -> Iterator[None]:
    """Where the block fails and the training left a reason, raise that: an exit status says less.

    Raises:
        UnderstudyError: what `report_failure` was told.
    """
    try:
        yield
    except Exception:
        path = spec.parent / FAILURE
        if not path.exists():
            raise  # it was killed, or could not even start
        # Of a chain, the first cause is shown: it would be the exit status.
        raise UnderstudyError(**json.loads(path.read_text(encoding="utf-8"))) from None


@contextlib.contextmanager
def follow_reports(path: Path, tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """While the block runs, tell of every report that another process appends to the file."""
    is_over = threading.Event()

    def follow() -> None:
        position = 0
        while True:
            was_over = is_over.is_set()  # asked before reading: what comes last is still told
            try:
                position = _tell_new(path, position, tell)
            except Exception as error:  # noqa: BLE001 - showing a training must not end it
                logger.warning("following the training in %s: stopped, as %r", path, error)
                return
            if was_over:
                return
            is_over.wait(POLL_SECONDS)

    thread = threading.Thread(target=follow, name="training-reports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _tell_new(path: Path, position: int, tell: Callable[[dict[str, Any]], None]) -> int:
    """Tell of the whole lines after `position`, and return where they end."""
    if not path.exists():
        return position
    with path.open("rb") as stream:
        stream.seek(position)
        new = stream.read()
    whole, _, _ = new.rpartition(b"\n")
    for line in whole.splitlines():
        tell(json.loads(line))
    return position + (len(whole) + 1 if whole else 0)


@contextlib.contextmanager
def forward_warnings(source: logging.Logger, target: logging.Logger) -> Iterator[None]:
    """While the block runs, let `target` handle the warnings of `source` too."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = target.handle  # type: ignore[method-assign]
    source.addHandler(handler)
    try:
        yield
    finally:
        source.removeHandler(handler)


@contextlib.contextmanager
def open_bar() -> Iterator[OnStep]:
    """Yield a callback that moves a progress bar on a terminal, and does nothing elsewhere.

    The bar is first drawn with the first step: until then the process that started this one may
    still be writing to the same terminal.
    """
    if not sys.stderr.isatty():
        yield lambda _report: None
        return
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(stderr=True), transient=True)
    task = progress.add_task("training", total=None)

    def draw(report: StepReport) -> None:
        progress.start()  # does nothing once it is started
        progress.update(
            task, completed=report.step, total=report.total_steps, description=report.to_line()
        )

    try:
        yield draw
    finally:
        progress.stop()
