"""Traffic drift: do people ask what they asked before, as far as a number can tell?

The window is compared with the weeks before it by question length, topic, language, best retrieval
score and embedding. A p-value says whether the difference is chance, the number how large it is:
both have to be past their limit. Belongs here: what is compared. Does not belong here: the HTML
report (`drift_report`).
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from assets.monitoring.comparing import compare_counts, compare_vectors, tell_apart
from assets.monitoring.measurements import Measurement, Relation, compare_number, leave_open
from assets.monitoring.sampling import draw_stratified
from assets.monitoring.traffic import (
    MINIMUM_CONVERSATIONS,
    Traffic,
    find_gap,
    find_reference_gap,
    take_first_asks,
)
from serving.models.protocols import Embedder

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

LARGEST_KS = 0.10  # distance of two distribution functions
LARGEST_TVD = 0.10  # share of questions that changed their category
LARGEST_AUC = 0.60  # of a classifier that tells the windows apart
EMBEDDED = 1000  # questions of each window that are embedded

LANGUAGES = (
    "ar", "cs", "da", "de", "el", "en", "es", "fi", "fr", "he", "hi", "hu", "id", "it", "ja", "ko",
    "nl", "no", "pl", "pt", "ro", "ru", "sv", "th", "tr", "uk", "vi", "zh",
)  # fmt: skip
"""What a question may be in: with every language there is, short English ones become pidgin."""

METRICS: dict[str, tuple[Relation, float]] = {
    "question_length": ("at most", LARGEST_KS),
    "retrieval_score": ("at most", LARGEST_KS),
    "topic": ("at most", LARGEST_TVD),
    "language": ("at most", LARGEST_TVD),
    "embedding": ("at most", LARGEST_AUC),
}


@dataclass(frozen=True, kw_only=True)
class DriftFrames:
    """The compared rows of both windows: conversations' first questions, described."""

    now: pl.DataFrame
    before: pl.DataFrame


def describe_asks(asks: pl.DataFrame) -> pl.DataFrame:
    """Return one row per conversation: length, retrieval score, topic, language, and the text."""
    first = take_first_asks(asks)
    return first.select(
        "trace_id",
        "asked_at",
        "route_reason",
        "question",
        pl.col("question").str.len_chars().cast(pl.Float64).alias("question_length"),
        pl.col("max_score").alias("retrieval_score"),
        "topic",
        pl.Series("language", detect_languages(first["question"].to_list()), dtype=pl.String),
    )


def detect_languages(questions: list[str | None]) -> list[str]:
    """Return the likeliest language of each text, as its two letters."""
    identifier = _load_identifier()
    known: dict[str, str] = {}
    for question in {question or "" for question in questions}:
        known[question] = str(identifier.classify(question)[0])
    return [known[question or ""] for question in questions]


@cache
def _load_identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(list(LANGUAGES))
    return identifier


def gather_drift(traffic: Traffic) -> DriftFrames:
    """Return what is compared."""
    return DriftFrames(now=describe_asks(traffic.asks), before=describe_asks(traffic.before))


def measure_drift(traffic: Traffic, frames: DriftFrames, embedder: Embedder) -> list[Measurement]:
    """Return one measurement per metric."""
    gap = find_gap(frames.now, minimum=MINIMUM_CONVERSATIONS) or find_reference_gap(traffic)
    if gap:
        return [
            leave_open(metric, gap, n=frames.now.height, relation=relation, limit=limit)
            for metric, (relation, limit) in METRICS.items()
        ]
    return [
        _compare_numbers("question_length", frames),
        _compare_numbers("retrieval_score", frames),
        _compare_categories("topic", frames),
        _compare_categories("language", frames),
        _compare_embeddings(frames, embedder),
    ]


def _compare_numbers(metric: str, frames: DriftFrames) -> Measurement:
    from scipy.stats import ks_2samp

    now, before = (f[metric].drop_nulls().to_numpy() for f in (frames.now, frames.before))
    relation, limit = METRICS[metric]
    if min(len(now), len(before)) < MINIMUM_CONVERSATIONS:
        reason = f"{len(now)} now and {len(before)} before have one"
        return leave_open(metric, reason, n=len(now), relation=relation, limit=limit)
    tested = ks_2samp(now, before)
    return compare_number(
        metric,
        float(tested.statistic),
        relation=relation,
        limit=limit,
        n=len(now),
        p_value=float(tested.pvalue),
        detail=f"median {np.median(now):g} now, {np.median(before):g} before "
        "(Kolmogorov-Smirnov distance)",
    )


def _compare_categories(metric: str, frames: DriftFrames) -> Measurement:
    tested = compare_counts(frames.now[metric], frames.before[metric])
    relation, limit = METRICS[metric]
    return compare_number(
        metric,
        tested.tvd,
        relation=relation,
        limit=limit,
        n=frames.now.height,
        p_value=tested.p_value,
        detail=f"{tested.category_count} categories, {_name_most_grown(metric, frames)} "
        "(total variation distance)",
    )


def _name_most_grown(metric: str, frames: DriftFrames) -> str:
    shares = {
        when: frame[metric].fill_null("none").value_counts(normalize=True, name="share")
        for when, frame in (("now", frames.now), ("before", frames.before))
    }
    both = shares["now"].join(shares["before"], on=metric, how="full", coalesce=True, suffix="_old")
    grown = both.fill_null(0.0).sort(pl.col("share") - pl.col("share_old"), metric).row(-1)
    return f"most grown: {grown[0] or 'none'} from {grown[2]:.1%} to {grown[1]:.1%}"


def _compare_embeddings(frames: DriftFrames, embedder: Embedder) -> Measurement:
    now, before = (draw_stratified(frame, EMBEDDED) for frame in (frames.now, frames.before))
    texts = [*now["question"].fill_null(""), *before["question"].fill_null("")]
    distinct = list(dict.fromkeys(texts))
    rows = dict(zip(distinct, embedder.embed(distinct), strict=True))
    vectors = np.stack([rows[text] for text in texts]).astype(np.float64)
    is_now = [True] * now.height + [False] * before.height
    told = tell_apart(vectors, is_now)
    relation, limit = METRICS["embedding"]
    return compare_number(
        "embedding",
        told.auc,
        relation=relation,
        limit=limit,
        n=now.height,
        p_value=compare_vectors(vectors[: now.height], vectors[now.height :]),
        detail=f"area under the curve of a classifier ({told.lower:.3f} to {told.upper:.3f}); p of "
        "MMD by permutation",
    )
