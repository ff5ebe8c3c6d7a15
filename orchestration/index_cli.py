"""The command `understudy index prune`: the snapshots that nothing names, removed.

Belongs here: arguments and what is printed. Does not belong here: who names a snapshot (`pruning`),
what goes and how (`assets/corpus/snapshots`).
"""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from assets.corpus.snapshots import (
    PruningPlan,
    list_leftovers,
    list_snapshots,
    plan_pruning,
    prune,
)
from orchestration.config import load_config
from orchestration.console import CONSOLE
from orchestration.explaining import explain_errors
from orchestration.pruning import find_named
from serving.home import Home

KEEP_DAYS = 7
LONGEST_DAYS = 36_525  # a hundred years: longer is a slip
MEGABYTE = 1e6

index_app = typer.Typer(help="Index snapshots: remove what nothing names.", no_args_is_help=True)


@index_app.callback()
def explain() -> None:
    """Index snapshots: remove what nothing names."""


@index_app.command("prune", epilog="Example: understudy index prune --dry-run")
@explain_errors
def prune_index(
    days: Annotated[
        int,
        typer.Option(
            help="Keep what was replaced less than so many days ago: a run or a server may still "
            "have it open.",
            min=0,
            max=LONGEST_DAYS,
        ),
    ] = KEEP_DAYS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would go, remove nothing.")
    ] = False,
) -> None:
    """Remove the index snapshots that neither the current index nor a release names.

    What a killed build or removal left goes too.
    """
    home = Home(load_config().home)
    now = datetime.now(UTC)
    # First what is there, then who names it: a snapshot that is built meanwhile is not in the list.
    snapshots, leftovers = list_snapshots(home.index), list_leftovers(home.index, now=now)
    named = find_named(home) if snapshots else {}
    plan = plan_pruning(snapshots, leftovers, named_by=named, keep_days=days, now=now)
    if snapshots or leftovers:
        _show(plan)
    if not plan.unnamed and not plan.leftovers:
        CONSOLE.print("There is nothing to remove.")
    elif dry_run:
        CONSOLE.print(f"Nothing was removed: {_say_size(plan.freed_bytes)} would be free again.")
    else:
        CONSOLE.print(f"Removed: {_say_size(prune(plan))} are free again.")


def _show(plan: PruningPlan) -> None:
    table = Table(box=None)
    for name in ("snapshot", "built", "MB", "what becomes of it"):
        table.add_column(name, justify="right" if name == "MB" else "left")
    fates = [*plan.kept, *((snapshot, "") for snapshot in plan.unnamed)]
    for snapshot, why in sorted(fates, key=lambda fate: fate[0].built_at):
        built = snapshot.built_at.isoformat(timespec="minutes")
        told = f"kept: {why}" if why else "[yellow]goes[/]: nothing names it"
        table.add_row(snapshot.fingerprint, built, f"{snapshot.size_bytes / MEGABYTE:.1f}", told)
    for leftover in plan.leftovers:
        size = f"{leftover.size_bytes / MEGABYTE:.1f}"
        told = "[yellow]goes[/]: a killed build or removal left it"
        table.add_row(escape(leftover.path.name), "", size, told)
    CONSOLE.print(table)


def _say_size(size_bytes: int) -> str:
    return f"{size_bytes / MEGABYTE:.1f} MB"
