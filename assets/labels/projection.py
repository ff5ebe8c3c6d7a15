"""Soft targets across tokenizers: a teacher's top tokens as events over the student's vocabulary.

A teacher's logprobs speak of its own tokens. Where a student token starts on a teacher token's
boundary, each candidate is read as the event "the text goes on with these bytes", which is a set of
student tokens: all that begin with them. Sorted by bytes, such a set is an interval of the
vocabulary; nested events are carved out of each other, so the sets are disjoint and the masses add
up. Everywhere else a token has no soft target. Belongs here: bytes, alignment, projection. Does not
belong here: asking a teacher (`resources`), the loss over the groups (`assets.students.loss`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from assets.labels.byte_vocabulary import ByteVocabulary

UNKNOWN_LOGPROB = -9000.0  # at or below: OpenAI's -9999 sentinel, "not among the likely ones"
MAXIMUM_TAIL = 0.5  # above: the candidates say too little about the row; it stays hard
TAIL_FLOOR = 1e-7
TEXTS_DIFFER = "the texts differ"
SUM_TOLERANCE = 1e-3  # servers round logprobs; more than this over 1 is no distribution


@dataclass(frozen=True, kw_only=True)
class TeacherToken:
    """One token the teacher wrote: its bytes, its logprob, and the candidates it was drawn from."""

    text: bytes
    logp: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProjectedRow:
    """A soft target over groups of student tokens.

    `segments` are (low, high, group): half-open intervals of the byte-sorted vocabulary, disjoint
    and ascending. `group_logp[g]` is the log of group g's mass, `tail_logp` that of everything
    outside all segments, `y_logp` that of the group (or tail) the realised token lies in.
    """

    segments: tuple[tuple[int, int, int], ...]
    group_logp: tuple[float, ...]
    tail_logp: float
    y_logp: float


@dataclass(frozen=True, kw_only=True)
class Projection:
    """One answer: a row per student token, None where it is hard only, and why rows are missing.

    `reason` is empty unless the whole answer is hard only.
    """

    rows: tuple[ProjectedRow | None, ...]
    reason: str = ""

    @property
    def covered_count(self) -> int:
        """Tokens that have a soft target."""
        return sum(row is not None for row in self.rows)


def project_answer(
    teacher: Sequence[TeacherToken], student_ids: Sequence[int], vocabulary: ByteVocabulary
) -> Projection:
    """Project a teacher's logprobs onto the student's tokens of the same text.

    Args:
        teacher: the tokens the teacher wrote, control tokens left out.
        student_ids: the student's tokens of the answer; special ones (end of turn) stay hard.
        vocabulary: the student's.

    Returns:
        One entry per student id. When the two texts differ by a byte, no row is projected: which
        logprob belongs to which token would be a guess.
    """
    texts = [vocabulary.token_bytes[token] or b"" for token in student_ids]
    spoken = b"".join(token.text for token in teacher)
    # SentencePiece writes a space before the first word: that token is not what the teacher wrote.
    is_spaced = b"".join(texts) == b" " + spoken
    if is_spaced:
        texts[0] = texts[0][1:]
    if b"".join(texts) != spoken:
        return Projection(rows=(None,) * len(texts), reason=TEXTS_DIFFER)
    starts = dict(zip(_offsets(token.text for token in teacher), range(len(teacher)), strict=True))
    rows: list[ProjectedRow | None] = []
    for number, (text, offset) in enumerate(zip(texts, _offsets(texts), strict=True)):
        first = starts.get(offset)
        is_own = bool(text) and not (is_spaced and number == 0)
        rows.append(
            _project_row(teacher, first, text, vocabulary) if is_own and first is not None else None
        )
    return Projection(rows=tuple(rows))


_Span = tuple[int, int]
"""An event: a half-open interval of the byte-sorted vocabulary. Two nest or are disjoint."""


def _project_row(
    teacher: Sequence[TeacherToken], first: int, realised: bytes, vocabulary: ByteVocabulary
) -> ProjectedRow | None:
    masses = _collect_events(teacher[first], realised, vocabulary)
    chained = _chain_probability(teacher, first, realised)
    _split_off(vocabulary.starting_with(realised), chained, masses)
    segments, owners = _carve(masses)
    kept = [masses[span] for span in owners]
    total = sum(kept)
    if not owners or total > 1 + SUM_TOLERANCE or 1 - total > MAXIMUM_TAIL:
        return None
    tail_logp = math.log(max(1 - total, TAIL_FLOOR))
    position, _ = vocabulary.equal_to(realised)
    group = next((g for low, high, g in segments if low <= position < high), None)
    return ProjectedRow(
        segments=segments,
        group_logp=tuple(math.log(mass) for mass in kept),
        tail_logp=tail_logp,
        y_logp=tail_logp if group is None else math.log(kept[group]),
    )


def _collect_events(
    token: TeacherToken, realised: bytes, vocabulary: ByteVocabulary
) -> dict[_Span, float]:
    """Return the mass of each event the candidates stand for; equal events are added up."""
    candidates: dict[bytes, float] = {}
    for text, logp in ((token.text, token.logp), *token.top):
        if text and logp > UNKNOWN_LOGPROB:
            candidates[text] = max(candidates.get(text, 0.0), math.exp(min(logp, 0.0)))
    masses: dict[_Span, float] = {}
    for text, mass in candidates.items():
        # The realised token shows how the student really splits the teacher's own token.
        is_split = text == token.text and text.startswith(realised) and text != realised
        low, high = vocabulary.equal_to(realised) if is_split else _root(text, vocabulary)
        if low < high and mass > 0:
            masses[low, high] = masses.get((low, high), 0.0) + mass
    return _join_heads(masses)


def _root(text: bytes, vocabulary: ByteVocabulary) -> _Span:
    """Return what a candidate stands for: all tokens that begin with it, or its longest prefix."""
    low, high = vocabulary.starting_with(text)
    return (low, high) if low < high else vocabulary.equal_to(vocabulary.longest_prefix(text))


def _join_heads(masses: Mapping[_Span, float]) -> dict[_Span, float]:
    """Add an event that is only the first token of a wider one to it: both are that very text."""
    widest = {low: max(end for start, end in masses if start == low) for low, _ in masses}
    joined: dict[_Span, float] = {}
    for (low, high), mass in masses.items():
        span = (low, widest[low] if high - low == 1 else high)
        joined[span] = joined.get(span, 0.0) + mass
    return joined


def _chain_probability(teacher: Sequence[TeacherToken], first: int, realised: bytes) -> float:
    """Return the probability that several teacher tokens write `realised`, 0 if they do not.

    The chain rule: the probabilities of its tokens multiply.
    """
    text, logp, index = b"", 0.0, first
    while len(text) < len(realised) and index < len(teacher):
        text += teacher[index].text
        logp += teacher[index].logp
        index += 1
    return math.exp(logp) if text == realised and index > first + 1 else 0.0


def _split_off(span: _Span, probability: float, masses: dict[_Span, float]) -> None:
    """Give an event its own mass, taken out of the narrowest event around it."""
    around = [(low, high) for low, high in masses if low <= span[0] and span[1] <= high]
    if probability <= 0 or span in masses or not around:
        return
    parent = min(around, key=lambda outer: outer[1] - outer[0])
    share = min(probability, masses[parent])
    masses[parent] -= share
    masses[span] = share


def _carve(
    masses: Mapping[_Span, float],
) -> tuple[tuple[tuple[int, int, int], ...], list[_Span]]:
    """Return disjoint segments, each of its innermost event, and the events that own any.

    One sweep with a stack of the open events. An event whose tokens all belong to inner ones owns
    nothing: its mass goes to the tail.
    """
    pieces: list[tuple[int, int, _Span]] = []
    stack: list[_Span] = []
    position = 0

    def advance(until: int) -> None:
        """Close what ends before `until`; what lies before it belongs to the innermost open."""
        nonlocal position
        while stack:
            high = min(stack[-1][1], until)
            if position < high:
                pieces.append((position, high, stack[-1]))
                position = high
            if stack[-1][1] > until:
                break
            stack.pop()
        position = max(position, until)

    spans = sorted((s for s in masses if masses[s] > 0), key=lambda s: (s[0], -s[1]))
    for span in spans:
        advance(span[0])
        stack.append(span)
    advance(max((high for _, high in spans), default=0))
    owners = list(dict.fromkeys(span for *_, span in pieces))
    number = {span: g for g, span in enumerate(owners)}
    return tuple((low, high, number[span]) for low, high, span in pieces), owners


def _offsets(texts: Iterable[bytes]) -> list[int]:
    """Return where each text starts when they are written one after the other."""
    starts, offset = [], 0
    for text in texts:
        starts.append(offset)
        offset += len(text)
    return starts
