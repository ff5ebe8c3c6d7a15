"""What an operator asks every morning: is production fine, what does it cost, when is it retrained?

Belongs here: reading what servers, monitors and runs have stored, and the judgement on it. Does not
belong here: printing (`status_cli`), the decisions of the sensors (`sensors/deciding`).
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import dagster as dg
import polars as pl

from assets.traces.curating import find_candidates
from assets.traces.deciding import open_decisions
from assets.traces.escalating import find_escalations
from assets.traces.hours import find_folder, list_hours, scan_hours
from assets.traces.planting import scan_reviewed
from orchestration.config import Config
from orchestration.lake import read_table
from orchestration.phases import PhaseFacts, PhaseStep, assess_phases
from orchestration.production_traffic import TrafficStatus, find_quarantined, read_traffic
from orchestration.sensors.deciding import Decision, GiveUp, Launch, Wait, decide_retraining
from orchestration.sensors.facts import ALARMS, read_policy, read_retraining_facts
from orchestration.sensors.keep_warm import probe_servers
from serving.errors import UnderstudyError
from serving.home import Home
from serving.releases.bundle import CURRENT, load_current
from serving.releases.signing import load_public_key

WINDOW = timedelta(days=7)  # `status_cli` says so too
MAXIMUM_FAILED_RATIO = 0.01  # of all asks: answered with a problem document, above it: not fine
GATE_VERDICT = "releases/gate_verdict"

Part = TypeVar("Part")
NO_TRAFFIC = TrafficStatus(
    ask_count=0, failed_ratio=None, teacher_ratio=None, refused_ratio=None, cost_usd=0.0,
    teacher_only_cost_usd=0.0, last_asked_at=None,
)  # fmt: skip


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
    escalation_count: int = 0
    """Answers that a person must look at, and nobody has."""
    unread: tuple[str, ...] = ()
    """Parts that could not be read, so that what stands for them here says nothing."""

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


@dataclass(frozen=True)
class Reading:
    """Reads parts: one that cannot be read is kept as a problem, and the others are still told."""

    problems: dict[str, str] = field(default_factory=dict)

    def read(self, part: str, reader: Callable[[], Part], instead: Part) -> Part:
        """Return what the reader does, or `instead` where it fails, whatever ails it."""
        try:
            return reader()
        # Polars panics where damage contradicts what a file says of itself.
        except (Exception, pl.exceptions.PanicException) as error:  # noqa: BLE001
            self.problems[part] = f"{part} cannot be read: {_explain(error)}"
            return instead


def _explain(error: BaseException) -> str:
    if isinstance(error, UnderstudyError):
        return (
            f"while {error.attempted}, expected {error.expected}, found {error.found}. "
            f"Next: {error.next_step}"
        )
    said = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {said}. Next: mend or remove what it names"


def read_status(
    config: Config,
    instance: dg.DagsterInstance,
    *,
    now: datetime,
    refresh: Callable[[], object] = lambda: None,
) -> Status:
    """Return the status of a configuration's home; what cannot be read is a problem of its own.

    Args:
        config: the product.
        instance: Dagster's storage.
        now: the end of the window that is told of.
        refresh: brings the stored hours up to date first.
    """
    home, reading = Home(config.home), Reading()
    reading.read("new traces", refresh, None)
    waits: Decision = Wait(reason="not known")
    decision = reading.read("training", lambda: _decide(config, instance), waits)
    release = reading.read("release", lambda: read_release(home), None)
    reading.read("gate", lambda: _check_gate(home, config.default_recipe), None)
    traffic = reading.read("traffic", lambda: read_traffic(home, since=now - WINDOW), NO_TRAFFIC)
    monitors = reading.read("monitors", lambda: _read_monitors(home), None)
    candidates, escalations = reading.read("candidates", lambda: _count_waiting(home), (0, 0))
    alarms, inconclusive = _name(monitors, "alarm"), _name(monitors, "inconclusive")
    found = find_problems(
        release,
        traffic,
        alarms=alarms,
        decision=decision,
        is_read="release" not in reading.problems,
    )
    none: tuple[str, ...] = ()
    lost = reading.read("quarantine", lambda: find_quarantined(home, since=now - WINDOW), none)
    return Status(
        release=release,
        traffic=traffic,
        alarms=alarms,
        inconclusive=inconclusive,
        is_monitored=monitors is not None,
        retraining=describe_decision(decision),
        is_retraining_due=isinstance(decision, Launch),
        is_retraining_automatic=config.loop.retrain == "automatic",
        candidate_count=candidates,
        escalation_count=escalations,
        phases=assess_phases(
            gather_phase_facts(release, traffic, alarms=None if monitors is None else alarms)
        ),
        problems=(
            *reading.problems.values(),
            *found,
            *lost,
            *find_cold_servers(config.loop.servers),
        ),
        unread=tuple(reading.problems),
    )


def _decide(config: Config, instance: dg.DagsterInstance) -> Decision:
    facts = read_retraining_facts(config, instance, config.default_recipe)
    return decide_retraining(facts, read_policy(config))


def _check_gate(home: Home, recipe: str) -> None:
    """Read the verdict that the next release is made by, if there is one."""
    path = home.table(GATE_VERDICT, recipe)
    if path.is_file():
        read_table(path, attempted="reading the gate", next_step="`understudy run`")


def _count_waiting(home: Home) -> tuple[int, int]:
    """Return how many candidates and how many escalations wait for a decision."""
    folder, decisions = find_folder(home), open_decisions(home).read()
    queue = find_escalations(scan_reviewed(folder), decisions)
    candidates = find_candidates(scan_hours(list_hours(folder)), decisions)
    return candidates.height, queue["closed_at"].null_count()


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
    is_read: bool = True,
) -> tuple[str, ...]:
    """Return what asks for a person, worst first; each with what to do.

    `is_read` is False where it is not known whether there is a release.
    """
    problems = []
    if release is None and is_read:
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
        students=manifest.tier_names,
        skills={
            name: manifest.students[skill.student].adapter
            for name, skill in manifest.skills.items()
        },
    )


def _read_monitors(home: Home) -> pl.DataFrame | None:
    path = home.table(ALARMS)
    if not path.is_file():
        return None
    return read_table(path, attempted="reading the monitors", next_step="`understudy run`")


def _name(monitors: pl.DataFrame | None, status: str) -> tuple[str, ...]:
    if monitors is None:
        return ()
    names: Sequence[str] = monitors.filter(pl.col("status") == status)["monitor"].to_list()
    return tuple(sorted(set(names)))
