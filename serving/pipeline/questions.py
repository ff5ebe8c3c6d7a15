"""A question as text: what everyone sees of it, and when two texts are the same question.

Serving answers the normalised form, so training learns from it and the guard compares it. Belongs
here: normalising, folding, words. Does not belong here: nearness in meaning (vectors), what follows
from a match.
"""

import re
import unicodedata

_ASCII_BLANKS = "".join(chr(code) if chr(code).isalnum() else " " for code in range(128))
_NAME_END = re.compile(r"(?<=[^\W_])([+#]++)(?![^\W_])")
"""Marks that end a name and belong to it: C++, C#. Within 1+1 or k#3 they only separate."""


def normalise_question(text: str) -> str:
    """Return what retrieval and models see of a question.

    NFKC; control characters become spaces; invisible format characters (zero-width, soft hyphen,
    bidi marks) vanish, so that no word can be split or hidden by them; runs of space become one.
    Normalising twice changes nothing more: what was guarded is what is trained on.
    """
    if text.isascii() and text.isprintable():  # the same as below, in a tenth of the time
        return " ".join(text.split())
    visible = drop_invisible(unicodedata.normalize("NFKC", text))
    return unicodedata.normalize("NFKC", visible)  # a letter may now stand beside its accent


def drop_invisible(text: str) -> str:
    """Drop format characters, take control characters for spaces, and make runs of space one."""
    visible = (
        " " if kind == "Cc" else character
        for character in text
        if (kind := unicodedata.category(character)) != "Cf"
    )
    return " ".join("".join(visible).split())


def fold_text(text: str) -> str:
    """Return what is equal for two spellings of one text: case, spaces and punctuation are not.

    Letters and digits stay, combining marks with their letter, and `+` and `#` where they end a
    name: C++ is not C#. A text of nothing else is its own fold.
    """
    folded = _fold_case(text)
    parts = _NAME_END.split(folded)  # every second one is the end of a name
    parts[::2] = map(_blank_marks, parts[::2])
    return " ".join("".join(parts).split()) or folded


def split_words(text: str) -> list[str]:
    """Return the runs of letters, digits and combining marks, folded as in `fold_text`.

    So `content_block` is two words, and a full-width or ligature spelling is the plain one.
    """
    if text.isascii():  # the same words as below, in a quarter of the time
        return text.lower().translate(_ASCII_BLANKS).split()
    return _blank_marks(_fold_case(text)).split()


def _fold_case(text: str) -> str:
    return unicodedata.normalize("NFKC", normalise_question(text).casefold())


def _blank_marks(text: str) -> str:
    """Write a space for what is no part of a word; a combining mark is one behind a letter."""
    kept: list[str] = []
    for character in text:
        is_part = character.isalnum() or (
            unicodedata.category(character)[0] == "M" and kept[-1:] not in ([], [" "])
        )
        kept.append(character if is_part else " ")
    return "".join(kept)
