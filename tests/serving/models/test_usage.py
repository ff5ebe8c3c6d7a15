"""A number of tokens is a whole number that is not negative, and nothing else."""

import pytest

from serving.models.usage import read_token_count


@pytest.mark.parametrize("value", [0, 12, 10**12])
def test_a_whole_number_is_a_count(value):
    assert read_token_count(value) == value


@pytest.mark.parametrize("value", [True, False, -1, 1.0, "12", None, [3], float("nan")])
def test_anything_else_is_none(value):
    assert read_token_count(value) is None
