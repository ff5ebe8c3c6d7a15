"""The chart of experiments: each prediction as a cross, what was measured as a bar around a dot.

Belongs here: which rows it shows. Does not belong here: drawing (`charts`).
"""

import polars as pl

from assets.charts import draw_forest, embed_png


def draw_predictions(report: pl.DataFrame) -> str:
    """Return the chart as Markdown; only ratios, which share one axis. Empty without any."""
    shown = report.filter(
        ~pl.col("outcome").is_in(["unmeasured", "unpredicted"]),
        ~pl.col("metric").str.contains("usd|latency|rubric"),
    )
    if shown.is_empty():
        return "no registered prediction was measured yet"
    png = draw_forest(
        [f"{row['experiment']}: {row['metric']}" for row in shown.iter_rows(named=True)],
        values=shown["measured_delta"].to_list(),
        lowers=shown["lower"].to_list(),
        uppers=shown["upper"].to_list(),
        marks=shown["predicted_delta"].to_list(),
        title="Predicted (cross) and measured, with 95 % intervals",
        axis_label="difference of the metric",
    )
    return embed_png(png, alt="predicted and measured differences")
