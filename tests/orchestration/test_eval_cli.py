"""`understudy eval new-version`: proposals beside the frozen set, never in it."""

import hashlib
import io
import json
import shutil

import polars as pl
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from assets import tables
from assets.parity.proposals import find_thin_slices, list_candidates, propose_cases
from orchestration import cli, eval_cli, explaining
from orchestration.eval_cli import name_next_version
from resources.input_files import GoldenFile
from serving.errors import InvalidInputError
from tests.assets.eval_set.test_guard_assets import WordEmbedder
from tests.product import write_product

DIVIDED = (
    "how thick is the glaze layer supposed to be",
    "how thick should a glaze layer be",
    "thickness of the glaze layer?",
)


def held_out(*rows: dict) -> pl.DataFrame:
    base = {
        "arm": "student", "split": "validation", "verdict": "valid", "is_out_of_scope": False,
        "label_refused": False, "refused": False, "citations": ["docs:a/1"],
        "label_citations": ["docs:a/1"],
    }  # fmt: skip
    made = [base | {"example_id": f"e{n}", "seed_id": f"s{n}"} | row for n, row in enumerate(rows)]
    return pl.DataFrame(made, schema=tables.HELD_OUT_ANSWERS)


ROWS = (
    *({"question": text, "refused": True} for text in DIVIDED),
    {"question": "which brush cleans a shelf", "citations": ["docs:b/1"]},
    {"question": "who won the match", "is_out_of_scope": True, "label_refused": True,
     "refused": True},
    {"question": "what does error E9 mean", "label_refused": True, "refused": True},
    {"question": "is the kiln hot", "error": "server down", "verdict": None},
)  # fmt: skip


def report(n: int) -> pl.DataFrame:
    rows = [
        {"kind": "arm", "arm": "teacher", "slice": name, "metric": "exact_match", "n": count}
        for name, count in (("answerable", 90), ("boundary", 30), ("out_of_scope", n))
    ]
    return pl.DataFrame(rows, schema=tables.PARITY_REPORT)


def propose(*, thin=None, known=(), buckets=("answerable", "boundary", "out_of_scope")):
    return propose_cases(
        list_candidates(held_out(*ROWS)),
        thin=thin or {},
        known_questions=known,
        buckets=buckets,
        embedder=WordEmbedder(),
    )


def test_a_disagreement_is_another_decision_or_another_citation():
    found = list_candidates(held_out(*ROWS)).filter("is_disagreement")["question"].to_list()
    assert found == [*DIVIDED, "which brush cleans a shelf"]


def test_every_cluster_of_disagreements_gives_one_question_with_its_evidence():
    made = propose()
    assert sum(int(proposal.reason.split()[0]) for proposal in made) == 4
    assert {proposal.bucket for proposal in made} == {"answerable"}


def test_a_thin_slice_gets_questions_of_its_own_and_others_do_not():
    assert find_thin_slices(report(29), ("answerable", "boundary", "out_of_scope")) == {
        "out_of_scope": 1
    }
    made = [p for p in propose(thin={"out_of_scope": 1}) if p.bucket == "out_of_scope"]
    assert [(p.question, p.should_refuse) for p in made] == [("who won the match", True)]
    assert made[0].reason == "the slice out_of_scope lacks 1 cases to be gated"


def test_what_the_frozen_set_asks_is_not_proposed_again():
    assert propose(known=[*DIVIDED, "WHICH brush cleans a shelf?"]) == []


def test_no_more_is_proposed_than_a_person_reads():
    many = list_candidates(held_out(*({"question": f"q {n}"} for n in range(99))))
    made = propose_cases(
        many, thin={"answerable": 99}, known_questions=(), buckets=("answerable",),
        embedder=WordEmbedder(),
    )  # fmt: skip
    assert len(made) == 30


@pytest.mark.parametrize(
    ("name", "following"),
    [("golden_v2.jsonl", "golden_v3.jsonl"), ("refusal_v9.jsonl", "refusal_v10.jsonl")],
)
def test_the_next_version_lies_beside_the_frozen_one(tmp_path, name, following):
    assert name_next_version(tmp_path / name) == tmp_path / following


def test_a_file_without_a_version_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="ends in _v and a number"):
        name_next_version(tmp_path / "golden.jsonl")


@pytest.fixture
def product(tmp_path, monkeypatch):
    path = write_product(tmp_path)
    for key, frame in (
        ("students/held_out_answers", held_out(*ROWS)),
        ("parity/parity_report", report(2)),
    ):
        table = tmp_path / "made" / "lake" / key / "tiny.parquet"
        table.parent.mkdir(parents=True)
        frame.write_parquet(table)
    monkeypatch.setenv("UNDERSTUDY_CONFIG", str(path))
    monkeypatch.delenv("UNDERSTUDY_HOME", raising=False)
    monkeypatch.setattr("orchestration.bindings.Bindings.embedder", WordEmbedder())
    screen = io.StringIO()
    for module in (eval_cli, explaining):
        monkeypatch.setattr(module, "CONSOLE", Console(file=screen, width=200))
    return tmp_path, screen


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, ["eval", "new-version", *arguments])


def test_the_new_version_holds_the_old_cases_unchanged_and_cannot_be_used_unreviewed(product):
    folder, screen = product
    frozen = folder / "golden_v1.jsonl"
    before = frozen.read_bytes(), frozen.with_suffix(".lock").read_bytes()
    assert invoke().exit_code == 0, screen.getvalue()
    assert (frozen.read_bytes(), frozen.with_suffix(".lock").read_bytes()) == before
    made = folder / "golden_v2.jsonl"
    assert made.read_bytes().startswith(before[0])
    added = [json.loads(line) for line in made.read_text("utf-8").splitlines()[10:]]
    assert added
    assert all(case["note"].startswith("PROPOSED: ") for case in added)
    assert "no lock" in screen.getvalue()
    with pytest.raises(InvalidInputError, match="no lock"):
        GoldenFile(made).read()


def test_even_a_locked_draft_is_refused_until_a_person_gave_its_answerable_cases_facts(product):
    folder, _ = product
    invoke()
    made = folder / "golden_v2.jsonl"
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    made.with_suffix(".lock").write_text(f"{digest}  {made.name}\n")
    with pytest.raises(InvalidInputError, match="must_include must name something"):
        GoldenFile(made).read()


def test_a_version_that_somebody_began_is_not_overwritten(product):
    folder, screen = product
    (folder / "golden_v2.jsonl").write_text("mine", encoding="utf-8")
    assert invoke().exit_code != 0
    assert (folder / "golden_v2.jsonl").read_text("utf-8") == "mine"
    assert "is not overwritten" in screen.getvalue()


def test_a_frozen_set_that_was_edited_gets_no_next_version(product):
    folder, screen = product
    (folder / "golden_v1.jsonl").write_text("{}\n", encoding="utf-8")
    assert invoke().exit_code != 0
    assert not (folder / "golden_v2.jsonl").exists()
    assert "golden_v1" in screen.getvalue()


def test_a_suite_that_the_product_does_not_have_is_named(product):
    folder, screen = product
    path = folder / "understudy.yaml"
    config = yaml.safe_load(path.read_text("utf-8"))
    del config["eval"]["suites"]
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert invoke("--set", "refusal").exit_code != 0
    assert "eval.suites.refusal" in screen.getvalue()


def test_a_suite_gets_the_questions_that_fit_it(product):
    folder, _ = product
    shutil.copy(eval_cli.load_config({}).eval.suites.over_refusal, folder / "over_refusal_v1.jsonl")
    digest = hashlib.sha256((folder / "over_refusal_v1.jsonl").read_bytes()).hexdigest()
    (folder / "over_refusal_v1.lock").write_text(f"{digest}  over_refusal_v1.jsonl\n")
    path = folder / "understudy.yaml"
    config = yaml.safe_load(path.read_text("utf-8"))
    config["eval"]["suites"] = {"over_refusal": "over_refusal_v1.jsonl"}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    result = invoke("--set", "over_refusal", "--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed["file"].endswith("over_refusal_v2.jsonl")
    assert {proposal["bucket"] for proposal in printed["proposals"]} == {"answerable"}
