"""The chart of the router: its curve between the line of lots and that of an oracle.

Belongs here: which lines it shows. Does not belong here: the sweep (`router_curve`), drawing
(`charts`).
"""

import polars as pl

from assets.charts import BLUE, ORANGE, SOFT, draw_lines, embed_png


def draw_curve(curve: pl.DataFrame) -> str:
    """Return the chart as Markdown: quality against the teacher's share."""
    shares = curve["teacher_ratio"].to_list()
    png = draw_lines(
        {
            "router": (shares, curve["quality"].to_list()),
            "lots": (shares, curve["random_quality"].to_list()),
            "oracle": (shares, curve["oracle_quality"].to_list()),
        },
        colours=(BLUE, SOFT, ORANGE),
        title="Agreement with the teacher on held-out questions",
        axis_label="share of questions that the teacher is asked",
    )
    return embed_png(png, alt="router curve")
