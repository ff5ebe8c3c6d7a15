"""The sensitivity chart: what a month saves, by volume and utilisation.

Belongs here: its axes, its grid, and reading what it is computed from. Does not belong here: the
arithmetic (`economics`), drawing (`charts`, `report_sections`).
"""

from typing import Any

import polars as pl

from assets.charts import draw_money_map, embed_png
from assets.parity.arms import CANDIDATE
from assets.parity.costs import MeasuredCosts
from assets.parity.economics import EconomicsTerms, OneOffCosts, sweep_sensitivity
from assets.parity.report_sections import MoneyMap

VOLUME_FACTORS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)
UTILISATIONS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
SENSITIVITY = pl.Schema(
    {
        "utilisation_ratio": pl.Float64,
        "asks_per_month": pl.Float64,
        "saving_usd_per_month": pl.Float64,
    }
)


def tabulate_sensitivity(
    costs: MeasuredCosts, one_off: OneOffCosts, terms: EconomicsTerms
) -> pl.DataFrame:
    """Return what a month saves: one row per utilisation and volume."""
    volumes = [factor * terms.asks_per_month for factor in VOLUME_FACTORS]
    grid = sweep_sensitivity(costs, one_off, terms, volumes=volumes, utilisations=UTILISATIONS)
    rows = [
        (utilisation, volume, saving)
        for utilisation, savings in zip(UTILISATIONS, grid, strict=True)
        for volume, saving in zip(volumes, savings, strict=True)
    ]
    return pl.DataFrame(rows, schema=SENSITIVITY, orient="row")


def read_one_off(
    economics: pl.DataFrame, *, training_seconds: float | None, terms: EconomicsTerms
) -> OneOffCosts:
    """Return what was paid once, as the table economics was computed with it."""
    total = float(economics["one_off_usd"].drop_nulls()[0])
    training = (training_seconds or 0.0) / 3600 * terms.training_usd_per_hour
    return OneOffCosts(
        bought_usd=total - training - terms.setup_usd,
        training_usd=training,
        setup_usd=terms.setup_usd,
    )


def map_savings(sensitivity: pl.DataFrame) -> MoneyMap:
    """Return the map of a sensitivity table; one row where utilisation changes nothing."""
    from matplotlib.ticker import EngFormatter

    write_volume = EngFormatter(sep="")
    columns = sensitivity["asks_per_month"].unique().sort().to_list()
    rows: dict[str, Any] = {
        f"{100 * utilisation:.0f} %": part.sort("asks_per_month")["saving_usd_per_month"].to_list()
        for (utilisation,), part in sensitivity.group_by("utilisation_ratio", maintain_order=True)
    }
    if len(set(map(tuple, rows.values()))) == 1:
        rows = {"any": next(iter(rows.values()))}
    return MoneyMap(
        title=f"US dollars saved in a month, {CANDIDATE}",
        row_label="utilisation",
        column_label="questions per month",
        rows=list(rows),
        columns=[write_volume(volume) for volume in columns],
        amounts=list(rows.values()),
    )


def draw_sensitivity(costs: MeasuredCosts, one_off: OneOffCosts, terms: EconomicsTerms) -> str:
    """Return the chart as Markdown. Paid by the token, utilisation changes nothing."""
    shown = map_savings(tabulate_sensitivity(costs, one_off, terms))
    png = draw_money_map(
        shown.amounts,
        rows=shown.rows,
        columns=shown.columns,
        title=f"US dollars saved in a month, {costs.arm}",
        axis_labels=(shown.column_label, shown.row_label),
    )
    return embed_png(png, alt="saving by volume and utilisation")
