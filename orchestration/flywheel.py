"""One turn of the flywheel, unattended: serve, be asked, curate, train, gate, release, serve again.

Every step is the one that runs in production; only the customers are simulated. Belongs here: the
order of the steps and what the turn is judged by. Does not belong here: any step itself.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import dagster as dg
import polars as pl

from assets.parity.ratchet import RatchetStep, compare_curves, draw_ratchet
from assets.traces.curating import find_candidates
from assets.traces.deciding import Reviewer, decide_trace, find_trace, is_asked, open_decisions
from assets.traces.escalating import find_escalations
from assets.traces.hours import find_folder, list_hours, scan_hours
from orchestration.bindings import Bindings
from orchestration.config import Config, prepare_environment
from orchestration.curate_cli import compact
from orchestration.drill import DRILL_ENV, DriftAlarm, gather_drill, judge_drill
from orchestration.live_server import LiveServer, running_server
from orchestration.running import run_chain
from orchestration.sensors.deciding import Launch, decide_retraining
from orchestration.sensors.facts import read_policy, read_retraining_facts
from orchestration.traffic import PlannedAsk, TrafficReport, send_traffic
from serving.access.keys import KEYS_FILE, create_key, read_keys, revoke_key
from serving.errors import InvalidInputError, UnderstudyError
from serving.files import atomic_path
from serving.home import Home
from serving.models.protocols import Progress

CUSTOMERS = 24
CONCURRENCY = 4
RUBRIC = Reviewer(name="unattended", kind="automation")
TAUGHT = ("fallback", "low_retrieval", "low_confidence", "long_context", "phase", "explore")
"""Why the teacher answered, where that is worth learning: refusals are left to people."""

Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Leg:
    """What one release did with the traffic."""

    release_id: str
    ask_count: int
    teacher_ratio: float
    cost_usd: float
    teacher_only_cost_usd: float

    @property
    def saved_ratio(self) -> float:
        """The share of the teacher's price that was not paid."""
        if not self.teacher_only_cost_usd:
            return 0.0
        return 1 - self.cost_usd / self.teacher_only_cost_usd


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn changed."""

    before: Leg
    after: Leg
    accepted_count: int
    drift: DriftAlarm
    """What the monitor of drift said of the drill."""
    reason: str
    """Why the student was trained again."""
    ratchet: tuple[RatchetStep, ...]
    chart: str


def turn_flywheel(
    config: Config,
    *,
    recipe: str,
    plan: Sequence[PlannedAsk],
    drill: Sequence[PlannedAsk],
    minimum_teacher_traces: int,
    progress: Progress,
    serve_settings: Mapping[str, str] | None = None,
    announce: Announce = lambda _line: None,
) -> Turn:
    """Serve the current release, let it be asked, learn from what the teacher had to answer.

    Args:
        config: the product; its home holds a release.
        recipe: which student is trained.
        plan: the questions, sent once before and once after.
        drill: two weeks whose topics shift half-way; the monitor of drift has to alarm on them.
        minimum_teacher_traces: how many curated ones make a training due here.
        progress: told how far long steps are.
        serve_settings: environment of both servers, such as the phase.
        announce: told what happens.

    Raises:
        InvalidInputError: traffic taught too little for a training to be due.
        UnderstudyError: the chain stopped, or the planted drift raised no alarm.
    """
    prepare_environment(config)
    home = Home(config.home)
    settings = {
        "UNDERSTUDY_SERVE_ENV": "prod",
        "UNDERSTUDY_SERVE_RELEASE_POLL_SECONDS": "1",
        **(serve_settings or {}),
    }
    drift = drill_drift(config, drill, settings, progress)
    announce(drift.describe())
    with customers(home) as keys:
        with running_server(config, settings) as server:
            first = server.wait_until()
            announce(f"{first} serves; {len(plan)} customers ask")
            _ask(server, plan, keys)
        compact(home)
        accepted = curate_unattended(home, now=datetime.now(UTC))
        announce(f"{accepted} answers of the teacher are accepted for training")
        curve = _read_curve(home, recipe)
        with running_server(config, settings) as server:  # serves while its successor is made
            server.wait_until(released=first)
            due = _require_due(config, recipe, minimum_teacher_traces, drift)
            announce(f"training is due: {due.reason}")
            second = _retrain(config, recipe, due, progress)
            server.wait_until(released=second)
            announce(f"{second} was loaded without a restart; the same customers ask again")
            _ask(server, plan, keys)
    compact(home)
    now = _read_curve(home, recipe)
    chart = home.reports / recipe / "ratchet.png"
    with atomic_path(chart) as temporary:
        temporary.write_bytes(draw_ratchet(curve, now))
    return Turn(
        before=measure_leg(home, first),
        after=measure_leg(home, second),
        accepted_count=accepted,
        drift=drift,
        reason=due.reason,
        ratchet=compare_curves(curve, now),
        chart=str(chart),
    )


def drill_drift(
    config: Config, plan: Sequence[PlannedAsk], settings: Mapping[str, str], progress: Progress
) -> DriftAlarm:
    """Let simulated weeks pass through a server of their own; return the alarm they raise.

    The teacher answers them all, since what people ask drifts whoever answers.
    """
    home = Home(config.home)
    began = datetime.now(UTC)
    apart = {"UNDERSTUDY_SERVE_ENV": DRILL_ENV, "UNDERSTUDY_SERVE_PHASE": "hitchhiker"}
    with (
        customers(home, env=DRILL_ENV) as keys,
        running_server(config, {**settings, **apart}) as server,
    ):
        server.wait_until()
        _ask(server, plan, keys)
    compact(home)
    traffic = gather_drill(home, plan, since=began, end=datetime.now(UTC))
    return judge_drill(traffic, Bindings(config, progress).embedder)


@contextmanager
def customers(home: Home, count: int = CUSTOMERS, *, env: str = "prod") -> Iterator[list[str]]:
    """Give so many customers a key each, and take them back.

    A home whose server was open to its machine is so again afterwards.
    """
    was_open = not read_keys(home.keys)
    made = [
        create_key(
            home.keys, tenant=f"simulated-{number}-{uuid.uuid4().hex[:6]}", scopes=("ask",),
            valid_days=1, env=env, requests_per_minute=100_000,
        )
        for number in range(count)
    ]  # fmt: skip
    try:
        yield [key.text for key in made]
    finally:
        for key in made:
            revoke_key(home.keys, key.entry.key_id)
        if was_open:
            (home.keys / KEYS_FILE).unlink()


def curate_unattended(home: Home, *, now: datetime) -> int:
    """Accept every candidate that the teacher answered for a reason worth learning; count them.

    What waits for a person in the review queue stays there: no rubric may close an escalation.
    """
    folder, journal = find_folder(home), open_decisions(home)
    records = scan_hours(list_hours(folder))
    decisions = journal.read()
    escalated = find_escalations(records, decisions)["trace_id"].to_list()
    candidates = find_candidates(records, decisions).filter(
        pl.col("why").is_in(TAUGHT), ~pl.col("trace_id").is_in(escalated)
    )
    for trace_id in candidates["trace_id"]:
        journal.append(
            decide_trace(
                find_trace(folder, trace_id),
                verdict="accepted",
                reason_code="weak_spot",
                reviewer=RUBRIC,
                shown_at=None,
                decided_at=now,
            )
        )
    return candidates.height


def measure_leg(home: Home, release_id: str) -> Leg:
    """Return what a release did with all production traffic it ever answered."""
    row = (
        scan_hours(list_hours(find_folder(home)))
        .filter(
            is_asked(),
            pl.col("env") == "prod",
            pl.col("release_id") == release_id,
            pl.col("outcome") == "answered",
        )
        .select(
            pl.len().alias("ask_count"),
            (pl.col("served_by") == "teacher").mean().fill_null(0.0).alias("teacher_ratio"),
            pl.col("cost_usd").sum(),
            pl.col("counterfactual_cost_usd").sum().alias("teacher_only_cost_usd"),
        )
        .collect()
        .row(0, named=True)
    )
    return Leg(release_id=release_id, **row)


def _require_due(config: Config, recipe: str, minimum: int, drift: DriftAlarm) -> Launch:
    with dg.DagsterInstance.get() as instance:
        facts = read_retraining_facts(config, instance, recipe)
    facts = replace(facts, drifting=sorted({*facts.drifting, drift.monitor}))
    policy = replace(
        read_policy(config), minimum_teacher_traces=minimum, minimum_after_drift=minimum
    )
    decision = decide_retraining(facts, policy)
    if isinstance(decision, Launch):
        return decision
    raise InvalidInputError(
        "turning the flywheel",
        expected=f"at least {minimum} curated questions that the teacher answered",
        found=decision.reason,
        next_step="send more traffic; `traces/admissions` says why a decision admits nothing",
    )


def _retrain(config: Config, recipe: str, due: Launch, progress: Progress) -> str:
    outcome = run_chain(config, progress=progress, recipe=recipe, tags=due.tags)
    if not outcome.succeeded:
        raise UnderstudyError(
            "training the student again",
            expected="the chain to end with a release",
            found=outcome.failure,
            next_step="mend the cause and run `understudy run`: what was made is kept",
        )
    bundle = pl.read_parquet(Home(config.home).table("releases/release_bundle", recipe))
    return str(bundle["release_id"][0])


def _read_curve(home: Home, recipe: str) -> pl.DataFrame:
    return pl.read_parquet(home.table("parity/router_curve", recipe))


def _ask(server: LiveServer, plan: Sequence[PlannedAsk], keys: Sequence[str]) -> TrafficReport:
    import httpx2

    async def send() -> TrafficReport:
        async with httpx2.AsyncClient(base_url=server.url, timeout=120.0) as client:
            return await send_traffic(client, plan, pace=0, keys=keys, concurrency=CONCURRENCY)

    return asyncio.run(send())
