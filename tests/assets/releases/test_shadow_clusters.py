"""The gate on clusters of real traffic: what this student loses and nobody measures."""

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.eval_set.suites import BEHAVIOURS
from assets.releases.disagreements import Registry, read_registered
from assets.releases.gates import GatePolicy
from assets.releases.shadow import read_pairs
from assets.releases.shadow_clusters import check_shadow_clusters
from serving.errors import InvalidInputError
from serving.home import Home
from tests.assets.releases.test_shadow import (
    DAYS,
    PIPELINE,
    UNTIL,
    answer_twice,
    write_traces,
)
from tests.counting_embedder import CountingEmbedder

POLICY = GatePolicy(minimum_agreement_pairs=40)
LOST = 6
KIND = "adapter"


class FirstWords(CountingEmbedder):
    """Questions are of one kind where they begin with one word."""

    dimension = 256

    def _draw(self, text: str) -> np.ndarray:
        return super()._draw(text.split()[0])


NOTHING = Registry(vectors=np.zeros((0, FirstWords.dimension), np.float32), behaviours=())


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path)


def ask(number: int, *, kind: str, agrees: bool = True, **changes):
    question = f"{kind} number {number}"
    return answer_twice(number, agrees=agrees, question=question, question_hash=question, **changes)


def trace(home: Home, count: int, *, lost: int = LOST, **changes) -> pl.DataFrame:
    """Return pairs of different kinds but for the lost ones, which are of one."""
    rows = [
        row
        for n in range(count)
        for row in ask(n, kind=KIND if n < lost else f"kind{n}", agrees=n >= lost, **changes)
    ]
    write_traces(home, rows)
    return read_pairs(home, days=DAYS, until=UNTIL)


def check(pairs, policy=POLICY, registry=NOTHING):
    return check_shadow_clusters(pairs, PIPELINE, policy, FirstWords(), registry)


def test_a_kind_of_question_that_the_registry_does_not_know_blocks_the_release(home):
    gate = check(trace(home, 60))
    assert (gate.outcome, gate.is_gating, gate.number, gate.n) == ("FAIL", True, 6.0, 60)
    assert "6 like trace t" in gate.detail
    assert "add cases of that kind to the behaviour registry" in gate.detail


def tabulate_vectors() -> pl.DataFrame:
    embedder = FirstWords()
    row = {
        "case_id": "b1", "suite": BEHAVIOURS, "vector": embedder.embed([KIND])[0].tolist(),
        "embedder_fingerprint": embedder.fingerprint,
    }  # fmt: skip
    other = row | {"case_id": "g1", "suite": "golden"}
    return pl.DataFrame([row, other], schema_overrides=tables.EVAL_EMBEDDINGS)


def test_a_registered_kind_is_the_registry_s_to_judge(home):
    table = tabulate_vectors()
    known = read_registered(table, embedder=FirstWords())
    assert list(known.behaviours) == ["b1"]
    gate = check(trace(home, 60), registry=known)
    assert (gate.outcome, gate.is_gating, gate.number) == ("PASS", True, 0.0)
    nothing = read_registered(tables.EVAL_EMBEDDINGS.to_frame(), embedder=FirstWords())
    assert len(nothing.behaviours) == len(nothing.vectors) == 0


def test_a_registry_of_another_embedder_is_not_compared():
    """Of equal length its vectors would be near to nothing: each cluster would block the release.

    One that is not there at all is no reason to stop: it registers nothing, whoever made it.
    """
    table = tabulate_vectors()
    other = FirstWords("other")
    with pytest.raises(InvalidInputError, match="other, found vectors of counting") as refused:
        read_registered(table, embedder=other)
    assert "--select eval_set" in refused.value.next_step
    assert not len(read_registered(table.filter(suite="golden"), embedder=other).behaviours)


def test_as_many_of_a_kind_that_everybody_asks_are_chance_unless_less_is_allowed(home):
    rows = [row for n in range(150) for row in ask(n, kind=KIND, agrees=n >= LOST)]
    write_traces(home, rows)
    pairs = read_pairs(home, days=DAYS, until=UNTIL)
    gate = check(pairs)
    assert (gate.outcome, gate.is_gating, gate.number) == ("PASS", True, 6.0)
    strict = GatePolicy(minimum_agreement_pairs=40, minimum_agreement_ratio=0.999)
    assert check(pairs, strict).outcome == "FAIL"


def test_fewer_than_the_limit_pass_and_the_limit_is_the_configs(home):
    seven = GatePolicy(minimum_agreement_pairs=40, unregistered_cluster_cases=7)
    gate = check(trace(home, 60), seven)
    assert (gate.outcome, gate.number, gate.limit) == ("PASS", 6.0, 6.0)


def test_what_another_student_lost_is_no_evidence_of_this_one(home):
    gate = check(trace(home, 60, student="compact@another"))
    assert (gate.outcome, gate.is_gating, gate.number, gate.n) == ("INCONCLUSIVE", False, None, 0)


def test_another_student_s_good_answers_do_not_dilute_this_one_s_losses(home):
    own = [row for n in range(60)
           for row in ask(n, kind=KIND if n < LOST else f"kind{n}", agrees=n >= LOST)]  # fmt: skip
    others = [row for n in range(60, 400) for row in ask(n, kind=KIND, student="compact@another")]
    write_traces(home, own + others)
    gate = check(read_pairs(home, days=DAYS, until=UNTIL))
    assert (gate.outcome, gate.number, gate.n) == ("FAIL", 6.0, 60)


def test_a_kind_lost_in_more_conversations_than_monitoring_names_is_counted_whole(home):
    gate = check(trace(home, 120, lost=70))
    assert (gate.outcome, gate.number) == ("FAIL", 70.0)


def test_one_person_who_asks_again_and_one_question_of_many_people_are_one(home):
    pairs = trace(home, 60)
    alone = GatePolicy(minimum_agreement_pairs=1)
    gate = check(pairs.with_columns(conversation=pl.lit("c1")), alone)
    assert (gate.outcome, gate.n) == ("INCONCLUSIVE", 1)  # of one hour
    same = pl.col("question_hash").str.starts_with(KIND)
    once = pl.when(same).then(pl.lit(f"{KIND} again")).otherwise("question_hash")
    gate = check(pairs.with_columns(question_hash=once))
    assert (gate.outcome, gate.number) == ("PASS", 1.0)


def test_too_few_pairs_are_no_pass_and_a_lost_kind_is_lost_all_the_same(home):
    pairs = trace(home, 30)
    gate = check(pairs.with_columns(agrees=pl.lit(value=True)))
    assert (gate.outcome, gate.is_gating, gate.number) == ("INCONCLUSIVE", False, 0.0)
    assert "40 pairs in 24 hours are needed" in gate.detail
    gate = check(pairs)
    assert (gate.outcome, gate.is_gating, gate.n) == ("FAIL", True, 30)


def test_without_a_shadow_run_the_gate_is_open_and_nothing_is_embedded(home):
    embedder = FirstWords()
    pairs = read_pairs(home, days=DAYS, until=UNTIL)
    gate = check_shadow_clusters(pairs, PIPELINE, POLICY, embedder, NOTHING)
    assert (gate.outcome, gate.is_gating, gate.number, gate.n) == ("INCONCLUSIVE", False, None, 0)
    assert embedder.embedded == []
