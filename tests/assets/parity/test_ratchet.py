"""Two router curves side by side: how much of the teacher a quality takes, before and now."""

import polars as pl

from assets.parity.ratchet import compare_curves, draw_ratchet


def curve(*points: tuple[float, float]) -> pl.DataFrame:
    shares, qualities = zip(*points, strict=True)
    return pl.DataFrame({"teacher_ratio": shares, "quality": qualities})


BEFORE = curve((0.3, 0.7), (0.5, 0.85), (0.9, 0.97), (1.0, 1.0))
AFTER = curve((0.1, 0.78), (0.2, 0.86), (0.3, 0.84), (0.6, 0.96), (1.0, 1.0))


def test_each_quality_names_the_least_share_that_reaches_it_even_where_a_curve_dips():
    steps = compare_curves(BEFORE, AFTER, qualities=(0.8, 0.95, 1.0))
    assert [(s.before_ratio, s.after_ratio) for s in steps] == [(0.5, 0.2), (0.9, 0.6), (1.0, 1.0)]


def test_a_quality_that_nothing_reaches_has_no_share():
    (step,) = compare_curves(BEFORE.head(2), AFTER, qualities=(0.9,))
    assert (step.before_ratio, step.after_ratio) == (None, 0.6)


def test_the_chart_is_a_png():
    assert draw_ratchet(BEFORE, AFTER).startswith(b"\x89PNG")
