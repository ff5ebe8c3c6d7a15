"""What the paraphrases promise."""

import dagster as dg
import polars as pl

from assets import keys
from assets.eval_set.guard import (
    LEAKAGE_COSINE_LIMIT,
    EvalQuestions,
    guard_questions,
    reject_descendants,
)
from assets.paraphrases.assets import RewritingPlan
from assets.paraphrases.multiplying import MINIMUM_KEPT_RATIO
from assets.paraphrases.vetting import count_repeats
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
    copies, repeats = count_repeats(paraphrases["text"], seed_questions["text"])
    orphans = set(paraphrases["seed_id"]) - set(seed_questions["question_id"])
    return dg.AssetCheckResult(
        passed=not paraphrases.is_empty() and not copies and not repeats and not orphans,
        description="no rewording was kept: `dropped_by_reason`, `medoids_without_readable_reply` "
        "and `medoids_lost_by_verdict` of the asset say why"
        if paraphrases.is_empty()
        else None,
        metadata={
            "paraphrase_count": paraphrases.height,
            "copies_of_a_seed": copies,
            "repeated_texts": repeats,
            "without_parent": sorted(orphans)[:20],
        },
    )


@dg.asset_check(
    asset=keys.PARAPHRASES,
    additional_ins={"seed_clusters": dg.AssetIn(key=keys.SEED_CLUSTERS)},
    blocking=False,
)
def most_paraphrases_asked_for_were_kept(
    paraphrases: pl.DataFrame,
    seed_clusters: pl.DataFrame,
    rewriting_plan: dg.ResourceParam[RewritingPlan],
) -> dg.AssetCheckResult:
    """At least half of the rewordings asked for were usable and new.

    It does not block: what was kept is sound, there is only less of it. A lower share means that
    the teacher does not follow the prompt; `dropped_by_reason` of the asset says how.
    """
    asked = int(seed_clusters["is_medoid"].sum()) * rewriting_plan.paraphrases_per_medoid
    kept_ratio = paraphrases.height / asked if asked else 0.0
    medoids = seed_clusters.filter("is_medoid").select(seed_id="question_id")
    counted = medoids.join(paraphrases["seed_id"].value_counts(), on="seed_id", how="left")
    thin = counted.with_columns(pl.col("count").fill_null(0)).sort("count", "seed_id").head(10)
    return dg.AssetCheckResult(
        passed=kept_ratio >= MINIMUM_KEPT_RATIO,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "asked_count": asked,
            "kept_count": paraphrases.height,
            "kept_ratio": kept_ratio,
            "limit": MINIMUM_KEPT_RATIO,
            "fewest_by_seed": dict(thin.iter_rows()),
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
    """No kept question is too near a golden case, nor its seed: all are judged anew."""
    kept = guarded_questions.filter(pl.col("verdict") == "kept")
    orphans = kept.join(reject_descendants(guarded_questions), on="question_id").filter(
        pl.col("verdict_right") == "rejected"
    )
    judged = guard_questions(
        kept.select("question_id", "text"),
        protected=EvalQuestions.read(eval_embeddings, embedder=embedder),
        embedder=embedder,
    )
    leaks = judged.filter(pl.col("verdict") == "rejected")
    cosine = pl.col("nearest_cosine").round(3)
    shown = pl.format("{} ~ {}: {}, {}", "question_id", "matched_case_id", "reason", cosine)
    return dg.AssetCheckResult(
        passed=not kept.is_empty() and leaks.is_empty() and orphans.is_empty(),
        metadata={
            "kept_count": kept.height,
            "kept_from_rejected_seeds": orphans["question_id"].to_list()[:20],
            "rejected_count": guarded_questions.height - kept.height,
            "limit": LEAKAGE_COSINE_LIMIT,
            "nearest_kept_cosine": float(judged["nearest_cosine"].max() or 0.0),
            "leak_count": leaks.height,
            "leaks": leaks.head(20).select(shown).to_series().to_list(),
        },
    )
