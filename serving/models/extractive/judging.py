"""Judging by rubric: how good is an answer, given its sources, on five axes from 1 to 5.

The judge reads the same sources as the teacher and rates what can be seen in them: support,
citation, coverage, refusal, form. It knows no more than they do. Belongs here: the rubric's
arithmetic. Does not belong here: thresholds on scores (`assets/labels`), parsing of requests
(`app`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.models.extractive.answering import MINIMUM_SUPPORT, rank_units
from serving.models.extractive.scoring import support_texts
from serving.models.extractive.sources import Source
from serving.models.extractive.units import clean_unit, needs_antecedent
from serving.models.extractive.vectors import SentenceVectors
from serving.pipeline.prompt import REFUSAL_TEXT, REFUSAL_WORD
from serving.pipeline.statements import Statement, content_words, split_statements, support_ratio

CONFIDENT_SUPPORT = 0.50  # at or above: the sources answer, so refusing is wrong
THIN_SUPPORT = MINIMUM_SUPPORT  # below: they do not, so answering is wrong

_SUPPORTED_WORDS = 0.8  # a statement whose words the cited source holds in this share is supported,
_SUPPORTED_WORDS_WITH_MEANING = 0.5  # or in this share when a unit of it also means the same:
_SAME_MEANING_COSINE = 0.75
_CITATION_TIE = 0.05
_LEAST_FIT = 0.4  # below: no source backs the statement, so no citation of it is right
_CODE_SPAN = re.compile(r"`[^`]*`")
_COVERAGE_STEPS = ((0.90, 5), (0.80, 4), (0.65, 3), (0.50, 2))
_LONG_CHARS = 700
_VERY_LONG_CHARS = 1500
_MARKUP = re.compile(r"\]\(|</?[A-Za-z][^>]*>|\|\s*-{2,}|^#{1,6} |:::|&[a-z]+;|\{/\*", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One score with the reason for it."""

    score: int
    reason: str


def judge_answer(
    question: str, sources: Sequence[Source], answer: str, vectors: SentenceVectors
) -> dict[str, Rating]:
    """Rate `answer` (local or full ids, or a refusal) on every axis of the rubric."""
    ranked = rank_units(question, sources, vectors)
    available = max((unit.support for unit in ranked), default=0.0)
    if is_refusal(answer):
        return _judge_refusal(available)
    statements = split_statements(answer)
    if not statements:
        return _judge_silence()
    evidence = _Evidence.gather(statements, sources, vectors)
    given = _given_support(question, statements, evidence, vectors)
    return {
        "grounded": _rate_share(evidence.supported, "statements supported by the source they cite"),
        "complete": _rate_coverage(given, available),
        "cites_right": _rate_share(evidence.cited_best, "statements cite their best source"),
        "refuses_right": _rate_answering(available),
        "clear": _rate_clarity(statements, answer),
    }


def is_refusal(answer: str) -> bool:
    """Return whether the text refuses: the bare word, or the sentence a user reads."""
    stripped = answer.strip()
    return stripped.rstrip(".").upper() == REFUSAL_WORD or stripped.startswith(REFUSAL_TEXT)


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """What the sources say about each statement, in the statements' order."""

    supported: tuple[bool, ...]
    cited_best: tuple[bool, ...]
    headings: tuple[str, ...]

    @classmethod
    def gather(
        cls, statements: Sequence[Statement], sources: Sequence[Source], vectors: SentenceVectors
    ) -> "_Evidence":
        fits = _fit_of_statements(statements, sources, vectors)
        place = {source.label: index for index, source in enumerate(sources)}
        supported, cited_best, headings = [], [], []
        for row, statement in zip(fits, statements, strict=True):
            cited = [place[label] for label in statement.citation_ids if label in place]
            has_unknown = len(cited) < len(statement.citation_ids)
            reached = max((row[i].total for i in cited), default=0.0)
            best = max((fit.total for fit in row), default=0.0)
            supported.append(any(row[i].is_support for i in cited))
            is_best = reached >= max(best - _CITATION_TIE, _LEAST_FIT)
            cited_best.append(bool(cited) and not has_unknown and is_best)
            headings.append(sources[cited[0]].heading if cited else "")
        return cls(
            supported=tuple(supported), cited_best=tuple(cited_best), headings=tuple(headings)
        )


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """How one source backs one statement."""

    words: float
    meaning: float

    @property
    def total(self) -> float:
        return (self.words + self.meaning) / 2

    @property
    def is_support(self) -> bool:
        return self.words >= _SUPPORTED_WORDS or (
            self.words >= _SUPPORTED_WORDS_WITH_MEANING and self.meaning >= _SAME_MEANING_COSINE
        )


def _fit_of_statements(
    statements: Sequence[Statement], sources: Sequence[Source], vectors: SentenceVectors
) -> list[list[_Fit]]:
    said = vectors.embed([statement.text for statement in statements])
    rows: list[list[_Fit]] = [[] for _ in statements]
    for source in sources:
        units = [clean_unit(unit) for unit in source.units]
        cosines = np.clip(said @ vectors.embed(units).T, 0.0, 1.0)
        for index, statement in enumerate(statements):
            # The best single unit, so that words gathered from all over a source do not count.
            words = max((support_ratio(statement.text, unit) for unit in units), default=0.0)
            meaning = float(cosines[index].max()) if units else 0.0
            rows[index].append(_Fit(words=words, meaning=meaning))
    return rows


def _given_support(
    question: str,
    statements: Sequence[Statement],
    evidence: _Evidence,
    vectors: SentenceVectors,
) -> float:
    """Return the best support any statement lends, on the scale units are ranked by."""
    texts = [statement.text for statement in statements]
    return max(support_texts(question, texts, evidence.headings, vectors), default=0.0)


def _judge_refusal(available: float) -> dict[str, Rating]:
    is_thin, is_answerable = available < THIN_SUPPORT, available >= CONFIDENT_SUPPORT
    score = 5 if is_thin else 1 if is_answerable else 3
    verdict = "do not" if is_thin else "do" if is_answerable else "may"
    reason = f"refused; the sources {verdict} answer (support {available:.2f})"
    return {
        "grounded": Rating(score=5, reason="a refusal claims nothing"),
        "complete": Rating(score=score, reason=reason),
        "cites_right": Rating(score=5, reason="a refusal cites nothing"),
        "refuses_right": Rating(score=score, reason=reason),
        "clear": Rating(score=5, reason="a refusal in the agreed form"),
    }


def _judge_silence() -> dict[str, Rating]:
    silence = Rating(score=1, reason="the answer states nothing")
    return dict.fromkeys(("grounded", "complete", "cites_right", "refuses_right", "clear"), silence)


def _rate_share(holds: Sequence[bool], what: str) -> Rating:
    share = sum(holds) / len(holds)
    return Rating(score=1 + int(4 * share), reason=f"{sum(holds)} of {len(holds)} {what}")


def _rate_coverage(given: float, available: float) -> Rating:
    """Rate against the best there is to say; thin material cannot make a complete answer."""
    ratio = given / available if available > 0 else 0.0
    score = next((score for least, score in _COVERAGE_STEPS if ratio >= least), 1)
    if given < THIN_SUPPORT:
        score = min(score, 2)
    return Rating(
        score=score,
        reason=f"the answer bears on the question at {given:.2f}, the best unit at {available:.2f}",
    )


def _rate_answering(available: float) -> Rating:
    if available >= CONFIDENT_SUPPORT:
        return Rating(score=5, reason=f"answered; the sources do (support {available:.2f})")
    if available >= THIN_SUPPORT:
        return Rating(score=4, reason=f"answered; the sources may (support {available:.2f})")
    return Rating(score=1, reason=f"answered; the sources do not (support {available:.2f})")


def _rate_clarity(statements: Sequence[Statement], answer: str) -> Rating:
    texts = [statement.text for statement in statements]
    faults = [
        fault
        for is_found, fault in (
            (len(answer) > _LONG_CHARS, "long"),
            (len(answer) > _VERY_LONG_CHARS, "very long"),
            (any(_MARKUP.search(_CODE_SPAN.sub("", t)) for t in texts), "leftover markup"),
            (any(text.count("`") % 2 for text in texts), "broken code span"),
            (any(_is_fragment(text) for text in texts), "fragment"),
            (needs_antecedent(texts[0]), "opens with a pronoun"),
            (len({text.casefold() for text in texts}) < len(texts), "repetition"),
            (any(len(content_words(text)) > 120 for text in texts), "unbroken text"),
        )
        if is_found
    ]
    heavy = {"broken code span", "fragment", "repetition", "leftover markup"} & set(faults)
    score = max(1, 5 - len(faults) - len(heavy))
    return Rating(score=score, reason=", ".join(faults) or "short whole sentences")


def _is_fragment(text: str) -> bool:
    stripped = text.strip(" *_")
    has_fact = re.search(r"[\d`]", stripped) is not None
    is_tiny = len(content_words(stripped)) < 3 and not has_fact
    opens_midway = stripped[:1].islower() and ":" not in stripped[:40] and "." not in stripped[:1]
    ends_open = stripped.endswith((":", ",", ";"))
    return is_tiny or ends_open or (opens_midway and not stripped.endswith((".", "!", "`")))
