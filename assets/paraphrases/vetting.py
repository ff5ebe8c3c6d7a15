"""Vetting: whether a text that a teacher returned is a rewording of its question at all.

Teachers refuse, chat, answer, translate and drop names. What can be told from the two texts is told
by `find_fault`, in any language where the rule allows; what only their meaning shows (an answer, a
refusal, a translation) by a floor on the cosine with the seed. Belongs here: the faults and their
limits. Does not belong here: repetition (`assets/seeds/duplicates`), the eval set's guard.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from serving.pipeline.questions import fold_text

SEED_COSINE_FLOOR = 0.5  # below: dropped as no rewording of its seed
"""Under MiniLM all but 3 of 501 rewordings of this repository's seeds lay above it, and those three
had a typo in the one word that mattered. Of a few examples written by hand, all 3 refusals, 4 of 5
translations and 1 of 4 answers lay below: an answer without a number or name may pass."""

LONGEST_RATIO, LONGEST_EXTRA_CHARS = 2, 120  # beyond twice the seed and 120: overlong
TERSE_RATIO = 0.5  # at most this share of the seed's words: a terse form, which may drop details
SCRIPT_RATIO = 0.5  # at least this share of the letters in scripts the seed has none of: translated

_IDENTIFIER = re.compile(
    r"`[^`]+`"  # code
    r"|https?://\S+"
    r"|(?<!\w)/[\w.-]+(?:/[\w.-]+)*|\b\w+(?:/[\w.-]+){2,}"  # paths; not and/or
    r"|\b\w*[^\W_]_\w+(?:[.:=-]\w+)*"  # snake_case
    r"|\b[A-Za-z]\w+(?:\.[A-Za-z]\w+)+\b"  # dotted names; not e.g.
    r"|(?<!\w)--?[A-Za-z][\w-]*"  # flags
    r"|\b[a-z]+[A-Z]\w*\b"  # camelCase
)
_NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?![\w])")
_ABOUT_THE_TASK = re.compile(
    r"^\W*(?:"
    r"(?:i['\u2019]m sorry|i am sorry|sorry|apologies)\b[,.]? (?:but )?i (?:can|am|do|will|must)"
    r"|i (?:can(?:no|['\u2019])t|am unable to|will not) (?:help|assist|comply|answer|reword)"
    r"|as an? (?:ai|language model|assistant)\b"
    r"|(?:sure|certainly|of course|okay|here (?:are|is))\b.*"
    r"\b(?:paraphras|rephras|reword|variation|version)"
    r"|(?:paraphrase|rewording|rephrasing|variation|version|option)s?\s*#?\d*\s*:"
    r")",
    re.IGNORECASE,
)


def find_fault(text: str, *, original: str) -> str:
    """Return why `text` cannot be a rewording of `original`; empty when nothing shows.

    `about_the_task`: a refusal or a remark on rewording. `overlong`: it explains or answers.
    `other_script`: another writing system. `added_detail`: a number or identifier that the question
    does not have. `lost_detail`: one of the question's is gone; a terse form must keep one of them.
    """
    if _ABOUT_THE_TASK.match(text) and not _ABOUT_THE_TASK.match(original):
        return "about_the_task"
    if len(text) > LONGEST_RATIO * len(original) + LONGEST_EXTRA_CHARS:
        return "overlong"
    if _has_foreign_script(text, original):
        return "other_script"
    if any(not _occurs(detail, original) for detail in list_details(text)):
        return "added_detail"
    wanted = list_details(original)
    kept_count = sum(_occurs(detail, text) for detail in wanted)
    is_terse = len(text.split()) <= TERSE_RATIO * len(original.split())
    if kept_count < (min(1, len(wanted)) if is_terse else len(wanted)):
        return "lost_detail"
    return ""


def count_repeats(texts: Iterable[str], seeds: Iterable[str]) -> tuple[int, int]:
    """Return how many texts copy a seed, and how many repeat an earlier text, both folded."""
    folded, known = [fold_text(text) for text in texts], {fold_text(text) for text in seeds}
    return sum(text in known for text in folded), len(folded) - len(set(folded))


def list_details(text: str) -> list[str]:
    """Return the numbers and identifiers of a text, folded, without repetition."""
    identifiers = [match.strip("`") for match in _IDENTIFIER.findall(text)]
    numbers = _NUMBER.findall(_IDENTIFIER.sub(" ", text))
    return list(dict.fromkeys(_fold(found) for found in (*identifiers, *numbers)))


def _occurs(detail: str, text: str) -> bool:
    before = r"(?<![^\W_])" if detail[:1].isalnum() else ""
    after = r"(?![^\W_])" if detail[-1:].isalnum() else ""
    return re.search(before + re.escape(detail) + after, _fold(text)) is not None


def _fold(text: str) -> str:
    """Fold case and thousands separators: 1,300 and 1300 are one number."""
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.casefold().replace("`", ""))
    return " ".join(plain.split()).rstrip(".,;:?!")


def _has_foreign_script(text: str, original: str) -> bool:
    known, found = _count_scripts(original), _count_scripts(text)
    foreign = sum(count for script, count in found.items() if script not in known)
    return bool(known) and foreign >= SCRIPT_RATIO * max(sum(found.values()), 1)


def _count_scripts(text: str) -> Counter[str]:
    """Count letters by script, named by the first word of their Unicode name."""
    return Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
