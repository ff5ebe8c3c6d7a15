"""Eval-set assets: the frozen golden cases, their embeddings, and how well the guard sees them.

Belongs here: declarations. Does not belong here: anything that would tune on the set.
"""

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.charts import embed_png
from assets.eval_set.evidence import draw_recall, render_recall
from assets.eval_set.golden import Golden
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT, EvalQuestions, guard_questions
from assets.eval_set.overlap import NGRAM_WORDS
from assets.eval_set.recall import RULES, UNRELATED, measure_recall, plant_paraphrases
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


@dg.asset(
    key=keys.EVAL_EMBEDDINGS,
    ins={"golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES)},
    kinds={"polars"},
    code_version="2",
)
def eval_embeddings(
    golden_cases: pl.DataFrame, embedder: dg.ResourceParam[Embedder]
) -> dg.MaterializeResult[pl.DataFrame]:
    """Unit vectors of the golden questions, for the contamination guard only."""
    vectors = embedder.embed([normalise_question(text) for text in golden_cases["question"]])
    frame = golden_cases.select("case_id", "question").with_columns(
        pl.lit(embedder.fingerprint).alias("embedder_fingerprint"),
        pl.Series("vector", vectors.tolist(), dtype=pl.List(pl.Float32())),
    )
    return dg.MaterializeResult(
        value=frame, metadata={"case_count": frame.height, "dimension": int(vectors.shape[1])}
    )


@dg.asset(
    key=keys.GUARD_RECALL,
    ins={
        "eval_embeddings": dg.AssetIn(key=keys.EVAL_EMBEDDINGS),
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
    },
    kinds={"matplotlib", "polars"},
    code_version=f"2+limit.{LEAKAGE_COSINE_LIMIT}+ngram.{NGRAM_WORDS}",
)
def guard_recall(
    eval_embeddings: pl.DataFrame,
    seed_questions: pl.DataFrame,
    embedder: dg.ResourceParam[Embedder],
) -> dg.MaterializeResult[pl.DataFrame]:
    """What the guard catches of paraphrases planted on purpose, and of seeds: measured, not tuned.

    Rows of the kind `unrelated_seed` are the other side: the share of seeds it rejects.
    """
    planted = plant_paraphrases(eval_embeddings.select("case_id", "question").iter_rows())
    seeds = seed_questions.select(pl.lit(UNRELATED).alias("kind"), "text")
    judged = guard_questions(
        pl.concat([planted.select("kind", "text"), seeds]),
        protected=EvalQuestions.read(eval_embeddings),
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
