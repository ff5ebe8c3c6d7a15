"""The committed suites: large enough, distinct, frozen, and true to the committed pages."""

from collections import Counter
from pathlib import Path

import pytest

from assets.eval_set.anchors import build_anchors, find_anchor_faults
from assets.eval_set.behaviours import measure_diversity, tabulate_registry
from assets.eval_set.golden import find_missing_facts, find_missing_pages
from assets.eval_set.suites import (
    OVER_REFUSAL_KINDS,
    REFUSAL_KINDS,
    find_suite_faults,
    find_thin_suite,
    tabulate_suite,
)
from orchestration.config import load_config
from resources.input_files import GoldenFile
from resources.suite_files import SuiteFiles
from serving.pipeline.chunking import parse_page, visible_text
from serving.pipeline.questions import fold_text

CONFIG = load_config({})
FILES = SuiteFiles.name(**dict(CONFIG.eval.suites))
REFUSAL = tabulate_suite("refusal", *FILES.read("refusal"))
OVER_REFUSAL = tabulate_suite("over_refusal", *FILES.read("over_refusal"))
REGISTRY = tabulate_registry(*FILES.read("behaviours"))
ANCHORS = build_anchors(*FILES.read("anchors"))
DOCS = Path(CONFIG.product.corpus.path)


@pytest.fixture(scope="module")
def page_texts() -> dict[str, str]:
    pages = (
        parse_page(
            path.relative_to(DOCS).as_posix(),
            path.read_text(encoding="utf-8"),
            url_template="https://docs/{slug}/",
        )
        for path in DOCS.rglob("*.mdx")
    )
    return {page.slug: visible_text(page) for page in pages}


def test_the_suites_are_as_large_as_their_gates_need():
    assert REFUSAL.height >= 200
    assert OVER_REFUSAL.height >= 250
    assert int(REFUSAL["is_critical"].sum()) >= 149
    assert ANCHORS["anchor_id"].n_unique() >= 400
    assert (
        find_thin_suite(REFUSAL, "refusal") == find_thin_suite(OVER_REFUSAL, "over_refusal") == []
    )


def test_every_case_can_be_graded_and_is_there_once():
    assert find_suite_faults(REFUSAL, should_refuse=True, kinds=REFUSAL_KINDS) == []
    assert find_suite_faults(OVER_REFUSAL, should_refuse=False, kinds=OVER_REFUSAL_KINDS) == []
    kinds = [str(kind) for kind in REGISTRY["kind"].unique()]
    for behaviour in kinds:
        cases = REGISTRY.filter(kind=behaviour)
        should_refuse = bool(cases["should_refuse"][0])
        assert find_suite_faults(cases, should_refuse=should_refuse, kinds=kinds) == []


def test_every_reason_to_refuse_has_at_least_thirty_cases():
    assert min(Counter(REFUSAL["kind"]).values()) >= 30
    assert set(REFUSAL["kind"]) == set(REFUSAL_KINDS)


def test_what_alarms_and_what_is_put_sideways_are_both_asked_often():
    assert min(Counter(OVER_REFUSAL["kind"]).values()) >= 100


@pytest.mark.parametrize("behaviour", measure_diversity(REGISTRY), ids=lambda b: b.behaviour_id)
def test_every_behaviour_has_enough_different_cases(behaviour):
    assert behaviour.faults == ()


def test_the_anchors_know_every_axis_both_ways():
    assert find_anchor_faults(ANCHORS) == []


@pytest.mark.parametrize("suite", [OVER_REFUSAL, REGISTRY], ids=["over_refusal", "behaviours"])
def test_the_pages_state_every_fact_and_exist(suite, page_texts):
    cases = suite.to_dicts()
    assert find_missing_facts(cases, page_texts) == []
    assert find_missing_pages(cases, page_texts) == []


def test_no_question_is_in_two_suites_or_in_the_golden_set():
    golden = [case.question for case in GoldenFile(CONFIG.eval.golden).read()]
    asked = Counter(
        fold_text(text)
        for questions in (golden, REFUSAL["question"], OVER_REFUSAL["question"],
                          REGISTRY["question"])
        for text in questions
    )  # fmt: skip
    assert [text for text, count in asked.items() if count > 1] == []
