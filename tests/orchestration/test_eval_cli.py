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
from assets.eval_set.ledger import count_reads
from assets.parity.proposals import list_candidates, propose_cases, propose_from_traffic
from assets.parity.shortages import (
    BUCKETS,
    Shortage,
    find_open_gates,
    find_thin_slices,
    merge_shortages,
)
from orchestration import cli, eval_cli, explaining
from orchestration.eval_cli import name_next_version
from resources.input_files import GoldenFile
from serving.errors import InvalidInputError
from serving.home import Home
from tests.assets.eval_set.test_guard_assets import WordEmbedder
from tests.assets.releases.test_shadow import UNTIL, write_traces
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


def report(n: int, *, right: float = 0.9) -> pl.DataFrame:
    """A parity table whose slice out_of_scope has n cases, so many of them right."""
    counts = (("answerable", 90, 0.9), ("boundary", 30, 0.9), ("out_of_scope", n, right))
    rows = [
        {"kind": "arm", "arm": "routed", "slice": name, "metric": "exact_match", "n": count,
         "numerator": float(round(count * rate))}
        for name, count, rate in counts
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=tables.PARITY_REPORT)


GATE = {"minimum_cases": 30, "floor_ratio": 0.5, "alpha": 0.05}


def verdict(*gates: dict) -> pl.DataFrame:
    base = {"outcome": "INCONCLUSIVE", "is_gating": True, "n": 54}
    return pl.DataFrame([base | gate for gate in gates], schema=tables.GATE_VERDICT)


def propose(*, thin=None, known=(), buckets=BUCKETS["golden"], of_traffic=()):
    return propose_cases(
        list_candidates(held_out(*ROWS)),
        thin=thin or {},
        known_questions=known,
        buckets=buckets,
        embedder=WordEmbedder(),
        of_traffic=of_traffic,
    )


def test_a_disagreement_is_another_decision_or_another_citation():
    found = list_candidates(held_out(*ROWS)).filter("is_disagreement")["question"].to_list()
    assert found == [*DIVIDED, "which brush cleans a shelf"]


def test_every_cluster_of_disagreements_gives_one_question_with_its_evidence():
    made = propose()
    assert sum(int(proposal.reason.split()[0]) for proposal in made) == 4
    assert {proposal.bucket for proposal in made} == {"answerable"}


def test_a_thin_slice_gets_questions_of_its_own_and_others_do_not():
    thin = find_thin_slices(report(29), BUCKETS["golden"], **GATE)
    assert {bucket: one.count for bucket, one in thin.items()} == {"out_of_scope": 1}
    made = [p for p in propose(thin=thin) if p.bucket == "out_of_scope"]
    assert [(p.question, p.should_refuse) for p in made] == [("who won the match", True)]
    assert made[0].reason == "the slice out_of_scope lacks 1 cases to be gated"


def test_a_slice_whose_interval_holds_the_floor_lacks_cases_however_many_it_has():
    """19 of 30 are shown as a pass, for nothing proves that they are under a half."""
    (bucket, lacking), *others = find_thin_slices(
        report(30, right=19 / 30), BUCKETS["golden"], **GATE
    ).items()
    assert (bucket, others) == ("out_of_scope", [])
    assert "19 of 30 right" in lacking.reason
    assert 1 <= lacking.count <= 30
    more = report(30 + lacking.count, right=19 / 30)
    assert find_thin_slices(more, BUCKETS["golden"], **GATE) == {}
    assert find_thin_slices(report(30, right=0.1), BUCKETS["golden"], **GATE) == {}


def test_an_open_gate_asks_for_cases_of_the_kind_that_it_counts():
    # The verdict's more_cases count golden cases, for every open gate at once.
    recall = verdict({"gate": "refusal_recall", "needed_cases": 8, "more_cases": 487})
    assert find_open_gates(recall, "golden") == {
        bucket: Shortage(count=4, reason="the gate refusal_recall stands open on 54 cases")
        for bucket in ("boundary", "out_of_scope")
    }
    assert find_open_gates(recall, "refusal") == {}
    pooled = verdict({"gate": "pooled_non_inferiority", "needed_cases": None, "n": 150})
    assert {bucket: one.count for bucket, one in find_open_gates(pooled, "golden").items()} == {
        "answerable": 10, "boundary": 10, "out_of_scope": 10,
    }  # fmt: skip
    suite = verdict({"gate": "over_refusal_vs_teacher", "n": 280})
    assert list(find_open_gates(suite, "over_refusal")) == ["answerable"]


@pytest.mark.parametrize("change", [{"n": 0}, {"is_gating": False}, {"outcome": "PASS"}])
def test_what_was_not_measured_or_is_not_open_asks_for_no_cases(change):
    gate = {"gate": "refusal_vs_teacher", "n": 225} | change
    assert find_open_gates(verdict(gate), "refusal") == {}


def test_a_bucket_that_lacks_cases_twice_says_both_and_takes_the_larger():
    both = merge_shortages(
        {"boundary": Shortage(count=2, reason="a")}, {"boundary": Shortage(count=5, reason="b")}
    )
    assert both == {"boundary": Shortage(count=5, reason="a; b")}


def cluster(name: str, count: int, *, is_registered: bool = False) -> dict:
    return {"cluster_id": name, "medoid_trace_id": f"t-{name}", "question_count": count,
            "is_registered": is_registered}  # fmt: skip


CLUSTERS = pl.DataFrame(
    [cluster("known", 9, is_registered=True), cluster("small", 2), cluster("large", 6),
     cluster("deleted", 7)],
    schema=tables.DISAGREEMENT_CLUSTERS,
)  # fmt: skip
TRACES = pl.DataFrame(
    [
        {"trace_id": f"t-{name}", "question": f"why is {name} so", "served_by": by,
         "refused": by == "student"}
        for name, by in (("known", "teacher"), ("small", "student"), ("large", "teacher"))
    ]
    + [{"trace_id": "s1", "parent_trace_id": "t-small", "served_by": "teacher", "refused": True},
       {"trace_id": "t-deleted", "served_by": "teacher", "refused": False}],
    schema={name: tables.STORED_TRACES[name] for name in
            ("trace_id", "parent_trace_id", "question", "served_by", "refused")},
)  # fmt: skip


def test_kinds_that_no_behaviour_covers_are_proposed_first_and_what_was_deleted_never():
    made = propose_from_traffic(CLUSTERS, TRACES)
    assert [(p.question, p.bucket) for p in made] == [
        ("why is large so", "answerable"), ("why is small so", "boundary"),
        ("why is known so", "answerable"),
    ]  # fmt: skip
    assert made[0].reason.startswith("6 questions of users like this one divide student and")
    assert "no behaviour covers them" in made[0].reason
    assert "no behaviour" not in made[2].reason
    assert all("put it in yours" in proposal.reason for proposal in made)


def test_traffic_comes_before_held_out_questions_and_nothing_is_proposed_twice():
    of_traffic = propose_from_traffic(CLUSTERS, TRACES)
    made = propose(known=["Why is small so?"], of_traffic=(*of_traffic, *of_traffic))
    assert [p.question for p in made[:2]] == ["why is large so", "why is known so"]
    assert len({p.question for p in made}) == len(made)
    refusals = propose(buckets=BUCKETS["refusal"], of_traffic=of_traffic)
    assert [p.question for p in refusals] == ["why is small so"]


def test_what_the_frozen_set_asks_is_not_proposed_again():
    assert propose(known=[*DIVIDED, "WHICH brush cleans a shelf?"]) == []


def test_no_more_is_proposed_than_a_person_reads():
    many = list_candidates(held_out(*({"question": f"q {n}"} for n in range(99))))
    made = propose_cases(
        many, thin={"answerable": Shortage(count=99, reason="thin")}, known_questions=(),
        buckets=("answerable",),
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


def test_the_clusters_of_real_traffic_are_read_where_monitoring_looked(product):
    folder, _ = product
    home = Home(folder / "made")
    path = home.table("monitoring/disagreement_clusters")
    path.parent.mkdir(parents=True)
    CLUSTERS.write_parquet(path)
    write_traces(home, [row | {"asked_at": UNTIL} for row in TRACES.to_dicts()])
    result = invoke("--json")
    assert result.exit_code == 0
    proposals = json.loads(result.stdout)["proposals"]
    assert proposals[0]["question"] == "why is large so"
    assert [reader.reader for reader in count_reads(home.ledger)] == ["eval_new_version:tiny"]


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
