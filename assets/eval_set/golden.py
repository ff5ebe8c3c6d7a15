"""Golden cases against the corpus: is every fact we ask for really written there?

Belongs here: pure checks of the golden set. Does not belong here: grading answers
(`assets/parity`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from assets.eval_set.facts import has_fact


class Golden(Protocol):
    """The golden file and its lock: the role `golden`."""

    def fingerprint(self) -> str:
        """Return the identity of file and lock."""
        ...

    def verify_lock(self) -> str:
        """Return the file's sha256, or raise when it is not the locked one."""
        ...

    def read(self) -> Sequence[Any]:
        """Return the cases in file order."""
        ...


@dataclass(frozen=True, kw_only=True)
class MissingFact:
    """A fact of a case that no gold page states."""

    case_id: str
    fact: str
    gold_pages: tuple[str, ...]


def find_missing_facts(
    cases: Sequence[Mapping[str, object]], page_texts: Mapping[str, str]
) -> list[MissingFact]:
    """Return every `must_include` fact that occurs in none of its case's gold pages.

    Args:
        cases: rows of golden_cases (case_id, must_include, gold_pages).
        page_texts: slug -> what a reader sees of the page.
    """
    return [
        MissingFact(case_id=str(case["case_id"]), fact=fact, gold_pages=tuple(pages))
        for case in cases
        for facts, pages in [(_strings(case["must_include"]), _strings(case["gold_pages"]))]
        for fact in facts
        if not any(has_fact(page_texts.get(page, ""), fact) for page in pages)
    ]


def find_missing_pages(
    cases: Sequence[Mapping[str, object]], slugs: Collection[str]
) -> list[tuple[str, str]]:
    """Return (case_id, gold page) for every gold page that the documentation does not have."""
    return [
        (str(case["case_id"]), page)
        for case in cases
        for page in _strings(case["gold_pages"])
        if page not in slugs
    ]


def _strings(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []
