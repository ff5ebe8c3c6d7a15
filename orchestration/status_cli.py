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
    from orchestration.status import Status, TrafficStatus


@explain_errors
def status(as_json: Json = False) -> None:
    """Say whether production is fine, what it costs, when the student is trained again, why not."""
    import dagster as dg

    from orchestration.curate_cli import compact
    from orchestration.status import read_status
    from serving.home import Home

    config = load_config()
    prepare_environment(config)
    compact(Home(config.home))
    with dg.DagsterInstance.get() as instance:
        found = read_status(config, instance, now=datetime.now(UTC))
    if as_json:
        saved = {"saved_ratio": found.traffic.saved_ratio, "is_fine": found.is_fine}
        sys.stdout.write(json.dumps(asdict(found) | saved, default=str) + "\n")
    else:
        _show(found)
    if not found.is_fine:
        raise typer.Exit(1)


def _show(found: "Status") -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    release = found.release
    rows = [
        ("release", f"{release.release_id}, {release.phase}, {release.verdict}, "
                    f"{' '.join(release.students) or 'no student'}" if release else "none"),
        ("traffic", _describe_traffic(found.traffic)),
        ("cost", _describe_cost(found.traffic)),
        ("monitors", _describe_monitors(found)),
        ("training", found.retraining),
        ("phases", _describe_phases(found)),
    ]  # fmt: skip
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", escape(value))
    mark = "[green]fine[/]" if found.is_fine else "[red]needs a person[/]"
    CONSOLE.print(f"Production: {mark}")
    CONSOLE.print(table)
    for problem in found.problems:
        CONSOLE.print(f"  [red]✗[/] {escape(problem)}", soft_wrap=True)


def _describe_traffic(traffic: "TrafficStatus") -> str:
    if not traffic.ask_count:
        return "nobody asked in 7 days"
    return (
        f"{traffic.ask_count} asks in 7 days, the last at "
        f"{traffic.last_asked_at:%Y-%m-%d %H:%M}; teacher {traffic.teacher_ratio or 0:.0%}, "
        f"refused {traffic.refused_ratio or 0:.0%}, failed {traffic.failed_ratio or 0:.1%}"
    )


def _describe_cost(traffic: "TrafficStatus") -> str:
    if traffic.saved_ratio is None:
        return "nothing was spent"
    return (
        f"{traffic.cost_usd:.4f} USD, {traffic.teacher_only_cost_usd:.4f} by the teacher alone: "
        f"saved {traffic.saved_ratio:.0%}"
    )


def _describe_monitors(found: "Status") -> str:
    if not found.is_monitored:
        return "not run yet: `understudy run --select monitoring/alarms`"
    told = f"alarm: {', '.join(found.alarms)}" if found.alarms else "no alarm"
    unsure = f"; inconclusive: {', '.join(found.inconclusive)}" if found.inconclusive else ""
    return told + unsure


def _describe_phases(found: "Status") -> str:
    held = next((step for step in found.phases if step.missing), None)
    if held is None:
        return "each of them is earned"
    return f"{held.phase} lacks {', '.join(held.missing)}"
