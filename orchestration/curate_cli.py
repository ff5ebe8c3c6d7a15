"""The commands `understudy curate …`: candidates, the review queue, decisions, deletions.

Belongs here: arguments, showing a trace. Does not belong here: asking a person (`reviewing`), what
a decision means (`assets/traces/deciding`), who is admitted (`assets/traces/admission`).
"""

import json
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import polars as pl
import typer
from rich.markup import escape

from assets.traces.compaction import Compaction, compact_segments
from assets.traces.curating import find_candidates
from assets.traces.deciding import (
    VERDICTS,
    Reviewer,
    decide_trace,
    find_open_escalation,
    find_reservation,
    find_trace,
    open_decisions,
)
from assets.traces.deleting import count_unblanked, redact_feedback
from assets.traces.escalating import CONTRACT, find_escalations
from assets.traces.hours import find_folder, list_hours, scan_hours
from assets.traces.planting import plant_errors, scan_reviewed
from assets.traces.requesting import DeletionRequest, open_deletions, request_deletion
from orchestration.config import load_config, prepare_environment
from orchestration.console import CONSOLE
from orchestration.explaining import explain_errors
from orchestration.forgetting import hash_training_set, open_stores
from orchestration.options import Json
from orchestration.reviewing import RUBRIC, ask_words, find_words
from resources.traces import SealedSegments
from serving.errors import InvalidInputError
from serving.home import Home

QUEUE = "`understudy curate list --escalations`"
curate_app = typer.Typer(help="What production may teach, decided by you.", no_args_is_help=True)
_BARE = frozenset({"trace_id", "question"})
TraceId = Annotated[str, typer.Argument(help="As `understudy curate list` says.")]


@curate_app.command("list", epilog="Example: understudy curate list --limit 10 --json")
@explain_errors
def list_waiting(
    limit: Annotated[int, typer.Option(help="Rows at most.", min=1)] = 20,
    escalations: Annotated[
        bool, typer.Option("--escalations", help="The review queue instead of candidates.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List what waits for a decision, hardest for the student first."""
    home = Home(load_config().home)
    compact(home)
    records = scan_hours(list_hours(find_folder(home)))
    decisions = open_decisions(home).read()
    queue = find_queue(home, decisions)
    if escalations:
        # Planted errors are shown like all others: they measure whoever reviews.
        shown = scan_reviewed(find_folder(home)).select("trace_id", "question")
        opened = queue.lazy().select("trace_id", "reason", "opened_at", "contract_version")
        frame = opened.join(shown, on="trace_id", how="left", maintain_order="left").collect()
    else:
        frame = find_candidates(records, decisions)
    if as_json:
        rows = frame.head(limit).with_columns(pl.selectors.datetime().dt.to_string("iso:strict"))
        sys.stdout.write(json.dumps(rows.to_dicts(), ensure_ascii=False) + "\n")
        return
    _show_rows(frame.head(limit))
    CONSOLE.print(f"[dim]{min(limit, frame.height)} of {frame.height} waiting[/]")
    if not escalations and queue.height:
        CONSOLE.print(f"[dim]{queue.height} escalations wait for a person: {QUEUE}[/]")


@curate_app.command("show", epilog="Example: understudy curate show 0197c1d2-7a10-…")
@explain_errors
def show(trace_id: TraceId, as_json: Json = False) -> None:
    """Show what a decision about a trace rests on."""
    home = Home(load_config().home)
    compact(home)
    trace = find_trace(find_folder(home), trace_id)
    if as_json:
        sys.stdout.write(json.dumps(trace, default=str, ensure_ascii=False) + "\n")
    else:
        _show_trace(trace)


@curate_app.command("decide", epilog="Example: understudy curate decide 0197… --reviewer ada")
@explain_errors
def decide(
    trace_id: TraceId,
    reviewer: Annotated[str, typer.Option(help="Who decides.")],
    verdict: Annotated[
        str | None,
        typer.Option("--decision", help=f"{' or '.join(VERDICTS)}; asked for if left out."),
    ] = None,
    reason_code: Annotated[
        str | None, typer.Option(help=f"Asked for if left out. {RUBRIC}.")
    ] = None,
    automation: Annotated[
        bool, typer.Option("--automation", help="No person looks: nothing is shown or asked.")
    ] = False,
) -> None:
    """Show a trace, take a decision about it, and store it for good; it closes an escalation."""
    fitting = find_words(verdict, reason_code, may_ask=not automation)
    home = Home(load_config().home)
    compact(home)
    folder, journal = find_folder(home), open_decisions(home)
    trace = find_trace(folder, trace_id)
    shown_at = None
    if not automation:
        _show_trace(trace)
        shown_at = datetime.now(UTC)
    chosen, why = fitting[0] if automation else ask_words(fitting)
    decisions = journal.read()
    line = decide_trace(
        trace,
        verdict=chosen,
        reason_code=why,
        reviewer=Reviewer(name=reviewer, kind="automation" if automation else "human"),
        shown_at=shown_at,
        decided_at=datetime.now(UTC),
        escalation_id=find_open_escalation(folder, decisions, trace_id),
        reserved=find_reservation(folder, decisions, trace_id) if automation else "",
    )
    journal.append(line)
    closed = f"; escalation {line['escalation_id']} closed" if line["escalation_id"] else ""
    CONSOLE.print(f"Stored: {escape(trace_id)} {line['decision']}{escape(closed)}.")


@curate_app.command("plant", epilog="Example: understudy curate plant --count 10")
@explain_errors
def plant(
    count: Annotated[int, typer.Option(help="How many.", min=1)] = 10,
) -> None:
    """Hide obvious errors in the review queue: real questions under answers to other ones.

    They measure whoever reviews: 9 of 10 have to be rejected. None is ever trained on.
    """
    home = Home(load_config().home)
    compact(home)
    plant_errors(find_folder(home), count, planted_at=datetime.now(UTC))
    CONSOLE.print(f"Planted: {count} errors in the review queue: {QUEUE}.")


@curate_app.command("forget", epilog="Example: understudy curate forget trace 0197… --reviewer ada")
@explain_errors
def forget(
    kind: Annotated[str, typer.Argument(help="trace, conversation or key.")],
    value: Annotated[str, typer.Argument(help="Its id.")],
    reviewer: Annotated[str, typer.Option(help="Who asks for it.")],
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "requested",
    key: Annotated[
        str | None, typer.Option(help="Id of the API key whose conversation it is; '' for none.")
    ] = None,
) -> None:
    """Delete traces and what grew from them; made again, it completes an interrupted one."""
    config = load_config()
    home = Home(config.home)
    compact(home)
    request = DeletionRequest(
        kind=kind, value=value, key_id=key, reason=reason, requested_by=reviewer,
        requested_at=datetime.now(UTC),
    )  # fmt: skip
    row = request_deletion(
        home, request, hash_training_set=hash_training_set, stores=open_stores(config)
    )
    done = compact(home)
    feedback = SealedSegments(home.traces.with_name("feedback")).list_files()
    closed = redact_feedback(feedback, open_deletions(home).read())
    CONSOLE.print(
        f"Forgotten: {len(row['trace_ids'])} traces, {done.deleted_count} records, "
        f"{sum(row['rows_by_table'].values())} rows grown from them, "
        f"{row['kept_count']} kept answers and vectors."
    )
    if row["adapters"]:
        told = escape(", ".join(row["adapters"]))
        CONSOLE.print(f"[yellow]To train again without them:[/] {told}", soft_wrap=True)
    if row["doubtful_adapters"]:
        told = escape(", ".join(row["doubtful_adapters"]))
        CONSOLE.print(
            f"[yellow]Of these cannot be ruled out, since the training set that they name is no "
            f"longer at hand:[/] {told}",
            soft_wrap=True,
        )
    CONSOLE.print("[dim]`understudy run` makes seeds and training sets anew.[/]")
    segments = {path.name: path for path in SealedSegments(home.traces).list_files()}
    left = count_unblanked(find_folder(home), segments)
    if left or closed:
        names = ", ".join(path.name for path in closed) or "none"
        raise InvalidInputError(
            "taking the words out of the segments",
            expected="files that this user can read and replace",
            found=f"{left} records that stay in segments of traces, and of feedback: {names}",
            next_step="mend that, then run `understudy curate refresh`, which takes them out; all "
            "else is forgotten",
        )


@curate_app.command("refresh", epilog="Example: understudy curate refresh")
@explain_errors
def refresh() -> None:
    """Run the job nightly_traces: compaction, tables, queue, dbt marts and all their checks."""
    import dagster as dg

    from orchestration.definitions import NIGHTLY_TRACES, build_nightly_defs
    from orchestration.failures import describe_failure

    config = load_config()
    prepare_environment(config)
    job = build_nightly_defs(config).resolve_job_def(NIGHTLY_TRACES)
    result = job.execute_in_process(
        instance=dg.DagsterInstance.get(),
        raise_on_error=False,
        run_config={"loggers": {"console": {}}},
    )
    if not result.success:
        CONSOLE.print(f"[red bold]Stopped.[/] {escape(describe_failure(result, config.home))}")
        raise typer.Exit(1)
    checks = result.get_asset_check_evaluations()
    held = sum(check.passed for check in checks)
    CONSOLE.print(
        f"Done: {held} of {len(checks)} checks hold; the marts lie in "
        f"{escape(str(Home(config.home).lake))}/traces.",
        soft_wrap=True,
    )


def compact(home: Home) -> Compaction:
    """Bring the hours up to date with what servers have sealed."""
    segments = SealedSegments(home.traces).list_files()
    tombstones = open_deletions(home).read()
    return compact_segments(segments, find_folder(home), tombstones=tombstones)


def find_queue(home: Home, decisions: pl.DataFrame) -> pl.DataFrame:
    """Return the escalations that nobody has closed, oldest first."""
    queue = find_escalations(scan_reviewed(find_folder(home)), decisions)
    return queue.filter(pl.col("closed_at").is_null())


def _show_trace(trace: dict[str, Any]) -> None:
    for name in CONTRACT.shown:
        CONSOLE.print(f"[dim]{name:>10}[/]  ", end="")
        CONSOLE.print(str(trace[name]), markup=False, soft_wrap=True)


def _show_rows(frame: pl.DataFrame) -> None:
    """Print two lines a trace: ids stay whole to be passed on, and questions are read in full."""
    if frame.is_empty():
        CONSOLE.print("Nothing waits.")
    for row in frame.iter_rows(named=True):
        told = (f"{name} {_write_cell(row[name])}" for name in frame.columns if name not in _BARE)
        first = f"[bold]{escape(row['trace_id'])}[/]  [dim]{escape(', '.join(told))}[/]"
        CONSOLE.print(first, soft_wrap=True)
        CONSOLE.print(f"  {row['question']}", markup=False, soft_wrap=True)


def _write_cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
