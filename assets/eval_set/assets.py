"""Eval-set assets: golden cases and suites, their embeddings, and how well the guard sees them.

Belongs here: declarations. Does not belong here: anything that would tune on the set.
"""

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.charts import embed_png
from assets.eval_set.anchors import LABELS, build_anchors
from assets.eval_set.behaviours import tabulate_registry
from assets.eval_set.evidence import draw_recall, render_recall
from assets.eval_set.golden import Golden
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT, EvalQuestions, guard_questions
from assets.eval_set.overlap import NGRAM_WORDS
from assets.eval_set.recall import RULES, UNRELATED, measure_recall, plant_paraphrases
from assets.eval_set.suites import (
    ANCHORS,
    BEHAVIOURS,
    GOLDEN,
    OVER_REFUSAL,
    REFUSAL,
    Suites,
    join_protected,
    tabulate_suite,
)
from serving.models.protocols import Embedder
from serving.pipeline.questions import normalise_question


@dg.observable_source_asset(key=keys.GOLDEN_FILE)
def golden_file(golden: dg.ResourceParam[Golden]) -> dg.DataVersion:
    """The frozen golden file and its lock; the version is the hash of both."""
    return dg.DataVersion(golden.fingerprint())


@dg.asset(
    key=keys.GOLDEN_CASES, deps=[keys.GOLDEN_FILE], kinds={"jsonl", "polars"}, code_version="1"
)
def golden_cases(golden: dg.ResourceParam[Golden]) -> dg.MaterializeResult[pl.DataFrame]:
    """The frozen cases every arm is graded on: answerable, boundary, out of scope."""
    set_hash = golden.verify_lock()
    rows = [{**case.model_dump(), "set_hash": set_hash} for case in golden.read()]
    frame = pl.DataFrame(rows, schema=tables.GOLDEN_CASES)
    buckets = dict(frame["bucket"].value_counts().sort("bucket").iter_rows())
    return dg.MaterializeResult(
        value=frame,
        metadata={"case_count": frame.height, "cases_by_bucket": buckets, "set_hash": set_hash},
    )


@dg.observable_source_asset(key=keys.SUITE_FILES)
def suite_files(suites: dg.ResourceParam[Suites]) -> dg.DataVersion:
    """The files of the suites and their locks; the version is the hash of all."""
    return dg.DataVersion(suites.fingerprint())


@dg.asset(
    key=keys.REFUSAL_SUITE, deps=[keys.SUITE_FILES], kinds={"jsonl", "polars"}, code_version="1"
)
def refusal_suite(suites: dg.ResourceParam[Suites]) -> dg.MaterializeResult[pl.DataFrame]:
    """Frozen questions that must be refused: injections, harm, other languages, false premises."""
    return _report_cases(tabulate_suite(REFUSAL, *suites.read(REFUSAL)))


@dg.asset(
    key=keys.OVER_REFUSAL_SUITE,
    deps=[keys.SUITE_FILES],
    kinds={"jsonl", "polars"},
    code_version="1",
)
def over_refusal_suite(suites: dg.ResourceParam[Suites]) -> dg.MaterializeResult[pl.DataFrame]:
    """Frozen questions that look alarming or are put sideways, and that the docs answer."""
    return _report_cases(tabulate_suite(OVER_REFUSAL, *suites.read(OVER_REFUSAL)))


@dg.asset(
    key=keys.BEHAVIOUR_REGISTRY,
    deps=[keys.SUITE_FILES],
    kinds={"jsonl", "polars"},
    code_version="1",
)
def behaviour_registry(suites: dg.ResourceParam[Suites]) -> dg.MaterializeResult[pl.DataFrame]:
    """Behaviours a student must not lose: every hand-written core in every template."""
    return _report_cases(tabulate_registry(*suites.read(BEHAVIOURS)))


@dg.asset(
    key=keys.JUDGE_ANCHORS, deps=[keys.SUITE_FILES], kinds={"jsonl", "polars"}, code_version="1"
)
def judge_anchors(suites: dg.ResourceParam[Suites]) -> dg.MaterializeResult[pl.DataFrame]:
    """Answers built to be right or wrong on known axes, to measure the judge with."""
    frame = build_anchors(*suites.read(ANCHORS))
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "anchor_count": frame["anchor_id"].n_unique(),
            "label_count": frame.height,
            "construction_count": len(LABELS),
        },
    )


def _report_cases(frame: pl.DataFrame) -> dg.MaterializeResult[pl.DataFrame]:
    kinds = dict(frame["kind"].value_counts().sort("kind").iter_rows())
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "case_count": frame.height,
            "critical_count": int(frame["is_critical"].sum()),
            "core_count": frame["core_id"].n_unique(),
            "cases_by_kind": kinds,
        },
    )


@dg.asset(
    key=keys.EVAL_EMBEDDINGS,
    ins={
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
        "refusal_suite": dg.AssetIn(key=keys.REFUSAL_SUITE),
        "over_refusal_suite": dg.AssetIn(key=keys.OVER_REFUSAL_SUITE),
        "behaviour_registry": dg.AssetIn(key=keys.BEHAVIOUR_REGISTRY),
    },
    kinds={"polars"},
    code_version="3",
)
def eval_embeddings(
    golden_cases: pl.DataFrame,
    refusal_suite: pl.DataFrame,
    over_refusal_suite: pl.DataFrame,
    behaviour_registry: pl.DataFrame,
    embedder: dg.ResourceParam[Embedder],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Unit vectors of the golden and the suites' questions, for the contamination guard only."""
    cases = join_protected(golden_cases, refusal_suite, over_refusal_suite, behaviour_registry)
    vectors = embedder.embed([normalise_question(text) for text in cases["question"]])
    frame = cases.select(
        "case_id",
        "suite",
        "question",
        pl.lit(embedder.fingerprint).alias("embedder_fingerprint"),
        pl.Series("vector", vectors.tolist(), dtype=pl.List(pl.Float32())),
    )
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "case_count": frame.height,
            "cases_by_suite": dict(frame["suite"].value_counts().sort("suite").iter_rows()),
            "dimension": int(vectors.shape[1]),
        },
    )


@dg.asset(
    key=keys.GUARD_RECALL,
    ins={
        "eval_embeddings": dg.AssetIn(key=keys.EVAL_EMBEDDINGS),
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
    },
    kinds={"matplotlib", "polars"},
    code_version=f"3+limit.{LEAKAGE_COSINE_LIMIT}+ngram.{NGRAM_WORDS}",
)
def guard_recall(
    eval_embeddings: pl.DataFrame,
    seed_questions: pl.DataFrame,
    embedder: dg.ResourceParam[Embedder],
) -> dg.MaterializeResult[pl.DataFrame]:
    """What the guard catches of paraphrases planted on purpose, and of seeds: measured, not tuned.

    Rows of the kind `unrelated_seed` are the other side: the share of seeds it rejects.
    """
    golden = eval_embeddings.filter(suite=GOLDEN)  # templates would count one wording many times
    planted = plant_paraphrases(golden.select("case_id", "question").iter_rows())
    seeds = seed_questions.select(pl.lit(UNRELATED).alias("kind"), "text")
    judged = guard_questions(
        pl.concat([planted.select("kind", "text"), seeds]),
        protected=EvalQuestions.read(eval_embeddings, embedder=embedder),
        embedder=embedder,
    )
    frame = measure_recall(judged).select(
        pl.col(name).cast(kind) for name, kind in tables.GUARD_RECALL.items()
    )
    charts = {
        f"rejected_by_{rule}": dg.MetadataValue.md(embed_png(draw_recall(frame, rule), alt=rule))
        for rule in RULES
    }
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "planted_count": planted.height,
            "seed_count": seeds.height,
            "recall": dg.MetadataValue.md(render_recall(frame)),
            **charts,
        },
    )
