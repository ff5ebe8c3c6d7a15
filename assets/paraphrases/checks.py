"""What the paraphrases promise."""

import dagster as dg
import numpy as np
import polars as pl

from assets import keys
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT, normalise_text, reject_near_duplicates
from serving.models.protocols import Embedder


@dg.asset_check(asset=keys.SEED_CLUSTERS, blocking=True)
def every_cluster_has_one_medoid(seed_clusters: pl.DataFrame) -> dg.AssetCheckResult:
    """Each cluster is represented by exactly one of its seeds."""
    medoids = seed_clusters.group_by("cluster_id").agg(pl.col("is_medoid").sum())
    wrong = medoids.filter(pl.col("is_medoid") != 1)["cluster_id"].sort().to_list()
    return dg.AssetCheckResult(
        passed=not wrong,
        metadata={"cluster_count": medoids.height, "clusters_without_one_medoid": wrong},
    )


@dg.asset_check(
    asset=keys.PARAPHRASES,
    additional_ins={"seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS)},
    blocking=True,
)
def paraphrases_differ_from_their_seed(
    paraphrases: pl.DataFrame, seed_questions: pl.DataFrame
) -> dg.AssetCheckResult:
    """Every paraphrase has a parent, a text unlike every seed's, and is there once."""
    seeds = {normalise_text(text) for text in seed_questions["text"]}
    texts = [normalise_text(text) for text in paraphrases["text"]]
    copies = sum(text in seeds for text in texts)
    repeats = len(texts) - len(set(texts))
    orphans = set(paraphrases["seed_id"]) - set(seed_questions["question_id"])
    return dg.AssetCheckResult(
        passed=not paraphrases.is_empty() and not copies and not repeats and not orphans,
        metadata={
            "paraphrase_count": paraphrases.height,
            "copies_of_a_seed": copies,
            "repeated_texts": repeats,
            "without_parent": sorted(orphans)[:20],
        },
    )


@dg.asset_check(
    asset=keys.GUARDED_QUESTIONS,
    additional_ins={"eval_embeddings": dg.AssetIn(key=keys.EVAL_EMBEDDINGS)},
    blocking=True,
)
def no_training_text_near_eval_set(
    guarded_questions: pl.DataFrame,
    eval_embeddings: pl.DataFrame,
    embedder: dg.ResourceParam[Embedder],
) -> dg.AssetCheckResult:
    """No kept question comes within the leakage limit of a golden case: all are compared anew."""
    kept = guarded_questions.filter(pl.col("verdict") == "kept")
    verdicts = reject_near_duplicates(
        kept["text"].to_list(),
        embedder.embed(kept["text"].to_list()),
        case_ids=eval_embeddings["case_id"].to_list(),
        case_texts=eval_embeddings["question"].to_list(),
        case_vectors=np.asarray(eval_embeddings["vector"].to_list(), dtype=np.float32),
    )
    leaks = [
        f"{question_id} ~ {verdict.nearest_case_id}: {verdict.nearest_cosine:.3f}"
        for question_id, verdict in zip(kept["question_id"], verdicts, strict=True)
        if verdict.verdict == "rejected"
    ]
    return dg.AssetCheckResult(
        passed=bool(verdicts) and not leaks,
        metadata={
            "kept_count": kept.height,
            "rejected_count": guarded_questions.height - kept.height,
            "limit": LEAKAGE_COSINE_LIMIT,
            "nearest_kept_cosine": max((v.nearest_cosine for v in verdicts), default=0.0),
            "leaks": leaks[:20],
        },
    )
