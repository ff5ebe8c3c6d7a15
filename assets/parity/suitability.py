"""Suitability: which kinds of question are worth distilling, read from what is really asked.

Frequent, repetitive questions whose answers can be checked are worth it; rare ones, ones with much
at stake and ones that nobody can check are not. Belongs here: kinds of question, their measures,
the rules. Does not belong here: money (`economics`), which questions the router keeps from the
student (`serving/pipeline/router`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from assets import tables
from assets.paraphrases.clustering import cluster_questions
from assets.parity.prices import StatedPrice
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.protocols import Embedder, Hit, Vectors
from serving.pipeline.router import RouterPolicy, has_high_stakes

KINDS = 12
"""How many kinds are told apart: as many as a person reads at a glance."""
REPEAT_COSINE_LIMIT = 0.80  # at or above: the same question in other words
MINIMUM_COST_RATIO = 0.02  # below: too rare to pay for its own upkeep
MINIMUM_CHECKABLE_RATIO = 0.80  # at or above: mistakes are caught by machine
UNCHECKABLE_RATIO = 0.50  # below: most mistakes would go unseen
MINIMUM_REPETITIVE_RATIO = 0.30
MAXIMUM_HIGH_STAKES_RATIO = 0.10

PAGE_PATTERN = r"^docs:(.*)/[0-9]+$"
MINIMUM_TRAFFIC = 200  # questions; below, the seeds say more about what will be asked

Advice = Literal["distil", "measure_first", "keep_teacher"]
"""The limits are judgement, not measurement: they order kinds of question, and a parity report of
the kind decides."""

Source = Literal["traffic", "seeds"]


@dataclass(frozen=True, kw_only=True)
class KindMeasures:
    """What is known of one kind of question; ratios are 0-1.

    `cost_ratio` is None where the teacher has no price, or one of 0: there is nothing to share.
    `repetitive_ratio` is None of seeds, which hold each question once. `checkable_ratio` is None
    where no labelled question is of this kind.
    """

    cost_ratio: float | None
    repetitive_ratio: float | None
    checkable_ratio: float | None
    high_stakes_ratio: float


def advise(kind: KindMeasures) -> tuple[Advice, str]:
    """Return whether to distil a kind of question, and the first rule that decided."""
    if kind.high_stakes_ratio > MAXIMUM_HIGH_STAKES_RATIO:
        return "keep_teacher", f"{kind.high_stakes_ratio:.0%} of it is of high stakes"
    if kind.checkable_ratio is None:
        return "measure_first", "no labelled question is of this kind"
    if kind.checkable_ratio < UNCHECKABLE_RATIO:
        return "keep_teacher", (
            f"only {kind.checkable_ratio:.0%} of its answers pass validator and judge: most "
            "mistakes would go unseen"
        )
    if kind.repetitive_ratio is None:
        return "measure_first", "seeds hold each question once: nobody knows how often it is asked"
    if kind.cost_ratio is None:
        return "measure_first", "what its answers cost is not known: no price above 0 is stated"
    if kind.cost_ratio < MINIMUM_COST_RATIO:
        return "keep_teacher", f"{kind.cost_ratio:.1%} of the cost: too rare to pay"
    if kind.checkable_ratio < MINIMUM_CHECKABLE_RATIO:
        return "measure_first", f"{kind.checkable_ratio:.0%} of its answers can be checked"
    if kind.repetitive_ratio < MINIMUM_REPETITIVE_RATIO:
        return "measure_first", f"{kind.repetitive_ratio:.0%} of it repeats: much to learn"
    return "distil", "repetitive, and its answers can be checked"


def gather_asked(
    rows: pl.DataFrame, policy: RouterPolicy, *, cost: str, price: StatedPrice
) -> pl.DataFrame:
    """Return what `measure_suitability` reads of traces, or of the teacher's answers.

    Args:
        rows: question, citations, retrieved, and the column `cost`.
        policy: says which questions are of high stakes.
        cost: name of the column that holds what the teacher's answer costs.
        price: the teacher's, as the config states it. Where it is missing no cost is known, and a
            cost of 0 is one only where it is stated as 0: otherwise it is older than the price.
    """
    is_known = pl.lit(not price.is_missing) & (pl.lit(price.is_zero) | (pl.col(cost) > 0))
    stakes = [
        has_high_stakes(question, [_point_at(hit) for hit in (retrieved or [])[:1]], policy)
        for question, retrieved in rows.select("question", "retrieved").iter_rows()
    ]
    best = pl.col("retrieved").list.first().struct.field("chunk_id")
    pointed_at = pl.coalesce(pl.col("citations").list.first(), best)
    return rows.select(
        "question",
        page=pointed_at.str.extract(PAGE_PATTERN).fill_null("no page"),
        cost_usd=pl.when(is_known).then(pl.col(cost)),
    ).with_columns(is_high_stakes=pl.Series(stakes, dtype=pl.Boolean))


def _point_at(hit: dict[str, Any]) -> Hit:
    """Return a hit that says which chunk it is; nobody reads its text here."""
    return Hit(
        chunk_id=hit["chunk_id"],
        content_hash=hit["content_hash"],
        score=hit["score"],
        text="",
        title="",
        url="",
    )


def measure_suitability(
    asked: pl.DataFrame, labelled: pl.DataFrame, *, source: Source, embedder: Embedder
) -> pl.DataFrame:
    """Return the suitability table: one row per kind of question, the dearest first.

    Args:
        asked: question, page, cost_usd (null: not known) and is_high_stakes of what users asked
            (repeats included), or of the seeds where there is no traffic.
        labelled: question and is_checkable: whether validator and judge passed the teacher's
            answer to it.
        source: `traffic`, or `seeds`, which say nothing of volume and repetition: every seed
            stands there once.
        embedder: by whose vectors kinds are told apart.

    Raises:
        InvalidInputError: nothing was asked.
    """
    if asked.is_empty():
        raise InvalidInputError(
            "telling kinds of question apart",
            expected="questions of users, or at least seeds",
            found="none",
            next_step="materialize seeds/seed_questions, or serve some traffic",
        )
    texts = asked["question"].unique().sort().to_list()
    vectors = embedder.embed(texts)
    members = cluster_questions(
        [content_hash(text) for text in texts],
        vectors,
        questions_per_cluster=max(1, -(-len(texts) // KINDS)),
    )
    kinds = np.asarray([member.cluster_id for member in members])
    medoids = {m.cluster_id: row for row, m in enumerate(members) if m.is_medoid}
    order = sorted(medoids)
    centres = vectors[[medoids[kind] for kind in order]]
    placed = asked.with_columns(
        kind=pl.col("question").replace_strict(dict(zip(texts, kinds.tolist(), strict=True)))
    )
    checked = _check_kinds(labelled, centres, order, embedder)
    repeats = _measure_repeats(placed, vectors, texts) if source == "traffic" else {}
    rows = [
        _describe(
            placed.filter(kind=kind),
            asked,
            checked=checked.get(kind),
            repetitive_ratio=repeats.get(kind),
            source=source,
        )
        for kind in order
    ]
    frame = pl.DataFrame(rows, schema=tables.SUITABILITY).sort(
        "cost_ratio",
        "kind",
        "question_count",
        descending=[True, False, True],
        nulls_last=True,
    )
    nth = pl.int_range(1, pl.len() + 1).over("kind")
    return frame.with_columns(
        kind=pl.when(nth > 1).then(pl.format("{} ({})", "kind", nth)).otherwise("kind")
    )


def _describe(
    rows: pl.DataFrame,
    asked: pl.DataFrame,
    *,
    checked: tuple[int, float] | None,
    repetitive_ratio: float | None,
    source: Source,
) -> dict[str, Any]:
    measures = KindMeasures(
        cost_ratio=_share_cost(rows["cost_usd"], asked["cost_usd"]),
        repetitive_ratio=repetitive_ratio,
        checkable_ratio=checked[1] if checked else None,
        high_stakes_ratio=float(rows["is_high_stakes"].cast(pl.Float64).mean() or 0.0),  # type: ignore[arg-type]
    )
    advice, reason = advise(measures)
    pages = rows["page"].value_counts().sort("count", "page", descending=[True, False])
    return {
        "kind": pages["page"][0],  # no user's words: this table outlives what they may delete
        "source": source,
        "question_count": rows.height,
        "volume_ratio": rows.height / asked.height if source == "traffic" else None,
        "labelled_count": checked[0] if checked else 0,
        **vars(measures),
        "advice": advice,
        "reason": reason,
    }


def _share_cost(of_kind: pl.Series, of_all: pl.Series) -> float | None:
    """Return the share of what is known to have been paid; None where that is nothing."""
    if not of_kind.count() or not of_all.sum():
        return None
    return float(of_kind.sum()) / float(of_all.sum())


def _check_kinds(
    labelled: pl.DataFrame, centres: Vectors, order: Sequence[int], embedder: Embedder
) -> dict[int, tuple[int, float]]:
    """Return by kind how many labelled questions are nearest to it, and the share that passed."""
    if labelled.is_empty():
        return {}
    texts = labelled["question"].to_list()
    nearest = (embedder.embed(texts) @ centres.T).argmax(axis=1)
    passed = labelled["is_checkable"].to_numpy()
    return {
        kind: (int((nearest == place).sum()), float(passed[nearest == place].mean()))
        for place, kind in enumerate(order)
        if (nearest == place).any()
    }


def _measure_repeats(
    placed: pl.DataFrame, vectors: Vectors, texts: Sequence[str]
) -> dict[int, float]:
    """Return by kind the share of questions that were asked before, in these words or others.

    The first of several like ones is no repeat: a kind of n equal questions has n - 1.
    """
    row_of = {text: row for row, text in enumerate(texts)}
    ratios = {}
    for (kind,), rows in placed.group_by("kind"):
        counts = rows["question"].value_counts().sort("question")
        own = vectors[[row_of[text] for text in counts["question"]]]
        near = np.tril(own @ own.T >= REPEAT_COSINE_LIMIT, k=-1).any(axis=1)
        fresh = int((~near).sum())
        ratios[int(kind)] = 1 - fresh / rows.height
    return ratios
