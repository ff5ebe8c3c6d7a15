"""How many answer tokens have a soft target, from whom, and how much mass lies outside it.

Belongs here: the numbers and their charts. Does not belong here: limits (`checks`), rows
(`soft_targets`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from assets.charts import BLUE, INK, LINE, ORANGE, draw_histogram, draw_shares, embed_png
from assets.labels.projection import MAXIMUM_TAIL
from assets.labels.soft_targets import SoftTable

SUPPLIES = ("scorer exact", "teacher exact", "teacher bytes")
"""Whose numbers, and how they are aligned: what a token's soft target can be."""

COLOURS = (BLUE, INK, ORANGE)
KINDS = ("text", "citation", "end of turn")


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares of answer tokens.

    `soft_ratio` is over all tokens, `asked_soft_ratio` over those of answers that a source was
    asked about: a sample leaves the others out on purpose. `by_supply` are shares of all tokens,
    `tail_mass` means over the soft tokens. `hard_reasons` counts answers without any soft token.
    """

    token_count: int
    soft_ratio: float
    asked_soft_ratio: float
    asked_token_count: int
    by_supply: Mapping[str, float]
    tail_mass: Mapping[str, float]
    hard_reasons: Mapping[str, int]


def measure_coverage(frame: pl.DataFrame) -> Coverage:
    """Return the coverage of a table of soft targets."""
    tokens = list_tokens(frame)
    asked = tokens.filter(pl.col("source") != "none")
    soft = tokens.filter("soft_ok")
    by_supply = soft.group_by("supply").agg(pl.len(), pl.col("tail_mass").mean()).sort("supply")
    hard = frame.filter(pl.col("alignment") == "none")
    return Coverage(
        token_count=tokens.height,
        soft_ratio=soft.height / max(1, tokens.height),
        asked_soft_ratio=soft.height / max(1, asked.height),
        asked_token_count=asked.height,
        by_supply={name: count / tokens.height for name, count, _ in by_supply.iter_rows()},
        tail_mass={name: mass for name, _, mass in by_supply.iter_rows()},
        hard_reasons=dict(hard["reason"].value_counts().sort("reason").iter_rows()),
    )


def describe_coverage(soft: SoftTable) -> dict[str, Any]:
    """Return what the metadata of the table says, plain values by name."""
    found, evidence = measure_coverage(soft.frame), soft.evidence
    described: dict[str, Any] = {
        "example_count": soft.frame.height,
        "kept_count": soft.kept_count,
        "answer_token_count": found.token_count,
        "soft_token_ratio": round(found.soft_ratio, 4),
        "soft_token_ratio_of_asked": round(found.asked_soft_ratio, 4),
        "soft_token_ratio_by_source": {k: round(v, 4) for k, v in found.by_supply.items()},
        "mean_tail_mass_by_source": {k: round(v, 4) for k, v in found.tail_mass.items()},
        "hard_only_answers_by_reason": dict(found.hard_reasons),
        "suppliers": sorted(set(soft.frame["scorer_id"]) - {""}),
    }
    if evidence is not None:
        described["teacher_tokenizer"] = (
            f"{'the same as' if evidence.is_same else 'another than'} the student's: "
            f"{evidence.same_answer_count} of {evidence.answer_count} answers are cut alike, "
            f"{len(evidence.known)} of {len(evidence.known) + len(evidence.unknown)} candidates "
            "are student tokens"
        )
    return described


def list_tokens(frame: pl.DataFrame) -> pl.DataFrame:
    """Return one row per answer token: example_id, source, supply, kind, soft_ok, tail_mass."""
    columns = frame.select(
        "example_id",
        "source",
        pl.format("{} {}", "source", "alignment").alias("supply"),
        "soft_ok",
        "cite",
        "tail_logp",
        pl.int_ranges(pl.col("cite").list.len()).alias("position"),
        pl.col("cite").list.len().alias("count"),
    ).explode("soft_ok", "cite", "tail_logp", "position")
    kind = (
        pl.when(pl.col("position") + 1 == pl.col("count"))
        .then(pl.lit("end of turn"))
        .when("cite")
        .then(pl.lit("citation"))
        .otherwise(pl.lit("text"))
    )
    mass = pl.col("tail_logp").cast(pl.Float64).exp()
    return columns.select(
        "example_id", "source", "supply", "soft_ok", kind.alias("kind"), mass.alias("tail_mass")
    )


def draw_charts(frame: pl.DataFrame) -> dict[str, str]:
    """Return the charts of a table as Markdown by name; none where no token has a soft target."""
    if not frame["soft_ok"].list.any().any():
        return {}
    return {"coverage": draw_coverage(frame), "tail_mass": draw_tails(frame)}


def draw_coverage(frame: pl.DataFrame) -> str:
    """Return Markdown with bars: of each kind of token, the share each supply covers."""
    tokens = list_tokens(frame)
    kinds = [kind for kind in KINDS if (tokens["kind"] == kind).any()]
    totals = dict(tokens["kind"].value_counts().iter_rows())
    soft = tokens.filter("soft_ok").group_by("kind", "supply").len()
    counts = {(kind, supply): count for kind, supply, count in soft.iter_rows()}
    shares = {
        supply: [counts.get((kind, supply), 0) / totals[kind] for kind in kinds]
        for supply in SUPPLIES
        if any((kind, supply) in counts for kind in kinds)
    }
    png = draw_shares(
        shares,
        colours=[COLOURS[SUPPLIES.index(supply)] for supply in shares],
        rows=[f"{kind} ({totals[kind]:,})" for kind in kinds],
        rest=("hard only", LINE),
        title="Answer tokens with a soft target",
    )
    return embed_png(png, alt="Share of answer tokens with a soft target, by kind and source")


def draw_tails(frame: pl.DataFrame) -> str:
    """Return Markdown with a histogram of the mass outside the stored tokens or groups."""
    soft = list_tokens(frame).filter("soft_ok")
    masses = {
        supply: soft.filter(pl.col("supply") == supply)["tail_mass"].to_list()
        for supply in SUPPLIES
        if (soft["supply"] == supply).any()
    }
    png = draw_histogram(
        masses,
        colours=[COLOURS[SUPPLIES.index(supply)] for supply in masses],
        edges=np.linspace(0, 1, 41),
        limit=MAXIMUM_TAIL,
        title="Probability outside the stored targets (projected rows above the limit stay hard)",
        axis_label="tail mass of an answer token",
    )
    return embed_png(png, alt="Histogram of the tail mass of soft targets")
