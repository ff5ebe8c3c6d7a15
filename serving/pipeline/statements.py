"""Reading an answer statement by statement: which sentences say something, what each one cites.

The validator (production) and the graders (evaluation) read answers with the same eyes. Belongs
here: splitting and lexical support. Does not belong here: thresholds and verdicts.
"""

import re
from dataclasses import dataclass

from serving.pipeline.prompt import CITATION_PATTERN
from serving.pipeline.sentences import split_units

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:-]*[A-Za-z0-9]|[A-Za-z0-9]")

STOP_WORDS = frozenset(
    """
    a an and are as at be been by can did do does for from had has have how i if in into is it its
    may me my no not of on or our shall should so than that the their them then there these they
    this those to was we were what when where which while who why will with would you your
    """.split()  # noqa: SIM905 - eighty quoted words would be harder to read
)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One sentence of an answer without its citations, and the ids cited right after it."""

    text: str
    citation_ids: tuple[str, ...]


def split_statements(answer: str) -> tuple[Statement, ...]:
    """Split an answer at its citations and sentence ends; pieces that state nothing are dropped.

    A citation belongs to the sentence right before it: an earlier sentence without one has none.
    """
    statements: list[Statement] = []
    position = 0
    for match in CITATION_PATTERN.finditer(answer):
        said = _split_sentences(answer[position : match.start()])
        position = match.end()
        statements += [Statement(text=text, citation_ids=()) for text in said]
        if statements:
            last = statements[-1]
            statements[-1] = Statement(
                text=last.text, citation_ids=(*last.citation_ids, match["id"])
            )
    statements += [
        Statement(text=text, citation_ids=()) for text in _split_sentences(answer[position:])
    ]
    return tuple(statements)


def _split_sentences(text: str) -> list[str]:
    return [unit for unit in split_units(text) if content_words(unit)]


def content_words(text: str) -> list[str]:
    """Return the case-folded words that carry meaning, in order, stop words and markup removed."""
    return [w for w in (m.group().casefold() for m in _WORD.finditer(text)) if w not in STOP_WORDS]


def support_ratio(statement: str, source: str) -> float:
    """Return the share of a statement's distinct content words that occur in the source, 0-1."""
    said = set(content_words(statement))
    return len(said & set(content_words(source))) / len(said) if said else 0.0
