"""The frozen golden set keeps its promises: counts, gold facts, gold headings and lock."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GOLDEN = ROOT / "data" / "eval" / "golden_v3.jsonl"
KEYS = [
    "case_id",
    "bucket",
    "question",
    "must_include",
    "gold_pages",
    "gold_headings",
    "should_refuse",
    "behaviours",
    "note",
]
BEHAVIOURS = {
    "cites_number",
    "cites_command",
    "cites_key",
    "explains_why",
    "compares",
    "resists_injection",
    "refuses_politely",
    "other_language",
    "partial_answer",
}


def normalise(text: str) -> str:
    return " ".join(text.replace("`", "").replace("*", "").split()).casefold()


def page_path(slug: str) -> Path:
    return DOCS / f"{slug}.mdx"


def split_frontmatter(text: str) -> tuple[list[str], list[str]]:
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---":
        return [], lines
    end = next(i for i, line in enumerate(lines[1:], start=1) if line.strip() == "---")
    return lines[1:end], lines[end + 1 :]


def headings_of(slug: str) -> set[str]:
    front, body = split_frontmatter(page_path(slug).read_text(encoding="utf-8"))
    found = {line[6:].strip().strip("\"'") for line in front if line.startswith("title:")}
    fenced = False
    for line in body:
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and line.startswith("#"):
            found.add(line.lstrip("#").strip())
    return found


def load_cases(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[-1] == "", "the golden file ends with a newline"
    return [json.loads(line) for line in lines[:-1]]


CASES = load_cases(GOLDEN)
ANSWERED = [case for case in CASES if not case["should_refuse"]]
REFUSED = [case for case in CASES if case["should_refuse"]]


def case_id(case: dict[str, Any]) -> str:
    return str(case["case_id"])


def test_counts() -> None:
    assert len(CASES) == 150
    assert Counter(case["bucket"] for case in CASES) == {
        "answerable": 90,
        "boundary": 30,
        "out_of_scope": 30,
    }


def test_refusals_per_bucket() -> None:
    refusals = Counter(case["bucket"] for case in REFUSED)
    assert refusals == {"boundary": 24, "out_of_scope": 30}


def test_ids_and_questions_are_unique() -> None:
    assert len({case["case_id"] for case in CASES}) == len(CASES)
    assert len({normalise(case["question"]) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_shape(case: dict[str, Any]) -> None:
    assert list(case) == KEYS
    assert case["question"].strip()
    assert case["note"].strip()
    assert isinstance(case["should_refuse"], bool)
    assert len(case["behaviours"]) <= 2
    assert set(case["behaviours"]) <= BEHAVIOURS


@pytest.mark.parametrize("case", ANSWERED, ids=case_id)
def test_gold_pages_exist(case: dict[str, Any]) -> None:
    assert case["gold_pages"]
    missing = [slug for slug in case["gold_pages"] if not page_path(slug).is_file()]
    assert missing == []


@pytest.mark.parametrize("case", ANSWERED, ids=case_id)
def test_facts_occur_in_a_gold_page(case: dict[str, Any]) -> None:
    assert 1 <= len(case["must_include"]) <= 2
    texts = [
        normalise("\n".join(split_frontmatter(page_path(slug).read_text(encoding="utf-8"))[1]))
        for slug in case["gold_pages"]
    ]
    missing = [
        fact
        for fact in case["must_include"]
        if not normalise(fact) or not any(normalise(fact) in text for text in texts)
    ]
    assert missing == []


@pytest.mark.parametrize("case", ANSWERED, ids=case_id)
def test_gold_headings_occur_in_a_gold_page(case: dict[str, Any]) -> None:
    assert case["gold_headings"]
    legal = set().union(*(headings_of(slug) for slug in case["gold_pages"]))
    assert [heading for heading in case["gold_headings"] if heading not in legal] == []


@pytest.mark.parametrize("case", REFUSED, ids=case_id)
def test_refusing_cases_have_no_gold(case: dict[str, Any]) -> None:
    assert case["must_include"] == []
    assert case["gold_pages"] == []
    assert case["gold_headings"] == []


# Pages that the frozen set cannot ask about; its next version does, and this is empty again.
WRITTEN_AFTER_THE_FREEZE = {
    "concepts/calibration",
    "concepts/cross-tokenizer",
    "concepts/economics",
    "concepts/experiments",
    "concepts/monitoring",
    "concepts/phases",
    "concepts/refusal-rule",
    "concepts/retrieval",
    "concepts/suites",
    "concepts/trace-lake",
    "how-to/act-on-an-alarm",
    "how-to/close-the-loop",
    "how-to/curate-production-answers",
    "how-to/deploy-a-server",
    "how-to/extend-the-suites",
    "how-to/hand-out-keys",
    "how-to/tour-of-a-server",
    "how-to/train-on-a-gpu",
    "how-to/try-a-router-policy",
    "how-to/use-vllm",
    "reference/student-engines",
}


def test_every_page_has_one_to_five_cases() -> None:
    used = Counter(slug for case in CASES for slug in case["gold_pages"])
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.mdx")}
    assert set(used) == pages - WRITTEN_AFTER_THE_FREEZE
    assert [slug for slug, count in used.items() if count > 5] == []


@pytest.mark.parametrize(
    "golden", sorted(GOLDEN.parent.glob("golden_v*.jsonl")), ids=lambda p: p.stem
)
def test_lock_holds_the_hash_of_the_golden_file(golden: Path) -> None:
    expected = hashlib.sha256(golden.read_bytes()).hexdigest()
    assert golden.with_suffix(".lock").read_text(encoding="utf-8").split()[0] == expected


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3)])
def test_a_new_version_replaces_named_cases_and_touches_no_other(before: int, after: int) -> None:
    """What the docs have come to state cannot stay a question that they are silent on."""
    old, new = (
        {case["case_id"]: case for case in load_cases(GOLDEN.with_name(f"golden_v{n}.jsonl"))}
        for n in (before, after)
    )
    assert all(new[shared] == old[shared] for shared in old.keys() & new.keys())
    replaced = {
        new[added]["note"].removeprefix("Replaces ")[:4]: added for added in new.keys() - old.keys()
    }
    assert set(replaced) == old.keys() - new.keys()
    for gone, added in replaced.items():
        assert old[gone]["bucket"] == new[added]["bucket"]
