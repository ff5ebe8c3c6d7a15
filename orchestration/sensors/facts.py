"""Facts that sensors and `understudy status` decide on, read from stored things alone.

Curated questions come from the journals and the hours, runs and their ends from Dagster's storage,
alarms from the monitors' table. Nothing is remembered between two readings. Belongs here: reading.
Does not belong here: what follows from it (`deciding`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg
import polars as pl

from assets import keys
from assets.seeds.harvesting import keep_new_texts
from assets.students.recipe import load_recipe
from assets.traces.admission import ADMITTED, admit_decisions
from assets.traces.deciding import is_asked, open_decisions
from assets.traces.hours import find_folder, list_hours, read_hour, scan_hours
from assets.traces.requesting import open_deletions
from orchestration.config import Config
from orchestration.lake import read_table
from orchestration.lost_runs import find_lost_runs
from orchestration.planning import INPUT_VERSION_PREFIX
from orchestration.sensors.deciding import (
    ATTEMPT_TAG,
    DATASET_TAG,
    PURPOSE_TAG,
    RECIPE_TAG,
    Attempt,
    EvalFacts,
    LoopPolicy,
    RetrainingFacts,
    RunState,
)
from resources.input_files import GoldenFile, SeedFile
from serving.home import Home

ALARMS = "monitoring/alarms"
TEACHER = "teacher"
RUNS_READ = 200
"""Tagged runs looked at, newest first: attempts are capped, so older ones decide nothing."""

_STATES: dict[dg.DagsterRunStatus, RunState] = {
    dg.DagsterRunStatus.NOT_STARTED: "requested",
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "failed",
}


def read_policy(config: Config) -> LoopPolicy:
    """Return the configured limits of the loop."""
    loop = config.loop
    return LoopPolicy(
        minimum_teacher_traces=loop.minimum_teacher_traces,
        minimum_after_drift=loop.minimum_after_drift,
        maximum_attempts=loop.maximum_attempts,
    )


def read_retraining_facts(
    config: Config, instance: dg.DagsterInstance, recipe: str
) -> RetrainingFacts:
    """Return what decides whether this recipe's student is trained again."""
    home = Home(config.home)
    fingerprint = load_recipe(config.recipes / f"{recipe}.yaml").fingerprint
    learnt_until = find_learnt_until(instance, recipe)
    return RetrainingFacts(
        recipe=recipe,
        recipe_fingerprint=fingerprint,
        has_student=learnt_until is not None,
        teacher_traces=find_teacher_traces(config, home, since=learnt_until),
        drifting=find_drifting(home),
        attempts=read_attempts(instance, fingerprint),
    )


def read_eval_facts(config: Config, instance: dg.DagsterInstance, recipe: str) -> EvalFacts:
    """Return what decides whether this recipe is measured again."""
    fingerprint = load_recipe(config.recipes / f"{recipe}.yaml").fingerprint
    report = _find_last(instance, keys.PARITY_REPORT, recipe)
    golden = report and _find_last(instance, keys.GOLDEN_CASES, before=report.timestamp)
    made = golden.asset_materialization if golden else None
    name = f"{INPUT_VERSION_PREFIX}{keys.GOLDEN_FILE.to_user_string()}"
    return EvalFacts(
        recipe=recipe,
        recipe_fingerprint=fingerprint,
        golden_fingerprint=GoldenFile(config.eval.golden).fingerprint(),
        measured_at=_read_time(report) if report else None,
        measured_golden=(made.tags or {}).get(name) if made else None,
        measured_golden_at=_read_time(golden) if golden else None,
        attempts=read_attempts(instance, fingerprint),
    )


def find_learnt_until(instance: dg.DagsterInstance, recipe: str) -> datetime | None:
    """Return the moment up to which decisions are in the recipe's last judged student.

    That is when its seeds were made: the last ones before its gate. None: no student was judged.
    """
    gate = _find_last(instance, keys.GATE_VERDICT, recipe)
    seeds = gate and _find_last(instance, keys.SEED_QUESTIONS, before=gate.timestamp)
    return _read_time(seeds) if seeds else None


def find_teacher_traces(config: Config, home: Home, *, since: datetime | None) -> tuple[str, ...]:
    """Return the admitted traces that the teacher answered, decided after `since`, oldest first.

    One for each question, the first: asked again it teaches nothing more, nor does one that a seed
    asks, written by hand or admitted before.
    """
    decisions = open_decisions(home).read()
    if decisions.is_empty():
        return ()
    written = [seed.text for seed in SeedFile(config.seeds.path).read()]
    judged = admit_decisions(decisions, open_deletions(home).read(), handwritten_count=len(written))
    admitted = judged.filter(pl.col("reason") == ADMITTED).rename({"question": "text"})
    admitted = keep_new_texts(admitted, written)
    if since is not None:
        admitted = admitted.filter(pl.col("decided_at") > since)
    if admitted.is_empty():
        return ()
    hours = set(admitted["asked_at"].dt.truncate("1h"))
    paths = [path for path in list_hours(find_folder(home)) if read_hour(path) in hours]
    served = (
        scan_hours(paths)
        .filter(is_asked(), pl.col("served_by") == TEACHER)
        .filter(pl.col("trace_id").is_in(admitted["trace_id"].to_list()))
        .select("trace_id")
        .collect()
    )
    chosen = admitted.join(served, on="trace_id", how="semi").sort("decided_at", "trace_id")
    ids: Sequence[str] = chosen["trace_id"].to_list()
    return tuple(ids)


def find_alarms(home: Home) -> pl.DataFrame:
    """Return the monitors that alarm now; none where nothing was monitored yet."""
    path = home.table(ALARMS)
    if not path.is_file():
        return pl.DataFrame(schema={"monitor": pl.String, "status": pl.String})
    alarms = read_table(path, attempted="reading the monitors", next_step="`understudy run`")
    return alarms.filter(pl.col("status") == "alarm")


def find_drifting(home: Home) -> tuple[str, ...]:
    """Return the names of the monitors of drift that alarm."""
    names: Sequence[str] = find_alarms(home)["monitor"].to_list()
    return tuple(sorted({name for name in names if "drift" in name}))


def read_attempts(instance: dg.DagsterInstance, recipe_fingerprint: str) -> tuple[Attempt, ...]:
    """Return the runs that were asked for on behalf of a recipe, newest first.

    One whose process is gone has failed, whether or not that is recorded yet.
    """
    runs = instance.get_runs(
        filters=dg.RunsFilter(tags={RECIPE_TAG: recipe_fingerprint}), limit=RUNS_READ
    )
    lost = {run.run_id for run in find_lost_runs(instance)}
    return tuple(
        Attempt(
            purpose=run.tags.get(PURPOSE_TAG, ""),
            dataset=run.tags.get(DATASET_TAG, ""),
            recipe_fingerprint=recipe_fingerprint,
            number=int(run.tags.get(ATTEMPT_TAG, "1")),
            state="failed" if run.run_id in lost else _STATES.get(run.status, "active"),
            run_id=run.run_id,
        )
        for run in runs
    )


def _find_last(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    partition: str | None = None,
    *,
    before: float | None = None,
) -> dg.EventLogRecord | None:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=key,
            asset_partitions=[partition] if partition else None,
            before_timestamp=before,
        ),
        limit=1,
    ).records
    return records[0] if records else None


def _read_time(record: dg.EventLogRecord) -> datetime:
    return datetime.fromtimestamp(record.timestamp, UTC)
