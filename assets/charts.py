"""Charts in asset metadata: a figure becomes PNG bytes, and those a line of Markdown.

Same colours as the parity report. Belongs here: drawing numbers it is given. Does not belong here:
computing them, HTML (`parity/report`), Dagster's metadata types.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE, INK, SOFT, LINE = "#faf9f6", "#21201d", "#67635b", "#e3dfd6"
BLUE, ORANGE, RED = "#1765a8", "#b8500c", "#b3321f"
DOTS_PER_INCH = 110

Floats = npt.NDArray[np.float64]


def embed_png(png: bytes, *, alt: str) -> str:
    """Return Markdown that shows the picture wherever it is rendered, with no file beside it."""
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})"


def draw_histogram(
    groups: Mapping[str, Sequence[float]],
    *,
    colours: Sequence[str],
    edges: Sequence[float] | Floats,
    limit: float,
    title: str,
    axis_label: str,
) -> bytes:
    """Return a PNG of counts stacked by group, with a dashed line at the limit.

    Args:
        groups: name -> values, bottom of the stack first; the legend gives each name's count.
        colours: one per group.
        edges: of the bins, ascending; values outside fall into the nearest bin.
        limit: where the dashed line stands.
        title: over the chart.
        axis_label: under it.
    """
    figure, axes = _open_figure(height=3.4)
    edges = np.asarray(edges)
    bottom = np.zeros(len(edges) - 1)
    for (name, values), colour in zip(groups.items(), colours, strict=True):
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)
        label = f"{name} ({len(values):,})"
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.9, bottom, align="edge", color=colour,
                 label=label)  # fmt: skip
        bottom += counts
    axes.axvline(limit, color=RED, linestyle=(0, (4, 3)), linewidth=1.4)
    axes.annotate(f"limit {limit:g}", (limit, 1), (-5, -4), xycoords=("data", "axes fraction"),
                  textcoords="offset points", ha="right", va="top", color=RED)  # fmt: skip
    axes.set(xlim=(edges[0], edges[-1]), xlabel=axis_label)
    axes.locator_params(axis="y", integer=True)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    figure.legend(loc="outside upper right", ncols=len(groups), frameon=False, labelcolor=INK)
    return _close_figure(figure, axes, title)


def draw_heat_map(
    ratios: Floats, *, rows: Sequence[str], columns: Sequence[str], title: str, axis_label: str
) -> bytes:
    """Return a PNG of ratios (0-1) as cells that say their per cent; NaN cells stay empty.

    Args:
        ratios: [rows, columns].
        rows: names, top first.
        columns: names, left first.
        title: over the chart.
        axis_label: under it.
    """
    from matplotlib.colors import LinearSegmentedColormap

    figure, axes = _open_figure(height=1.3 + 0.36 * len(rows))
    axes.imshow(ratios, vmin=0, vmax=1, aspect="auto",
                cmap=LinearSegmentedColormap.from_list("ratio", ["#ffffff", BLUE]))  # fmt: skip
    for (row, column), ratio in np.ndenumerate(ratios):
        if np.isfinite(ratio):
            axes.text(column, row, write_percent(ratio), ha="center", va="center",
                      color="white" if ratio > 0.55 else INK)  # fmt: skip
    axes.set(xticks=range(len(columns)), xticklabels=columns, xlabel=axis_label,
             yticks=range(len(rows)), yticklabels=rows)  # fmt: skip
    axes.tick_params(length=0)
    return _close_figure(figure, axes, title)


def write_percent(ratio: float) -> str:
    """Write a ratio in whole per cent; a share under one keeps a digit, so that it is not zero."""
    return f"{100 * ratio:.{1 if 0 < ratio < 0.01 else 0}f} %"


def _open_figure(*, height: float) -> tuple["Figure", "Axes"]:
    """Open a figure of its own: no pyplot, so no global state and nothing to forget to close."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), dpi=DOTS_PER_INCH, facecolor=PAGE, layout="constrained")
    return figure, figure.add_subplot()


def _close_figure(figure: "Figure", axes: "Axes", title: str) -> bytes:
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_facecolor(PAGE)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, labelsize=9)
    axes.xaxis.label.set_color(SOFT)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(LINE)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})  # same data, same bytes
    return stream.getvalue()
