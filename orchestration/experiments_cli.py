"""The commands `understudy experiment …`: list them, run them, set predicted beside measured.

Belongs here: arguments, the order of runs, what is printed. Does not belong here: what an
experiment is (`assets/parity/experiments`), how a run works (`running`).
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.table import Table

from assets import STAGES, keys
from assets.parity.experiments import Experiment
from assets.students.recipe import is_contaminated
from orchestration.bindings import Bindings
from orchestration.config import load_config
from orchestration.console import CONSOLE
from orchestration.explaining import explain_errors
from orchestration.lake import read_table
from orchestration.launching import launch
from orchestration.options import Json
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.protocols import NoProgress

experiment_app = typer.Typer(help="Experiments: predicted against measured.", no_args_is_help=True)
OUTCOME_STYLE = {
    "confirmed": "green", "contradicted": "red", "undecided": "yellow", "unpredicted": "dim",
}  # fmt: skip
LABEL_STAGES = STAGES[: STAGES.index("labels") + 1]
GRADED = (keys.OPERATING_POINTS, keys.ARM_ANSWERS, keys.GRADED_ANSWERS)
MEASURED = (*LABEL_STAGES, "students", *(key.to_user_string() for key in GRADED))
"""What an experiment compares, and what that is made from: no report of its own, and no release."""


@experiment_app.command("list", epilog="Example: understudy experiment list")
@explain_errors
def list_all() -> None:
    """List the experiments and what each of them predicts."""
    table = Table(box=None)
    for name in ("experiment", "compared with", "predicts", "description"):
        table.add_column(name)
    for experiment in _find().values():
        table.add_row(
            experiment.name,
            f"{experiment.against_recipe}:{experiment.against_arm}",
            "\n".join(f"{name} {delta:+g}" for name, delta in experiment.predicted.items()),
            experiment.description,
        )
    CONSOLE.print(table)


@experiment_app.command("run", epilog="Example: understudy experiment run placebo_boost hard_only")
@explain_errors
def run_named(
    names: Annotated[list[str], typer.Argument(help="Experiments; see `list`.", metavar="NAME…")],
) -> None:
    """Train and measure what the experiments compare, then print the report.

    What is up to date is not made again, and a run that was stopped goes on where it was: trained
    steps and answers are kept. No release is made.
    """
    config = load_config()
    found = _find()
    if unknown := sorted(set(names) - found.keys()):
        raise InvalidInputError(
            "running experiments",
            expected=f"names among {', '.join(found)}",
            found=", ".join(unknown),
            next_step="see `understudy experiment list`",
        )
    chosen = [found[name] for name in names]
    recipes = Bindings(config, NoProgress()).recipes
    needed = dict.fromkeys(recipe for experiment in chosen for recipe in experiment.recipes)
    longest = 0.0
    for place, recipe in enumerate(needed):
        left = longest * (len(needed) - place) / 60
        told = f", {left:.0f} min left by the slowest so far" if left >= 1 else ""
        CONSOLE.print(f"[bold]{recipe}[/] ({place + 1} of {len(needed)} recipes{told})")
        started = time.monotonic()
        if is_contaminated(recipes[recipe]):
            leak = keys.CONTAMINATED_EXAMPLES.to_user_string()
            launch(config, recipe=recipe, select=[*LABEL_STAGES, leak])
        launch(config, recipe=recipe, select=MEASURED)
        longest = max(longest, time.monotonic() - started)
    report = keys.EXPERIMENT_REPORT.to_user_string()
    launch(config, recipe=config.default_recipe, select=[report], force=True)
    _show(config.home, [experiment.name for experiment in chosen])


@experiment_app.command("report", epilog="Example: understudy experiment report --json")
@explain_errors
def show_report(as_json: Json = False) -> None:
    """Print predicted beside measured, of every experiment that was run."""
    _show(load_config().home, None, as_json=as_json)


def _find() -> dict[str, Experiment]:
    return Bindings(load_config(), NoProgress()).experiments


def _show(home_folder: Path, names: list[str] | None, *, as_json: bool = False) -> None:
    report = read_table(
        Home(home_folder).table(keys.EXPERIMENT_REPORT.to_user_string()),
        attempted="reading the report of the experiments",
        next_step="run one with `understudy experiment run NAME`; `list` shows the names",
    )
    rows = report.filter(pl.col("outcome") != "unmeasured")
    if names is not None:
        rows = rows.filter(pl.col("experiment").is_in(names))
    if as_json:
        sys.stdout.write(json.dumps(rows.to_dicts()) + "\n")
        return
    table = Table(box=None)
    for name in ("experiment", "metric", "predicted", "measured", "95 % interval", "n", "outcome"):
        table.add_column(
            name, justify="right" if name in {"predicted", "measured", "n"} else "left"
        )
    for row in rows.iter_rows(named=True):
        style = OUTCOME_STYLE[row["outcome"]]
        since = "" if row["registration"] == "unchanged" else f" ({row['registration']})"
        table.add_row(
            row["experiment"],
            row["metric"],
            f"{row['predicted_delta']:+.3f}",
            f"{row['measured_delta']:+.3f}",
            f"{row['lower']:+.3f} to {row['upper']:+.3f}",
            str(row["n"]),
            f"[{style}]{row['outcome']}[/]{since}",
        )
    CONSOLE.print(table)
