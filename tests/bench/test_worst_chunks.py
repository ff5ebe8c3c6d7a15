"""Which chunks a person should read first: those with markup, of odd sizes, without words."""

import pytest

from bench.chunking_sites import SitePage
from bench.worst_chunks import find_reasons, rank_chunks

SIZES = {"target": 20, "maximum": 40}


def count_words(texts):
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize(
    ("text", "tokens", "reasons"),
    [
        ("Set the limit before you train, and look at the pairs.", 20, ()),
        ("Set the <Tip kind='a'>limit</Tip> before.", 20, ("a tag",)),
        ("Read [the guide](/guides/limit/) first.", 20, ("a link's target",)),
        ("import X from 'y'\nSet the limit.", 20, ("an import",)),
        (":::note\nSet the limit.", 20, ("a directive",)),
        ("Set {props.limit} before.", 20, ("an expression",)),
        ("Set it.", 3, ("short",)),
        ("Set it again and again.", 41, ("over the maximum",)),
        ("| 1 | 2 | 3 | 4 |", 20, ("few letters",)),
        ("Write `<Tip>` and `{x}`:\n\n```mdx\nimport X from 'y'\n<Tip/>\n```", 20, ()),
    ],
)
def test_what_speaks_against_a_chunk(text, tokens, reasons):
    assert find_reasons(text, tokens, **SIZES) == reasons


def test_the_worst_chunk_comes_first_and_all_are_there():
    words = " ".join(f"word{n} is set before the limit." for n in range(4))
    source = f"# Limits\n\n## Words\n\n{words}\n\n## Short\n\n1 2\n\n## More\n\n{words}\n"
    page = SitePage(path="limits.mdx", source=source)
    ranked = rank_chunks([page], **SIZES, count_tokens=count_words)
    assert [len(suspect.reasons) for suspect in ranked] == sorted(
        (len(suspect.reasons) for suspect in ranked), reverse=True
    )
    assert ranked[0].reasons == ("short", "few letters")
    assert {suspect.heading_path[-1] for suspect in ranked} == {"Words", "Short", "More"}
