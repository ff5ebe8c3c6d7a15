"""The command `understudy status`.

Belongs here: what is printed. Does not belong here: what is asked and judged (`status`).
"""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from orchestration.config import load_config, prepare_environment
from orchestration.console import CONSOLE
from orchestration.explaining import explain_errors
from orchestration.options import Json

if TYPE_CHECKING:
    from orchestration.production_traffic import TrafficStatus
    from orchestration.status import ReleaseStatus, Status

BY_HAND = "Nothing starts it by itself (loop.retrain: manual): `understudy run` does"
WHO_ANSWERS = {
    "hitchhiker": "the teacher answers everything",
    "imposter": "the teacher answers, the student in shadow",
    "switch": "the router decides who answers",
    "dreamer": "the router decides who answers",
}
RESTS_ON = {
    "cost": {"traffic"},
    "review": {"candidates"},
    "next phase": {"release", "monitors", "traffic"},
}
"""The parts that a line is made from, where it is not the one of its name."""


@explain_errors
def status(as_json: Json = False) -> None:
    """Say whether production is fine, what it costs, when the student is trained again, why not."""
    import dagster as dg

    from orchestration.curate_cli import compact
    from orchestration.status import read_status
    from serving.home import Home

    config = load_config()
    prepare_environment(config)
    home = Home(config.home)
    with dg.DagsterInstance.get() as instance:
        found = read_status(config, instance, now=datetime.now(UTC), refresh=lambda: compact(home))
    if as_json:
        saved = {"saved_ratio": found.traffic.saved_ratio, "is_fine": found.is_fine,
                 "unknowns": found.unknowns}  # fmt: skip
        sys.stdout.write(json.dumps(asdict(found) | saved, default=str) + "\n")
    else:
        _show(found)
    if found.problems:
        raise typer.Exit(1)


def _show(found: "Status") -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    rows = [
        ("release", _describe_release(found.release)),
        ("traffic", _describe_traffic(found.traffic)),
        ("cost", _describe_cost(found.traffic)),
        ("monitors", _describe_monitors(found)),
        ("training", _describe_training(found)),
        ("review", _describe_review(found)),
        ("next phase", _describe_phases(found)),
    ]  # fmt: skip
    for name, value in rows:
        is_known = not RESTS_ON.get(name, {name}) & set(found.unread)
        table.add_row(f"[dim]{name}[/]", escape(value) if is_known else "[red]not known[/]")
    mark = "[green]fine[/]" if found.is_fine else "[red]needs a person[/]"
    if found.unknowns and not found.problems:
        mark = f"[yellow]no problem is known[/], but {' and '.join(found.unknowns)}"
    CONSOLE.print(f"Production: {mark}")
    CONSOLE.print(table)
    for problem in found.problems:
        CONSOLE.print(f"  [red]✗[/] {escape(problem)}", soft_wrap=True)


def _describe_release(release: "ReleaseStatus | None") -> str:
    if release is None:
        return "none"
    students = f"student {', '.join(release.students)}" if release.students else "no student"
    if release.skills:
        skills = (f"{name} ({adapter})" for name, adapter in release.skills.items())
        students += f", skills {', '.join(skills)}"
    return (
        f"{release.release_id}, {students}; the gate said {release.verdict}; in the phase "
        f"{release.phase} {WHO_ANSWERS[release.phase]}"
    )


def _describe_traffic(traffic: "TrafficStatus") -> str:
    unsealed = f"{traffic.unsealed_count} traces are not sealed yet, look again in 5 minutes"
    elsewhere = (
        f"; others asked in {', '.join(traffic.elsewhere)}: UNDERSTUDY_SERVE_ENV names a server's "
        "environment"
    )
    more = elsewhere if traffic.elsewhere else ""
    if not traffic.ask_count:
        return (unsealed if traffic.unsealed_count else "nobody asked in prod in 7 days") + more
    more += f"; {unsealed}" if traffic.unsealed_count else ""
    return (
        f"{traffic.ask_count} asks in 7 days, the last at "
        f"{traffic.last_asked_at:%Y-%m-%d %H:%M}; teacher {traffic.teacher_ratio or 0:.0%}, "
        f"refused {traffic.refused_ratio or 0:.0%}, failed {traffic.failed_ratio or 0:.1%}{more}"
    )


def _describe_cost(traffic: "TrafficStatus") -> str:
    failed = f"{traffic.failed_cost_usd:.4f} USD for asks that failed"
    if traffic.saved_ratio is None:
        return failed if traffic.failed_cost_usd else "nothing was spent"
    return (
        f"{traffic.cost_usd:.4f} USD, {traffic.teacher_only_cost_usd:.4f} by the teacher alone: "
        f"saved {traffic.saved_ratio:.0%}" + (f"; {failed}" if traffic.failed_cost_usd else "")
    )


def _describe_monitors(found: "Status") -> str:
    if not found.is_monitored:
        return "not run yet: `understudy run --select monitoring`"
    told = f"alarm: {', '.join(found.alarms)}" if found.alarms else "no alarm"
    unsure = f"; inconclusive: {', '.join(found.inconclusive)}" if found.inconclusive else ""
    return told + unsure


def _describe_phases(found: "Status") -> str:
    held = next((step for step in found.phases if step.missing), None)
    if held is None:
        return "each of them is earned"
    why = ": `understudy report`" if held.phase == "switch" else ""
    return f"{held.phase} lacks {', '.join(held.missing)}{why}"


def _describe_training(found: "Status") -> str:
    told = found.retraining
    return told if found.is_retraining_automatic else f"{told}. {BY_HAND}"


def _describe_review(found: "Status") -> str:
    told = (
        (found.escalation_count, "escalations wait for a person: `understudy curate list "
         "--escalations`"),
        (found.candidate_count, "candidates: `understudy curate list`"),
    )  # fmt: skip
    return "; ".join(f"{count} {text}" for count, text in told if count) or "nothing waits"
