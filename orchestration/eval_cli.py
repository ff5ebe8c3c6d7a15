"""The commands `understudy eval …`: proposing the next version of a frozen set.

Belongs here: arguments, files, what is printed. Does not belong here: choosing what is proposed
(`assets.parity.proposals`). No command edits a frozen file, and none writes a lock: freezing is a
person's signature.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.markup import escape

from assets.eval_set.ledger import record_read
from assets.monitoring.clusters import read_clusters
from assets.parity.proposals import (
    Proposal,
    list_candidates,
    propose_cases,
    propose_from_traffic,
)
from assets.parity.shortages import (
    BUCKETS,
    Bucket,
    SetName,
    Shortage,
    find_open_gates,
    find_thin_slices,
    merge_shortages,
)
from assets.traces.hours import find_folder, list_hours, scan_hours
from orchestration.config import Config, load_config
from orchestration.console import CONSOLE
from orchestration.explaining import explain_errors
from orchestration.lake import read_table
from orchestration.options import Json
from orchestration.recipes import choose_recipe
from resources.input_files import GoldenFile
from serving.errors import InvalidInputError
from serving.files import write_text_atomically
from serving.home import Home
from serving.models.protocols import NoProgress

eval_app = typer.Typer(help="The frozen sets: golden cases and suites.", no_args_is_help=True)


@eval_app.command("new-version", epilog="Example: understudy eval new-version --set golden")
@explain_errors
def new_version(
    name: Annotated[SetName, typer.Option("--set", help="Which frozen set.")] = "golden",
    recipe: Annotated[
        str | None, typer.Option(help="Whose answers are read.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the next version of a frozen set with proposed cases for a person to review."""
    config = load_config()
    made_by = choose_recipe(config, recipe)
    frozen = _find_set(config, name)
    target = name_next_version(frozen)
    if target.exists():
        raise InvalidInputError(
            f"writing {target.name}",
            expected="no file of that name: a version that somebody began is not overwritten",
            found=str(target),
            next_step="review and freeze it, or remove it and propose again",
        )
    GoldenFile(frozen).verify_lock()
    old = frozen.read_text(encoding="utf-8")
    proposals = _propose(config, name, made_by, old)
    lines = [_write_line(name, proposal, n) for n, proposal in enumerate(proposals, start=1)]
    write_text_atomically(target, old + "".join(lines))
    _report(target, proposals, as_json=as_json)


def name_next_version(frozen: Path) -> Path:
    """Return the file of the version after this one: `golden_v2.jsonl` -> `golden_v3.jsonl`.

    Raises:
        InvalidInputError: the file's name carries no version.
    """
    match = re.fullmatch(r"(?P<name>.+_v)(?P<version>\d+)", frozen.stem)
    if match is None:
        raise InvalidInputError(
            f"naming the version after {frozen.name}",
            expected="a name that ends in _v and a number, such as golden_v2.jsonl",
            found=frozen.name,
            next_step="rename the file and its lock, and point the config at it",
        )
    return frozen.with_name(f"{match['name']}{int(match['version']) + 1}{frozen.suffix}")


def _find_set(config: Config, name: SetName) -> Path:
    path = config.eval.golden if name == "golden" else dict(config.eval.suites)[name]
    if path is None:
        raise InvalidInputError(
            f"proposing the next version of the set {name!r}",
            expected=f"eval.suites.{name} in the config",
            found="nothing",
            next_step="name a first version of the suite, with a lock beside it",
        )
    return Path(path)


def _propose(config: Config, name: SetName, recipe: str, old: str) -> list[Proposal]:
    from orchestration.bindings import Bindings  # costs a second that --help need not wait for

    home = Home(config.home)
    candidates = list_candidates(_read(home, "students/held_out_answers", recipe))
    thin = _find_shortages(config, name, home, recipe)
    if name == "golden":
        record_read(home.ledger, reader=f"eval_new_version:{recipe}", run_id="command")
    return propose_cases(
        candidates,
        thin=thin,
        known_questions=[json.loads(line)["question"] for line in old.split("\n") if line.strip()],
        buckets=BUCKETS[name],
        embedder=Bindings(config, NoProgress()).embedder,
        of_traffic=_propose_from_traffic(home),
    )


def _find_shortages(
    config: Config, name: SetName, home: Home, recipe: str
) -> dict[Bucket, Shortage]:
    """Return what the set's buckets lack, by the last parity report and verdict of the recipe."""
    report = _read(home, "parity/parity_report", recipe)
    verdict = home.table("releases/gate_verdict", recipe)
    is_open = find_open_gates(pl.read_parquet(verdict), name) if verdict.exists() else {}
    if name != "golden":
        return is_open
    slices = find_thin_slices(
        report,
        BUCKETS[name],
        minimum_cases=config.gates.minimum_slice_cases,
        floor_ratio=config.gates.slice_floor_ratio,
        alpha=config.gates.alpha,
    )
    return merge_shortages(slices, is_open)


def _propose_from_traffic(home: Home) -> list[Proposal]:
    """Return what the clusters of real traffic propose; nothing where monitoring never looked."""
    clusters = read_clusters(home)
    if clusters is None or clusters.is_empty():
        return []
    medoids = clusters["medoid_trace_id"].implode()
    wanted = ("trace_id", "parent_trace_id", "question", "served_by", "refused")
    answers = (
        scan_hours(list_hours(find_folder(home)))
        .filter(pl.col("trace_id").is_in(medoids) | pl.col("parent_trace_id").is_in(medoids))
        .select(wanted)
        .collect()
    )
    return propose_from_traffic(clusters, answers)


def _read(home: Home, key: str, recipe: str) -> pl.DataFrame:
    return read_table(
        home.table(key, recipe),
        attempted=f"reading what recipe {recipe!r} was measured by",
        next_step=f"run `understudy run --recipe {recipe}` first",
    )


def _write_line(name: SetName, proposal: Proposal, number: int) -> str:
    """Return a line that reads once a person has given it what its bucket needs."""
    identity: dict[str, Any] = {"case_id": f"proposed-{number:03}"}
    gold: dict[str, Any] = {"must_include": [], "gold_pages": []}
    question, should_refuse = proposal.question, proposal.should_refuse
    if name == "golden":
        line = {
            **identity, "bucket": proposal.bucket, "question": question, **gold,
            "gold_headings": [], "should_refuse": should_refuse, "behaviours": [],
            "note": f"PROPOSED: {proposal.reason}.",
        }  # fmt: skip
    else:
        line = {
            **identity, "question": question, "is_critical": False, "should_refuse": should_refuse,
            **gold, "core_id": identity["case_id"], "kind": f"PROPOSED: {proposal.reason}.",
        }  # fmt: skip
    return json.dumps(line, ensure_ascii=False) + "\n"


def _report(target: Path, proposals: Sequence[Proposal], *, as_json: bool) -> None:
    if as_json:
        shown = [
            {"question": p.question, "bucket": p.bucket, "reason": p.reason} for p in proposals
        ]
        sys.stdout.write(json.dumps({"file": str(target), "proposals": shown}) + "\n")
        return
    for proposal in proposals:
        CONSOLE.print(
            f"[dim]{proposal.bucket:<13}[/] {escape(proposal.question)} "
            f"[dim]{escape(proposal.reason)}[/]",
            soft_wrap=True,
        )
    CONSOLE.print(
        f"{len(proposals)} proposed cases stand at the end of {escape(str(target))}, after the "
        "cases of the frozen version. Nothing reads that file yet: it has no lock. Review each "
        "proposal, give it facts and pages or strike it, then freeze the file with sha256sum.",
        soft_wrap=True,
    )
