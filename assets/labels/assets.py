"""Label assets: teacher_answers -> judged_answers -> labelled_examples -> teacher_logprobs.

What is not kept as a labelled example is a rejected one. Belongs here: declarations. Does not
belong here: how a question is answered (`serving`), which answers teach (`selection`), what the
rubric asks (`judging`), how answers are scored (`scoring`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.labels.answering import (
    WITHOUT_ANSWER,
    AskedQuestion,
    embed_ahead,
    label_questions,
)
from assets.labels.judging import RUBRIC_VERSION, Inconclusive, Ruler
from assets.labels.rating import rate_answers, read_rateables, tabulate_ratings
from assets.labels.rejecting import describe_rejected, draw_scores
from assets.labels.scoring import TokenScorer, score_answers
from assets.labels.selection import Selection, TeacherTerms, select_examples
from assets.losses import UNANSWERED
from assets.spending import describe_spending, read_spending
from serving.aio import run_blocking
from serving.models.protocols import ChatModel, Progress
from serving.pipeline.assembly import PipelineParts
from serving.pipeline.prompt import PROMPT_WORDING
from serving.pipeline.validator import VALIDATOR_VERSION


@dataclass(frozen=True, kw_only=True)
class LabellingPlan:
    """Who labels under which terms, and who judges by which ruler."""

    terms: TeacherTerms
    concurrency: int
    ruler: Ruler
    judge_concurrency: int
    minimum_score: int


@dataclass(frozen=True, kw_only=True)
class ScorerPlan:
    """Who scores the answers token by token; nobody to open means no soft targets."""

    open_scorer: Callable[[], TokenScorer] | None
    context_tokens: int
    top_k: int = 20
    maximum_examples: int | None = None


@dg.asset(
    key=keys.TEACHER_ANSWERS,
    ins={
        "guarded_questions": dg.AssetIn(key=keys.GUARDED_QUESTIONS),
        "vector_index": dg.AssetIn(key=keys.VECTOR_INDEX),
    },
    kinds={"openai", "lancedb", "polars"},
    code_version=f"1+prompt.{PROMPT_WORDING}+validator.{VALIDATOR_VERSION}",
    pool="teacher",
)
def teacher_answers(
    guarded_questions: pl.DataFrame,
    vector_index: pl.DataFrame,
    pipeline_parts: dg.ResourceParam[PipelineParts],
    labelling_plan: dg.ResourceParam[LabellingPlan],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The teacher's answer to every kept question, through the pipeline production runs."""
    kept = guarded_questions.filter(pl.col("verdict") == "kept")
    questions = [AskedQuestion(**row) for row in kept.select(
        "question_id", "seed_id", "text"
    ).iter_rows(named=True)]  # fmt: skip

    embed_ahead(questions, pipeline_parts.embedder)
    before = read_spending(pipeline_parts.teacher)

    async def label() -> pl.DataFrame:
        pipeline = await pipeline_parts.assemble(vector_index["index_fingerprint"].item())
        return await label_questions(
            questions,
            pipeline=pipeline,
            concurrency=labelling_plan.concurrency,
            progress=progress,
        )

    frame = run_blocking(label())
    verdict = frame["validator_verdict"]
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "answer_count": int((~verdict.is_in(WITHOUT_ANSWER)).sum()),
            "refused_count": int(frame["refused"].sum()),
            "invalid_count": int((~verdict.is_in(["valid", *WITHOUT_ANSWER])).sum()),
            "unanswered_count": int((verdict == UNANSWERED).sum()),
            "value_usd": float(frame["cost_usd"].sum()),
            **describe_spending(pipeline_parts.teacher, since=before),
        },
    )


@dg.asset(
    key=keys.JUDGED_ANSWERS,
    ins={"teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS)},
    kinds={"openai", "polars"},
    code_version=f"2+rubric.{RUBRIC_VERSION}",
    pool="judge",
)
def judged_answers(
    teacher_answers: pl.DataFrame,
    judge: dg.ResourceParam[ChatModel],
    labelling_plan: dg.ResourceParam[LabellingPlan],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Five rubric axes for every valid answer; what the judge could not decide is null, never 0."""
    valid = teacher_answers.filter(pl.col("validator_verdict") == "valid")
    items = read_rateables(valid)
    before = read_spending(judge)
    ratings = run_blocking(
        rate_answers(
            items, judge=judge, concurrency=labelling_plan.judge_concurrency, progress=progress
        )
    )
    ids = valid.select("content_key", "question_id").rows(named=True)
    rows = tabulate_ratings(ids, ratings, ruler=labelling_plan.ruler)
    frame = pl.DataFrame(rows, schema=tables.JUDGED_ANSWERS)
    means = frame.group_by("axis").agg(pl.col("score").mean()).sort("axis")
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "judged_count": len(ratings),
            "inconclusive_count": sum(isinstance(rating, Inconclusive) for rating in ratings),
            **describe_spending(judge, since=before),
            "mean_by_axis": {axis: round(mean or 0.0, 2) for axis, mean in means.iter_rows()},
        },
    )


@dg.asset(
    key=keys.LABELLED_EXAMPLES,
    ins={
        "teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS),
        "judged_answers": dg.AssetIn(key=keys.JUDGED_ANSWERS),
    },
    kinds={"polars"},
    code_version="2",
)
def labelled_examples(
    teacher_answers: pl.DataFrame,
    judged_answers: pl.DataFrame,
    labelling_plan: dg.ResourceParam[LabellingPlan],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The answers worth learning from, split by seed: no paraphrase validates its sibling."""
    selection = _select(teacher_answers, judged_answers, labelling_plan)
    frame = selection.examples
    splits = dict(frame["split"].value_counts().sort("split").iter_rows())
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "example_count": frame.height,
            "examples_by_split": splits,
            "refused_ratio": float(frame["refused"].mean() or 0.0),
            "rejected_by_reason": selection.rejected_by_reason,
        },
    )


@dg.asset(
    key=keys.REJECTED_EXAMPLES,
    ins={
        "teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS),
        "judged_answers": dg.AssetIn(key=keys.JUDGED_ANSWERS),
    },
    kinds={"polars"},
    code_version="1",
)
def rejected_examples(
    teacher_answers: pl.DataFrame,
    judged_answers: pl.DataFrame,
    labelling_plan: dg.ResourceParam[LabellingPlan],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The answers that teach nothing, each with the reason, the lowest axis and the judge's why."""
    selection = _select(teacher_answers, judged_answers, labelling_plan)
    frame = selection.rejected
    scores = draw_scores(judged_answers, minimum_score=labelling_plan.minimum_score)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "rejected_count": frame.height,
            "rejected_ratio": frame.height / max(1, teacher_answers.height),
            "rejected_by_reason": selection.rejected_by_reason,
            "worst": dg.MetadataValue.md(describe_rejected(frame)),
            "lowest_scores": dg.MetadataValue.md(scores),
        },
    )


def _select(answers: pl.DataFrame, judged: pl.DataFrame, plan: LabellingPlan) -> Selection:
    return select_examples(
        answers,
        judged,
        minimum_score=plan.minimum_score,
        terms=plan.terms,
        ruler=plan.ruler,
    )


@dg.asset(
    key=keys.TEACHER_LOGPROBS,
    ins={"labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES)},
    kinds={"pytorch", "polars"},
    code_version="1",
)
def teacher_logprobs(
    labelled_examples: pl.DataFrame,
    scorer_plan: dg.ResourceParam[ScorerPlan],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Top-K log-probabilities of training answers under the scorer, by example and token hash."""
    if scorer_plan.open_scorer is None:
        return dg.MaterializeResult(
            value=tables.TEACHER_LOGPROBS.to_frame(), metadata={"scored_count": 0}
        )
    scorer = scorer_plan.open_scorer()
    frame = score_answers(
        labelled_examples.filter(pl.col("split") == "train"),
        scorer,
        top_k=scorer_plan.top_k,
        context_tokens=scorer_plan.context_tokens,
        maximum_examples=scorer_plan.maximum_examples,
        progress=progress,
    )
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "scored_count": frame.height,
            "scorer_id": scorer.scorer_id,
            "mean_tail_mass": float(frame["tail_logp"].explode().exp().mean() or 0.0),
        },
    )
