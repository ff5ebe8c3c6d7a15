"""Simulated customers leave no key behind, and nobody else's is taken away with theirs."""

import pytest

from orchestration.customers import customers
from serving.access.keys import create_key, find_key, read_keys
from serving.home import Home


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path)


def open_doors(home: Home, texts) -> int:
    known = {key.key_id: key for key in read_keys(home.keys)}
    return sum(key is not None and key.revoked_at is None for key in
               (find_key(known, text) for text in texts))  # fmt: skip


def test_a_server_that_was_open_is_open_again(home):
    with customers(home, 3) as texts:
        assert open_doors(home, texts) == 3
    assert read_keys(home.keys) == ()


@pytest.mark.parametrize("is_made_before", [True, False])
def test_a_key_of_somebody_else_stays_whenever_it_was_made(home, is_made_before):
    made = [create_key(home.keys, tenant="acme")] if is_made_before else []
    with customers(home, 3) as texts:
        if not made:
            made = [create_key(home.keys, tenant="acme")]
    assert open_doors(home, [key.text for key in made]) == 1
    assert open_doors(home, texts) == 0
