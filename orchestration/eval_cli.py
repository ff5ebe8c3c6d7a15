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
from typing import Annotated, Any, Literal

import polars as pl
import typer
from rich.markup import escape

from assets.parity.proposals import Proposal, find_thin_slices, list_candidates, propose_cases
from orchestration.config import Config, load_config
from orchestration.console import CONSOLE
from orchestration.explaining import explain_errors
from orchestration.options import Json
from resources.input_files import GoldenFile
from serving.errors import InvalidInputError
from serving.files import write_text_atomically
from serving.home import Home
from serving.models.protocols import NoProgress

eval_app = typer.Typer(help="The frozen sets: golden cases and suites.", no_args_is_help=True)

SetName = Literal["golden", "refusal", "over_refusal"]
BUCKETS: dict[SetName, tuple[str, ...]] = {
    "golden": ("answerable", "boundary", "out_of_scope"),
    "refusal": ("boundary", "out_of_scope"),
    "over_refusal": ("answerable",),
}


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
    proposals = _propose(config, name, recipe or config.default_recipe, old)
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

    home, buckets = Home(config.home), BUCKETS[name]
    report = _read(home, "parity/parity_report", recipe)
    known = [json.loads(line)["question"] for line in old.split("\n") if line.strip()]
    return propose_cases(
        list_candidates(_read(home, "students/held_out_answers", recipe)),
        thin=find_thin_slices(report, buckets) if name == "golden" else {},
        known_questions=known,
        buckets=buckets,
        embedder=Bindings(config, NoProgress()).embedder,
    )


def _read(home: Home, key: str, recipe: str) -> pl.DataFrame:
    path = home.table(key, recipe)
    if not path.exists():
        raise InvalidInputError(
            f"reading what recipe {recipe!r} was measured by",
            expected=str(path),
            found="nothing there",
            next_step=f"run `understudy run --recipe {recipe}` first",
        )
    return pl.read_parquet(path)


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
