"""The sensitivity chart: what a month saves, by volume and utilisation.

Belongs here: its axes. Does not belong here: the arithmetic (`economics`), drawing (`charts`).
"""

from assets.charts import draw_money_map, embed_png
from assets.parity.costs import MeasuredCosts
from assets.parity.economics import EconomicsTerms, OneOffCosts, sweep_sensitivity

VOLUME_FACTORS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)
UTILISATIONS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)


def draw_sensitivity(costs: MeasuredCosts, one_off: OneOffCosts, terms: EconomicsTerms) -> str:
    """Return the chart as Markdown. Paid by the token, utilisation changes nothing."""
    volumes = [factor * terms.asks_per_month for factor in VOLUME_FACTORS]
    grid = sweep_sensitivity(costs, one_off, terms, volumes=volumes, utilisations=UTILISATIONS)
    png = draw_money_map(
        grid,
        rows=[f"{100 * utilisation:.0f} %" for utilisation in UTILISATIONS],
        columns=[f"{volume:,.0f}" for volume in volumes],
        title=f"US dollars saved in a month, {costs.arm}",
        axis_labels=("questions per month", "utilisation"),
    )
    return embed_png(png, alt="saving by volume and utilisation")
