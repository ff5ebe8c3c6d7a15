"""Soft targets across tokenizers: a teacher's top tokens as events over the student's vocabulary.

A teacher's logprobs speak of its own tokens. Where a student token starts on a teacher token's
boundary, each candidate is read as the event "the text goes on with these bytes", which is a set of
student tokens: all that begin with them. Sorted by bytes, such a set is an interval of the
vocabulary; nested events are carved out of each other, so the sets are disjoint and the masses add
up. Everywhere else a token has no soft target. Belongs here: bytes, alignment, projection. Does not
belong here: asking a teacher (`resources`), the loss over the groups (`assets.students.loss`).
"""

import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidInputError
from serving.hashing import content_hash

UNKNOWN_LOGPROB = -9000.0  # at or below: OpenAI's -9999 sentinel, "not among the likely ones"
MAXIMUM_TAIL = 0.5  # above: the candidates say too little about the row; it stays hard
TAIL_FLOOR = 1e-7
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


class ByteVocabulary:
    """A tokenizer's vocabulary sorted by bytes; special tokens come last and are in no event.

    `order[p]` is the id at sorted position p, a permutation of all ids.
    """

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        """Take the bytes of each id in id order; None marks a special token."""
        regular = [(text, i) for i, text in enumerate(token_bytes) if text]
        regular.sort()
        special = [i for i, text in enumerate(token_bytes) if not text]
        self.token_bytes = tuple(token_bytes)
        self.order: npt.NDArray[np.int32] = np.array(
            [i for _, i in regular] + special, dtype=np.int32
        )
        self._sorted = [text for text, _ in regular]

    @classmethod
    def of(cls, tokenizer: Any) -> "ByteVocabulary":
        """Read a Hugging Face tokenizer.

        Raises:
            InvalidInputError: it is neither byte-level nor SentencePiece with byte fallback, so its
                tokens have no bytes of their own.
        """
        return cls(read_token_bytes(tokenizer))

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the sort: intervals are meaningless under another."""
        return content_hash([(t or b"").hex() for t in self.token_bytes])

    def starting_with(self, text: bytes) -> tuple[int, int]:
        """Return the interval of tokens that begin with `text`."""
        low = bisect_left(self._sorted, text)
        end = _successor(text)
        return low, (bisect_left(self._sorted, end) if end is not None else len(self._sorted))

    def equal_to(self, text: bytes) -> tuple[int, int]:
        """Return the interval of tokens that are `text`."""
        return bisect_left(self._sorted, text), bisect_right(self._sorted, text)

    def longest_prefix(self, text: bytes) -> bytes:
        """Return the longest token that `text` begins with, empty if there is none."""
        lengths = range(len(text), 0, -1)
        return next((text[:n] for n in lengths if operator.lt(*self.equal_to(text[:n]))), b"")


def read_token_bytes(tokenizer: Any) -> list[bytes | None]:
    """Return the bytes each id of a Hugging Face tokenizer stands for; None for special tokens.

    Raises:
        InvalidInputError: tokens without bytes of their own (WordPiece, Unigram without fallback).
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    description = str(getattr(tokenizer, "backend_tokenizer", tokenizer).decoder)
    added = {
        index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()
    }
    special = set(tokenizer.all_special_ids) | {
        index for index, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    if "ByteLevel" in description:
        plain = [bytes(byte_of[c] for c in piece) if i not in added else b""
                 for i, piece in enumerate(pieces)]  # fmt: skip
    elif "ByteFallback" in description:
        plain = [_read_sentencepiece(piece) for piece in pieces]
    else:
        raise InvalidInputError(
            "reading the bytes of a tokenizer's tokens",
            expected="a byte-level or byte-fallback tokenizer",
            found=f"{type(tokenizer).__name__} with decoder {description[:80]}",
            next_step="use hard targets (alpha 1) or a scorer that shares the student's tokenizer",
        )
    return [None if i in special else added.get(i, text) for i, text in enumerate(plain)]


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
    texts = [vocabulary.token_bytes[token] for token in student_ids]
    if b"".join(t or b"" for t in texts) != b"".join(token.text for token in teacher):
        return Projection(rows=(None,) * len(texts), reason="the texts differ")
    starts = dict(zip(_offsets(token.text for token in teacher), range(len(teacher)), strict=True))
    rows: list[ProjectedRow | None] = []
    for text, offset in zip(texts, _offsets(t or b"" for t in texts), strict=True):
        first = starts.get(offset)
        is_aligned = bool(text) and first is not None
        rows.append(
            _project_row(teacher, first or 0, text or b"", vocabulary) if is_aligned else None
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


def _successor(text: bytes) -> bytes | None:
    """Return the least bytes above everything that begins with `text`; None: there are none."""
    trimmed = text.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


def _read_sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()
