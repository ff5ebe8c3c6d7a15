"""The chart of the router: its curve between the line of lots and that of an oracle.

Belongs here: how it is drawn. Does not belong here: the sweep and its lines (`router_curve`).
"""

import polars as pl

from assets.charts import BLUE, ORANGE, SOFT, draw_lines, embed_png
from assets.parity.router_curve import list_lines


def draw_curve(curve: pl.DataFrame) -> str:
    """Return the chart as Markdown: quality against the teacher's share."""
    png = draw_lines(
        list_lines(curve),
        colours=(BLUE, SOFT, ORANGE),
        title="Agreement with the teacher on validation questions",
        axis_label="share of questions that the teacher is asked",
    )
    return embed_png(png, alt="router curve")
