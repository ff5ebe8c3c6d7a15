"""The validator: may this draft be shown to a user?

Belongs here: rules on one answer and the sources it was given. Does not belong here: what happens
to an invalid answer (`answer`), or quality graded against gold (`assets/parity`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serving.models.protocols import Hit
from serving.pipeline.prompt import REFUSAL_WORD, DraftAnswer
from serving.pipeline.statements import split_statements, support_ratio

VALIDATOR_VERSION = "1"

_BARE_REFUSAL = re.compile(rf"(?<![`\w]){REFUSAL_WORD}(?![`\w])")
"""The refusal word as an utterance; in backticks it is a quotation from documentation about it."""

Violation = Literal[
    "empty", "too_long", "unknown_citation", "uncited_statement", "unsupported_statement",
    "refusal_inside_answer",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ValidatorPolicy:
    """Limits of the validator. Ratios are 0-1; 0 switches a ratio rule off.

    `minimum_support_ratio` asks how many of a cited statement's content words its chunk holds. It
    suits teachers that quote; for a teacher that rewords freely lower it.
    """

    minimum_cite_coverage_ratio: float = 1.0
    minimum_support_ratio: float = 0.6
    maximum_answer_chars: int = 4000


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an answer may be shown, and the rules it broke."""

    violations: tuple[Violation, ...] = ()

    @property
    def is_valid(self) -> bool:
        """True when no rule was broken."""
        return not self.violations

    def __str__(self) -> str:
        """Return the form stored in tables and traces: `valid` or the violations."""
        return "valid" if self.is_valid else "+".join(self.violations)


def validate(draft: DraftAnswer, hits: Sequence[Hit], policy: ValidatorPolicy) -> Verdict:
    """Check one draft against the policy. A refusal is always valid: it claims nothing."""
    if draft.refused:
        return Verdict()
    if len(draft.text) > policy.maximum_answer_chars:
        # Before anything is read: a model may write megabytes, and other users wait meanwhile.
        return Verdict(violations=("too_long",))
    statements = split_statements(draft.text)
    if not statements:
        return Verdict(violations=("empty",))
    violations: list[Violation] = []
    if draft.unknown_ids:
        violations.append("unknown_citation")
    if _BARE_REFUSAL.search(draft.text):
        violations.append("refusal_inside_answer")
    cited = [s for s in statements if s.citation_ids]
    if len(cited) / len(statements) < policy.minimum_cite_coverage_ratio:
        violations.append("uncited_statement")
    texts = {hit.chunk_id: " ".join((*hit.heading_path, hit.text)) for hit in hits}
    support = [max(support_ratio(s.text, texts.get(i, "")) for i in s.citation_ids) for s in cited]
    if any(value < policy.minimum_support_ratio for value in support):
        violations.append("unsupported_statement")
    return Verdict(violations=tuple(violations))
