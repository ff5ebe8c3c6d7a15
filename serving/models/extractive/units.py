"""What a single unit of text is worth as a quotation, whatever was asked.

Belongs here: recognising units that cannot stand as an answer, and removing list markers. Does not
belong here: comparing units with a question (`answering`).
"""

import re

from serving.pipeline.prompt import CITATION_PATTERN, REFUSAL_WORD
from serving.pipeline.statements import content_words

LONGEST_UNIT_CHARS = 700
LONGEST_CODE_CHARS = 300

_BARE_REFUSAL = re.compile(rf"(?<![`\w]){REFUSAL_WORD}(?![`\w])")
_LIST_MARKER = re.compile(r"^(?:[-*+•]|\d{1,2}[.)])\s+(?:\[[ xX]\]\s+)?")
_POINTER = re.compile(
    r"^(?:\*\*)?(?:see(?: also)?|check out|refer to|head (?:over )?to|visit|learn more|read more|"
    r"for (?:more|full|further|the full) (?:details?|information|examples?)|related|next steps?|"
    r"also see|further reading|more on)\b",
    re.IGNORECASE,
)
_ANTECEDENT = re.compile(
    r"^(?:it|this|that|these|those|they|he|she|such|here|there|both|neither|otherwise|instead|"
    r"however|therefore|thus|also|then|so|but|and|or)\b",
    re.IGNORECASE,
)
_BARE_CODE = re.compile(r"\W*(?:`[^`]+`\W*)+")
_EXAMPLE = re.compile(r"\W*(?:for )?examples?\b\W*`", re.IGNORECASE)
_LINK = re.compile(r"!?\[[^\]]*\]\([^)]*\)|https?://\S+")
_CODE_QUESTION = re.compile(
    r"\b(?:commands?|examples?|snippets?|syntax|yaml|curl|what do (?:i|we) (?:type|run|write)|"
    r"looks? like)\b",
    re.IGNORECASE,
)
_CODE_SIGNS = re.compile(r"[{}=<>$;\\|]|--\w|^\s{2,}\S", re.MULTILINE)
_FACT = re.compile(r"[\d`]")
_LAYOUT = re.compile(r"^\s*(?:#{1,6}\s|:::|</?[A-Za-z]|import\s.*from\b|[-=_*|:\s]+$)")


def clean_unit(unit: str) -> str:
    """Remove a list marker and fold white space; table rows and code stay as they stand."""
    if is_code(unit) or is_table_row(unit):
        return unit.strip()
    return " ".join(_LIST_MARKER.sub("", unit.strip()).split())


def is_table_row(unit: str) -> bool:
    """Return whether the unit is a Markdown table row."""
    return unit.lstrip().startswith("|")


def is_code(unit: str) -> bool:
    """Return whether the unit is a code block rather than a sentence."""
    stripped = unit.strip()
    if "```" in stripped or "~~~" in stripped:
        return True
    return "\n" in stripped and len(_CODE_SIGNS.findall(stripped)) >= 3


def asks_for_code(question: str) -> bool:
    """Return whether a short piece of code could be what the question wants."""
    return bool(_CODE_QUESTION.search(question))


def needs_antecedent(text: str) -> bool:
    """Return whether a sentence leans on the one before it (`It defaults to 60.`)."""
    return bool(_ANTECEDENT.match(text))


def is_quotable(unit: str, *, wants_code: bool) -> bool:
    """Return whether the unit can stand as (part of) an answer.

    A unit that itself holds a citation or the bare refusal word is left out: quoted, it would be
    read as the answer's own.
    """
    text = clean_unit(unit)
    if (
        CITATION_PATTERN.search(text)
        or _BARE_REFUSAL.search(text)
        or len(text) > LONGEST_UNIT_CHARS
    ):
        return False
    if is_code(unit):
        return wants_code and len(text) <= LONGEST_CODE_CHARS and text.count("```") in (0, 2)
    # `cost_per_day`, or an example of it, names a thing and says nothing about it.
    is_sample = _BARE_CODE.fullmatch(text) or _EXAMPLE.match(text)
    return _says_something(text) and (wants_code or not is_sample)


def _says_something(text: str) -> bool:
    is_pointing = _POINTER.match(text) or text.endswith((":", "?")) or _LAYOUT.match(text)
    is_label = re.fullmatch(r"\*\*[^*]+\*\*", text) is not None
    without_links = _LINK.sub("", text)
    is_mostly_links = len(without_links) < 0.4 * len(text)
    is_broken = text.count("`") % 2 == 1
    is_short = not _FACT.search(text) and (
        len(content_words(text)) < 3 or (len(text.split()) < 6 and text[-1] not in ".!")
    )
    return not (is_pointing or is_label or is_mostly_links or is_broken or is_short) and bool(
        content_words(text)
    )
