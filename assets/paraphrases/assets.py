"""Paraphrase assets: seed_clusters -> paraphrases -> guarded_questions.

Belongs here: declarations. Does not belong here: clustering, rewriting, the guard's limit.
"""

from dataclasses import asdict, dataclass

import dagster as dg
import numpy as np
import polars as pl

from assets import keys, tables
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT, NEAR_MISS_COSINE, reject_near_duplicates
from assets.paraphrases.clustering import cluster_questions
from assets.paraphrases.multiplying import paraphrase_medoids
from assets.paraphrases.rewriting import REWRITE_PROMPT_VERSION
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
    code_version="1",
)
def seed_clusters(
    seed_questions: pl.DataFrame,
    embedder: dg.ResourceParam[Embedder],
    rewriting_plan: dg.ResourceParam[RewritingPlan],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Seeds grouped by meaning, each group with the medoid that is paraphrased."""
    members = cluster_questions(
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
        },
    )


@dg.asset(
    key=keys.PARAPHRASES,
    ins={
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
        "seed_clusters": dg.AssetIn(key=keys.SEED_CLUSTERS),
    },
    kinds={"openai", "polars"},
    code_version=f"1+prompt.{REWRITE_PROMPT_VERSION}",
)
def paraphrases(
    seed_questions: pl.DataFrame,
    seed_clusters: pl.DataFrame,
    teacher: dg.ResourceParam[ChatModel],
    rewriting_plan: dg.ResourceParam[RewritingPlan],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Rewordings of every medoid by the teacher, none equal to another or to a seed."""
    medoids = seed_clusters.filter("is_medoid").join(seed_questions, on="question_id")
    rows = run_blocking(
        paraphrase_medoids(
            list(medoids.select("question_id", "text").iter_rows()),
            known_texts=seed_questions["text"].to_list(),
            teacher=teacher,
            count=rewriting_plan.paraphrases_per_medoid,
            temperature=rewriting_plan.temperature,
            concurrency=rewriting_plan.concurrency,
            progress=progress,
        )
    )
    frame = pl.DataFrame([asdict(row) for row in rows], schema=tables.PARAPHRASES)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "medoid_count": medoids.height,
            "paraphrase_count": frame.height,
            "medoids_without_paraphrase": medoids.height - frame["seed_id"].n_unique(),
        },
    )


@dg.asset(
    key=keys.GUARDED_QUESTIONS,
    ins={
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
        "paraphrases": dg.AssetIn(key=keys.PARAPHRASES),
        "eval_embeddings": dg.AssetIn(key=keys.EVAL_EMBEDDINGS),
    },
    kinds={"polars"},
    code_version=f"1+limit.{LEAKAGE_COSINE_LIMIT}",
)
def guarded_questions(
    seed_questions: pl.DataFrame,
    paraphrases: pl.DataFrame,
    eval_embeddings: pl.DataFrame,
    embedder: dg.ResourceParam[Embedder],
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
    candidates = pl.concat([seeds, reworded])
    texts = candidates["text"].to_list()
    verdicts = reject_near_duplicates(
        texts,
        embedder.embed(texts),
        case_ids=eval_embeddings["case_id"].to_list(),
        case_texts=eval_embeddings["question"].to_list(),
        case_vectors=np.asarray(eval_embeddings["vector"].to_list(), dtype=np.float32),
    )
    judged = pl.DataFrame([asdict(verdict) for verdict in verdicts])
    frame = pl.concat([candidates, judged], how="horizontal").select(
        tables.GUARDED_QUESTIONS.names()
    )
    rejected = frame.filter(pl.col("verdict") == "rejected")
    near = frame.filter(
        (pl.col("verdict") == "kept") & (pl.col("nearest_cosine") >= NEAR_MISS_COSINE)
    )
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "candidate_count": frame.height,
            "rejected_count": rejected.height,
            "near_miss_count": near.height,
            "largest_kept_cosine": float(
                frame.filter(pl.col("verdict") == "kept")["nearest_cosine"].max() or 0.0
            ),
            "limit": LEAKAGE_COSINE_LIMIT,
        },
    )
