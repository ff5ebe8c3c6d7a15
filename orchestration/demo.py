"""What a person reads at the end: the parity table, the verdict, and where everything lies.

Belongs here: reading finished tables and printing them. Does not belong here: computing any figure.
"""

import json
from typing import Any

import polars as pl
from rich.markup import escape
from rich.table import Table

from assets.parity.formatting import render_parity_table_text
from orchestration.config import Config
from orchestration.console import CONSOLE
from orchestration.lake import read_table
from serving.errors import InvalidInputError
from serving.home import Home

CURL = (
    "curl -s localhost:8321/ask -H 'content-type: application/json' "
    '-d \'{"question": "Where are traces stored?"}\''
)
NOT_MEASURED = "was not measured: run"  # suites are measured on demand: one line for all of them
VERDICT_STYLE = {"PROMOTE": "green", "HOLD": "red", "INCONCLUSIVE": "yellow"}


def show_outcome(config: Config, recipe: str, *, seconds: float) -> None:
    """Print table, verdict and the way on."""
    show_report(config, recipe)
    home = Home(config.home)
    CONSOLE.print()
    for label, value in (
        ("time", f"{seconds / 60:.1f} minutes"),
        ("lake", f"{home.lake}/<stage>/<asset>.parquet"),
        ("release", f"{home.releases}/CURRENT"),
        ("serve", f"make serve    then  {CURL}"),
        ("UI", "make ui       http://127.0.0.1:3000"),
    ):  # fmt: skip
        CONSOLE.print(f"[dim]{label:>8}[/]  {escape(value)}", soft_wrap=True)


def show_report(config: Config, recipe: str) -> None:
    """Print the parity table, the gates and the verdict of a recipe."""
    home = Home(config.home)
    gates = _read(home, "releases/gate_verdict", recipe)
    rendered = render_parity_table_text(_read(home, "parity/parity_report", recipe))
    title = escape(f"Parity, recipe {recipe}")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    for column in rendered.columns:
        table.add_column(
            escape(column), justify="left" if column == rendered.columns[0] else "right"
        )
    for row in rendered.rows:
        table.add_row(*map(escape, row))
    CONSOLE.print(table)
    verdict, statement = gates.row(0, named=True)["verdict"], gates.row(0, named=True)["statement"]
    style = VERDICT_STYLE[verdict]
    CONSOLE.print(f"\n[bold {style}]{verdict}[/]  {escape(statement)}", soft_wrap=True)
    unmeasured = gates.filter(pl.col("detail").str.contains(NOT_MEASURED))
    for gate in gates.join(unmeasured, on="gate", how="anti").iter_rows(named=True):
        mark = {"PASS": "[green]✓[/]", "FAIL": "[red]✗[/]"}.get(gate["outcome"], "[yellow]?[/]")
        name, detail = escape(gate["gate"]), escape(gate["detail"])
        CONSOLE.print(f"  {mark} {name:<28} [dim]{detail}[/]", soft_wrap=True)
    if not unmeasured.is_empty():
        name, advice = f"{unmeasured.height} gates on suites", unmeasured["detail"][0]
        CONSOLE.print(f"  [yellow]?[/] {name:<28} [dim]{escape(advice)}[/]", soft_wrap=True)
    path = escape(str(home.reports / recipe / "parity.html"))
    CONSOLE.print(f"[dim]  report  {path}[/]", soft_wrap=True)


def read_report(config: Config, recipe: str) -> dict[str, Any]:
    """Return the report's JSON.

    Raises:
        InvalidInputError: this recipe has no report yet.
    """
    path = Home(config.home).reports / recipe / "parity.json"
    if not path.exists():
        raise InvalidInputError(expected=str(path), found="nothing there", **_tell(recipe))
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def _read(home: Home, key: str, recipe: str) -> pl.DataFrame:
    return read_table(home.table(key, recipe), **_tell(recipe))


def _tell(recipe: str) -> dict[str, str]:
    return {
        "attempted": f"reading the report of recipe {recipe!r}",
        "next_step": f"run `understudy run --recipe {recipe}` first, if there is such a recipe",
    }
