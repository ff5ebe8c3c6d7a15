"""Exposure: which golden cases rest on chunks the student trained on."""

import polars as pl
import pytest

from assets.parity.comparison import find_row
from assets.parity.exposure import find_seen_chunks, slice_by_exposure


def answers(*rows: tuple[str, list[str]]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"content_key": key, "retrieved": [{"chunk_id": chunk_id} for chunk_id in chunk_ids]}
            for key, chunk_ids in rows
        ]
    )


def test_only_prompts_of_training_examples_count():
    examples = pl.DataFrame(
        {"content_key": ["a", "b", "c"], "split": ["train", "validation", "train"]}
    )
    told = answers(("a", ["x", "y"]), ("b", ["z"]), ("c", ["y"]), ("never labelled", ["w"]))
    assert find_seen_chunks(examples, told) == {"x", "y"}


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
