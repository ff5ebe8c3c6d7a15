"""Answering by quotation: which units of the sources answer the question, or a refusal.

Belongs here: ranking, choosing and writing units. Does not belong here: measuring support
(`scoring`), the form of a unit (`fitness`, `units`), parsing prompts (`sources`), HTTP (`app`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.models.extractive.fitness import rate_form
from serving.models.extractive.scoring import support_texts
from serving.models.extractive.sources import Source
from serving.models.extractive.units import (
    asks_for_code,
    clean_unit,
    is_code,
    is_quotable,
    needs_antecedent,
)
from serving.models.extractive.vectors import SentenceVectors
from serving.pipeline.prompt import REFUSAL_WORD

MINIMUM_SUPPORT = 0.43  # no unit supported at least this well: refused
SECOND_UNIT_RATIO = 0.88  # a further unit scored below this share of the best is left out
THIRD_UNIT_RATIO = 0.92
OTHER_SOURCE_RATIO = 0.96  # the same for a unit of another source, which often says it again
REDUNDANT_COSINE = 0.85  # a further unit this close to one already chosen says nothing new
MAXIMUM_UNITS = 3

# MINIMUM_SUPPORT was read off 205 answerable and 55 out-of-scope seed questions (never the eval
# set) over this repository's docs with MiniLM: at 0.43, 91 % of the former are answered and 95 % of
# the latter refused. Support tells them apart with an AUROC of 0.98, retrieval's cosine with 0.97.
# Oblique questions it tells apart far worse: `bench/extractive_teacher.py` prints what other limits
# would do. At 0.36 twice as many are answered, most of the new ones wrong, and a student of such
# labels refused 31 of 32 validation questions.

_LATER_SOURCE_PENALTY = 0.01


@dataclass(frozen=True, kw_only=True)
class ScoredUnit:
    """A quotable unit. `support` says how well it bears on the question, about 0-1.

    `score` orders the units: the support, and whether the unit's form suits the question.
    """

    source_index: int
    unit_index: int
    label: str
    text: str
    support: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Quotation:
    """What was chosen: the units in the order they are written; none of them is a refusal."""

    units: tuple[ScoredUnit, ...]
    support: float
    """The best support of any unit, also when it was too low to answer with."""

    @property
    def text(self) -> str:
        """The answer as a model writes it: units followed by their source's id, or the refusal."""
        return " ".join(f"{u.text} [{u.label}]" for u in self.units) or REFUSAL_WORD


def answer_question(
    question: str,
    sources: Sequence[Source],
    vectors: SentenceVectors,
    *,
    fits: Callable[[str], bool] = lambda _: True,
    minimum_support: float = MINIMUM_SUPPORT,
) -> Quotation:
    """Quote the units that answer `question`, best supported first within reading order, or refuse.

    Args:
        question: the user's words.
        sources: the numbered sources of the prompt.
        vectors: sentence vectors, shared between requests.
        fits: whether an answer of this text is within the token limit.
        minimum_support: the limit below which it refuses; only choosing a limit needs another one.
    """
    ranked = rank_units(question, sources, vectors)
    support = max((unit.support for unit in ranked), default=0.0)
    if support < minimum_support:
        return Quotation(units=(), support=support)
    return Quotation(units=_choose(ranked, vectors, fits), support=support)


def rank_units(
    question: str, sources: Sequence[Source], vectors: SentenceVectors
) -> tuple[ScoredUnit, ...]:
    """Score every quotable unit of the sources, best first."""
    wants_code = asks_for_code(question)
    found = [
        (source_index, unit_index, source, clean_unit(unit))
        for source_index, source in enumerate(sources)
        for unit_index, unit in enumerate(source.units)
        if is_quotable(unit, wants_code=wants_code)
    ]
    texts = [text for *_, text in found]
    supports = support_texts(
        question, texts, [source.heading for _, _, source, _ in found], vectors
    )
    units = (
        ScoredUnit(
            source_index=source_index,
            unit_index=unit_index,
            label=source.label,
            text=text,
            support=support,
            score=support + rate_form(question, text) - _LATER_SOURCE_PENALTY * source_index,
        )
        for (source_index, unit_index, source, text), support in zip(found, supports, strict=True)
    )
    return tuple(sorted(units, key=lambda u: (-u.score, u.source_index, u.unit_index)))


def _choose(
    ranked: Sequence[ScoredUnit], vectors: SentenceVectors, fits: Callable[[str], bool]
) -> tuple[ScoredUnit, ...]:
    """Take the best unit, then at most two more that are nearly as good and say something new."""
    chosen: list[ScoredUnit] = []
    for unit in ranked:
        if len(chosen) == MAXIMUM_UNITS or (chosen and unit.score < _least(unit, chosen)):
            continue
        is_more_code = bool(chosen) and is_code(unit.text)
        if (
            not is_more_code
            and not _repeats(unit, chosen, vectors)
            and fits(_written([*chosen, unit]))
        ):
            chosen.append(unit)
    return _reading_order(_with_antecedent(chosen, ranked, fits))


def _least(unit: ScoredUnit, chosen: Sequence[ScoredUnit]) -> float:
    """Return the score a further unit needs."""
    best = chosen[0]
    if unit.source_index != best.source_index:
        return OTHER_SOURCE_RATIO * best.score
    return (SECOND_UNIT_RATIO if len(chosen) == 1 else THIRD_UNIT_RATIO) * best.score


def _with_antecedent(
    chosen: Sequence[ScoredUnit], ranked: Sequence[ScoredUnit], fits: Callable[[str], bool]
) -> list[ScoredUnit]:
    """Put the sentence before it in front of a best unit that begins with `It` or `This`."""
    if not chosen or not needs_antecedent(chosen[0].text):
        return list(chosen)
    place = (chosen[0].source_index, chosen[0].unit_index - 1)
    before = [u for u in ranked if (u.source_index, u.unit_index) == place and u not in chosen]
    longer = [*before, *chosen][:MAXIMUM_UNITS]
    return longer if fits(_written(longer)) else list(chosen)


def _written(units: Sequence[ScoredUnit]) -> str:
    return Quotation(units=tuple(units), support=0.0).text


def _repeats(unit: ScoredUnit, chosen: Sequence[ScoredUnit], vectors: SentenceVectors) -> bool:
    if not chosen:
        return False
    rows = vectors.embed([unit.text, *(other.text for other in chosen)])
    return bool((rows[1:] @ rows[0]).max() >= REDUNDANT_COSINE)


def _reading_order(chosen: Sequence[ScoredUnit]) -> tuple[ScoredUnit, ...]:
    """Order by source, the best unit's source first, and by position within a source."""
    if not chosen:
        return ()
    rank_of_source = {u.source_index: rank for rank, u in reversed(list(enumerate(chosen)))}
    return tuple(sorted(chosen, key=lambda u: (rank_of_source[u.source_index], u.unit_index)))
