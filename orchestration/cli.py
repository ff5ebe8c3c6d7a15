"""The command line: every verb a person types.

Belongs here: arguments, help with an example, what is printed. Does not belong here: planning and
launching (`running`), checks of the installation (`doctor`), anything an asset computes.
"""

import contextlib
import json
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from orchestration.config import Config, load_config
from orchestration.console import CONSOLE, make_logger
from orchestration.explaining import explain_errors
from orchestration.keys_cli import keys_app
from orchestration.options import Json
from orchestration.releases_cli import releases_app
from resources.progress import LogProgress, RichProgress
from serving.errors import InvalidInputError

if TYPE_CHECKING:
    from orchestration.planning import PlannedAsset

LONGEST_PLAN_SHOWN = 30

app = typer.Typer(
    name="understudy",
    help="Distil an expensive docs assistant into the cheapest version of itself, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals may hold answers and keys
    rich_markup_mode="rich",
)
teacher_app = typer.Typer(help="The embedded, extractive teacher.", no_args_is_help=True)
app.add_typer(teacher_app, name="teacher")
app.add_typer(keys_app, name="keys")
app.add_typer(releases_app, name="releases")

Recipe = Annotated[
    str | None,
    typer.Option(help="A recipe under config/recipes, for example `compact`.", show_default=False),
]


@app.command(epilog="Example: understudy run --select labels --select students/training_set")
@explain_errors
def run(
    select: Annotated[
        list[str] | None,
        typer.Option(help="A stage (`labels`) or an asset (`labels/teacher_answers`); repeatable."),
    ] = None,
    recipe: Recipe = None,
    force: Annotated[bool, typer.Option(help="Run the selection even if nothing changed.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, make nothing.")
    ] = False,
) -> None:
    """Materialize what changed: docs, seeds, labels, student, report, release."""
    config = load_config()
    name = recipe or config.default_recipe
    _run(config, recipe=name, select=select or [], force=force, dry_run=dry_run)


@app.command(epilog="Example: understudy demo")
@explain_errors
def demo(recipe: Recipe = None) -> None:
    """Run the whole chain, then print the parity table and where everything lies."""
    from orchestration.demo import show_outcome

    config = load_config()
    name = recipe or config.default_recipe
    started = time.monotonic()
    _run(config, recipe=name)
    show_outcome(config, name, seconds=time.monotonic() - started)


@app.command(epilog='Example: understudy ask "Where do traces go?" --json')
@explain_errors
def ask(
    question: Annotated[str, typer.Argument(help="What a user would type.")],
    as_json: Json = False,
    prefer_quality: Annotated[
        bool, typer.Option("--prefer-quality", help="Ask for the teacher's answer.")
    ] = False,
) -> None:
    """Ask the current release one question, through the server's own request path."""
    from orchestration.asking import ask_once

    CONSOLE.print("[dim]loading the release …[/]")
    body = ask_once(load_config(), question, prefer_quality=prefer_quality)
    if as_json:
        sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")
    else:
        _show_answer(body)
    if "answer" not in body:
        raise typer.Exit(1)


@app.command(epilog="Example: understudy report --json | jq .verdict")
@explain_errors
def report(
    recipe: Recipe = None,
    as_json: Json = False,
) -> None:
    """Print the parity table of a recipe and where its report lies."""
    from orchestration.demo import read_report, show_report

    config = load_config()
    name = recipe or config.default_recipe
    if as_json:
        sys.stdout.write(json.dumps(read_report(config, name), ensure_ascii=False) + "\n")
    else:
        show_report(config, name)


@app.command(epilog="Example: understudy doctor")
@explain_errors
def doctor() -> None:
    """Check python, packages, models, config, disk, ports and keys; say what to do."""
    from orchestration.doctor import examine

    table = Table(box=None, show_header=False, padding=(0, 1))
    findings = list(examine())
    for finding in findings:
        mark = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "problem": "[red]✗[/]"}[
            finding.level
        ]
        subject, found, step = map(escape, (finding.subject, finding.found, finding.next_step))
        table.add_row(mark, subject, found, f"[dim]{step}[/]")
    CONSOLE.print(table)
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command(epilog="Example: understudy serve --phase switch")
@explain_errors
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [8321].")] = None,
    phase: Annotated[
        str | None, typer.Option(help="hitchhiker or switch; overrides the release's phase.")
    ] = None,
) -> None:
    """Serve the current release over HTTP."""
    from orchestration.asking import server_settings
    from serving.app import run as run_server

    given = {"UNDERSTUDY_SERVE_HOST": host, "UNDERSTUDY_SERVE_PORT": port,
             "UNDERSTUDY_SERVE_PHASE": phase}  # fmt: skip
    overrides = {name: str(value) for name, value in given.items() if value is not None}
    settings = server_settings(load_config(), overrides)
    _require_port(settings.host, settings.port)
    with contextlib.suppress(KeyboardInterrupt):  # ctrl-C is how a server is stopped
        run_server(settings)


@app.command(epilog="Example: understudy ui --port 3001")
@explain_errors
def ui(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 3000) -> None:
    """Open the Dagster UI on loopback (it has no login)."""
    from orchestration.running import launch_ui

    _require_port("127.0.0.1", port)
    raise typer.Exit(launch_ui(load_config(), port))


@teacher_app.command("serve", epilog="Example: understudy teacher serve --port 8322")
@explain_errors
def serve_teacher(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8322,
) -> None:
    """Serve the extractive teacher (no LLM: it quotes) in the OpenAI format on loopback."""
    import uvicorn

    from orchestration.bindings import Bindings
    from serving.models.extractive.app import create_app

    _require_port("127.0.0.1", port)
    embedder = Bindings(load_config(), RichProgress(CONSOLE)).embedder
    CONSOLE.print(f"extractive teacher: http://127.0.0.1:{port}/v1 (embedded, no LLM)")
    with contextlib.suppress(KeyboardInterrupt):  # ctrl-C is how a server is stopped
        uvicorn.run(create_app(embedder), host="127.0.0.1", port=port, log_level="warning")


def _require_port(host: str, port: int) -> None:
    """Refuse a port that is taken before anything slow is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise InvalidInputError(
            f"listening on {host}:{port}",
            expected="an address of this machine and a free port",
            found=error.strerror or str(error),
            next_step="stop what listens there, or choose another with --port",
        ) from error


def _run(
    config: Config,
    *,
    recipe: str,
    select: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
) -> None:
    from orchestration.running import run_chain

    started = time.monotonic()
    # Bars need a terminal; without one the same progress is told in lines.
    bars = RichProgress(CONSOLE)
    try:
        outcome = run_chain(
            config,
            progress=bars if CONSOLE.is_terminal else LogProgress(make_logger()),
            recipe=recipe,
            select=select,
            force=force,
            dry_run=dry_run,
            announce=_show_plan,
        )
    finally:
        bars.close()
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


def _show_answer(body: dict[str, Any]) -> None:
    if "answer" not in body:
        title, detail = escape(body.get("title", "failed")), escape(body.get("detail", ""))
        CONSOLE.print(f"[red]{title}[/] {detail}", soft_wrap=True)
        return
    CONSOLE.print(body["answer"], markup=False, soft_wrap=True)
    for citation in body["citations"]:
        line = f"{citation['id']}  {citation['url']}  {citation['score']:.2f}"
        CONSOLE.print(f"  [dim]{escape(line)}[/]", soft_wrap=True)
    served = (
        f"served by {body['served_by']} ({body['model']}), route {body['route_reason']}, "
        f"trace {body['trace_id']}"
    )
    CONSOLE.print(f"[dim]{escape(served)}[/]")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
