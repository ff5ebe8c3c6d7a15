"""The second corpus: read by the product's own readers, frozen, apart; no page is needed.

Where the pages lie at ../shared/corpora (or where UNDERSTUDY_TEST_CORPORA points), each golden fact
is looked up in them too.
"""

import os
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from assets.eval_set.facts import has_fact
from assets.eval_set.guard import EvalQuestions, judge_questions
from orchestration.config import PROJECT_ROOT, read_config
from resources.input_files import GoldenFile, SeedFile
from serving.models.embedded import resolve_model
from serving.models.embedder import SentenceEmbedder
from serving.pipeline.chunking import parse_page, visible_text
from serving.pipeline.questions import normalise_question

FOLDER = PROJECT_ROOT / "data" / "corpora" / "tensorzero-docs"
CONFIG = read_config(FOLDER / "understudy.yaml")
SEEDS = SeedFile(CONFIG.seeds.path).read()
GOLDEN = GoldenFile(CONFIG.eval.golden)
CASES = GOLDEN.read()
CORPORA = Path(os.environ.get("UNDERSTUDY_TEST_CORPORA", PROJECT_ROOT.parent / "shared/corpora"))
CORPUS = CORPORA / "tensorzero-docs"
OUT_OF_SCOPE = [seed for seed in SEEDS if "out_of_scope" in seed.tags]


def test_the_configuration_names_files_of_its_folder_and_pages_beside_the_repository():
    assert Path(CONFIG.seeds.path).parent == Path(CONFIG.eval.golden).parent == FOLDER
    beside = PROJECT_ROOT.parent / "shared" / "corpora" / "tensorzero-docs"
    assert Path(CONFIG.product.corpus.path).resolve() == beside.resolve()


def test_the_golden_set_is_frozen_and_has_the_cases_it_states():
    GOLDEN.verify_lock()
    counts = Counter(case.bucket for case in CASES)
    assert counts == {"answerable": 40, "boundary": 10, "out_of_scope": 10}
    assert counts == dict(CONFIG.eval.cases_by_bucket)
    assert len({case.case_id for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.should_refuse == (case.bucket != "answerable"), case.case_id
        assert bool(case.must_include) == bool(case.gold_pages) == (not case.should_refuse)


def test_the_seeds_are_distinct_and_one_in_six_is_out_of_scope():
    assert len({seed.question_id for seed in SEEDS}) == len(SEEDS) == 190
    assert len({normalise_question(seed.text) for seed in SEEDS}) == len(SEEDS)
    assert 0.15 <= len(OUT_OF_SCOPE) / len(SEEDS) <= 0.2
    areas = Counter(seed.tags[0] for seed in SEEDS if seed not in OUT_OF_SCOPE)
    assert len(areas) >= 10
    assert max(areas.values()) < len(SEEDS) / 3


@pytest.mark.real_models
def test_no_seed_comes_near_a_golden_case(tmp_path):
    resolved = resolve_model(CONFIG.embedder.model, CONFIG.embedder.revision, tmp_path)
    embedder = SentenceEmbedder(resolved.path, sha256=resolved.sha256)
    asked = [case.question for case in CASES]
    protected = EvalQuestions.prepare(
        [case.case_id for case in CASES], asked, embedder.embed(asked)
    )
    texts = [seed.text for seed in SEEDS]
    judged = judge_questions(texts, embedder.embed(texts), protected)
    assert judged.filter(pl.col("verdict") != "kept").is_empty()
    assert judged["nearest_cosine"].max() < 0.70


@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")
@pytest.mark.parametrize("case", [case for case in CASES if not case.should_refuse],
                         ids=lambda case: case.case_id)  # fmt: skip
def test_every_fact_stands_on_a_gold_page(case):
    texts = [
        visible_text(parse_page(f"{slug}.mdx", (CORPUS / f"{slug}.mdx").read_text(encoding="utf-8"),
                                url_template="https://docs/{slug}/"))
        for slug in case.gold_pages
    ]  # fmt: skip
    for fact in case.must_include:
        assert any(has_fact(text, fact) for text in texts), fact
