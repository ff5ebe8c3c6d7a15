"""Facts: does a text state what a golden case asks for? One answer for golden checks and graders.

Belongs here: matching a fact in a text. Does not belong here: which text, which case, which grade.
"""

import html
import re
import unicodedata
from functools import lru_cache

from serving.errors import InvalidInputError
from serving.pipeline.prompt import CITATION_PATTERN

_LINK = re.compile(r"!?\[(?P<text>[^\[\]]*)\]\([^()\s]*\)")
_INLINE_TAG = re.compile(
    r"</?(?:a|b|br|code|del|em|i|kbd|mark|p|s|small|span|strong|sub|sup|u)(?:\s[^<>]*)?/?>", re.I
)
_THOUSANDS = re.compile(r"(?<=\d)[,_'\u2009\u202f\u00a0](?=\d{3}(?!\d))")
_LINE_MARKUP = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|[-*+][ \t]+|>[ \t]?)", re.M)
_PUNCTUATION = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-",
     "\u2010": "-", "\u2011": "-", "\u2212": "-", "`": None, "|": " "}
)  # fmt: skip


def normalise_text(text: str) -> str:
    """Case-fold, drop markup and citations, and write numbers and blanks one way.

    6,000, 6 000 (thin space) and 6000 become equal; 1.10 and 1.1 stay apart: versions differ so.
    """
    plain = CITATION_PATTERN.sub(" ", html.unescape(text))
    plain = _LINK.sub(lambda match: match["text"], _INLINE_TAG.sub("", plain))
    plain = _THOUSANDS.sub("", _LINE_MARKUP.sub("", plain))
    plain = unicodedata.normalize("NFKC", plain).translate(_PUNCTUATION)
    plain = re.sub(r"\*+(?=\S)|(?<=\S)\*+|(?<!\w)_+(?=\w)|(?<=\w)_+(?!\w)|~~", "", plain)
    plain = re.sub(r"(?<=\d)\s+(?=%)", "", plain)
    return " ".join(plain.casefold().split())


def has_fact(text: str, fact: str) -> bool:
    """True when the fact occurs in the text as whole words, both normalised; a plural s may follow.

    A fact that starts or ends in a digit is the whole number: 60 does not occur in 600 or in 0.60.
    """
    wanted = normalise_text(fact)
    if not wanted:
        raise InvalidInputError(
            "matching a golden fact",
            expected="a fact with text in it",
            found=repr(fact),
            next_step="give the golden case a fact that can be looked for",
        )
    return _fact_pattern(wanted).search(normalise_text(text)) is not None


@lru_cache(maxsize=4096)
def _fact_pattern(wanted: str) -> re.Pattern[str]:
    before = r"(?<![^\W_])" if wanted[0].isalnum() else ""
    before += r"(?<!\d[.,])" if wanted[0].isdigit() else ""
    after = r"(?:e?s)?(?![^\W_])" if wanted[-1].isalpha() else ""
    after = r"(?![^\W_])(?![.,]\d)" if wanted[-1].isdigit() else after
    return re.compile(before + re.escape(wanted) + after)
