"""Whether the form of a unit suits the kind of question asked, apart from what it says.

Belongs here: small bonuses that choose among units of like support. Does not belong here: support
itself (`scoring`), units that may never be quoted (`units`).
"""

import re

from serving.models.extractive.scoring import word_stems
from serving.models.extractive.units import needs_antecedent

_ANTECEDENT_PENALTY = 0.04
_ASIDE_PENALTY = 0.04
_SUBJECT_BONUS = 0.06
_KIND_BONUS = 0.04

_ASIDE = re.compile(r"\balso\b|^(?:setting|with|without|if|when|besides)\b", re.IGNORECASE)
_CONDITION = re.compile(r"\b(?:if|when|setting|set|without|with)\b", re.IGNORECASE)

_KINDS: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = (
    (
        re.compile(r"\bwhy\b|\breason\b|how come", re.IGNORECASE),
        re.compile(
            r"\b(?:because|since|so that|therefore|would|otherwise|reason)\b", re.IGNORECASE
        ),
    ),
    (
        re.compile(
            r"\bhow (?:many|much|long|big|large|often)\b|\bdefault\b|\bwhich (?:port|number)",
            re.IGNORECASE,
        ),
        re.compile(r"\d"),
    ),
    (
        re.compile(r"\bwhere\b|\bwhich (?:file|folder|page)\b|\blocation\b", re.IGNORECASE),
        re.compile(r"`[^`]*[/.$_][^`]*`"),
    ),
    (
        re.compile(r"\bhow (?:do|can|should|to|would)\b|\bcommand\b", re.IGNORECASE),
        re.compile(r"`[^`]+`|^(?:set|add|run|use|write|put|point|edit|change|lower|raise)\b", re.I),
    ),
)
"""What a kind of question asks for, and what a unit that answers it tends to hold."""


def rate_form(question: str, text: str) -> float:
    """Return what the form of a unit adds to its score.

    A unit that opens with what was asked about tells about it. A further remark (`also`), a special
    case nobody asked for (`if`), a sentence that opens with a pronoun are seldom the answer.
    """
    opening = word_stems(text)[:3]
    asked = set(word_stems(question))
    subject = sum(stem in asked for stem in opening) / len(opening) if opening else 0.0
    kind = any(asks.search(question) and holds.search(text) for asks, holds in _KINDS)
    is_aside = bool(_ASIDE.search(text)) and not _CONDITION.search(question)
    return (
        _SUBJECT_BONUS * subject
        + _KIND_BONUS * kind
        - _ASIDE_PENALTY * is_aside
        - _ANTECEDENT_PENALTY * needs_antecedent(text)
    )
