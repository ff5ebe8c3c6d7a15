"""Graders: one small pure function per metric, and the frame that holds what they say case by case.

Belongs here: definitions of metrics on one answer and its golden case. Does not belong here:
intervals (`statistics`), arms set side by side (`comparison`), asking the judge (stage `labels`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from assets import tables
from assets.eval_set.facts import has_fact, normalise_text
from serving.errors import InvalidInputError
from serving.models.protocols import Embedder
from serving.pipeline.prompt import REFUSAL_TEXT, REFUSAL_WORD
from serving.pipeline.statements import Statement, split_statements, support_ratio

MINIMUM_SUPPORT_RATIO = 0.6  # at or above: the cited chunk supports the statement
MINIMUM_SUPPORT_COSINE = 0.80  # at or above, with an embedder: a rewording the words alone miss

Status = Literal["graded", "not_applicable", "inconclusive"]
"""`not_applicable`: the metric says nothing about this answer (coverage of a refusal).
`inconclusive`: it should have said something and could not (the arm failed). Neither is a zero."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a golden case asks for."""

    case_id: str
    must_include: tuple[str, ...]
    gold_pages: tuple[str, ...]
    gold_headings: tuple[str, ...]
    should_refuse: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an arm gave a user: the text with full citation ids, and what it cites."""

    text: str
    refused: bool
    citations: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A chunk as graders read it."""

    heading_path: tuple[str, ...]
    text: str

    @property
    def full_text(self) -> str:
        """Headings and text, as the validator reads them: a heading can support a statement."""
        return " ".join((*self.heading_path, self.text))


@dataclass(frozen=True, kw_only=True)
class Grade:
    """One metric of one answer. `value` is numerator / denominator, null unless graded."""

    value: float | None
    numerator: float | None = None
    denominator: float | None = None
    status: Status = "graded"
    detail: str = ""


def is_refusal(answer: Answer) -> bool:
    """True when the arm refused: by its flag, or in the words a refusal is written in."""
    text = answer.text.strip()
    return (
        answer.refused
        or text.rstrip(".").upper() == REFUSAL_WORD
        or text.casefold().startswith(REFUSAL_TEXT.casefold())
    )


def grade_refusal(answer: Answer) -> Grade:
    """Refused: 1 when the arm refused, else 0. Precision and recall are made of it downstream."""
    return _grade(int(is_refusal(answer)), 1)


def grade_exact_match(answer: Answer, case: Case) -> Grade:
    """Exact match: 1 when every `must_include` fact occurs and nothing was refused, else 0.

    Where the case should be refused: 1 when it was refused, else 0.
    """
    refused = is_refusal(answer)
    if case.should_refuse:
        return _grade(int(refused), 1, "" if refused else "answered what it should have refused")
    if refused:
        return _grade(0, 1, "refused what the documentation answers")
    if not case.must_include:
        return Grade(value=None, status="inconclusive", detail="the case names no fact to look for")
    missing = [fact for fact in case.must_include if not has_fact(answer.text, fact)]
    return _grade(int(not missing), 1, f"missing: {' | '.join(missing)}" if missing else "")


def grade_cite_coverage(answer: Answer) -> Grade:
    """Cite coverage: share of statements that carry a citation; a refusal has no coverage."""
    statements = () if is_refusal(answer) else split_statements(answer.text)
    if not statements:
        return _not_applicable("the answer states nothing")
    return _grade(sum(bool(s.citation_ids) for s in statements), len(statements))


def grade_cite_correctness(
    answer: Answer, case: Case, sources: Mapping[str, Source], *, page_only: bool = False
) -> Grade:
    """Cite correctness: share of distinct citations on a gold page under a gold heading.

    A gold heading counts wherever it stands in the chunk's heading path. A case without gold
    headings asks for the page alone, as `page_only` does for every case. A case without gold pages
    says nothing.
    """
    cited = tuple(dict.fromkeys(answer.citations))
    if is_refusal(answer) or not cited or not case.gold_pages:
        return _not_applicable("no citation to judge or no gold page to judge by")
    wrong = [i for i in cited if not is_gold_chunk(i, sources.get(i), case, page_only=page_only)]
    detail = f"off gold: {' '.join(wrong)}" if wrong else ""
    return _grade(len(cited) - len(wrong), len(cited), detail)


def is_gold_chunk(
    chunk_id: str, source: Source | None, case: Case, *, page_only: bool = False
) -> bool:
    """True when the chunk lies on a gold page of the case, under a gold heading where it has any.

    `page_only` forgets the headings.
    """
    slug = chunk_id.removeprefix("docs:").rpartition("/")[0]
    if source is None or slug not in case.gold_pages:
        return False
    if page_only or not case.gold_headings:
        return True
    # The chunker joins tiny sibling sections and keeps their headings as bold lines of the text.
    bold = [line for line in source.text.splitlines() if line.startswith("**")]
    gold = set(map(normalise_text, case.gold_headings))
    return bool(gold & set(map(normalise_text, (*source.heading_path, *bold))))


def grade_groundedness(
    answer: Answer,
    sources: Mapping[str, Source],
    *,
    minimum_support_ratio: float = MINIMUM_SUPPORT_RATIO,
    embedder: Embedder | None = None,
) -> Grade:
    """Groundedness: share of cited statements supported by a chunk they cite.

    Supported: the chunk holds at least `minimum_support_ratio` of the statement's content words or,
    where an embedder is given, its cosine with the statement reaches `MINIMUM_SUPPORT_COSINE`. Both
    are blind to a negation, which is why the judge's `grounded` axis stands beside this metric.
    """
    statements = () if is_refusal(answer) else split_statements(answer.text)
    cited = [s for s in statements if s.citation_ids]
    if not cited:
        return _not_applicable("the answer has no cited statement")

    def is_supported(statement: Statement) -> bool:
        texts = [sources[i].full_text for i in statement.citation_ids if i in sources]
        lexical = max((support_ratio(statement.text, text) for text in texts), default=0.0)
        if lexical >= minimum_support_ratio or embedder is None or not texts:
            return lexical >= minimum_support_ratio
        vectors = embedder.embed([statement.text, *texts])
        return float((vectors[1:] @ vectors[0]).max()) >= MINIMUM_SUPPORT_COSINE

    weak = [s.text for s in cited if not is_supported(s)]
    return _grade(
        len(cited) - len(weak), len(cited), f"unsupported: {' | '.join(weak)}" if weak else ""
    )


def grade_answers(
    arm_answers: pl.DataFrame,
    golden_cases: pl.DataFrame,
    chunks: pl.DataFrame,
    *,
    minimum_support_ratio: float = MINIMUM_SUPPORT_RATIO,
    embedder: Embedder | None = None,
) -> pl.DataFrame:
    """Grade every answer of every arm on every metric; a missing or failed one is inconclusive."""
    cases = {row["case_id"]: read_case(row) for row in golden_cases.iter_rows(named=True)}
    sources = read_sources(chunks)
    graders: dict[str, Callable[[Answer, Case], Grade]] = {
        "exact_match": grade_exact_match,
        "refused": lambda answer, _: grade_refusal(answer),
        "cite_coverage": lambda answer, _: grade_cite_coverage(answer),
        "cite_correctness": lambda a, c: grade_cite_correctness(a, c, sources),
        "cite_page_correctness": lambda a, c: grade_cite_correctness(a, c, sources, page_only=True),
        "groundedness": lambda answer, _: grade_groundedness(
            answer, sources, minimum_support_ratio=minimum_support_ratio, embedder=embedder
        ),
    }
    rows: list[dict[str, Any]] = []
    for answer in [*arm_answers.iter_rows(named=True), *_missing_answers(arm_answers, cases)]:
        case = _find_case(cases, answer)
        for metric, grader in graders.items():
            grade = _grade_row(answer, case, grader)
            key = {name: answer[name] for name in ("arm", "case_id", "repeat")}
            rows.append({**key, "metric": metric, **vars(grade)})
    return pl.DataFrame(rows, schema=tables.GRADED_ANSWERS).sort(
        "arm", "case_id", "repeat", "metric"
    )


def _grade_row(
    row: Mapping[str, Any], case: Case, grader: Callable[[Answer, Case], Grade]
) -> Grade:
    if row["error"] is not None or row["answer"] is None:
        return Grade(
            value=None, status="inconclusive", detail=f"no answer: {row['error'] or 'empty row'}"
        )
    citations = tuple(row["citations"] or ())
    answer = Answer(text=row["answer"], refused=bool(row["refused"]), citations=citations)
    return grader(answer, case)


def _missing_answers(arm_answers: pl.DataFrame, cases: Mapping[str, Case]) -> list[dict[str, Any]]:
    answered = set(arm_answers.select("arm", "case_id").iter_rows())
    return [
        {"arm": arm, "case_id": case_id, "repeat": 0, "answer": None, "error": "never asked"}
        for arm in sorted({arm for arm, _ in answered})
        for case_id in cases
        if (arm, case_id) not in answered
    ]


def _find_case(cases: Mapping[str, Case], row: Mapping[str, Any]) -> Case:
    case = cases.get(row["case_id"])
    if case is None:
        raise InvalidInputError(
            "grading the arms' answers",
            expected="answers to cases of the golden set",
            found=f"arm {row['arm']!r} answered unknown case {row['case_id']!r}",
            next_step="rebuild parity/arm_answers from the current golden set",
        )
    return case


def read_sources(chunks: pl.DataFrame) -> dict[str, Source]:
    """Return chunk_id -> chunk, from rows of the table chunks."""
    return {
        row["chunk_id"]: Source(heading_path=tuple(row["heading_path"] or ()), text=row["text"])
        for row in chunks.iter_rows(named=True)
    }


def read_case(row: Mapping[str, Any]) -> Case:
    """Return what a row of golden_cases asks for."""
    return Case(
        case_id=row["case_id"],
        must_include=tuple(row["must_include"] or ()),
        gold_pages=tuple(row["gold_pages"] or ()),
        gold_headings=tuple(row["gold_headings"] or ()),
        should_refuse=bool(row["should_refuse"]),
    )


def _grade(numerator: int, denominator: int, detail: str = "") -> Grade:
    return Grade(
        value=numerator / denominator, numerator=numerator, denominator=denominator, detail=detail
    )


def _not_applicable(detail: str) -> Grade:
    return Grade(value=None, status="not_applicable", detail=detail)
