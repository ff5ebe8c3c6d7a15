"""Planted paraphrases: an eval question reworded on purpose, one way at a time, to test the guard.

Rules, not a model: the same question always gives the same plant. Belongs here: the kinds of
rewording. Does not belong here: counting what the guard caught (`recall`), rewording seeds for
training (`serving/models/extractive`).
"""

import random
import re
from collections.abc import Callable, Mapping
from unicodedata import category

from assets.eval_set.overlap import normalise_text
from serving.pipeline.statements import STOP_WORDS

_WORD = re.compile(r"[A-Za-z][A-Za-z'\u2019]*")
_SENTENCE = re.compile(r"\S.*?[.?!](?=\s|$)|\S.*$")
_TURNING_WORDS = frozenset(
    """
    after against at because before by during for from if in into on once over per through to under
    until using via when while with without
    """.split()  # noqa: SIM905 - as STOP_WORDS
)
_QUESTION_WORDS = frozenset({"how", "many", "much", "when", "where", "who", "why"})
_TYPO_EVERY = 3  # one long word in three is mistyped
_TYPO_LETTERS = 5  # shortest word that is

MORE_SYNONYMS: dict[str, str] = {
    "able": "capable",
    "answer": "reply",
    "build": "construct",
    "builds": "constructs",
    "change": "modify",
    "changes": "modifies",
    "cheap": "inexpensive",
    "check": "verify",
    "choose": "select",
    "compare": "contrast",
    "config": "configuration",
    "copy": "duplicate",
    "difference": "distinction",
    "documentation": "docs",
    "drop": "discard",
    "entire": "whole",
    "expensive": "costly",
    "fail": "break",
    "fails": "breaks",
    "fast": "quick",
    "file": "document",
    "find": "locate",
    "get": "obtain",
    "gets": "obtains",
    "give": "provide",
    "gives": "provides",
    "happen": "occur",
    "help": "assist",
    "job": "task",
    "laptop": "notebook",
    "large": "big",
    "list": "enumerate",
    "look": "search",
    "machine": "computer",
    "mean": "signify",
    "measure": "gauge",
    "money": "cash",
    "need": "require",
    "needs": "requires",
    "number": "figure",
    "only": "just",
    "pattern": "scheme",
    "person": "human",
    "pick": "select",
    "question": "query",
    "questions": "queries",
    "read": "consult",
    "reason": "cause",
    "reply": "answer",
    "see": "view",
    "several": "multiple",
    "should": "ought to",
    "show": "display",
    "small": "little",
    "smaller": "littler",
    "start": "begin",
    "starts": "begins",
    "tell": "inform",
    "try": "attempt",
    "use": "employ",
    "uses": "employs",
    "want": "wish",
    "watch": "monitor",
    "way": "method",
    "whole": "entire",
    "write": "compose",
    "writes": "composes",
}
"""General English, beside the table of the embedded teacher: what that one leaves alone because a
product may use the word as a name is fair game for a test of the guard."""


def reorder_words(question: str) -> str:
    """Put the last sentence or phrase first; unchanged where there is none to move.

    `How do I reload it in production?` becomes `In production, how do I reload it?`.
    """
    sentences = _SENTENCE.findall(question)
    if len(sentences) > 1:
        return " ".join((sentences[-1], *sentences[:-1]))
    words = question.rstrip("?!. ").split()
    turns = [i for i in range(2, len(words) - 1) if words[i].casefold() in _TURNING_WORDS]
    if not turns:
        return question
    head, tail = " ".join(words[: turns[-1]]), " ".join(words[turns[-1] :])
    return f"{tail[0].upper()}{tail[1:]}, {head[0].lower()}{head[1:]}?"


def replace_synonyms(question: str) -> str:
    """Replace every word that one of the tables knows by its first synonym."""
    from serving.models.extractive.wording import SYNONYMS  # its package loads a web framework

    def replace(match: re.Match[str]) -> str:
        word = match[0].casefold()
        return MORE_SYNONYMS.get(word) or next(iter(SYNONYMS.get(word, ())), match[0])

    return _WORD.sub(replace, question)


def mistype(question: str) -> str:
    """Swap two neighbouring letters inside one long word in three, at least in one."""
    words = [m for m in _WORD.finditer(question) if len(m[0]) >= _TYPO_LETTERS]
    # Not for cryptography: typos that repeat for the same question.
    draw = random.Random(question)  # noqa: S311
    chosen = draw.sample(words, k=-(-len(words) // _TYPO_EVERY))
    letters = list(question)
    for match in chosen:
        at = match.start() + draw.randrange(1, len(match[0]) - 2)
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def shorten(question: str) -> str:
    """Keep what one would type into a search box: no function words, lower case."""
    kept = [
        word
        for word in question.rstrip("?!. ").casefold().split()
        if word.strip(",;:().?!") not in STOP_WORDS - _QUESTION_WORDS
    ]
    return " ".join(kept) if len(kept) > 1 else question


def wrap_politely(question: str) -> str:
    """Set the question into a polite frame."""
    return f"Hello, I have a question about this product: {question} Thanks a lot for your help!"


def drop_marks(question: str) -> str:
    """Type it in a hurry: lower case, no punctuation."""
    typed = (c if c == "_" or c.isalnum() or category(c)[0] == "M" else " " for c in question)
    return " ".join("".join(typed).lower().split())


def change_form(question: str) -> str:
    """Ask in the first other form that the question's own form has; unchanged where none is known.

    `How do I X?` becomes `What is the way to X?`.
    """
    from serving.models.extractive.forms import reformulate  # as above

    return next(reformulate(question), question)


COPY = "case_and_punctuation"
KINDS: Mapping[str, Callable[[str], str]] = {
    COPY: drop_marks,
    "polite_frame": wrap_politely,
    "word_order": reorder_words,
    "question_form": change_form,
    "synonyms": replace_synonyms,
    "typos": mistype,
    "terse": shorten,
}


def plant(question: str, kind: str) -> str | None:
    """Return the question reworded in one way, or null where that way changes nothing in it."""
    planted = KINDS[kind](question)
    is_changed = planted != question
    if kind != COPY:  # the same words in another case are no rewording of any other kind
        is_changed = normalise_text(planted) != normalise_text(question)
    return planted if is_changed else None
