"""What the paraphrases promise, kept and broken."""

from datetime import UTC, datetime

import polars as pl
import pytest

from assets import tables
from assets.paraphrases.assets import RewritingPlan
from assets.paraphrases.checks import (
    most_paraphrases_asked_for_were_kept,
    paraphrases_differ_from_their_seed,
)

PLAN = RewritingPlan(seeds_per_cluster=1, paraphrases_per_medoid=4, temperature=0.9, concurrency=1)
CLUSTERS = pl.DataFrame(
    [
        {"question_id": f"s{n}", "cluster_id": n, "is_medoid": True, "distance": 0.0}
        for n in range(2)
    ],
    schema=tables.SEED_CLUSTERS,
)
SEEDS = pl.DataFrame(
    [
        {
            "question_id": f"s{n}",
            "text": f"Why {n}?",
            "source": "handwritten",
            "source_trace_id": None,
            "tags": [],
            "added_at": datetime(2026, 5, 1, tzinfo=UTC),
        }
        for n in range(2)
    ],
    schema=tables.SEED_QUESTIONS,
)


def reword(*texts: str, seed_id: str = "s0") -> pl.DataFrame:
    rows = [
        {
            "question_id": f"p{n}",
            "seed_id": seed_id,
            "text": text,
            "teacher_id": "teacher-1",
            "temperature": 0.9,
            "prompt_version": "test",
        }
        for n, text in enumerate(texts)
    ]
    return pl.DataFrame(rows, schema=tables.PARAPHRASES)


@pytest.mark.parametrize(("kept", "passed"), [(0, False), (3, False), (4, True), (8, True)])
def test_half_of_what_was_asked_for_must_remain(kept, passed):
    paraphrases = reword(*(f"text {n}" for n in range(kept)))
    result = most_paraphrases_asked_for_were_kept(paraphrases, CLUSTERS, rewriting_plan=PLAN)
    assert result.passed is passed
    assert result.metadata["asked_count"].value == 8
    assert result.metadata["kept_ratio"].value == kept / 8
    medoids = CLUSTERS.filter("is_medoid")["question_id"].sort().to_list()
    fewest = result.metadata["fewest_by_seed"].value
    assert sorted(fewest) == medoids
    assert sum(fewest.values()) == kept


@pytest.mark.parametrize(
    ("paraphrases", "passed"),
    [
        (reword("how come", "why though"), True),
        (reword("how come", "How, come?"), False),
        (reword("WHY 1"), False),
        (reword("how come", seed_id="gone"), False),
        (reword(), False),
    ],
)
def test_a_paraphrase_is_new_and_has_a_parent(paraphrases, passed):
    assert paraphrases_differ_from_their_seed(paraphrases, SEEDS).passed is passed


def test_it_is_said_where_to_look_when_no_rewording_was_kept():
    told = paraphrases_differ_from_their_seed(reword(), SEEDS).description
    assert "dropped_by_reason" in told
    assert paraphrases_differ_from_their_seed(reword("how come"), SEEDS).description is None
