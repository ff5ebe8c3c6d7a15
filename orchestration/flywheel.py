"""One turn of the flywheel, unattended: serve, be asked, curate, train, gate, release, serve again.

Every step is the one that runs in production; only the customers are simulated. What a step found
is remembered (`turning`), so a turn that failed goes on where it did. Belongs here: the order of
the steps and what the turn is judged by. Does not belong here: any step itself.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from assets.parity.ratchet import RatchetStep, compare_curves, draw_ratchet
from assets.traces.curating import find_candidates
from assets.traces.deciding import Reviewer, decide_trace, find_trace, open_decisions
from assets.traces.escalating import find_escalations
from assets.traces.hours import find_folder, list_hours, scan_hours
from orchestration.config import Config, prepare_environment
from orchestration.curate_cli import compact
from orchestration.customers import CUSTOMERS, Asking, Leg, ask_server, customers, measure_leg
from orchestration.drill import DriftAlarm, drill_drift
from orchestration.live_server import LiveServer, running_server
from orchestration.running import run_chain
from orchestration.sensors.deciding import Decision, GiveUp, Launch, Wait, decide_retraining
from orchestration.sensors.facts import read_policy, read_retraining_facts
from orchestration.traffic import PlannedAsk
from orchestration.turning import Announce, TurnMemory, open_turn
from serving.errors import InvalidInputError, UnderstudyError
from serving.files import atomic_path
from serving.home import Home
from serving.models.protocols import Progress

RUBRIC = Reviewer(name="unattended", kind="automation")
TAUGHT = ("fallback", "low_retrieval", "low_confidence", "long_context", "phase", "explore")
"""Why the teacher answered, where that is worth learning: refusals are left to people."""
CURVE = "parity/router_curve"
SERVE, CURATE = "2/6 serve", "3/6 curate"
"""What a turn that is not due makes again: its next try needs other traffic."""


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
    turn = open_turn(home, recipe, (plan, drill), announce)
    steps = _Steps(
        config=config, home=home, recipe=recipe, plan=plan, turn=turn, progress=progress,
        settings={
            "UNDERSTUDY_SERVE_ENV": "prod",
            "UNDERSTUDY_SERVE_RELEASE_POLL_SECONDS": "1",
            **(serve_settings or {}),
        },
    )  # fmt: skip
    drift = steps.drill(drill)
    first = steps.serve()
    steps.curate()
    due = steps.decide(minimum_teacher_traces, drift)
    second = steps.retrain(due)
    before, now = pl.read_parquet(steps.kept_curve), _read_curve(home, recipe)
    chart = home.reports / recipe / "ratchet.png"
    with atomic_path(chart) as temporary:
        temporary.write_bytes(draw_ratchet(before, now))
    turned = Turn(
        before=measure_leg(home, first),
        after=measure_leg(home, second),
        accepted_count=count_accepted(home, since=turn.began_at),
        drift=drift,
        reason=due.reason,
        ratchet=compare_curves(before, now),
        chart=str(chart),
    )
    turn.forget()
    return turned


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """The remembered steps of one turn, in their order."""

    config: Config
    home: Home
    recipe: str
    plan: Sequence[PlannedAsk]
    turn: TurnMemory
    progress: Progress
    settings: Mapping[str, str]

    @property
    def kept_curve(self) -> Path:
        """The router curve of the old student: training overwrites the recipe's."""
        return self.turn.path.with_name("router_curve_before.parquet")

    def drill(self, plan: Sequence[PlannedAsk]) -> DriftAlarm:
        def run() -> dict[str, Any]:
            alarm = drill_drift(self.config, plan, self.settings, self.progress, self.turn.announce)
            self.turn.announce(alarm.describe())
            return asdict(alarm)

        told = f"{len(plan)} questions of two weeks whose topics shift, to a server of their own"
        return DriftAlarm(**self.turn.do("1/6 drill", told, run))

    def serve(self) -> Asking:
        def run() -> dict[str, Any]:
            with self._serving() as (server, keys):
                first = server.wait_until()
                self.turn.announce(f"{first} serves")
                return self._ask(server, keys, first)

        told = f"{len(self.plan)} questions of {CUSTOMERS} customers to the release in force"
        return Asking(**self.turn.do(SERVE, told, run))

    def curate(self) -> None:
        compact(self.home)
        told = "answers of the teacher are accepted for training"
        self.turn.do(CURATE, told, lambda: curate_unattended(self.home, now=datetime.now(UTC)))
        self.turn.announce(f"{count_accepted(self.home, since=self.turn.began_at)} {told}")

    def decide(self, minimum: int, drift: DriftAlarm) -> Launch:
        def run() -> dict[str, Any]:
            shutil.copyfile(self.home.table(CURVE, self.recipe), self.kept_curve)
            decision = _judge_due(self.config, self.recipe, minimum, drift)
            if isinstance(decision, Launch):
                return asdict(decision)
            self.turn.drop(SERVE, CURATE)
            raise _explain_not_due(decision, minimum, self.turn.path)

        due = Launch(**self.turn.do("4/6 decide", "whether a training is due", run))
        self.turn.announce(f"training is due: {due.reason}")
        return due

    def retrain(self, due: Launch) -> Asking:
        """Train while a server goes on serving; let it load the result, and be asked again."""
        with self._serving() as (server, keys):
            server.wait_until()

            def run() -> str:
                return _retrain(self.config, self.recipe, due, self.progress, self.turn.announce)

            told = "the chain from the seeds to the release, while a server goes on serving"
            second = str(self.turn.do("5/6 retrain", told, run))

            def ask_again() -> dict[str, Any]:
                server.wait_until(released=second)
                self.turn.announce(f"{second} was loaded without a restart")
                return self._ask(server, keys, second)

            told = "the same questions to the new release"
            asked = Asking(**self.turn.do("6/6 serve again", told, ask_again))
        compact(self.home)
        return asked

    def _ask(self, server: LiveServer, keys: Sequence[str], release_id: str) -> dict[str, Any]:
        began = datetime.now(UTC).isoformat()
        self.turn.announce(ask_server(server, self.plan, keys, self.progress))
        ended = datetime.now(UTC).isoformat()
        return asdict(Asking(release_id=release_id, began_at=began, ended_at=ended))

    @contextmanager
    def _serving(self) -> Iterator[tuple[LiveServer, list[str]]]:
        """Run a server that knows its customers from its start: keys made later are read later."""
        with (
            customers(self.home) as keys,
            running_server(self.config, self.settings) as server,
        ):
            yield server, keys


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


def count_accepted(home: Home, *, since: datetime) -> int:
    """Return how many traces the rubric accepted since then, over however many tries."""
    accepted = (
        open_decisions(home)
        .read()
        .filter(
            pl.col("decided_at") >= since,
            decision="accepted",
            reviewer=RUBRIC.name,
            reviewer_kind=RUBRIC.kind,
        )
    )
    return accepted["trace_id"].n_unique()


def _judge_due(config: Config, recipe: str, minimum: int, drift: DriftAlarm) -> Decision:
    with dg.DagsterInstance.get() as instance:
        facts = read_retraining_facts(config, instance, recipe)
    facts = replace(facts, drifting=sorted({*facts.drifting, drift.monitor}))
    policy = replace(
        read_policy(config), minimum_teacher_traces=minimum, minimum_after_drift=minimum
    )
    return decide_retraining(facts, policy)


def _explain_not_due(decision: Wait | GiveUp, minimum: int, memory: Path) -> InvalidInputError:
    step = (
        "send more traffic and turn again: it is curated then, and `traces/admissions` says why a "
        "decision admits nothing"
    )
    if isinstance(decision, GiveUp):
        step = "mend what made those runs fail, then turn again"
    elif decision.run_id:
        step = f"let it end, or end it in `understudy ui` under runs/{decision.run_id}; turn again"
    return InvalidInputError(
        "turning the flywheel",
        expected=f"at least {minimum} curated questions that the teacher answered",
        found=decision.reason,
        next_step=f"{step}; {memory} keeps the drill, and without it a turn begins anew",
    )


def _retrain(
    config: Config, recipe: str, due: Launch, progress: Progress, announce: Announce
) -> str:
    outcome = run_chain(
        config,
        progress=progress,
        recipe=recipe,
        tags=due.tags,
        announce=lambda planned: announce(f"{len(planned)} assets to make"),
    )
    if not outcome.succeeded:
        raise UnderstudyError(
            "training the student again",
            expected="the chain to end with a release",
            found=outcome.failure,
            next_step="mend the cause and turn again: what was made and found is kept",
        )
    bundle = pl.read_parquet(Home(config.home).table("releases/release_bundle", recipe))
    return str(bundle["release_id"][0])


def _read_curve(home: Home, recipe: str) -> pl.DataFrame:
    return pl.read_parquet(home.table(CURVE, recipe))
