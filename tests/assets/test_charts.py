"""Charts: real pictures with the data in them, the same for the same data."""

import base64

import numpy as np
import pytest

from assets.charts import (
    draw_heat_map,
    draw_histogram,
    draw_reliability,
    embed_png,
    write_percent,
)


def read_pixels(png: bytes) -> np.ndarray:
    import io

    from matplotlib.image import imread

    return imread(io.BytesIO(png), format="png")[:, :, :3]


def share_of(png: bytes, colour: tuple[int, int, int]) -> float:
    pixels = (read_pixels(png) * 255).round().astype(int)
    return float((np.abs(pixels - colour).max(axis=2) <= 2).mean())


def histogram(low: list[float], high: list[float]) -> bytes:
    return draw_histogram(
        {"low": low, "high": high}, colours=("#0000ff", "#00ff00"), edges=np.linspace(0, 1, 11),
        limit=0.9, title="t", axis_label="x",
    )  # fmt: skip


def test_bars_grow_with_their_counts():
    one, both = histogram([0.1], [0.95]), histogram([0.1] * 4, [0.95])
    assert share_of(one, (0, 255, 0)) > 3 * share_of(both, (0, 255, 0)) > 0
    assert share_of(both, (0, 0, 255)) > share_of(both, (0, 255, 0))


def test_values_outside_the_axis_are_drawn_at_its_ends():
    assert share_of(histogram([-0.5], [1.0000001]), (0, 255, 0)) > 0.02


def test_cells_are_darker_the_larger_the_ratio_and_empty_without_one():
    def draw(ratio: float) -> float:
        png = draw_heat_map(np.array([[ratio]]), rows=["r"], columns=["c"], title="t",
                            axis_label="x")  # fmt: skip
        return float(read_pixels(png).mean())

    assert draw(1.0) < draw(0.5) < draw(0.0)
    assert draw(float("nan")) > draw(0.5)


def test_bins_of_more_answers_are_larger_dots_and_right_ones_stand_higher():
    def draw(accuracy: float, count: int) -> bytes:
        bins = {"raw": [(0.5, accuracy, count)], "calibrated": [(0.2, 0.2, 1)]}
        return draw_reliability(bins, title="t")

    orange = (0xB8, 0x50, 0x0C)
    few, many = draw(0.5, 2), draw(0.5, 30)
    assert share_of(many, orange) > 2 * share_of(few, orange) > 0
    rows = [
        np.argwhere(np.abs((read_pixels(png) * 255).round() - orange).max(axis=2) <= 2)[:, 0]
        for png in (draw(0.9, 30), draw(0.1, 30))
    ]
    assert np.median(rows[0]) < np.median(rows[1])


def test_the_same_data_gives_the_same_bytes():
    assert histogram([0.1], [0.2]) == histogram([0.1], [0.2])


def test_a_picture_travels_inside_its_markdown():
    png = histogram([0.1], [0.2])
    markdown = embed_png(png, alt="cosines")
    assert markdown.startswith("![cosines](data:image/png;base64,")
    assert base64.b64decode(markdown.rpartition(",")[2].removesuffix(")")) == png


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.0, "0 %"), (0.004, "0.4 %"), (0.12, "12 %"), (1.0, "100 %")]
)
def test_a_small_share_is_not_written_as_none(ratio, text):
    assert write_percent(ratio) == text
