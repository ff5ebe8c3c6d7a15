"""Label assets: teacher_answers -> judged_answers -> labelled_examples -> teacher_logprobs.

What is not kept as a labelled example is a rejected one. Belongs here: declarations. Does not
belong here: how a question is answered (`serving`), which answers teach (`selection`), what the
rubric asks (`judging`), where soft targets come from (`soft_targets`).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import polars as pl

from assets import keys, tables
from assets.eval_set.guard import LEAKAGE_COSINE_LIMIT
from assets.eval_set.ledger import record_read
from assets.labels.answering import (
    ANSWERING_VERSION,
    WITHOUT_ANSWER,
    AskedQuestion,
    embed_ahead,
    fingerprint_rows,
    keep_answers,
    label_questions,
    read_index,
)
from assets.labels.coverage import describe_coverage, draw_charts
from assets.labels.judging import RUBRIC_VERSION, Inconclusive, Ruler
from assets.labels.rating import (
    RATING_VERSION,
    keep_judgements,
    key_judgements,
    rate_answers,
    read_rateables,
    tabulate_ratings,
)
from assets.labels.refusals import (
    draw_best_scores,
    gather_scores,
    learn_refusals,
    read_refusal_rule,
    tabulate_shares,
)
from assets.labels.rejecting import describe_rejected, draw_scores
from assets.labels.selection import (
    Selection,
    TeacherTerms,
    select_examples,
    take_unguarded,
)
from assets.labels.separation import measure_nearness
from assets.labels.soft_targets import gather_soft_targets
from assets.labels.soft_targets_by_set import draw_set_charts, name_sets
from assets.labels.teacher_tokens import KeptAnswers
from assets.losses import UNANSWERED
from assets.reuse import LastTables
from assets.seeds.harvesting import list_private_seeds
from assets.spending import describe_spending, read_spending
from serving.aio import run_blocking
from serving.home import Home
from serving.models.protocols import ChatModel, Embedder, Progress, TokenScorer
from serving.pipeline.assembly import PipelineParts, estimate_tokens
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
    """Who supplies soft targets: a scorer, the teacher's kept answers, or nobody (both None).

    `open_tokenizer` is the student's; `max_answer_tokens` is what the teacher was asked with.
    """

    open_scorer: Callable[[], TokenScorer] | None
    open_kept: Callable[[], KeptAnswers] | None = None
    open_tokenizer: Callable[[], Any]
    max_answer_tokens: int
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
    code_version=f"{ANSWERING_VERSION}+prompt.{PROMPT_WORDING}+validator.{VALIDATOR_VERSION}",
    pool="teacher",
)
def teacher_answers(
    guarded_questions: pl.DataFrame,
    vector_index: pl.DataFrame,
    pipeline_parts: dg.ResourceParam[PipelineParts],
    labelling_plan: dg.ResourceParam[LabellingPlan],
    last_tables: dg.ResourceParam[LastTables],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The teacher's answer to every kept question, through the pipeline production runs.

    A question that this very pipeline has answered before keeps its row.
    """
    guarded = guarded_questions.filter(pl.col("verdict") == "kept")
    questions = [AskedQuestion(**row) for row in guarded.select(
        "question_id", "seed_id", "text"
    ).iter_rows(named=True)]  # fmt: skip
    index = read_index(vector_index, pipeline_parts.embedder)
    last = last_tables.read(keys.TEACHER_ANSWERS.path)
    kept = keep_answers(last, fingerprint_rows(pipeline_parts, index))
    new = [question for question in questions if not kept.has(question)]
    # No route is chosen here, so a count decides nothing, and the tokenizer takes seconds to load.
    parts = replace(pipeline_parts, count_tokens=estimate_tokens)

    embed_ahead(new, pipeline_parts.embedder)
    before = read_spending(pipeline_parts.teacher)
    endings: Counter[str] = Counter()

    async def label() -> pl.DataFrame:
        return await label_questions(
            questions,
            pipeline=await parts.assemble(index),
            kept=kept,
            concurrency=labelling_plan.concurrency,
            progress=progress,
            endings=endings,
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
            "cut_off_count": endings["length"],
            "kept_count": len(questions) - len(new),
            "value_usd": float(frame["cost_usd"].sum()),
            **describe_spending(pipeline_parts.teacher, since=before),
        },
    )


@dg.asset(
    key=keys.JUDGED_ANSWERS,
    ins={"teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS)},
    kinds={"openai", "polars"},
    code_version=f"{RATING_VERSION}+rubric.{RUBRIC_VERSION}",
    pool="judge",
)
def judged_answers(
    teacher_answers: pl.DataFrame,
    judge: dg.ResourceParam[ChatModel],
    labelling_plan: dg.ResourceParam[LabellingPlan],
    last_tables: dg.ResourceParam[LastTables],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Five rubric axes for every valid answer; what the judge could not decide is null, never 0.

    A judgement of the same answer, by the same judge under the same ruler, is kept.
    """
    valid = teacher_answers.filter(pl.col("validator_verdict") == "valid")
    items = read_rateables(valid)
    judging_keys = key_judgements(items, judge=judge, ruler=labelling_plan.ruler)
    kept = keep_judgements(last_tables.read(keys.JUDGED_ANSWERS.path), judging_keys)
    before = read_spending(judge)
    ratings = run_blocking(
        rate_answers(
            items,
            judge=judge,
            concurrency=labelling_plan.judge_concurrency,
            progress=progress,
            kept=kept,
        )
    )
    ids = valid.select("content_key", "question_id", pl.Series("judging_key", judging_keys))
    rows = tabulate_ratings(ids.rows(named=True), ratings, ruler=labelling_plan.ruler)
    frame = pl.DataFrame(rows, schema=tables.JUDGED_ANSWERS)
    means = frame.group_by("axis").agg(pl.col("score").mean()).sort("axis")
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "judged_count": len(ratings),
            "kept_count": len(kept),
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
    code_version=f"3+limit.{LEAKAGE_COSINE_LIMIT}",
)
def labelled_examples(
    teacher_answers: pl.DataFrame,
    judged_answers: pl.DataFrame,
    labelling_plan: dg.ResourceParam[LabellingPlan],
    embedder: dg.ResourceParam[Embedder],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The answers worth learning from, split by seed: no paraphrase validates its sibling.

    A training question that rewords a held-out one of another seed is left out.
    """
    selection = _select(teacher_answers, judged_answers, labelling_plan, embedder)
    nearest = measure_nearness(selection.examples, embedder)["held_out_cosine"]
    frame = selection.examples
    splits = dict(frame["split"].value_counts().sort("split").iter_rows())
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "example_count": frame.height,
            "examples_by_split": splits,
            "refused_ratio": float(frame["refused"].mean() or 0.0),
            "rejected_by_reason": selection.rejected_by_reason,
            "largest_held_out_cosine": float(nearest.max() or 0.0),
            "limit": LEAKAGE_COSINE_LIMIT,
        },
    )


@dg.asset(
    key=keys.REJECTED_EXAMPLES,
    ins={
        "teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS),
        "judged_answers": dg.AssetIn(key=keys.JUDGED_ANSWERS),
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
    },
    kinds={"polars"},
    code_version=f"3+limit.{LEAKAGE_COSINE_LIMIT}",
)
def rejected_examples(
    teacher_answers: pl.DataFrame,
    judged_answers: pl.DataFrame,
    seed_questions: pl.DataFrame,
    labelling_plan: dg.ResourceParam[LabellingPlan],
    embedder: dg.ResourceParam[Embedder],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The answers that teach nothing, each with the reason, the lowest axis and the judge's why."""
    selection = _select(teacher_answers, judged_answers, labelling_plan, embedder)
    frame = selection.rejected
    scores = draw_scores(judged_answers, minimum_score=labelling_plan.minimum_score)
    worst = describe_rejected(frame, private_seeds=list_private_seeds(seed_questions))
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "rejected_count": frame.height,
            "rejected_ratio": frame.height / max(1, teacher_answers.height),
            "rejected_by_reason": selection.rejected_by_reason,
            "worst": dg.MetadataValue.md(worst),
            "lowest_scores": dg.MetadataValue.md(scores),
        },
    )


def _select(
    answers: pl.DataFrame, judged: pl.DataFrame, plan: LabellingPlan, embedder: Embedder
) -> Selection:
    return select_examples(
        answers,
        judged,
        minimum_score=plan.minimum_score,
        terms=plan.terms,
        ruler=plan.ruler,
        embedder=embedder,
    )


@dg.asset(
    key=keys.CONTAMINATED_EXAMPLES,
    ins={
        "golden_cases": dg.AssetIn(key=keys.GOLDEN_CASES),
        "vector_index": dg.AssetIn(key=keys.VECTOR_INDEX),
    },
    kinds={"openai", "polars"},
    code_version=f"{ANSWERING_VERSION}+prompt.{PROMPT_WORDING}+validator.{VALIDATOR_VERSION}",
    pool="teacher",
)
def contaminated_examples(
    context: dg.AssetExecutionContext,
    golden_cases: pl.DataFrame,
    vector_index: pl.DataFrame,
    pipeline_parts: dg.ResourceParam[PipelineParts],
    labelling_plan: dg.ResourceParam[LabellingPlan],
    home: dg.ResourceParam[Home],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """The golden questions as training examples: what the guard is there to prevent.

    Made on demand, for recipes of the lane `contaminated` alone: the experiment measures what a
    leak is worth, and its student can never be promoted.
    """
    record_read(home.ledger, reader="contaminated_examples", run_id=context.run.run_id)
    questions = [
        AskedQuestion(question_id=case_id, seed_id=case_id, text=question)
        for case_id, question in golden_cases.select("case_id", "question").iter_rows()
    ]
    index = read_index(vector_index, pipeline_parts.embedder)
    parts = replace(pipeline_parts, count_tokens=estimate_tokens)
    kept = keep_answers(tables.TEACHER_ANSWERS.to_frame(), fingerprint_rows(parts, index))
    before = read_spending(parts.teacher)

    async def label() -> pl.DataFrame:
        return await label_questions(
            questions,
            pipeline=await parts.assemble(index),
            kept=kept,
            concurrency=labelling_plan.concurrency,
            progress=progress,
        )

    frame = take_unguarded(run_blocking(label()), labelling_plan.terms)
    return dg.MaterializeResult(
        value=frame,
        metadata={
            "example_count": frame.height,
            "case_count": golden_cases.height,
            **describe_spending(parts.teacher, since=before),
        },
    )


@dg.asset(
    key=keys.REFUSAL_RULE,
    ins={
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
        "teacher_answers": dg.AssetIn(key=keys.TEACHER_ANSWERS),
    },
    kinds={"scikitlearn", "polars"},
    code_version="1",
)
def refusal_rule(
    labelled_examples: pl.DataFrame, teacher_answers: pl.DataFrame
) -> dg.MaterializeResult[pl.DataFrame]:
    """What the teacher refuses, by the score of the best source: a student's rule, if it holds."""
    row = learn_refusals(labelled_examples, teacher_answers)
    rule = read_refusal_rule(row)
    metadata: dict[str, Any] = {name: value for name, value in row.items() if value is not None}
    if rule is not None:
        splits = {
            split: gather_scores(labelled_examples, teacher_answers, split)
            for split in ("train", "validation", "calibration")
        }
        unseen = {name: cases for name, cases in splits.items() if name != "train"}
        metadata |= {
            "on_unseen_splits": dg.MetadataValue.md(tabulate_shares(rule, unseen)),
            "scores": dg.MetadataValue.md(draw_best_scores(splits["train"], rule.minimum_score)),
        }
    return dg.MaterializeResult(
        value=pl.DataFrame([row], schema=tables.REFUSAL_RULE), metadata=metadata
    )


@dg.asset(
    key=keys.TEACHER_LOGPROBS,
    ins={
        "labelled_examples": dg.AssetIn(key=keys.LABELLED_EXAMPLES),
        "seed_questions": dg.AssetIn(key=keys.SEED_QUESTIONS),
    },
    kinds={"pytorch", "polars"},
    code_version="4",
)
def teacher_logprobs(
    labelled_examples: pl.DataFrame,
    seed_questions: pl.DataFrame,
    scorer_plan: dg.ResourceParam[ScorerPlan],
    last_tables: dg.ResourceParam[LastTables],
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult[pl.DataFrame]:
    """Top-K log-probabilities of training answers: a scorer's, else the teacher's own, else none.

    One row per training example, found again by example and token hash.
    """
    plan = scorer_plan
    if plan.open_scorer is None and plan.open_kept is None:
        return dg.MaterializeResult(
            value=tables.TEACHER_LOGPROBS.to_frame(), metadata={"example_count": 0}
        )
    scorer = plan.open_scorer() if plan.open_scorer else None
    soft = gather_soft_targets(
        labelled_examples.filter(pl.col("split") == "train"),
        scorer=scorer,
        kept=plan.open_kept() if plan.open_kept else None,
        tokenizer=scorer.tokenizer if scorer else plan.open_tokenizer(),
        max_answer_tokens=plan.max_answer_tokens,
        context_tokens=plan.context_tokens,
        top_k=plan.top_k,
        maximum_examples=plan.maximum_examples,
        last=last_tables.read(keys.TEACHER_LOGPROBS.path),
        progress=progress,
    )
    sets = name_sets(labelled_examples, seed_questions)
    charts = draw_charts(soft.frame) | draw_set_charts(soft.frame, sets)
    return dg.MaterializeResult(
        value=soft.frame,
        metadata={
            **describe_coverage(soft),
            **{name: dg.MetadataValue.md(chart) for name, chart in charts.items()},
        },
    )
