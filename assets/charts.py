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
MARKED_COUNT = 12

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


def draw_shares(
    shares: Mapping[str, Sequence[float]],
    *,
    colours: Sequence[str],
    rows: Sequence[str],
    rest: tuple[str, str],
    title: str,
) -> bytes:
    """Return a PNG of horizontal bars that each fill 0-1: the shares, then the rest.

    Args:
        shares: name -> its share of each row, left first.
        colours: one per name.
        rows: names of the bars, top first.
        rest: name and colour of what no share covers.
        title: over the chart.
    """
    figure, axes = _open_figure(height=1.3 + 0.42 * len(rows))
    left = np.zeros(len(rows))
    parts = [*zip(shares.items(), colours, strict=True)]
    for (name, values), colour in parts:
        axes.barh(range(len(rows)), values, left=left, height=0.62, color=colour, label=name)
        left += np.asarray(values)
    axes.barh(range(len(rows)), 1 - left, left=left, height=0.62, color=rest[1], label=rest[0])
    for row, covered in enumerate(left):
        axes.annotate(write_percent(covered), (1, row), (6, 0), textcoords="offset points",
                      va="center", color=INK, fontsize=9, annotation_clip=False)  # fmt: skip
    axes.set(xlim=(0, 1), xticks=[], yticks=range(len(rows)), yticklabels=rows)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    figure.legend(loc="outside lower left", ncols=len(parts) + 1, frameon=False, labelcolor=INK)
    return _close_figure(figure, axes, title)


def draw_reliability(
    series: Mapping[str, Sequence[tuple[float, float, int]]], *, title: str
) -> bytes:
    """Return a PNG of how often answers are right against how sure they are; the diagonal is ideal.

    Args:
        series: name -> (confidence, accuracy, count) of each bin; at most two, the better one last.
        title: over the chart.
    """
    figure, axes = _open_figure(height=4.2)
    axes.plot([0, 1], [0, 1], color=SOFT, linestyle=(0, (4, 3)), linewidth=1)
    for (name, bins), colour in zip(series.items(), (ORANGE, BLUE), strict=False):
        confidence, accuracy, counts = zip(*bins, strict=True)
        axes.plot(confidence, accuracy, color=colour, linewidth=1, alpha=0.5)
        axes.scatter(confidence, accuracy, s=[8 + 6 * c for c in counts], color=colour, label=name)
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="share that agrees")
    axes.yaxis.label.set_color(SOFT)
    axes.grid(color=LINE, linewidth=0.8)
    figure.legend(loc="outside upper right", ncols=len(series), frameon=False, labelcolor=INK)
    return _close_figure(figure, axes, title)


def draw_lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    colours: Sequence[str],
    title: str,
    axis_label: str,
) -> bytes:
    """Return a PNG of values along one axis; a line of few values shows each as a dot.

    Args:
        lines: name -> (places on the axis, values), of equal length.
        colours: one per line.
        title: over the chart.
        axis_label: under it.
    """
    figure, axes = _open_figure(height=3.4)
    for (name, (places, values)), colour in zip(lines.items(), colours, strict=True):
        marker = "o" if len(places) <= MARKED_COUNT else None
        axes.plot(places, values, color=colour, linewidth=1.6, marker=marker, markersize=5,
                  label=name)  # fmt: skip
    axes.set(xlabel=axis_label)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    figure.legend(loc="outside upper right", ncols=len(lines), frameon=False, labelcolor=INK)
    return _close_figure(figure, axes, title)


def draw_money_map(
    amounts: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    axis_labels: tuple[str, str],
) -> bytes:
    """Return a PNG of US dollars as cells: blue above zero, orange below, each with its amount.

    Args:
        amounts: [rows, columns].
        rows: names, top first.
        columns: names, left first.
        title: over the chart.
        axis_labels: under it and beside it.
    """
    from matplotlib.colors import LinearSegmentedColormap

    grid = np.asarray(amounts, dtype=np.float64)
    figure, axes = _open_figure(height=1.5 + 0.36 * len(rows))
    reach = float(np.abs(grid).max()) or 1.0
    # A root keeps small amounts apart from zero where the largest is a hundred times theirs.
    shades = np.sign(grid) * np.sqrt(np.abs(grid) / reach)
    colours = LinearSegmentedColormap.from_list("money", [ORANGE, "#ffffff", BLUE])
    axes.imshow(shades, vmin=-1, vmax=1, aspect="auto", cmap=colours)
    for (row, column), amount in np.ndenumerate(grid):
        axes.text(column, row, f"{amount:,.0f}", ha="center", va="center", fontsize=9,
                  color="white" if abs(shades[row, column]) > 0.7 else INK)  # fmt: skip
    axes.set(xticks=range(len(columns)), xticklabels=columns, xlabel=axis_labels[0],
             yticks=range(len(rows)), yticklabels=rows, ylabel=axis_labels[1])  # fmt: skip
    axes.tick_params(length=0)
    return _close_figure(figure, axes, title)


def draw_forest(
    names: Sequence[str],
    *,
    values: Sequence[float],
    lowers: Sequence[float],
    uppers: Sequence[float],
    marks: Sequence[float],
    title: str,
    axis_label: str,
) -> bytes:
    """Return a PNG of a row per name: a dot within its interval, and a cross at its mark.

    Args:
        names: of the rows, top first.
        values: where the dots stand.
        lowers: left ends of the intervals.
        uppers: right ends.
        marks: where the crosses stand.
        title: over the chart.
        axis_label: under it.
    """
    figure, axes = _open_figure(height=1.3 + 0.34 * len(names))
    places = range(len(names))
    axes.hlines(places, lowers, uppers, color=BLUE, linewidth=2)
    axes.plot(values, places, "o", color=BLUE, markersize=6)
    axes.plot(marks, places, "x", color=ORANGE, markersize=7, markeredgewidth=2)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.set(yticks=places, yticklabels=names, xlabel=axis_label, ylim=(len(names) - 0.5, -0.5))
    axes.grid(axis="x", color=LINE, linewidth=0.8)
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
