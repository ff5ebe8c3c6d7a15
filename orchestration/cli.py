"""The command line: every verb a person types.

Belongs here: arguments, help with an example, what is printed. Does not belong here: planning and
launching (`running`), checks of the installation (`doctor`), anything an asset computes.
"""

import contextlib
import json
import socket
import sys
import time
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from orchestration.config import load_config
from orchestration.console import CONSOLE
from orchestration.curate_cli import curate_app
from orchestration.eval_cli import eval_app
from orchestration.experiments_cli import experiment_app
from orchestration.explaining import explain_errors
from orchestration.index_cli import index_app
from orchestration.keys_cli import keys_app
from orchestration.launching import launch
from orchestration.options import Json, Port
from orchestration.recipes import choose_recipe
from orchestration.releases_cli import releases_app
from orchestration.router_cli import router_app
from orchestration.status_cli import status
from orchestration.traffic_cli import traffic
from resources.progress import RichProgress
from serving.errors import InvalidInputError

app = typer.Typer(
    name="understudy",
    help="Distil an expensive docs assistant into the cheapest version of itself, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals may hold answers and keys
    rich_markup_mode="rich",
)
teacher_app = typer.Typer(help="The embedded, extractive teacher.", no_args_is_help=True)
app.add_typer(teacher_app, name="teacher")
app.add_typer(eval_app, name="eval")
app.add_typer(keys_app, name="keys")
app.add_typer(router_app, name="router")
app.add_typer(experiment_app, name="experiment")
app.add_typer(releases_app, name="releases")
app.add_typer(index_app, name="index")
app.add_typer(curate_app, name="curate")
app.command(epilog="Example: understudy traffic --days 2 --asks-per-day 300 --seed 7")(traffic)
app.command(epilog="Example: understudy status --json | jq .retraining")(status)

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
    name = choose_recipe(config, recipe)
    launch(config, recipe=name, select=select or [], force=force, dry_run=dry_run)


@app.command(epilog="Example: understudy demo --flywheel")
@explain_errors
def demo(
    recipe: Recipe = None,
    flywheel: Annotated[
        bool, typer.Option("--flywheel", help="Then serve, be asked, learn from it, serve again.")
    ] = False,
) -> None:
    """Run the whole chain, then print the parity table and where everything lies."""
    from orchestration.demo import show_outcome
    from orchestration.flywheel_cli import has_unfinished_turn, show_turn

    config = load_config()
    name = choose_recipe(config, recipe)
    started = time.monotonic()
    if not (flywheel and has_unfinished_turn(config, name)):  # whose own step the chain is
        launch(config, recipe=name)
        show_outcome(config, name, seconds=time.monotonic() - started)
    if flywheel:
        show_turn(config, name)


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
    name = choose_recipe(config, recipe)
    if as_json:
        sys.stdout.write(json.dumps(read_report(config, name), ensure_ascii=False) + "\n")
    else:
        show_report(config, name)


@app.command(epilog="Example: understudy doctor")
@explain_errors
def doctor() -> None:
    """Check python, packages, models, config, keys, index, disk and ports; say what to do."""
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
    port: Annotated[
        int | None, typer.Option(help="Port to listen on [8321].", min=1, max=65535)
    ] = None,
    phase: Annotated[
        str | None, typer.Option(help="hitchhiker, imposter, switch or dreamer; not the release's.")
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
def ui(port: Port = 3000) -> None:
    """Open the Dagster UI on loopback (it has no login)."""
    from orchestration.running import launch_ui

    _require_port("127.0.0.1", port)
    raise typer.Exit(launch_ui(load_config(), port))


@teacher_app.command("serve", epilog="Example: understudy teacher serve --port 8322")
@explain_errors
def serve_teacher(port: Port = 8322) -> None:
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
