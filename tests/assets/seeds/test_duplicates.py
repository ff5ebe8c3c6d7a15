"""What counts as the same question again."""

import numpy as np

from assets.seeds.duplicates import BLOCK_ROWS, mark_crowded, mark_near_duplicates


def at_degrees(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_the_later_of_two_near_rows_is_the_duplicate():
    marks = mark_near_duplicates(at_degrees(0, 1, 40, 41, 80), known_count=0, limit=0.99)
    assert marks.tolist() == [False, True, False, True, False]


def test_known_rows_stay_whatever_they_are_near_to():
    marks = mark_near_duplicates(at_degrees(0, 1, 2), known_count=2, limit=0.99)
    assert marks.tolist() == [False, False, True]


def test_a_dropped_row_drops_nobody():
    """0 and 6 degrees repeat 3, but 6 does not repeat 0: only what stays can be repeated."""
    marks = mark_near_duplicates(at_degrees(0, 3, 6), known_count=0, limit=np.cos(np.radians(4)))
    assert marks.tolist() == [False, True, False]


def test_what_is_appended_changes_no_verdict_and_blocks_do_not_show():
    draw = np.random.default_rng(0)
    angles = draw.uniform(0, 360, size=BLOCK_ROWS * 2 + 40)
    whole = mark_near_duplicates(at_degrees(*angles), known_count=10, limit=0.9999)
    part = mark_near_duplicates(at_degrees(*angles[:-300]), known_count=10, limit=0.9999)
    assert whole[:-300].tolist() == part.tolist()
    assert 0 < whole.sum() < len(whole)


def test_nothing_is_no_duplicate():
    assert mark_near_duplicates(np.zeros((0, 4), np.float32), known_count=0).tolist() == []


def test_a_fourth_about_one_matter_is_crowded_out_and_another_matter_is_not():
    angles = [0.0, 0.1, 0.2, 0.3, 1.5, 0.15]
    vectors = np.array([[np.cos(a), np.sin(a)] for a in angles], dtype=np.float32)
    assert mark_crowded(vectors).tolist() == [False, False, False, True, False, True]
    assert mark_crowded(vectors, maximum_rows=4).tolist() == [False] * 5 + [True]
    assert mark_crowded(np.empty((0, 2), dtype=np.float32)).tolist() == []
