"""What went wrong in a run or in the machine under it, in words a person can act on.

Belongs here: turning Dagster's results and the system's errors into messages. Does not belong here:
printing them (`cli`), errors of one module's own making.
"""

import errno
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from serving.errors import InvalidInputError, UnderstudyError
from serving.files import FULL, NOT_WRITABLE

INTERRUPTS = frozenset({"KeyboardInterrupt", "DagsterExecutionInterruptedError"})
SHOWN_OFFENDERS = 5
# Python's own wording, and that of libraries written in Rust (polars, lance).
SYSTEM_ERROR = re.compile(r"\[Errno (\d+)\] ([^:\n]+)(?:: '([^'\n]+)')?|\(os error (\d+)\)")

OUR_MESSAGE = re.compile(r"(\S+: )While .*: expected .*, found .*\. Next: ", re.DOTALL)
"""An `UnderstudyError` as Dagster keeps it: the name of its class, and its message."""


def explain_os_error(error: OSError, home: Path) -> UnderstudyError:
    """Return an error of the operating system with what to do about it.

    Args:
        error: as it was raised.
        home: what is looked at when the error names no file.
    """
    path = Path(str(error.filename)) if error.filename else home
    if error.errno in FULL:
        expected, found = "room on the disk", f"{_count_free_bytes(path)} bytes free at {path}"
        step = "free some gigabytes, or set UNDERSTUDY_HOME to another disk, and run again"
    elif error.errno in NOT_WRITABLE:
        expected, found = "a path this user may use", f"{error.strerror} at {path}"
        step = "change its owner or mode, or set UNDERSTUDY_HOME to a folder that is writable"
    elif error.errno == errno.EADDRINUSE:
        expected, found = "a free port", error.strerror or "a port in use"
        step = "stop what listens there, or choose another with --port"
    else:
        expected, found = "the file system and the network to work", str(error)
        step = "run `understudy doctor`; if it finds nothing, look at the path named here"
    return InvalidInputError(
        "using this machine's files and ports", expected=expected, found=found, next_step=step
    )


STORAGE_ERRORS = {
    "database or disk is full": errno.ENOSPC,
    "unable to open database file": errno.EACCES,
    "attempt to write a readonly database": errno.EROFS,
}
"""What SQLite, which Dagster keeps its runs in, says of a place that cannot be written."""


def read_storage_error(message: str, home: Path) -> OSError | None:
    """Return the system's error that a database's message stands for, if it is one of those."""
    for words, number in STORAGE_ERRORS.items():
        if words in message:
            return OSError(number, os.strerror(number), str(home))
    return None


def _count_free_bytes(path: Path) -> str:
    existing = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    return f"{shutil.disk_usage(existing).free:,}"


def is_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Say whether a person stopped the run: Dagster records that as one failure among others."""
    for event in result.all_events:
        error = None
        if event.is_step_failure:
            error = event.step_failure_data.error
        elif event.event_type == dg.DagsterEventType.RUN_FAILURE:
            error = event.job_failure_data.error
        while error is not None:
            if error.cls_name in INTERRUPTS:
                return True
            error = error.cause
    return False


def describe_failure(result: dg.ExecuteInProcessResult, home: Path) -> str:
    """Return why a run failed: its failed checks, or else the first error of a step or resource."""
    failed = [e for e in result.get_asset_check_evaluations() if is_stopping(e)]
    if failed:
        return "; ".join(_describe_check(evaluation) for evaluation in failed)
    for event in result.all_events:
        error = _find_error(event)
        if error is None:
            continue
        cause = _find_first_cause(error)
        ours = OUR_MESSAGE.match(cause.message)
        known = None
        if not ours:
            known = _read_os_error(cause.message) or read_storage_error(cause.message, home)
        message = str(explain_os_error(known, home)) if known else cause.message.strip()
        # Python names the class before the message; ours says all in the message.
        message = message.removeprefix(ours[1]) if ours else message
        return f"{(event.step_key or 'run').replace('__', '/', 1)}: {message}"
    return ""


def is_stopping(evaluation: dg.AssetCheckEvaluation) -> bool:
    """Say whether a check failed for good; one that failed as a warning stops nothing."""
    return not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR


def _find_error(event: dg.DagsterEvent) -> Any:
    """Return the error of a failed step, or of a resource that could not be made ready for it."""
    if event.is_step_failure:
        return event.step_failure_data.error
    if event.event_type == dg.DagsterEventType.RESOURCE_INIT_FAILURE:
        return event.engine_event_data.error
    if event.event_type == dg.DagsterEventType.RUN_FAILURE:
        return event.job_failure_data.error
    return None


def _find_first_cause(error: Any) -> Any:
    """Follow the causes to the first, or to the first of ours, which says what to do about it."""
    while error.cause is not None and not OUR_MESSAGE.match(error.message):
        error = error.cause
    return error


def describe_offenders(metadata: Mapping[str, Any]) -> str:
    """Return the first entries of every list in a check's metadata: what it objects to."""
    shown = []
    for name, entry in metadata.items():
        value = getattr(entry, "value", entry)
        if not isinstance(value, (list, tuple)) or not value:
            continue
        more = f" and {len(value) - SHOWN_OFFENDERS} more" if len(value) > SHOWN_OFFENDERS else ""
        first = ", ".join(map(str, value[:SHOWN_OFFENDERS]))
        shown.append(f"{name.replace('_', ' ')}: {first}{more}")
    return "; ".join(shown)


def _describe_check(evaluation: dg.AssetCheckEvaluation) -> str:
    detail = evaluation.description or describe_offenders(evaluation.metadata)
    name = f"{evaluation.asset_key.to_user_string()}: {evaluation.check_name}"
    return f"{name} failed. {detail}".strip()


def _read_os_error(message: str) -> OSError | None:
    """Rebuild a system error from its text: a failed step leaves no more than that."""
    match = SYSTEM_ERROR.search(message)
    if match is None:
        return None
    number = int(match[1] or match[4])
    if number not in FULL | NOT_WRITABLE:
        return None  # the text itself says more
    return OSError(number, match[2] or "refused", match[3])
