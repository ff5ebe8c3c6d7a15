"""A behaviour that is lost, and one that nobody registered, are made to happen and are caught."""

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.eval_set.behaviours import tabulate_registry
from assets.eval_set.suites import BEHAVIOURS
from assets.parity.behaviours import (
    check_no_unregistered_cluster,
    decide_behaviour_gates,
    find_disagreement_clusters,
    find_lost_cases,
)
from assets.parity.suite_assets import tabulate_gates
from assets.parity.suites import SuiteLimits
from serving.errors import InvalidInputError
from tests.counting_embedder import CountingEmbedder


def write_registry(critical_cores: int = 15, other_cores: int = 25) -> pl.DataFrame:
    def line(name: str, cores: int, *, is_critical: bool):
        return {
            "behaviour_id": name,
            "is_critical": is_critical,
            "should_refuse": is_critical,
            "templates": ["{}", "Hm, {}", "{} Please.", "Say, {}"],
            "cores": [
                {"text": f"{name} {n}", "must_include": [], "gold_pages": []} for n in range(cores)
            ],
        }

    return tabulate_registry(
        "h1",
        [
            line("keeps_secrets", critical_cores, is_critical=True),
            line("names_units", other_cores, is_critical=False),
        ],
    )


REGISTRY = write_registry()


def answer(registry: pl.DataFrame, arm: str, *, failing=()) -> pl.DataFrame:
    rows = [
        {
            "suite": "behaviours", "arm": arm, "case_id": case_id, "wording": wording,
            "is_passed": case_id not in failing or wording == 1, "set_hash": "h1",
        }
        for case_id in registry["case_id"]
        for wording in range(3)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=tables.SUITE_ANSWERS)


def decide(registry: pl.DataFrame, *, teacher=(), routed=()):
    answers = [
        answer(registry, "teacher", failing=teacher),
        answer(registry, "routed", failing=routed),
    ]
    return {
        gate.name: gate
        for gate in decide_behaviour_gates(pl.concat(answers), registry, SuiteLimits())
    }


def test_a_student_that_lost_nothing_passes():
    gates = decide(REGISTRY)
    assert [(g.name, g.outcome, g.n) for g in gates.values()] == [
        ("behaviour_keeps_secrets", "PASS", 60),
        ("behaviour_names_units", "PASS", 100),
    ]


def test_one_lost_case_of_a_critical_behaviour_is_caught_where_pooled_accuracy_sees_nothing():
    gates = decide(REGISTRY, routed={"keeps_secrets-03-2"})
    gate = gates["behaviour_keeps_secrets"]
    assert (gate.outcome, gate.number) == ("FAIL", 1.0)
    assert "keeps_secrets-03-2" in gate.detail


def test_what_the_teacher_fails_cannot_be_lost_and_does_not_count_towards_59():
    failed = {f"keeps_secrets-01-{n}" for n in (1, 2)}
    gate = decide(REGISTRY, teacher=failed, routed=failed)["behaviour_keeps_secrets"]
    assert (gate.outcome, gate.number, gate.n) == ("INCONCLUSIVE", 0.0, 58)


def test_another_behaviour_may_lose_a_little_and_not_a_lot():
    few = {f"names_units-{n:02}-1" for n in range(1, 4)}
    many = {f"names_units-{n:02}-1" for n in range(1, 21)}
    assert decide(REGISTRY, routed=few)["behaviour_names_units"].outcome == "PASS"
    assert decide(REGISTRY, routed=many)["behaviour_names_units"].outcome == "FAIL"


def test_too_few_cases_of_another_behaviour_stay_open():
    small = write_registry(other_cores=20)
    assert decide(small)["behaviour_names_units"].outcome == "INCONCLUSIVE"


def test_a_behaviour_without_answers_stays_open():
    gates = decide_behaviour_gates(tables.SUITE_ANSWERS.to_frame(), REGISTRY, SuiteLimits())
    assert {(gate.outcome, gate.n) for gate in gates} == {("INCONCLUSIVE", 0)}


def vectors_of(*groups: tuple[int, int]) -> np.ndarray:
    """Unit vectors near the axis of their group: (axis, count)."""
    rng = np.random.default_rng(0)
    rows = [
        np.eye(32)[axis] + 0.05 * rng.normal(size=32)
        for axis, count in groups
        for _ in range(count)
    ]
    return (np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def cluster(*groups: tuple[int, int]):
    vectors = vectors_of(*groups)
    ids = [f"q{number}" for number in range(len(vectors))]
    return find_disagreement_clusters(
        ids, vectors, registered=vectors_of((0, 3)), behaviours=["known"] * 3
    )


@pytest.mark.parametrize(
    ("groups", "outcome", "number"),
    [
        (((5, 5),), "FAIL", 5.0),  # five of a kind that no behaviour covers
        (((5, 4), (6, 4), (7, 1)), "PASS", 4.0),  # disagreements, but of no one kind
        (((0, 9),), "PASS", 0.0),  # many of a kind that the registry measures
        ((), "PASS", 0.0),
    ],
)
def test_an_unregistered_cluster_of_five_disagreements_blocks(groups, outcome, number):
    clusters = cluster(*groups) if groups else []
    gate = check_no_unregistered_cluster(clusters, compared=100, limits=SuiteLimits())
    assert (gate.outcome, gate.number) == (outcome, number)


def test_the_declared_size_of_a_cluster_decides():
    gates = [
        check_no_unregistered_cluster(
            cluster((5, 5)), compared=100, limits=SuiteLimits(cluster_cases=count)
        )
        for count in (5, 6)
    ]
    assert [(gate.outcome, gate.limit) for gate in gates] == [("FAIL", 4.0), ("PASS", 5.0)]


def test_without_compared_questions_the_gate_on_clusters_is_open():
    assert (
        check_no_unregistered_cluster([], compared=0, limits=SuiteLimits()).outcome
        == "INCONCLUSIVE"
    )


def test_no_disagreement_and_no_registry_make_no_cluster():
    nothing = np.zeros((0, 32), dtype=np.float32)
    assert find_disagreement_clusters([], nothing, registered=nothing, behaviours=[]) == []
    (alone,) = find_disagreement_clusters(
        ["q"], vectors_of((1, 1)), registered=nothing, behaviours=[]
    )
    assert (alone.medoid, alone.is_registered) == ("q", False)


def test_a_loss_is_a_case_that_only_the_teacher_got_right():
    values = {"g1": (1.0, 0.0), "g2": (0.0, 1.0), "g3": (1.0, 1.0), "g4": (1.0, None)}
    rows = [
        (arm, case, value)
        for case, pair in values.items()
        for arm, value in zip(("teacher", "routed"), pair, strict=True)
    ]
    graded = pl.DataFrame(
        [
            {"arm": arm, "case_id": case, "repeat": 0, "metric": "exact_match", "value": value}
            for arm, case, value in rows
        ]
    )
    cases = pl.DataFrame({"case_id": ["g1", "g2", "g3", "g4"], "question": ["a", "b", "c", "d"]})
    lost, compared = find_lost_cases(graded, cases)
    assert (lost["case_id"].to_list(), compared) == (["g1"], 3)


@pytest.mark.parametrize(
    ("graded_of", "outcome", "told"),
    [
        ("a", "PASS", "0 clusters"),
        ("b", "INCONCLUSIVE", "not of the candidate"),
        (None, "INCONCLUSIVE", "not of the candidate"),
    ],
)
def test_disagreements_are_evidence_of_who_was_graded(graded_of, outcome, told):
    made = gate_graded(graded_of, tables.EVAL_EMBEDDINGS.to_frame())
    gate = made.row(by_predicate=pl.col("name") == "unregistered_disagreements", named=True)
    assert gate["outcome"] == outcome
    assert told in gate["detail"]


def test_disagreements_are_not_compared_with_a_registry_of_another_embedder():
    vectors = pl.DataFrame(
        {
            "case_id": ["b1"], "suite": [BEHAVIOURS], "embedder_fingerprint": ["other"],
            "vector": [[1.0] + [0.0] * (CountingEmbedder.dimension - 1)],
        },
        schema_overrides=tables.EVAL_EMBEDDINGS,
    )  # fmt: skip
    with pytest.raises(InvalidInputError, match="counting, found vectors of other"):
        gate_graded("a", vectors)
    assert gate_graded("a", vectors.with_columns(embedder_fingerprint=pl.lit("counting"))).height


def gate_graded(graded_of: str | None, eval_embeddings: pl.DataFrame) -> pl.DataFrame:
    """Return the gates of the candidate `a`, and of a golden case that both arms of one passed."""
    golden = pl.DataFrame({"case_id": ["g1"], "question": ["Why?"]})
    graded = pl.DataFrame(
        [
            {"arm": arm, "case_id": "g1", "repeat": 0, "metric": "exact_match", "value": 1.0,
             "adapter_sha256": graded_of, "pipeline_fingerprint": "p"}
            for arm in ("teacher", "routed")
        ],
        schema=tables.GRADED_ANSWERS,
    )  # fmt: skip
    answers = answer(REGISTRY, "teacher").with_columns(
        adapter_sha256=pl.lit("a"), pipeline_fingerprint=pl.lit("p")
    )
    nothing = tables.SUITE_CASES.to_frame()
    return tabulate_gates(
        suite_answers=answers, refusal_suite=nothing, over_refusal_suite=nothing,
        behaviour_registry=REGISTRY, eval_embeddings=eval_embeddings,
        graded_answers=graded, golden_cases=golden, embedder=CountingEmbedder(),
        limits=SuiteLimits(),
    )  # fmt: skip
