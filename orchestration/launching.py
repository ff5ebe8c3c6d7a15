"""Launching a run from the command line: bars while it runs, one line when it ends.

Belongs here: what every command that runs the chain prints. Does not belong here: what a run does
(`running`), arguments (`cli`).
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from orchestration.config import Config
from orchestration.console import CONSOLE, show_progress

if TYPE_CHECKING:
    from orchestration.planning import PlannedAsset

LONGEST_PLAN_SHOWN = 30


def launch(
    config: Config,
    *,
    recipe: str,
    select: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
) -> None:
    """Run the chain for one recipe and say what happened.

    Raises:
        InvalidInputError: recipe, selected name or input is wrong; the selection needs more.
        typer.Exit: a step failed; it has been said which and why.
    """
    from orchestration.running import run_chain

    started = time.monotonic()
    with show_progress() as progress:
        outcome = run_chain(
            config,
            progress=progress,
            recipe=recipe,
            select=select,
            force=force,
            dry_run=dry_run,
            announce=_show_plan,
        )
    seconds = time.monotonic() - started
    if not outcome.planned:
        CONSOLE.print(f"Nothing changed: every asset is up to date ({seconds:.1f} s).")
    elif dry_run:
        CONSOLE.print("Dry run: nothing was made.")
    elif outcome.succeeded:
        CONSOLE.print(f"Done: {len(outcome.planned)} assets in {seconds:.0f} s.")
    else:
        CONSOLE.print(f"[red bold]Stopped.[/] {escape(outcome.failure)}", soft_wrap=True)
        CONSOLE.print("What was made and bought before is kept: mend the cause and run again.")
        raise typer.Exit(1)


def _show_plan(planned: "Sequence[PlannedAsset]") -> None:
    if not planned:
        return
    CONSOLE.print(f"To make: {len(planned)} assets")
    for asset in planned[:LONGEST_PLAN_SHOWN]:
        CONSOLE.print(f"  {escape(asset.key):<32} [dim]{escape(asset.reason)}[/]", soft_wrap=True)
    if len(planned) > LONGEST_PLAN_SHOWN:
        CONSOLE.print(f"  [dim]and {len(planned) - LONGEST_PLAN_SHOWN} more[/]")
