"""Lost runs: started here, and their process is gone, killed or swept away by a restart.

Nobody tells Dagster of such an end: the run stays under way for good, its pools stay taken, and
whoever waits for it waits for ever. Belongs here: telling a lost run from one under way, and ending
it. Does not belong here: what follows from a failed run (`sensors/deciding`), runs of another
machine, whose processes cannot be seen (`run_monitoring.max_runtime_seconds` of `dagster.yaml`).
"""

import logging
import platform
from pathlib import Path

import dagster as dg
import psutil

from serving.hashing import content_hash

MACHINE_TAG = "understudy/machine"
CLOCK_SLACK_SECONDS = 60.0
"""A process that began this much later than a run said its id is another process of that id."""

_UNDER_WAY = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_LOG = logging.getLogger("understudy.lost_runs")


def name_machine() -> str:
    """Return the identity of what process ids are unique in: this host, and its container if any.

    A host that is restarted keeps it, so that runs from before are known as its own. A container
    that is restarted is another machine: it has process ids, and often a name, of its own anew.
    """
    container = Path("/proc/self/ns/pid")
    number = container.stat().st_ino if container.exists() else 0
    return content_hash(platform.node(), number, digits=16)


def find_lost_runs(instance: dg.DagsterInstance) -> tuple[dg.DagsterRun, ...]:
    """Return the runs of this machine that are under way in the books and in no process."""
    own = dg.RunsFilter(statuses=_UNDER_WAY, tags={MACHINE_TAG: name_machine()})
    return tuple(run for run in instance.get_runs(filters=own) if _is_lost(instance, run.run_id))


def end_lost_runs(instance: dg.DagsterInstance) -> tuple[str, ...]:
    """Record every lost run as failed and free what it held; return their ids."""
    lost = find_lost_runs(instance)
    for run in lost:
        told = "The process of this run is gone: it was killed, or the machine was restarted."
        _LOG.warning("run %s of %s: %s", run.run_id, run.job_name, told)
        instance.report_run_failed(run, told)
        if instance.event_log_storage.supports_global_concurrency_limits:
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return tuple(run.run_id for run in lost)


def _is_lost(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Say whether the process that a run named as its own has ended; one that named none has not.

    A run that is killed before it names one is ended by Dagster's own limit on starting.
    """
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        named = event.engine_event_data.metadata.get("pid") if event else None
        if named is not None:
            return not _is_running(int(str(named.value)), since=entry.timestamp)
    return False


def _is_running(process_id: int, *, since: float) -> bool:
    try:
        process = psutil.Process(process_id)
        if process.status() == psutil.STATUS_ZOMBIE:  # ended, and its parent has not looked
            return False
        return bool(process.create_time() <= since + CLOCK_SLACK_SECONDS)
    except psutil.NoSuchProcess:
        return False
