"""Exposure: which golden cases rest on chunks the student trained on."""

import polars as pl
import pytest

from assets import tables
from assets.parity.comparison import find_row
from assets.parity.exposure import find_trained, list_offered, list_read_chunks, slice_by_exposure
from serving.errors import InvalidInputError
from serving.home import Home

TRAINED = pl.DataFrame({"example_id": ["1", "2", "4"], "split": ["train", "validation", "train"]})
LABELLED = pl.DataFrame(
    {
        "example_id": ["1", "2", "3", "4"],
        "question_id": ["q1", "q2", "q3", "q4"],
        "content_key": ["a", "b", "c", "d"],
    }
)


def retrieve(column: str, found: dict[str, list[str] | None]) -> pl.DataFrame:
    rows = [
        {column: key, "retrieved": chunks and [{"chunk_id": chunk_id} for chunk_id in chunks]}
        for key, chunks in found.items()
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


TOLD = retrieve("content_key", {"a": ["x", "y"], "b": ["z"], "c": ["w"], "d": ["y", "v"]})
ASKED = retrieve("case_id", {"g1": ["l", "m"], "g2": None})


def read_chunks(sources: int | None, examples: pl.DataFrame = LABELLED) -> set[str]:
    trained = find_trained(TRAINED, examples)
    return set(list_read_chunks(trained, TOLD, ASKED, sources=sources)["chunk_id"])


def test_only_what_this_student_was_trained_on_counts():
    """Example 3 is a label that its recipe did not take, example 2 one it validates with."""
    assert find_trained(TRAINED, LABELLED)["example_id"].to_list() == ["1", "4"]
    assert read_chunks(None) == {"x", "y", "v"}


def test_a_student_of_one_source_saw_the_best_chunk_alone():
    assert read_chunks(1) == {"x", "y"}
    assert read_chunks(5) == {"x", "y", "v"}


def test_what_a_contaminated_student_learned_of_a_golden_question_counts():
    leaked = LABELLED.with_columns(
        question_id=pl.col("question_id").replace("q4", "g1"),
        content_key=pl.col("content_key").replace("d", "of no teacher_answers"),
    )
    assert read_chunks(None, leaked) == {"x", "y", "l", "m"}
    assert read_chunks(1, leaked) == {"x", "l"}


def test_only_the_contaminated_lane_draws_from_the_leak_and_not_without_it(tmp_path):
    home = Home(tmp_path)
    clean = pl.DataFrame([{"example_id": "1"}], schema=tables.LABELLED_EXAMPLES)
    assert list_offered(clean, lane="clean", home=home).equals(clean)
    with pytest.raises(InvalidInputError, match="--select labels/contaminated_examples"):
        list_offered(clean, lane="contaminated", home=home)
    path = home.table("labels/contaminated_examples")
    path.parent.mkdir(parents=True)
    pl.DataFrame([{"example_id": "2"}], schema=tables.LABELLED_EXAMPLES).write_parquet(path)
    found = list_offered(clean, lane="contaminated", home=home)
    assert found["example_id"].to_list() == ["1", "2"]
    assert list_offered(clean, lane="clean", home=home).equals(clean)


@pytest.fixture
def kiln_chunks() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "chunk_id": ["docs:kiln/1", "docs:kiln/2", "docs:oven/1"],
            "heading_path": [["Kiln", "Heat"], ["Kiln", "Glaze"], ["Oven"]],
            "text": ["1300 degrees", "two millimetres\n**Colour**\nblue", "250 degrees"],
        }
    )


def case(case_id: str, pages: list[str], headings: list[str]) -> dict[str, object]:
    return {
        "case_id": case_id, "gold_pages": pages, "gold_headings": headings, "must_include": [],
        "should_refuse": not pages,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pages", "headings", "slices"),
    [
        (["kiln"], ["Glaze"], ["seen_chunk"]),
        (["kiln"], ["Colour"], ["seen_chunk"]),  # a section joined into another's chunk
        (["kiln"], ["Heat"], ["unseen_chunk"]),
        (["kiln"], [], ["seen_chunk"]),  # no heading: any chunk of the page
        (["oven", "kiln"], ["Glaze"], ["seen_chunk"]),
        (["oven"], [], ["unseen_chunk"]),
        ([], [], []),  # out of scope: nothing to have seen
    ],
)
def test_a_case_is_seen_where_a_chunk_it_is_graded_by_was_trained_on(
    kiln_chunks: pl.DataFrame, pages: list[str], headings: list[str], slices: list[str]
):
    schema = {name: pl.List(pl.String) for name in ("gold_pages", "gold_headings", "must_include")}
    cases = pl.DataFrame([case("g1", pages, headings)], schema_overrides=schema)
    found = slice_by_exposure(cases, kiln_chunks, {"docs:kiln/2"})
    assert found["slice"].to_list() == slices


def test_the_report_measures_seen_and_unseen_cases_apart(parity_report: pl.DataFrame):
    # Cases 0, 3, 6, ... 33 lie on the page trained on; the student fails 3, 13, 23 and 33.
    seen = find_row(parity_report, "student", "exact_match", "seen_chunk")
    unseen = find_row(parity_report, "student", "exact_match", "unseen_chunk")
    assert (seen["numerator"], seen["n"]) == (10, 12)
    assert (unseen["numerator"], unseen["n"]) == (21, 23)
    assert find_row(parity_report, "student", "refusal_recall", "unseen_chunk")["n"] == 0
