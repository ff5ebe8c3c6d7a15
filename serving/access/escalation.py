"""The `[admin]` prefix: taken off every question, and at most a request for quality.

Anybody can type it, it costs money, and a forced answer of the teacher would count as a reason to
retrain. So it is stripped before retrieval, model and trace, however it is spelled. Belongs here:
recognising it. Does not belong here: granting what it asks for (`admission`).
"""

import re
import unicodedata

from serving.pipeline.questions import normalise_question

_LOOKALIKES = {
    **dict.fromkeys("\u0430\u0251\u03b1\u1d00", "a"),
    **dict.fromkeys("\u0501\u0257\u1d05", "d"),
    **dict.fromkeys("\u043c\u1d0d", "m"),
    **dict.fromkeys("\u03b9\u0456\u0131\u026al1|", "i"),
    **dict.fromkeys("\u043f\u0578\u03b7\u0274", "n"),
}
"""Cyrillic, Greek, Armenian and small-capital letters that pass for the letters of `admin`."""

_OPEN, _CLOSE = "[\u3010\u3014\u301a\u27e6\u2772(", "]\u3011\u3015\u301b\u27e7\u2773)"
_TABLE = str.maketrans(_LOOKALIKES)
_PREFIX = re.compile(
    rf"\s*[{re.escape(_OPEN)}]\s*(?P<word>[^{re.escape(_OPEN + _CLOSE)}]{{5,12}}?)\s*"
    rf"[{re.escape(_CLOSE)}]\s*[:,.-]*\s*"
)


def strip_admin_prefix(question: str) -> tuple[str, bool]:
    """Return the question without any leading `[admin]`, and whether there was one.

    Case, width, accents, look-alike letters, spaces and invisible characters hide nothing; several
    prefixes are all taken off. A question without one comes back as it was.
    """
    text = normalise_question(question)
    found = False
    while (match := _PREFIX.match(text)) and _reads_admin(match["word"]):
        text, found = text[match.end() :], True
    return (text, True) if found else (question, False)


def _reads_admin(word: str) -> bool:
    plain = "".join(
        letter
        for letter in unicodedata.normalize("NFKD", word.casefold())
        if not unicodedata.combining(letter) and not letter.isspace()
    )
    return plain.translate(_TABLE) == "admin"
