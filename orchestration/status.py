"""What an operator asks every morning: is production fine, what does it cost, when is it retrained?

Belongs here: reading what servers, monitors and runs have stored, and the judgement on it. Does not
belong here: printing (`status_cli`), the decisions of the sensors (`sensors/deciding`).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import dagster as dg
import polars as pl

from assets.traces.curating import find_candidates
from assets.traces.deciding import is_asked, open_decisions
from assets.traces.hours import find_folder, list_hours, read_hour, scan_hours
from assets.traces.ledger import read_quarantine
from orchestration.config import Config
from orchestration.phases import PhaseFacts, PhaseStep, assess_phases
from orchestration.sensors.deciding import Decision, GiveUp, Launch, decide_retraining
from orchestration.sensors.facts import ALARMS, read_policy, read_retraining_facts
from orchestration.sensors.keep_warm import probe_servers
from orchestration.traffic import DRILL_ENV
from serving.errors import TraceError
from serving.home import Home
from serving.releases.bundle import CURRENT, load_current
from serving.releases.signing import load_public_key
from serving.tracing.segments import OPEN_SUFFIX, read_frames

WINDOW = timedelta(days=7)  # `status_cli` says so too
MAXIMUM_FAILED_RATIO = 0.01  # of all asks: answered with a problem document, above it: not fine


@dataclass(frozen=True, kw_only=True)
class ReleaseStatus:
    """The release that servers load."""

    release_id: str
    phase: str
    verdict: str
    students: tuple[str, ...]
    skills: Mapping[str, str] = field(default_factory=dict)
    """The adapter that serves each skill; `students` are those that answer all else."""


@dataclass(frozen=True, kw_only=True)
class TrafficStatus:
    """What production did in the window; ratios are None where nobody asked."""

    ask_count: int
    failed_ratio: float | None
    teacher_ratio: float | None
    refused_ratio: float | None
    cost_usd: float
    """Of answered asks, as `teacher_only_cost_usd` is: an ask that failed has no such price."""
    teacher_only_cost_usd: float
    last_asked_at: datetime | None
    failed_cost_usd: float = 0.0
    """What asks that ended without an answer have cost."""
    elsewhere: tuple[str, ...] = ()
    """Other environments in which somebody asked, such as a server that was not told it is prod."""
    unsealed_count: int = 0
    """Traces of any kind that a server still holds open: they count for all else once sealed."""
    damaged: tuple[str, ...] = ()
    """Open segments that cannot be read to their end, in words."""

    @property
    def saved_ratio(self) -> float | None:
        """The share of the teacher's price that was not paid."""
        if not self.teacher_only_cost_usd:
            return None
        return 1 - self.cost_usd / self.teacher_only_cost_usd


@dataclass(frozen=True, kw_only=True)
class Status:
    """The answer to all three questions."""

    release: ReleaseStatus | None
    traffic: TrafficStatus
    alarms: tuple[str, ...]
    inconclusive: tuple[str, ...]
    is_monitored: bool
    retraining: str
    """What is due, or what is waited for."""
    is_retraining_due: bool
    is_retraining_automatic: bool
    candidate_count: int
    """Questions that wait for a decision of curation."""
    phases: tuple[PhaseStep, ...]
    problems: tuple[str, ...]

    @property
    def is_fine(self) -> bool:
        """Whether production is known to be fine: nothing asks for a person or is unknown."""
        return not self.problems and not self.unknowns

    @property
    def unknowns(self) -> tuple[str, ...]:
        """Return why nothing is known of production, so that no problem does not mean fine."""
        told = ((bool(self.traffic.ask_count), "nobody asked"),
                (self.is_monitored, "no monitor has run"))  # fmt: skip
        return tuple(text for is_known, text in told if not is_known)


def read_status(config: Config, instance: dg.DagsterInstance, *, now: datetime) -> Status:
    """Return the status of a configuration's home, as far as segments are compacted.

    Raises:
        ReleaseError: the current release does not verify.
    """
    home = Home(config.home)
    facts = read_retraining_facts(config, instance, config.default_recipe)
    decision = decide_retraining(facts, read_policy(config))
    records = scan_hours(list_hours(find_folder(home)))
    release = read_release(home)
    traffic = read_traffic(home, since=now - WINDOW)
    monitors = _read_monitors(home)
    alarms, inconclusive = _name(monitors, "alarm"), _name(monitors, "inconclusive")
    return Status(
        release=release,
        traffic=traffic,
        alarms=alarms,
        inconclusive=inconclusive,
        is_monitored=monitors is not None,
        retraining=describe_decision(decision),
        is_retraining_due=isinstance(decision, Launch),
        is_retraining_automatic=config.loop.retrain == "automatic",
        candidate_count=find_candidates(records, open_decisions(home).read()).height,
        phases=assess_phases(
            gather_phase_facts(release, traffic, alarms=None if monitors is None else alarms)
        ),
        problems=(
            *find_problems(release, traffic, alarms=alarms, decision=decision),
            *find_quarantined(home, since=now - WINDOW),
            *find_cold_servers(config.loop.servers),
        ),
    )


def gather_phase_facts(
    release: ReleaseStatus | None, traffic: TrafficStatus, *, alarms: Sequence[str] | None
) -> PhaseFacts:
    """Return what the phases are judged by; `alarms` is None where no monitor ever ran."""
    return PhaseFacts(
        has_student=release is not None and bool(release.students),
        verdict=release.verdict if release else None,
        is_monitored=alarms is not None,
        alarms=alarms or (),
        ask_count=traffic.ask_count,
    )


def read_phase(home: Home, *, now: datetime) -> tuple[str | None, tuple[PhaseStep, ...]]:
    """Return the phase that is released, and what each phase still lacks."""
    release, monitors = read_release(home), _read_monitors(home)
    alarms = None if monitors is None else _name(monitors, "alarm")
    facts = gather_phase_facts(release, read_traffic(home, since=now - WINDOW), alarms=alarms)
    return (release.phase if release else None), assess_phases(facts)


def describe_decision(decision: Decision) -> str:
    """Say when the next training is, and why not yet."""
    if isinstance(decision, Launch):
        return f"due now (attempt {decision.attempt}): {decision.reason}"
    return f"given up: {decision.reason}" if isinstance(decision, GiveUp) else decision.reason


def find_problems(
    release: ReleaseStatus | None,
    traffic: TrafficStatus,
    *,
    alarms: Sequence[str],
    decision: Decision,
) -> tuple[str, ...]:
    """Return what asks for a person, worst first; each with what to do."""
    problems = []
    if release is None:
        problems.append("nothing is released: `understudy run`")
    if traffic.failed_ratio is not None and traffic.failed_ratio > MAXIMUM_FAILED_RATIO:
        problems.append(
            f"{traffic.failed_ratio:.1%} of the asks ended without an answer "
            f"(limit {MAXIMUM_FAILED_RATIO:.0%}): look at `outcome` in traces/trace_records"
        )
    problems += traffic.damaged
    problems += [f"the monitor {name} alarms: read monitoring/alarms" for name in alarms]
    if isinstance(decision, GiveUp):
        problems.append(f"training is given up: {decision.reason}")
    return tuple(problems)


def find_quarantined(home: Home, *, since: datetime) -> tuple[str, ...]:
    """Return which segments begun since could not be read whole, torn tails of kills aside.

    And which hours were found damaged since. A name that tells no time is always among them.
    """
    began = pl.col("segment").str.extract(r"-(\d{8}T\d{12})-").str.to_datetime("%Y%m%dT%H%M%S%6f")
    is_old = (began.dt.replace_time_zone("UTC") < since).fill_null(value=False)
    lost = read_quarantine(find_folder(home)).filter(pl.col("reason") != "torn_tail", ~is_old)
    if lost.is_empty():
        return ()
    names = lost["segment"].unique().sort().to_list()
    count = f"{lost.height} stretch{'es' if lost.height > 1 else ''}"
    return (
        f"{count} of the trace files {', '.join(names[:3])}{' …' if len(names) > 3 else ''} "
        "cannot be read: read traces/quarantined_frames",
    )


def find_cold_servers(urls: Sequence[str]) -> tuple[str, ...]:
    """Return which of the configured servers do not answer now, each with what to do."""
    probes = asyncio.run(probe_servers(urls)) if urls else []
    return tuple(
        f"the server {probe.url} is not ready ({probe.told}): read its log"
        for probe in probes
        if not probe.is_warm
    )


def read_release(home: Home) -> ReleaseStatus | None:
    """Return the verified current release, or None where none was published."""
    if not (home.releases / CURRENT).exists():
        return None
    manifest = load_current(home.releases, load_public_key(home.keys)).manifest
    return ReleaseStatus(
        release_id=manifest.release_id,
        phase=manifest.phase,
        verdict=manifest.gate.verdict,
        students=tuple(sorted(manifest.tier_names)),
        skills={
            name: manifest.students[skill.student].adapter
            for name, skill in manifest.skills.items()
        },
    )


def read_traffic(home: Home, *, since: datetime) -> TrafficStatus:
    """Return what production did since a moment; shadows and other environments do not count."""
    first = since.replace(minute=0, second=0, microsecond=0)
    paths = [path for path in list_hours(find_folder(home)) if read_hour(path) >= first]
    everywhere = scan_hours(paths).filter(is_asked(), pl.col("asked_at") >= since)
    asked = everywhere.filter(pl.col("env") == "prod")
    environments = everywhere.select(pl.col("env").unique().sort()).collect()["env"].drop_nulls()
    answered = pl.col("outcome") == "answered"
    row = (
        asked.select(
            pl.len().alias("ask_count"),
            (~answered).mean().alias("failed_ratio"),
            (pl.col("served_by") == "teacher").filter(answered).mean().alias("teacher_ratio"),
            pl.col("refused").filter(answered).mean().alias("refused_ratio"),
            pl.col("cost_usd").filter(answered).sum(),
            pl.col("counterfactual_cost_usd").filter(answered).sum().alias("teacher_only_cost_usd"),
            pl.col("cost_usd").filter(~answered).sum().alias("failed_cost_usd"),
            pl.col("asked_at").max().alias("last_asked_at"),
        )
        .collect()
        .row(0, named=True)
    )
    unsealed_count, damaged = count_unsealed(home)
    return TrafficStatus(
        **row,
        elsewhere=tuple(env for env in environments if env not in {"prod", DRILL_ENV}),
        unsealed_count=unsealed_count,
        damaged=damaged,
    )


def count_unsealed(home: Home) -> tuple[int, tuple[str, ...]]:
    """Return how many traces lie in segments that a server is still writing, and what is damaged.

    A segment that is sealed meanwhile has another name, and is passed over.
    """
    count, damaged = 0, []
    for path in sorted(home.traces.glob(f"*{OPEN_SUFFIX}")):
        try:
            for _ in read_frames(path):
                count += 1
        except FileNotFoundError:
            continue
        except TraceError as error:
            damaged.append(f"a trace segment is damaged: {error}")
    return count, tuple(damaged)


def _read_monitors(home: Home) -> pl.DataFrame | None:
    path = home.table(ALARMS)
    return pl.read_parquet(path) if path.is_file() else None


def _name(monitors: pl.DataFrame | None, status: str) -> tuple[str, ...]:
    if monitors is None:
        return ()
    names: Sequence[str] = monitors.filter(pl.col("status") == status)["monitor"].to_list()
    return tuple(sorted(set(names)))
