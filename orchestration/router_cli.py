"""The command `understudy router replay`: another policy over logged traces, and nothing changed.

Belongs here: arguments and what is printed. Does not belong here: deciding (`assets/parity/
replaying`).
"""

import json
import sys
from dataclasses import asdict, replace
from typing import Annotated, Any

import polars as pl
import typer
from rich.table import Table

from assets import keys
from assets.parity.replaying import Replay, replay_policy, write_patch
from orchestration.bindings import Bindings
from orchestration.config import load_config
from orchestration.console import CONSOLE
from orchestration.explaining import explain_errors
from orchestration.lake import read_table
from orchestration.options import Json
from orchestration.releases_cli import read_current
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.protocols import NoProgress
from serving.pipeline.confidence import ConfidenceCalibration
from serving.releases.bundle import verify_bundle

router_app = typer.Typer(help="The router: try a policy on what was asked.", no_args_is_help=True)


@router_app.callback()
def explain() -> None:
    """The router: try a policy on what was asked."""


@router_app.command("replay", epilog="Example: understudy router replay --min-retrieval-score 0.6")
@explain_errors
def replay(
    min_retrieval_score: Annotated[
        float | None,
        typer.Option(help="Best cosine below which the teacher answers.", min=0.0, max=1.0),
    ] = None,
    long_context_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and chunks above which it answers.", min=1),
    ] = None,
    maximum_risk_ratio: Annotated[
        float | None,
        typer.Option(help="Share of the student's answers that may be wrong.", min=0.0, max=1.0),
    ] = None,
    as_json: Json = False,
) -> None:
    """Decide logged questions anew under a candidate policy; print the config patch, apply nothing.

    What is left out stays as configured.
    """
    config = load_config()
    current = Bindings(config, NoProgress()).router
    asked: dict[str, Any] = {
        "min_retrieval_score": min_retrieval_score,
        "long_context_tokens": long_context_tokens,
        "maximum_risk_ratio": maximum_risk_ratio,
    }
    candidate = replace(current, **{k: v for k, v in asked.items() if v is not None})
    home = Home(config.home)
    calibration, records = read_calibration(home), _read_records(home)
    if (current_release := read_current(home)) is not None:
        records = _select_release(records, current_release.release_id)
    threshold = None
    if calibration is not None:
        threshold = calibration.find_threshold(candidate.maximum_risk_ratio)
    found = replay_policy(records, candidate, confidence_threshold=threshold)
    patch = write_patch(current, candidate)
    if as_json:
        sys.stdout.write(json.dumps({**asdict(found), "patch": patch}) + "\n")
    else:
        _show(found, patch)


def read_calibration(home: Home) -> ConfidenceCalibration | None:
    """Return the calibration of the current release's main student, None where there is none."""
    current = read_current(home)
    if current is None:
        return None
    manifest = verify_bundle(home.releases / current.release_id)
    names = manifest.tier_names
    return manifest.students[names[-1]].calibration if names else None


def _read_records(home: Home) -> pl.DataFrame:
    return read_table(
        home.table(keys.TRACE_RECORDS.to_user_string()),
        attempted="reading what was asked",
        next_step="serve some traffic, then `understudy run --select traces`",
    )


def _select_release(records: pl.DataFrame, release_id: str) -> pl.DataFrame:
    """Return the records of one release: a confidence means what its student's calibration says."""
    selected = records.filter(pl.col("release_id") == release_id)
    if selected.is_empty() and not records.is_empty():
        others = records["release_id"].drop_nulls().value_counts(sort=True).head(3)
        told = ", ".join(f"{count} of {name}" for name, count in others.iter_rows())
        raise InvalidInputError(
            "replaying logged questions under another policy",
            expected=f"questions that the current release {release_id} was asked",
            found=f"none; {told or 'only questions that no release was asked'}",
            next_step="serve some traffic with the current release, then "
            "`understudy run --select traces`; `understudy releases rollback` brings another back",
        )
    return selected


def _show(found: Replay, patch: str) -> None:
    table = Table(box=None)
    for name in ("", "as logged", "candidate"):
        table.add_column(name)
    before, after = found.teacher_ratio_before, found.teacher_ratio_after
    table.add_row("questions", str(found.question_count), "")
    table.add_row(
        "answered by the teacher",
        f"{before.value:.1%} [{before.lower:.1%}, {before.upper:.1%}]",
        f"{after.value:.1%} [{after.lower:.1%}, {after.upper:.1%}]",
    )
    table.add_row(
        "USD per 1,000",
        f"{found.usd_per_1k_before:.3f}",
        "not known: no log holds a call of the student"
        if found.usd_per_1k_after is None or found.usd_per_1k_after_worst is None
        else f"{found.usd_per_1k_after:.3f} to {found.usd_per_1k_after_worst:.3f}",
    )
    for reason in sorted({*found.reasons_before, *found.reasons_after}):
        counts = (found.reasons_before.get(reason, 0), found.reasons_after.get(reason, 0))
        table.add_row(f"  {reason}", *map(str, counts))
    CONSOLE.print(table)
    CONSOLE.print(
        f"{found.to_teacher_count} questions move to the teacher, {found.to_student_count} to the "
        f"student; of {found.unobserved_count} no log holds the student's answer."
    )
    if found.left_out:
        named = ", ".join(f"{count} by {reason}" for reason, count in found.left_out.items())
        CONSOLE.print(f"Left out, since no rule of the router decided them: {named}.")
    if patch.strip() == "router: {}":
        CONSOLE.print("The candidate is the configured policy: there is nothing to change.")
        return
    CONSOLE.print("Nothing was changed. To adopt it, write into the config:")
    sys.stdout.write(patch)
