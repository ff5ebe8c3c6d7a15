"""Jobs: which assets are made together, by name.

Belongs here: selections and what every run of a job has in common. Does not belong here: when a job
runs (`sensors`, `assets/automation`), which of its assets are stale (`planning`).
"""

import logging
from typing import Any

import dagster as dg

from assets import keys
from orchestration.lost_runs import MACHINE_TAG, name_machine

WHOLE_CHAIN = "whole_chain"
EVERYTHING = "everything"
RETRAIN_STUDENT = "retrain_student"
MEASURE_PARITY = "measure_parity"
NIGHTLY_TRACES = "nightly_traces"
NIGHTLY_MONITORING = "nightly_monitoring"
DREAM = "dream"
UNLIMITED = {"dagster/max_runtime": "0"}
"""Of what trains: `run_monitoring.max_runtime_seconds` would end a live run too."""

_LOG = logging.getLogger("understudy.jobs")
_BUILT_BY_DBT = dg.AssetSelection.tag("dagster/kind/dbt", "")
_BY_DEFAULT = dg.AssetSelection.all() - dg.AssetSelection.assets(*keys.ON_DEMAND) - _BUILT_BY_DBT


@dg.failure_hook(name="tell_failure")
def tell_failure(context: dg.HookContext) -> None:
    """Say in one line which step of which run failed, where a scheduler's log is watched."""
    _LOG.error(
        "run %s of %s: step %s failed: %s; what was made and bought before it is kept",
        context.run_id,
        context.job_name,
        context.step_key,
        context.op_exception,
    )


def build_jobs() -> list[Any]:
    """Return the jobs over the chain.

    `retrain_student` begins at the seeds, where curated questions enter, and ends at a release.
    `everything` is what the command line selects from. Every run says which machine it is on: the
    code location that names it starts the run too.
    """
    hooks, tags = {tell_failure}, {MACHINE_TAG: name_machine()}
    return [
        dg.define_asset_job(WHOLE_CHAIN, selection=_BY_DEFAULT, hooks=hooks, tags=tags | UNLIMITED),
        dg.define_asset_job(EVERYTHING, selection="*", tags=tags),
        dg.define_asset_job(
            RETRAIN_STUDENT,
            selection=_BY_DEFAULT
            & dg.AssetSelection.assets(keys.SEED_QUESTIONS).downstream(include_self=True),
            hooks=hooks,
            tags=tags | UNLIMITED,
        ),
        dg.define_asset_job(
            MEASURE_PARITY,
            selection=_BY_DEFAULT & dg.AssetSelection.groups("parity"),
            hooks=hooks,
            tags=tags,
        ),
        dg.define_asset_job(
            NIGHTLY_MONITORING,
            selection=dg.AssetSelection.groups("monitoring"),
            hooks=hooks,
            tags=tags,
        ),
        dg.define_asset_job(
            DREAM,
            selection=dg.AssetSelection.assets(keys.DREAMED_QUESTIONS),
            hooks=hooks,
            tags=tags,
        ),
    ]


def build_nightly_job() -> Any:
    """Return the job over the traces and their dbt marts."""
    return dg.define_asset_job(
        NIGHTLY_TRACES,
        selection=dg.AssetSelection.groups("traces"),
        hooks={tell_failure},
        tags={MACHINE_TAG: name_machine()},
    )
