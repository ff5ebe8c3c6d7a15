"""Facts must be readable where the gold page says they are."""

import polars as pl
import pytest

from assets.corpus.chunks import tabulate_pages
from assets.eval_set.checks import golden_facts_occur_in_gold_pages
from serving.pipeline.chunking import parse_page

SOURCE = """---
title: Kiln
description: fires at 1300 degrees
---

{/* the secret is 42 */}

The glaze is [two millimetres](https://kiln/7777/) thick.
"""


def check(fact: str, page: str = "kiln"):
    pages = tabulate_pages([parse_page("kiln.mdx", SOURCE, url_template="https://k/{slug}/")], "r")
    cases = pl.DataFrame([{"case_id": "g1", "must_include": [fact], "gold_pages": [page]}])
    return golden_facts_occur_in_gold_pages(cases, pages)


def test_what_a_reader_sees_is_found():
    assert check("two millimetres thick").passed


@pytest.mark.parametrize("fact", ["42", "7777", "1300 degrees"])
def test_comments_link_targets_and_metadata_are_not_what_a_reader_sees(fact):
    result = check(fact)
    assert not result.passed
    assert "g1" in result.description


def test_a_gold_page_that_does_not_exist_is_named():
    result = check("two millimetres", "oven")
    assert not result.passed
    assert "g1: no page 'oven'" in result.description
