"""The training curve as a picture for asset metadata.

Belongs here: which columns are drawn. Does not belong here: drawing (`assets.charts`).
"""

import polars as pl

from assets.charts import BLUE, ORANGE, RED, draw_lines, embed_png

LINES = (
    ("loss", "loss", BLUE),
    ("soft_loss", "soft", ORANGE),
    ("validation_loss", "validation", RED),
)


def draw_curve(curve: pl.DataFrame) -> str:
    """Return Markdown with the losses by step; those that a training does not have are left out."""
    drawn = [
        (label, colour, curve.select("step", column).drop_nulls())
        for column, label, colour in LINES
    ]
    drawn = [line for line in drawn if line[2].height]
    png = draw_lines(
        {label: (rows["step"].to_list(), rows.to_series(1).to_list()) for label, _, rows in drawn},
        colours=[colour for _, colour, _ in drawn],
        title="Loss by optimizer step",
        axis_label="step",
    )
    return embed_png(png, alt="loss by step")


def describe_speed(curve: pl.DataFrame) -> dict[str, float]:
    """Return what the training took: seconds, tokens a second, peak memory, work a second."""
    if curve.is_empty():
        return {}
    seconds = float(curve["step_seconds"].sum())
    tokens = float((curve["tokens_per_second"] * curve["step_seconds"]).sum())
    return {
        "step_seconds": seconds,
        "mean_tokens_per_second": tokens / seconds,
        "peak_memory_mb": float(curve["peak_memory_mb"].cast(pl.Float64).to_numpy().max()),
        "floor_flops_per_second": float(curve["floor_flops"].sum()) / seconds,
    }
