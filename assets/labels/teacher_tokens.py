"""What a teacher said of its own tokens, as soft targets of an answer's tokens.

A teacher's answers are kept with their logprobs (`teacher.top_logprobs`), so they are read again
and not bought again. Where its tokens are the student's own, each candidate is a student token
(`exact`); else the candidates are projected (`bytes`). Which of the two holds is found out from the
answers, not asserted by a setting. Belongs here: reading, recognising, both alignments. Does not
belong here: the projection itself (`projection`), which source an example gets (`soft_targets`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from assets.labels.byte_vocabulary import ByteVocabulary
from assets.labels.logprob_table import AnswerTargets, TokenisedExample, leave_hard
from assets.labels.projection import (
    TEXTS_DIFFER,
    UNKNOWN_LOGPROB,
    ProjectedRow,
    TeacherToken,
    project_answer,
)
from assets.labels.scoring import TAIL_FLOOR
from serving.models.protocols import ChatRequest, Completion, TokenLogprob, TopLogprob

NOT_KEPT = "the answer is not kept"
NO_LOGPROBS = "the kept answer has no logprobs"

EVIDENCE_ANSWERS = 200  # answers read to find out whether the tokenizers are one
MINIMUM_EVIDENCE_TOKENS = 50  # below: the tokens may agree by chance, so they are projected
SAME_ANSWER_RATIO = 0.95  # of answers cut into the same tokens; a model may cut unlike its encoder
KNOWN_CANDIDATE_RATIO = 0.98  # of distinct candidates; servers write half characters as others


class KeptAnswers(Protocol):
    """The answers bought so far, by request."""

    @property
    def name(self) -> str:
        """The teacher's pinned identity."""
        ...

    def find(self, request: ChatRequest) -> Completion | None:
        """Return the kept answer to a request, or None; nothing is bought."""
        ...


@dataclass(frozen=True, kw_only=True)
class SpokenAnswer:
    """A teacher's tokens of one answer, and the token that ended its turn where it is reported."""

    tokens: tuple[TeacherToken, ...] = ()
    end: TeacherToken | None = None
    reason: str = ""

    @property
    def texts(self) -> list[bytes]:
        """The bytes of its tokens."""
        return [token.text for token in self.tokens]


@dataclass
class TokenizerEvidence:
    """How far the teacher's tokens have been the student's own."""

    answer_count: int = 0
    same_answer_count: int = 0
    token_count: int = 0
    known: set[bytes] = field(default_factory=set)
    unknown: set[bytes] = field(default_factory=set)

    @property
    def known_ratio(self) -> float:
        """Share of the distinct candidates that are student tokens."""
        return len(self.known) / max(1, len(self.known) + len(self.unknown))

    @property
    def is_same(self) -> bool:
        """Whether the two tokenizers are one, as far as can be seen."""
        return (
            self.token_count >= MINIMUM_EVIDENCE_TOKENS
            and self.same_answer_count >= SAME_ANSWER_RATIO * self.answer_count
            and self.known_ratio >= KNOWN_CANDIDATE_RATIO
        )


class TeacherAligner:
    """Aligns a teacher's tokens with the tokens of one student."""

    def __init__(self, tokenizer: Any, *, top_k: int) -> None:
        self._specials = {
            str(token).encode(): number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        self._end = tokenizer.eos_token_id
        self._top_k = top_k
        self.vocabulary = ByteVocabulary.of(tokenizer)
        self.is_same = False

    def learn(self, answers: Iterable[tuple[TokenisedExample, SpokenAnswer]]) -> TokenizerEvidence:
        """Find out from some answers whether the teacher's tokens are the student's own."""
        evidence = TokenizerEvidence()
        for item, spoken in answers:
            if not spoken.tokens:
                continue
            evidence.answer_count += 1
            evidence.token_count += len(spoken.tokens)
            evidence.same_answer_count += spoken.texts == self._spell(item)
            for token in spoken.tokens:
                for text, _ in token.top:
                    is_known = self._find(text) is not None
                    (evidence.known if is_known else evidence.unknown).add(text)
        self.is_same = evidence.is_same
        return evidence

    def align(self, item: TokenisedExample, spoken: SpokenAnswer) -> AnswerTargets:
        """Return the soft targets of an answer; hard only, with the reason, where there are none.

        An answer that the teacher cut unlike its own encoder is projected, even where the
        tokenizers are one.
        """
        count = len(item.answer.ids)
        if not spoken.tokens:
            return leave_hard(count, reason=spoken.reason)
        if self.is_same and spoken.texts == self._spell(item):
            return self._align_exactly(item, spoken)
        projection = project_answer(spoken.tokens, item.answer.ids, self.vocabulary)
        if projection.reason or not projection.covered_count:
            return leave_hard(count, reason=projection.reason or "no token says enough")
        return _tabulate_projection(projection.rows, self.vocabulary.fingerprint)

    def _align_exactly(self, item: TokenisedExample, spoken: SpokenAnswer) -> AnswerTargets:
        ends = spoken.end is not None and self._find(spoken.end.text) == self._end
        tokens = [*spoken.tokens, spoken.end if ends else None]
        rows = [
            None if token is None or token.logp <= UNKNOWN_LOGPROB else self._rank(token, realised)
            for token, realised in zip(tokens, item.answer.ids, strict=True)
        ]
        return AnswerTargets(
            alignment="exact",
            y_logp=[None if token is None or row is None else token.logp
                    for token, row in zip(tokens, rows, strict=True)],
            tail_logp=[None if row is None else row[1] for row in rows],
            top=[() if row is None else row[0] for row in rows],
        )  # fmt: skip

    def _rank(self, token: TeacherToken, realised: int) -> tuple[list[tuple[int, float]], float]:
        """Return a token's candidates as student ids, most likely first, and the tail's log."""
        by_id: dict[int, float] = {}
        for text, logp in token.top:
            found = realised if text == token.text else self._find(text)
            if found is not None and logp > UNKNOWN_LOGPROB:
                by_id[found] = max(logp, by_id.get(found, -math.inf))
        if realised in by_id:  # two of the teacher's tokens may have its bytes
            by_id[realised] = token.logp
        top = sorted(by_id.items(), key=lambda entry: -entry[1])[: self._top_k]
        mass = sum(math.exp(logp) for logp in dict([*top, (realised, token.logp)]).values())
        return top, math.log(max(1 - mass, TAIL_FLOOR))

    def _find(self, text: bytes) -> int | None:
        special = self._specials.get(text)
        return self.vocabulary.find(text) if special is None else special

    def _spell(self, item: TokenisedExample) -> list[bytes]:
        """Return the bytes of the answer's tokens, its end of turn left out."""
        return [self.vocabulary.token_bytes[token] or b"" for token in item.answer.ids[:-1]]


def find_spoken(
    kept: KeptAnswers, row: Mapping[str, Any], *, max_answer_tokens: int
) -> SpokenAnswer:
    """Return the teacher's tokens of a labelled example, from the answer that was kept.

    Args:
        kept: the answers bought so far.
        row: columns messages, completion, content_key of a labelled example.
        max_answer_tokens: as it was asked with; the content key tells if it was another number.
    """
    request = ChatRequest(messages=tuple(row["messages"]), max_tokens=max_answer_tokens)
    is_request = request.content_key(kept.name) == row["content_key"]
    completion = kept.find(request) if is_request else None
    if completion is None:
        return SpokenAnswer(reason=NOT_KEPT)
    if not completion.logprobs:
        return SpokenAnswer(reason=NO_LOGPROBS)
    return read_spoken(completion.logprobs, row["completion"].encode())


def read_spoken(logprobs: Sequence[TokenLogprob], text: bytes) -> SpokenAnswer:
    """Return the tokens that spell an answer, apart from the one that ended the turn.

    Tokens that spell anything else are not taken: which logprob belongs to which letter would be a
    guess. White space after the answer may be missing from it: it comes after all that is trained.
    """
    tokens = [_read_token(entry) for entry in logprobs]
    texts = [token.text for token in tokens]
    count, length = 0, 0
    while count < len(texts) and length < len(text):
        length += len(texts[count])
        count += 1
    rest = [token for token in tokens[count:] if token.text.strip()]
    if b"".join(texts[:count]) != text or len(rest) > 1:
        return SpokenAnswer(reason=TEXTS_DIFFER)
    is_next = bool(rest) and tokens[count] is rest[0]  # else it follows what is not trained
    return SpokenAnswer(tokens=tuple(tokens[:count]), end=rest[0] if is_next else None)


def _read_token(entry: TokenLogprob) -> TeacherToken:
    return TeacherToken(
        text=_read_bytes(entry),
        logp=entry["logprob"],
        top=tuple((_read_bytes(top), top["logprob"]) for top in entry["top"]),
    )


def _read_bytes(entry: TopLogprob) -> bytes:
    raw = entry["bytes"]
    return bytes(raw) if raw is not None else entry["token"].encode(errors="replace")


def _tabulate_projection(rows: Sequence[ProjectedRow | None], vocabulary_id: str) -> AnswerTargets:
    return AnswerTargets(
        alignment="bytes",
        y_logp=[None if row is None else row.y_logp for row in rows],
        tail_logp=[None if row is None else row.tail_logp for row in rows],
        groups=[() if row is None else row.segments for row in rows],
        group_logprobs=[() if row is None else row.group_logp for row in rows],
        vocabulary_id=vocabulary_id,
    )


def sample_evidence(
    answers: Iterator[tuple[TokenisedExample, SpokenAnswer]],
) -> Iterator[tuple[TokenisedExample, SpokenAnswer]]:
    """Yield the first answers that have tokens, as many as recognition reads."""
    taken = 0
    for item, spoken in answers:
        if taken == EVIDENCE_ANSWERS:
            return
        taken += bool(spoken.tokens)
        yield item, spoken
