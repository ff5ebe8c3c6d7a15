"""Seeds and golden cases: a broken file is named by line, with what to do."""

import hashlib
import json

import polars as pl
import pytest

from assets import tables
from resources.input_files import GoldenFile, HarvestedFile, SeedFile
from serving.errors import HashMismatchError, InvalidInputError

CASE = {
    "case_id": "g1",
    "bucket": "answerable",
    "question": "Why?",
    "must_include": ["1300"],
    "gold_pages": ["index"],
    "should_refuse": False,
}


def write_seeds(tmp_path, *lines: str) -> SeedFile:
    path = tmp_path / "seeds.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return SeedFile(path)


def write_golden(tmp_path, *cases: dict, lock: bool = True) -> GoldenFile:
    path = tmp_path / "golden_v1.jsonl"
    path.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    if lock:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_suffix(".lock").write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    return GoldenFile(path)


def test_seeds_are_read_in_order_and_blank_lines_are_skipped(tmp_path):
    seeds = write_seeds(
        tmp_path,
        '{"question_id": "a", "text": "How?"}',
        "",
        '{"question_id": "b", "text": "Why?", "tags": ["x"]}',
    ).read()
    assert [(s.question_id, s.text, s.tags) for s in seeds] == [
        ("a", "How?", ()),
        ("b", "Why?", ("x",)),
    ]


def test_a_broken_line_is_named_by_number(tmp_path):
    seeds = write_seeds(tmp_path, '{"question_id": "a", "text": "How?"}', '{"question_id": "b", ')
    with pytest.raises(InvalidInputError, match=r"seeds.jsonl, line 2.*JSON object"):
        seeds.read()


@pytest.mark.parametrize(
    "second",
    [
        '{"question_id": "a", "text": "Other?"}',
        '{"question_id": "b", "text": " HOW? "}',
        '{"question_id": "b", "text": "h\\u200bow"}',
    ],
)
def test_a_duplicate_seed_names_both_lines(tmp_path, second):
    seeds = write_seeds(tmp_path, '{"question_id": "a", "text": "how?"}', second)
    with pytest.raises(InvalidInputError, match=r"line 2.*already on line 1"):
        seeds.read()


def test_an_id_may_be_spelled_like_a_text(tmp_path):
    lines = (
        '{"question_id": "what is tea", "text": "What is tea?"}',
        '{"question_id": "b", "text": "tea"}',
        '{"question_id": "tea", "text": "Why?"}',
    )
    assert len(write_seeds(tmp_path, *lines).read()) == 3


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000])
def test_a_line_past_the_limits_of_json_is_named_by_number(tmp_path, value):
    seeds = write_seeds(tmp_path, f'{{"question_id": "a", "text": {value}}}')
    with pytest.raises(InvalidInputError, match=r"seeds.jsonl, line 1.*JSON object"):
        seeds.read()


def test_an_unknown_key_in_a_seed_is_an_error(tmp_path):
    seeds = write_seeds(tmp_path, '{"question_id": "a", "text": "How?", "topic": "x"}')
    with pytest.raises(InvalidInputError, match=r"line 1.*topic"):
        seeds.read()


def test_a_missing_or_empty_file_says_which_key_to_set(tmp_path):
    with pytest.raises(InvalidInputError, match=r"seeds\.path"):
        SeedFile(tmp_path / "none.jsonl").read()
    with pytest.raises(InvalidInputError, match="an empty file"):
        write_seeds(tmp_path, "", "").read()


def test_a_golden_file_that_matches_its_lock_is_read(tmp_path):
    assert [case.case_id for case in write_golden(tmp_path, CASE).read()] == ["g1"]


def test_a_golden_file_that_changed_is_refused_with_both_hashes(tmp_path):
    golden = write_golden(tmp_path, CASE)
    locked = golden.lock_path.read_text(encoding="utf-8").split()[0]
    golden.path.write_text(json.dumps({**CASE, "question": "Why not?"}), encoding="utf-8")
    found = hashlib.sha256(golden.path.read_bytes()).hexdigest()
    with pytest.raises(HashMismatchError) as error:
        golden.read()
    assert locked in str(error.value)
    assert found in str(error.value)


def test_a_golden_file_without_a_lock_says_how_to_freeze_it(tmp_path):
    with pytest.raises(InvalidInputError, match="sha256sum"):
        write_golden(tmp_path, CASE, lock=False).read()


def test_a_changed_lock_is_another_version_of_the_source(tmp_path):
    golden = write_golden(tmp_path, CASE)
    before = golden.fingerprint()
    golden.lock_path.write_text("0" * 64, encoding="utf-8")
    assert golden.fingerprint() != before


def test_a_case_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="g1"):
        write_golden(tmp_path, CASE, CASE).read()


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_only_a_newline_ends_a_line(tmp_path, separator):
    text = f"How{separator} so?"
    line = json.dumps({"question_id": "a", "text": text}, ensure_ascii=False)
    seeds = write_seeds(tmp_path, line, '{"question_id": "b", "text": "Why?"}\r')
    assert [seed.text for seed in seeds.read()] == [text, "Why?"]


def test_a_file_that_is_no_utf8_says_where(tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(b'{"question_id": "a", "text": "caf\xe9"}')
    with pytest.raises(InvalidInputError, match=r"seeds\.jsonl.*0xe9 at offset 33"):
        SeedFile(path).read()


def test_an_unreadable_lock_is_a_clear_error(tmp_path):
    golden = write_golden(tmp_path, CASE)
    golden.lock_path.write_bytes(b"\xff\xfe")
    for use in (golden.read, golden.fingerprint):
        with pytest.raises(InvalidInputError, match=r"golden_v1\.lock.*sha256sum"):
            use()
    golden.lock_path.unlink()
    golden.lock_path.mkdir()
    with pytest.raises(InvalidInputError, match=r"golden_v1\.lock.*directory"):
        golden.read()


REFUSED = {**CASE, "bucket": "boundary", "should_refuse": True}


@pytest.mark.parametrize(
    ("case", "found"),
    [
        ({**CASE, "must_include": []}, "must_include"),
        ({**CASE, "gold_pages": []}, "gold_pages"),
        ({**CASE, "must_include": ["1300", " "]}, "must_include holds an empty text"),
        ({**CASE, "should_refuse": True}, "answerable case"),
        ({**REFUSED, "gold_pages": []}, "must_include must be empty"),
        ({**REFUSED, "must_include": []}, "gold_pages must be empty"),
    ],
)
def test_a_case_that_cannot_be_graded_is_refused(tmp_path, case, found):
    with pytest.raises(InvalidInputError, match=rf"line 1.*{found}"):
        write_golden(tmp_path, case).read()


def test_a_case_to_refuse_names_nothing_and_a_boundary_case_may_be_answered(tmp_path):
    refused = {**REFUSED, "must_include": [], "gold_pages": []}
    answered = {**CASE, "case_id": "g2", "bucket": "boundary"}
    assert len(write_golden(tmp_path, refused, answered).read()) == 2


def write_harvest(tmp_path, frame: pl.DataFrame) -> HarvestedFile:
    path = tmp_path / "harvested.parquet"
    frame.write_parquet(path)
    return HarvestedFile(path, tables.HARVESTED_QUESTIONS)


def test_without_a_harvest_there_are_no_rows_and_one_version():
    none = HarvestedFile(None, tables.HARVESTED_QUESTIONS)
    assert none.read().is_empty()
    assert none.read().schema == tables.HARVESTED_QUESTIONS
    assert none.fingerprint() == "none"


def test_a_harvest_is_read_whatever_the_order_of_its_columns(tmp_path):
    frame = tables.HARVESTED_QUESTIONS.to_frame()
    harvest = write_harvest(tmp_path, frame.select(reversed(frame.columns)))
    assert harvest.read().schema == tables.HARVESTED_QUESTIONS
    assert len(harvest.fingerprint()) == 64


def test_a_harvest_with_other_columns_names_each_of_them(tmp_path):
    frame = (
        tables.HARVESTED_QUESTIONS.to_frame()
        .drop("decision")
        .with_columns(extra=pl.lit(1), trainable=pl.lit("yes"))
    )
    with pytest.raises(InvalidInputError) as error:
        write_harvest(tmp_path, frame).read()
    for part in ("decision is missing", "trainable is String and not Boolean", "extra is not decl"):
        assert part in error.value.found


def test_a_harvest_that_is_missing_or_no_parquet_says_which_key_to_set(tmp_path):
    path = tmp_path / "harvested.parquet"
    harvest = HarvestedFile(path, tables.HARVESTED_QUESTIONS)
    with pytest.raises(InvalidInputError, match=r"seeds\.harvested"):
        harvest.read()
    path.write_text("no Parquet", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"readable Parquet.*seeds\.harvested"):
        harvest.read()
