"""Paraphrase assets: seed_clusters -> paraphrases -> guarded_questions.

Belongs here: declarations. Does not belong here: clustering, rewriting, the guard's limit.
"""

from dataclasses import asdict, dataclass

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.charts import embed_png
from assets.eval_set.evidence import draw_nearest_cosines, find_near_misses, render_pairs
from assets.eval_set.guard import (
    LEAKAGE_COSINE_LIMIT,
    EvalQuestions,
    guard_questions,
    reject_descendants,
)
from assets.eval_set.overlap import NGRAM_WORDS
from assets.paraphrases.clustering import cluster_questions
from assets.paraphrases.dreaming import Dreams, choose_candidates
from assets.paraphrases.multiplying import paraphrase_medoids
from assets.paraphrases.rewriting import REWRITE_PROMPT_VERSION
from assets.seeds.harvesting import list_private_seeds
from assets.spending import describe_spending, read_spending
from serving.aio import run_blocking
from serving.models.protocols import ChatModel, Embedder, Progress


@dataclass(frozen=True, kw_only=True)
class RewritingPlan:
    """How seeds multiply."""

    seeds_per_cluster: int
    paraphrases_per_medoid: int
    temperature: float
    concurrency: int


@dg.asset(
    key=keys.SEED_CLUSTERS,
    ins={"seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS)},
    kinds={"scikitlearn", "polars"},
    code_version="2",
)
def seed_clusters(
    seed_questions: pl.DataFrame,
    embedder: dg.ResourceParam[Embedder],
    rewriting_plan: dg.ResourceParam[RewritingPlan],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Seeds grouped by meaning, each group with the medoid that is paraphrased."""
    members = cluster_questions(
        seed_questions["question_id"].to_list(),
        embedder.embed(seed_questions["text"].to_list()),
        questions_per_cluster=rewriting_plan.seeds_per_cluster,
    )
    frame = pl.DataFrame(
        [
            {"question_id": question_id, **asdict(member)}
            for question_id, member in zip(seed_questions["question_id"], members, strict=True)
        ],
        schema=tables.SEED_CLUSTERS,
    )
    sizes = frame["cluster_id"].value_counts()["count"]
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "cluster_count": frame["cluster_id"].n_unique(),
            "largest_cluster": int(sizes.max() or 0),
            "mean_distance_to_medoid": float(frame["distance"].mean() or 0.0),
        },
    )


@dg.asset(
    key=keys.PARAPHRASES,
    ins={
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
        "seed_clusters": dg.AssetIn(key=keys.SEED_CLUSTERS),
    },
    kinds={"openai", "polars"},
    code_version=f"2+prompt.{REWRITE_PROMPT_VERSION}",
    pool="teacher",
)
def paraphrases(
    seed_questions: pl.DataFrame,
    seed_clusters: pl.DataFrame,
    teacher: dg.ResourceParam[ChatModel],
    embedder: dg.ResourceParam[Embedder],
    rewriting_plan: dg.ResourceParam[RewritingPlan],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Rewordings of every medoid by the teacher, each new among the seeds and paraphrases."""
    seeds = seed_questions.select("question_id", "text")
    medoids = seeds.join(seed_clusters.filter("is_medoid"), on="question_id", how="semi")
    before = read_spending(teacher)
    made = run_blocking(
        paraphrase_medoids(
            list(medoids.iter_rows()),
            seeds=list(seeds.iter_rows()),
            teacher=teacher,
            embed=embedder.embed,
            count=rewriting_plan.paraphrases_per_medoid,
            temperature=rewriting_plan.temperature,
            concurrency=rewriting_plan.concurrency,
            progress=progress,
        )
    )
    frame = pl.DataFrame([asdict(row) for row in made.paraphrases], schema=tables.PARAPHRASES)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "medoid_count": medoids.height,
            "paraphrase_count": frame.height,
            "medoids_without_paraphrase": medoids.height - frame["seed_id"].n_unique(),
            "medoids_without_readable_reply": made.unread_count,
            "medoids_asked_again": made.asked_again_count,
            "medoids_lost_by_verdict": made.lost_by_verdict,
            "dropped_by_reason": made.dropped_by_reason,
            **describe_spending(teacher, since=before),
        },
    )


@dg.asset(
    key=keys.GUARDED_QUESTIONS,
    ins={
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
        "paraphrases": dg.AssetIn(key=keys.PARAPHRASES),
        "eval_embeddings": dg.AssetIn(key=keys.EVAL_EMBEDDINGS),
    },
    deps=[keys.DREAM_JOURNAL],
    kinds={"polars"},
    code_version=f"5+limit.{LEAKAGE_COSINE_LIMIT}+ngram.{NGRAM_WORDS}",
)
def guarded_questions(
    seed_questions: pl.DataFrame,
    paraphrases: pl.DataFrame,
    eval_embeddings: pl.DataFrame,
    embedder: dg.ResourceParam[Embedder],
    dreams: dg.ResourceParam[Dreams],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Every candidate question with its nearest golden case; rejected ones stay, marked."""
    seeds = seed_questions.select(
        "question_id",
        "text",
        pl.col("question_id").alias("seed_id"),
        pl.lit("seed").alias("origin"),
    )
    reworded = paraphrases.select(
        "question_id", "text", "seed_id", pl.lit("paraphrase").alias("origin")
    )
    dreamed = choose_candidates(dreams.read(), seed_questions, paraphrases)
    candidates = pl.concat([seeds, reworded, dreamed])
    protected = EvalQuestions.read(eval_embeddings, embedder=embedder)
    judged = guard_questions(candidates, protected=protected, embedder=embedder)
    frame = reject_descendants(judged).select(tables.GUARDED_QUESTIONS.names())
    kept = frame.filter(pl.col("verdict") == "kept")
    rejected = frame.filter(pl.col("verdict") == "rejected")
    chart = embed_png(draw_nearest_cosines(frame), alt="nearest cosines")
    private = list_private_seeds(seed_questions)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "candidate_count": frame.height,
            "dreamed_count": dreamed.height,
            "rejected_count": rejected.height,
            "rejected_by_reason": dict(
                rejected.group_by("reason").len().sort("reason").iter_rows()
            ),
            "near_miss_count": find_near_misses(frame).height,
            "largest_kept_cosine": float(kept["nearest_cosine"].max() or 0.0),
            "limit": LEAKAGE_COSINE_LIMIT,
            "nearest_cosines": dg.MetadataValue.md(chart),
            # Apart: the rejected are nearest, and would push the near misses out of sight.
            "nearest_rejected": dg.MetadataValue.md(
                render_pairs(rejected, eval_embeddings, private_seeds=private)
            ),
            "nearest_kept": dg.MetadataValue.md(
                render_pairs(kept, eval_embeddings, private_seeds=private)
            ),
        },
    )
