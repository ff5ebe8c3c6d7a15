"""What `understudy demo --flywheel` does after the chain: one turn, shown as before and after.

Belongs here: which questions are asked and what is printed. Does not belong here: the turn
(`flywheel`).
"""

import time

from rich.markup import escape
from rich.table import Table

from orchestration.config import Config
from orchestration.console import CONSOLE, show_progress
from orchestration.drill import ASKS_PER_DAY, DAYS
from orchestration.flywheel import Turn, turn_flywheel
from orchestration.status import read_release
from orchestration.traffic import PlannedAsk, plan_traffic
from orchestration.traffic_cli import read_topics
from orchestration.turning import is_unfinished
from resources.input_files import SeedFile
from serving.home import Home

QUESTIONS = "flywheel_questions.jsonl"
"""Beside the seed file: questions of users that no seed asks."""
ASKS = 120
MINIMUM_TEACHER_TRACES = 10  # a demonstration has one hour of traffic, not one month
SEED = 7


def has_unfinished_turn(config: Config, recipe: str) -> bool:
    """Say whether an earlier try with this recipe and these questions left something to go on with.

    Raises:
        InvalidInputError: there are no questions beside the seeds.
    """
    return is_unfinished(Home(config.home), recipe, _plan_turn(config))


def _plan_turn(config: Config) -> tuple[list[PlannedAsk], list[PlannedAsk]]:
    """Return what is asked before and after, and the drill."""
    topics = read_topics(SeedFile(config.seeds.path.with_name(QUESTIONS)))
    return (
        plan_traffic(topics, days=1, asks_per_day=ASKS, seed=SEED, key_count=24),
        plan_traffic(topics, days=DAYS, asks_per_day=ASKS_PER_DAY, seed=SEED, key_count=24),
    )


def show_turn(config: Config, recipe: str) -> None:
    """Turn the flywheel once over simulated traffic and print what it changed.

    Raises:
        InvalidInputError: there are no questions beside the seeds, or they taught too little.
    """
    plan, drill = _plan_turn(config)
    began = time.monotonic()

    def tell(line: str) -> None:
        seconds = time.monotonic() - began
        CONSOLE.print(f"[dim]{seconds:6.0f} s  {escape(line)}[/]", soft_wrap=True)

    with show_progress() as progress:
        turn = turn_flywheel(
            config,
            recipe=recipe,
            plan=plan,
            drill=drill,
            minimum_teacher_traces=MINIMUM_TEACHER_TRACES,
            progress=progress,
            announce=tell,
        )
    _show(turn)
    release = read_release(Home(config.home))
    if release and release.phase == "hitchhiker" and turn.after.teacher_ratio == 1.0:
        CONSOLE.print(
            f"[dim]the gate says {release.verdict}: in the phase hitchhiker the teacher answers "
            "everything, so nothing is saved[/]",
            soft_wrap=True,
        )


def _show(turn: Turn) -> None:
    legs = Table(title="One turn of the flywheel", title_justify="left", box=None, padding=(0, 2))
    for name in ("", "release", "asks", "teacher", "cost USD", "by teacher alone", "saved"):
        legs.add_column(name, justify="left" if name in {"", "release"} else "right")
    for name, leg in (("before", turn.before), ("after", turn.after)):
        legs.add_row(
            name, leg.release_id, str(leg.ask_count), f"{leg.teacher_ratio:.0%}",
            f"{leg.cost_usd:.4f}", f"{leg.teacher_only_cost_usd:.4f}", f"{leg.saved_ratio:.0%}",
        )  # fmt: skip
    CONSOLE.print(legs)
    CONSOLE.print(
        "[dim]by teacher alone: its own calls, and for each answer of the student the whole prompt "
        "and the answer's tokens at the teacher's price[/]",
        soft_wrap=True,
    )
    CONSOLE.print(f"[dim]trained on {turn.accepted_count} accepted answers; {turn.reason}[/]")
    for step in turn.ratchet:
        CONSOLE.print(
            f"  agreement {step.quality:.0%} takes {_write(step.before_ratio)} of the teacher "
            f"before, {_write(step.after_ratio)} now"
        )
    CONSOLE.print(f"[dim]  curves  {escape(turn.chart)}[/]", soft_wrap=True)


def _write(ratio: float | None) -> str:
    return "no share" if ratio is None else f"{ratio:.0%}"
