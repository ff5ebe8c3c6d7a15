"""Which source each training example's soft targets come from: scorer, teacher, or none.

In this order: a scorer reads the student's very prompt and knows every token's probability; the
teacher's own logprobs cost nothing more but speak of its own tokens; what neither covers is trained
on hard targets. Belongs here: the choice. Does not belong here: how a source is read (`scoring`,
`teacher_tokens`), what its rows are held to (`logprob_rows`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from assets import tables
from assets.labels.answer_tokens import encode_answer
from assets.labels.logprob_rows import MINIMUM_MEAN_PROBABILITY, check_logprob_rows
from assets.labels.logprob_table import (
    AnswerTargets,
    Supplier,
    TokenisedExample,
    leave_hard,
    tabulate_targets,
    tokenise_examples,
)
from assets.labels.scoring import score_answers
from assets.labels.teacher_tokens import (
    KeptAnswers,
    SpokenAnswer,
    TeacherAligner,
    TokenizerEvidence,
    find_spoken,
    sample_evidence,
)
from serving.hashing import content_hash
from serving.models.chat_tokens import tokenizer_fingerprint
from serving.models.protocols import NoProgress, Progress, TokenScorer

NOT_ASKED = "no source was asked"
"""Rows of this reason are kept by reruns: it changes with how such rows are made."""


@dataclass(frozen=True, kw_only=True)
class SoftTable:
    """A table of soft targets, and how far the teacher's tokens are the student's own."""

    frame: pl.DataFrame
    evidence: TokenizerEvidence | None = None
    kept_count: int = 0
    """Rows of the last table in it."""


def gather_soft_targets(
    examples: pl.DataFrame,
    *,
    scorer: TokenScorer | None,
    kept: KeptAnswers | None,
    tokenizer: Any,
    max_answer_tokens: int,
    context_tokens: int,
    top_k: int = 20,
    maximum_examples: int | None = None,
    minimum_mean_probability: float = MINIMUM_MEAN_PROBABILITY,
    last: pl.DataFrame | None = None,
    progress: Progress | None = None,
) -> SoftTable:
    """Return one row per example that fits the context, from the first source that has one.

    Args:
        examples: rows of `labels/labelled_examples`.
        scorer: scores a seeded sample of `maximum_examples`, or all of them; None: nobody does.
        kept: the teacher's answers, for the examples without a score; None: it reports no logprobs.
        tokenizer: the student's.
        max_answer_tokens: as the teacher was asked with.
        context_tokens: longer examples get no row (training drops them too).
        top_k: logprobs kept per answer token.
        maximum_examples: of the scorer.
        minimum_mean_probability: floor of each source, see `check_logprob_rows`.
        last: the table as the last run left it: its rows of examples that no source is asked
            about are kept, also of those that a context that became shorter leaves out.
        progress: told after each example.
    """
    frames, evidence, kept_count = [tables.TEACHER_LOGPROBS.to_frame()], None, 0
    if scorer is not None:
        frames.append(
            score_answers(
                examples,
                scorer,
                top_k=top_k,
                context_tokens=context_tokens,
                maximum_examples=maximum_examples,
                minimum_mean_probability=minimum_mean_probability,
                progress=progress,
            )
        )
    rest = _leave_out(examples, pl.concat(frames))
    if kept is not None:
        taken = take_teacher_targets(
            rest,
            kept,
            tokenizer=tokenizer,
            max_answer_tokens=max_answer_tokens,
            context_tokens=context_tokens,
            top_k=top_k,
            minimum_mean_probability=minimum_mean_probability,
            progress=progress,
        )
        frames.append(taken.frame)
        evidence = taken.evidence
    elif scorer is not None:
        spared = _keep_hard(rest, last, tokenizer) if last is not None else frames[0]
        new, kept_count = _leave_out(rest, spared), spared.height
        frames += [spared, _list_hard(new, tokenizer=tokenizer, context_tokens=context_tokens)]
    frame = pl.concat(frames).sort("example_id")
    return SoftTable(frame=frame, evidence=evidence, kept_count=kept_count)


def take_teacher_targets(
    examples: pl.DataFrame,
    kept: KeptAnswers,
    *,
    tokenizer: Any,
    max_answer_tokens: int,
    context_tokens: int,
    top_k: int = 20,
    minimum_mean_probability: float = MINIMUM_MEAN_PROBABILITY,
    progress: Progress | None = None,
) -> SoftTable:
    """Return the soft targets of examples from the answers that were kept with their logprobs.

    Args:
        examples: columns example_id, messages, completion, content_key.
        kept: the answers bought so far; nothing is bought.
        tokenizer: the student's.
        max_answer_tokens: as the teacher was asked with.
        context_tokens: longer examples get no row.
        top_k: candidates kept per token.
        minimum_mean_probability: floor of the teacher's mean probability of its own tokens.
        progress: told after each example.

    Raises:
        InvalidInputError: the student's tokens have no bytes of their own, or a row breaks a rule
            of `check_logprob_rows`.
    """
    aligner = TeacherAligner(tokenizer, top_k=top_k)
    rows = {row["example_id"]: row for row in examples.select(
        "example_id", "messages", "completion", "content_key"
    ).iter_rows(named=True)}  # fmt: skip

    def read() -> Iterator[tuple[TokenisedExample, SpokenAnswer]]:
        for item in tokenise_examples(examples, tokenizer, context_tokens=context_tokens):
            row = rows[item.example_id]
            yield item, find_spoken(kept, row, max_answer_tokens=max_answer_tokens)

    def align() -> Iterator[tuple[TokenisedExample, AnswerTargets]]:
        for done, (item, spoken) in enumerate(read(), start=1):
            yield item, aligner.align(item, spoken)
            (progress or NoProgress()).advance("aligning logprobs", done, examples.height)

    evidence = aligner.learn(sample_evidence(read()))
    supplier = Supplier(
        source="teacher",
        supplier_id=kept.name,
        supplier_hash=content_hash("teacher", kept.name, digits=64),
    )
    frame = tabulate_targets(align(), supplier, tokenizer=tokenizer).sort("example_id")
    completions = dict(zip(examples["example_id"], examples["completion"], strict=True))
    check_logprob_rows(
        frame,
        completions=completions,
        tokenizer=tokenizer,
        minimum_mean_probability=minimum_mean_probability,
    )
    return SoftTable(frame=frame, evidence=evidence)


def _list_hard(examples: pl.DataFrame, *, tokenizer: Any, context_tokens: int) -> pl.DataFrame:
    """Return the rows of examples that no source was asked about."""
    items = tokenise_examples(examples, tokenizer, context_tokens=context_tokens)
    targets = ((item, leave_hard(len(item.answer.ids), reason=NOT_ASKED)) for item in items)
    return tabulate_targets(targets, Supplier(source="none"), tokenizer=tokenizer)


def _keep_hard(examples: pl.DataFrame, last: pl.DataFrame, tokenizer: Any) -> pl.DataFrame:
    """Return the rows of examples that no source was asked about, last time as today.

    An example's id covers its prompt, which is most of the work; its answer is tokenised anew.
    Where the context became shorter, a row may stay of an example that training drops.
    """
    rows = last.filter(
        pl.col("reason") == NOT_ASKED, pl.col("tokenizer_id") == tokenizer_fingerprint(tokenizer)
    ).join(examples, on="example_id", how="semi")
    completions = dict(examples.select("example_id", "completion").iter_rows())

    def is_same(example_id: str, token_ids: list[int], cite: list[bool]) -> bool:
        answer = encode_answer(tokenizer, completions[example_id])
        return (tuple(token_ids), tuple(cite)) == (answer.ids, answer.cite_mask)

    written = rows.select("example_id", "token_ids", "cite").iter_rows()
    return rows.filter(pl.Series([is_same(*row) for row in written], dtype=pl.Boolean))


def _leave_out(examples: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """Return the examples that a table has no row of."""
    return examples.join(frame.select("example_id"), on="example_id", how="anti")
