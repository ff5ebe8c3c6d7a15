"""Seeds and golden cases: a broken file is named by line, with what to do."""

import hashlib
import json

import pytest

from resources.input_files import GoldenFile, SeedFile
from serving.errors import HashMismatchError, InvalidInputError

CASE = {"case_id": "g1", "bucket": "answerable", "question": "Why?", "should_refuse": False}


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
    "second", ['{"question_id": "a", "text": "Other?"}', '{"question_id": "b", "text": " HOW? "}']
)
def test_a_duplicate_seed_names_both_lines(tmp_path, second):
    seeds = write_seeds(tmp_path, '{"question_id": "a", "text": "how?"}', second)
    with pytest.raises(InvalidInputError, match=r"line 2.*already on line 1"):
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
