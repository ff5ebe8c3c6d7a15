"""Somebody else's documentation, unread by us: docs to judged labels.

The corpus (tensorzero-docs, Apache-2.0, Mintlify MDX) is not part of this repository; the test runs
where a copy lies at ../shared/corpora, or where UNDERSTUDY_TEST_CORPORA points.
"""

import hashlib
import os
from pathlib import Path

import polars as pl
import pytest
import yaml

from orchestration.config import PROJECT_ROOT, read_config
from orchestration.running import run_chain
from serving.home import Home
from serving.models.protocols import NoProgress
from tests.product import write_lines

CORPORA = Path(os.environ.get("UNDERSTUDY_TEST_CORPORA", PROJECT_ROOT.parent / "shared/corpora"))
CORPUS = CORPORA / "tensorzero-docs"
pytestmark = [
    pytest.mark.real_models,
    pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}"),
]

SEEDS = (
    "how long do valkey cache entries live", "turn off inference caching",
    "what does write_only caching do", "how many times can a variant be retried",
    "max delay between retries", "is the gateway a proxy or a library", "why is it so fast",
    "latency overhead of the gateway under load", "what is an episode",
    "how do i send feedback for an inference", "metric types for feedback",
    "batch inference polling", "embeddings from the gateway", "image input to an llm",
    "json mode structured output", "call tools in parallel",
    "what language is the gateway written in", "best pizza in Naples",
    "how do I iron a shirt", "who painted the Mona Lisa",
)  # fmt: skip


def write_config(folder: Path) -> Path:
    write_lines(
        folder / "seeds.jsonl",
        [{"question_id": f"t{n:02}", "text": text} for n, text in enumerate(SEEDS)],
    )
    golden = folder / "golden_v1.jsonl"
    write_lines(
        golden,
        [
            {
                "case_id": "g1",
                "bucket": "answerable",
                "question": "After which time does Valkey throw a cached response away?",
                "must_include": ["24 hours"],
                "gold_pages": ["gateway/guides/inference-caching"],
                "gold_headings": ["Cache Backend"],
                "should_refuse": False,
            },
            {
                "case_id": "g2",
                "bucket": "out_of_scope",
                "question": "Which wine goes with fish?",
                "should_refuse": True,
            },
        ],
    )
    digest = hashlib.sha256(golden.read_bytes()).hexdigest()
    golden.with_suffix(".lock").write_text(f"{digest}  {golden.name}\n", encoding="utf-8")
    config = {
        "home": "made",
        "product": {
            "name": "tensorzero",
            "corpus": {
                "path": str(CORPUS),
                "include": ["gateway/guides/*.mdx", "faq.mdx", "quickstart.mdx"],
                "url": "https://www.tensorzero.com/docs/{slug}/",
            },
        },
        "seeds": {"path": "seeds.jsonl", "paraphrases_per_medoid": 2, "seeds_per_cluster": 5},
        "eval": {"golden": "golden_v1.jsonl"},
        "teacher": {"model": "extractive-v1", "license": "Apache-2.0", "trainable": True},
        "judge": {"model": "extractive-judge-v1", "epoch": "test"},
        "students": {"compact": {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct"}},
    }
    path = folder / "understudy.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_foreign_docs_become_judged_labels_with_citations(tmp_path, monkeypatch):
    for name in ("DAGSTER_HOME", "UNDERSTUDY_HOME", "UNDERSTUDY_CONFIG"):
        monkeypatch.setenv(name, "")
    config = read_config(write_config(tmp_path))
    outcome = run_chain(
        config,
        progress=NoProgress(),
        recipe="compact",
        select=["corpus", "seeds", "eval_set", "paraphrases", "labels/teacher_answers",
                "labels/judged_answers"],
    )  # fmt: skip
    assert outcome.succeeded, outcome.failure
    answers = pl.read_parquet(Home(config.home).table("labels/teacher_answers"))
    by_question = {row["question"]: row for row in answers.iter_rows(named=True)}
    cache = by_question["how long do valkey cache entries live"]
    assert "24 hours" in cache["answer"]
    assert cache["citations"][0].startswith("docs:gateway/guides/inference-caching/")
    for question in SEEDS[-3:]:
        assert by_question[question]["refused"], question
    assert answers["validator_verdict"].unique().to_list() == ["valid"]
    assert answers.filter(~pl.col("refused")).height >= 8
