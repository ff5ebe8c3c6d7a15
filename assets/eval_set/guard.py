"""The contamination guard: no question that trains comes near a question that grades.

It belongs to what it protects, so every stage that adds training text imports it from here, and the
check that verifies the result calls the same function. Belongs here: the limit, and what makes a
question too close. Does not belong here: finding the nearest case (`nearest`), comparing words
(`overlap`), measuring the guard (`recall`), embedding, reading or writing tables.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from assets.eval_set.nearest import check_unit_length, find_nearest
from assets.eval_set.overlap import EvalTexts
from assets.eval_set.vectors import read_vectors
from serving.errors import InvalidInputError
from serving.models.protocols import Embedder, Vectors
from serving.pipeline.questions import normalise_question

LEAKAGE_COSINE_LIMIT = 0.92  # at or above: rejected
NEAR_MISS_COSINE = 0.85  # at or above (and below the limit): kept, and shown
BATCH_ROWS = 8192
"""Questions embedded and judged at once: 12 MiB of 384-dimensional vectors, whatever the pool."""

VERDICT_COLUMNS = pl.Schema(
    {
        "nearest_case_id": pl.String(),
        "nearest_cosine": pl.Float64(),
        "verdict": pl.String(),
        "reason": pl.String(),
        "matched_case_id": pl.String(),
        "shared_ngram": pl.String(),
    }
)
"""`verdict`: kept or rejected. `reason`: empty when kept, else the strongest of same_text,
same_words, shared_ngram, cosine; or rejected_seed where only its seed was too close.
`matched_case_id`: the case that rejected it, null when kept."""


@dataclass(frozen=True, kw_only=True)
class EvalQuestions:
    """What the guard protects, ready to be compared with: m cases, [m, d] unit vectors."""

    case_ids: pl.Series
    vectors: Vectors
    texts: EvalTexts

    @classmethod
    def prepare(
        cls, case_ids: Sequence[str], questions: Sequence[str], vectors: Vectors
    ) -> "EvalQuestions":
        """Index the eval questions.

        Raises:
            InvalidInputError: there is none, lengths differ, or a vector is not of unit length: a
                case the guard cannot see is a case it does not protect.
        """
        if not len(case_ids) == len(questions) == len(vectors) or not len(case_ids):
            raise InvalidInputError(
                "preparing the contamination guard",
                expected="eval cases, each with a question and a vector",
                found=f"{len(case_ids)} ids, {len(questions)} texts, {len(vectors)} vectors",
                next_step="rebuild eval_set/eval_embeddings",
            )
        check_unit_length(vectors, "eval case")
        return cls(
            case_ids=pl.Series("case_id", case_ids, dtype=pl.String),
            vectors=np.ascontiguousarray(vectors),
            texts=EvalTexts.index(case_ids, questions),
        )

    @classmethod
    def read(cls, eval_embeddings: pl.DataFrame, *, embedder: Embedder) -> "EvalQuestions":
        """Index the rows of eval_embeddings, to be compared with vectors of `embedder`.

        Raises:
            InvalidInputError: there is none, or another embedder made them.
        """
        return cls.prepare(
            eval_embeddings["case_id"].to_list(),
            eval_embeddings["question"].to_list(),
            read_vectors(eval_embeddings, embedder=embedder),
        )


def is_too_near(cosines: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Say of each cosine whether it rejects: at the limit, above it, or no number (in doubt)."""
    return ~(cosines < LEAKAGE_COSINE_LIMIT)


def judge_questions(
    texts: Sequence[str], vectors: Vectors, protected: EvalQuestions
) -> pl.DataFrame:
    """Judge candidates: rejected at or above `LEAKAGE_COSINE_LIMIT`, or when words are repeated.

    Args:
        texts: n candidate questions.
        vectors: [n, d] their unit vectors, by the embedder of the eval vectors.
        protected: the eval questions.

    Returns:
        n rows of `VERDICT_COLUMNS`, in order. The nearest case stands in every row.

    Raises:
        InvalidInputError: lengths or dimensions differ, or a vector is not of unit length: the
            guard does not guess.
    """
    if len(texts) != len(vectors):
        raise InvalidInputError(
            "guarding questions",
            expected="one vector per question",
            found=f"{len(texts)} questions and {len(vectors)} vectors",
            next_step="embed the questions that are judged",
        )
    nearest = find_nearest(vectors, protected.vectors)
    matches = [protected.texts.match(text) for text in texts]
    frame = pl.DataFrame(
        {
            "nearest_case_id": protected.case_ids.gather(nearest.rows),
            "nearest_cosine": nearest.cosines,
            "is_near": is_too_near(nearest.cosines),
            "match": [match and match.reason for match in matches],
            "match_case_id": [match and match.case_id for match in matches],
            "shared_ngram": [match and match.ngram for match in matches],
        },
        schema_overrides=dict.fromkeys(("match", "match_case_id", "shared_ngram"), pl.String),
    )
    by_cosine = pl.when("is_near")
    return frame.with_columns(
        reason=pl.coalesce("match", by_cosine.then(pl.lit("cosine")), pl.lit("")),
        matched_case_id=pl.coalesce("match_case_id", by_cosine.then("nearest_case_id")),
    ).select(
        pl.when(pl.col("reason") == "").then(pl.lit("kept")).otherwise(pl.lit("rejected"))
        .alias("verdict"),
        pl.exclude("is_near", "match", "match_case_id"),
    ).select(pl.col(name).cast(kind) for name, kind in VERDICT_COLUMNS.items())  # fmt: skip


def guard_questions(
    questions: pl.DataFrame, *, protected: EvalQuestions, embedder: Embedder
) -> pl.DataFrame:
    """Return the questions (column `text`) with their verdict columns, judged batch by batch."""
    batches = questions.iter_slices(BATCH_ROWS) if questions.height else iter([questions])
    return pl.concat(guard_batches(batches, protected=protected, embedder=embedder))


def guard_batches(
    batches: Iterable[pl.DataFrame], *, protected: EvalQuestions, embedder: Embedder
) -> Iterator[pl.DataFrame]:
    """Yield each batch of questions (column `text`) with its verdict columns added.

    Judged, and returned as `text`, is the normalised question: what the student will be trained on.
    Only one batch of vectors exists at a time, so memory does not grow with the pool.
    """
    for batch in batches:
        texts = [normalise_question(text) for text in batch["text"]]
        verdicts = judge_questions(texts, embedder.embed(texts), protected)
        yield batch.with_columns(pl.Series("text", texts, dtype=pl.String)).hstack(verdicts)


def reject_descendants(judged: pl.DataFrame) -> pl.DataFrame:
    """Reject what was made from a rejected seed: it asks an eval question in other words.

    Args:
        judged: rows with question_id, seed_id (its own id for a seed) and the verdict columns.
    """
    leaked = judged.filter(
        (pl.col("question_id") == pl.col("seed_id")) & (pl.col("verdict") == "rejected")
    ).select("seed_id", seed_case_id="matched_case_id")
    joined = judged.join(leaked, on="seed_id", how="left", maintain_order="left")
    falls = pl.col("seed_case_id").is_not_null() & (pl.col("verdict") == "kept")
    return joined.with_columns(
        verdict=pl.when(falls).then(pl.lit("rejected")).otherwise("verdict"),
        reason=pl.when(falls).then(pl.lit("rejected_seed")).otherwise("reason"),
        matched_case_id=pl.when(falls).then("seed_case_id").otherwise("matched_case_id"),
    ).drop("seed_case_id")
