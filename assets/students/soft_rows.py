"""Soft targets of an answer as arrays, and of a batch as the tensors the loss takes.

An answer's targets are student tokens (`SoftRows`) or groups of them (`GroupRows`, for a teacher
with another tokenizer). A batch with any group is all groups: a token is a group of one. Belongs
here: reading stored rows, padding, mixing. Does not belong here: alpha (`batches`), the loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from assets.labels.byte_vocabulary import ByteVocabulary
from serving.errors import InvalidInputError

if TYPE_CHECKING:
    from assets.students.loss import GroupTargets, SoftTargets

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ByteOrder:
    """A student's vocabulary sorted by bytes, as long as its head has rows."""

    fingerprint: str
    order: Ints
    rank: Ints = field(init=False)

    def __post_init__(self) -> None:
        """Compute the sorted position of each id."""
        object.__setattr__(self, "rank", np.argsort(self.order))

    @classmethod
    def of(cls, vocabulary: ByteVocabulary, vocabulary_size: int) -> "ByteOrder":
        """Extend a vocabulary's order by the rows of the head that no token has."""
        padding = np.arange(len(vocabulary.order), vocabulary_size)
        return cls(vocabulary.fingerprint, np.concatenate([vocabulary.order, padding]))


@dataclass(frozen=True, eq=False)
class SoftRows:
    """Targets over tokens: `ids` [A, K], -1 where padded, `logp` [A, K], `tail_logp` [A]."""

    ids: Ints
    logp: Floats
    tail_logp: Floats


@dataclass(frozen=True, eq=False)
class GroupRows:
    """Targets over groups, as `GroupTargets` of one answer: `low` `high` `group` [A, M]."""

    low: Ints
    high: Ints
    group: Ints
    logp: Floats
    tail_logp: Floats
    byte_order: ByteOrder


def find_byte_order(
    logprobs: pl.DataFrame | None, tokenizer: Any, vocabulary_size: int
) -> ByteOrder | None:
    """Return the sort that the table's groups need; None where it holds no groups."""
    if logprobs is None or not (logprobs["alignment"] == "bytes").any():
        return None
    return ByteOrder.of(ByteVocabulary.of(tokenizer), vocabulary_size)


def read_soft(
    found: Mapping[str, Any],
    answer: Sequence[int],
    is_soft: Sequence[bool],
    *,
    top_k: int,
    byte_order: ByteOrder | None,
) -> SoftRows | GroupRows | None:
    """Return the stored targets of an answer, of the tokens marked soft.

    Of each token the `top_k` heaviest ids or groups are kept, and the realised one.

    Raises:
        InvalidInputError: the targets are groups over another vocabulary, or none is given.
    """
    if not any(is_soft):
        return None
    if found["alignment"] != "bytes":
        return _read_tokens(found, answer, is_soft, top_k)
    if byte_order is None or found["vocabulary_id"] != byte_order.fingerprint:
        raise InvalidInputError(
            f"reading the soft targets of example {found['example_id']}",
            expected=f"the vocabulary {found['vocabulary_id']} that its groups are intervals of",
            found=byte_order.fingerprint if byte_order else "none",
            next_step="pass find_byte_order(logprobs, tokenizer, …), or materialize "
            "labels/teacher_logprobs again",
        )
    return _read_groups(found, answer, is_soft, byte_order, top_k)


def pack_soft(
    answers: Sequence[tuple[SoftRows | GroupRows | None, int]],
) -> "SoftTargets | GroupTargets | None":
    """Return the targets of a batch, answer after answer; None where no token has any.

    Args:
        answers: the targets of each answer, and its number of tokens.
    """
    import torch

    from assets.students.loss import GroupTargets, SoftTargets

    groups = [rows for rows, _ in answers if isinstance(rows, GroupRows)]
    if not groups:
        tokens = [(_no_tokens(count) if rows is None else rows) for rows, count in answers]
        plain = [rows for rows in tokens if isinstance(rows, SoftRows)]
        ids = _stack([rows.ids for rows in plain], fill=-1)
        if not ids.shape[1]:
            return None
        parts = (ids, _stack([r.logp for r in plain], fill=0), _join([r.tail_logp for r in plain]))
        return SoftTargets(*map(torch.from_numpy, parts))
    order = groups[0].byte_order
    mixed = [
        rows if isinstance(rows, GroupRows) else _to_groups(rows or _no_tokens(count), order)
        for rows, count in answers
    ]
    intervals = (_stack([getattr(r, name) for r in mixed], fill=0)
                 for name in ("low", "high", "group"))  # fmt: skip
    logp = _stack([rows.logp for rows in mixed], fill=-np.inf)
    arrays = (*intervals, logp, _join([rows.tail_logp for rows in mixed]), order.order)
    return GroupTargets(*map(torch.from_numpy, arrays))


def _read_tokens(
    found: Mapping[str, Any], answer: Sequence[int], is_soft: Sequence[bool], top_k: int
) -> SoftRows:
    """Keep the first `top_k` ids and the realised one; the mass of the others joins the tail."""
    kept: list[dict[int, float]] = []
    tails = []
    for j, realised in enumerate(answer):
        row: dict[int, float] = {}
        tail = 0.0
        if is_soft[j]:
            stored = dict(zip(found["top_ids"][j], found["top_logprobs"][j], strict=True))
            row = {token: stored[token] for token in found["top_ids"][j][:top_k]}
            row[realised] = found["y_logp"][j]
            dropped = sum(math.exp(value) for token, value in stored.items() if token not in row)
            tail = math.log(math.exp(found["tail_logp"][j]) + dropped)
        kept.append(row)
        tails.append(tail)
    return SoftRows(
        ids=_pad([list(row) for row in kept], -1, np.int64),
        logp=_pad([list(row.values()) for row in kept], 0.0, np.float32),
        tail_logp=np.array(tails, dtype=np.float32),
    )


def _read_groups(
    found: Mapping[str, Any],
    answer: Sequence[int],
    is_soft: Sequence[bool],
    byte_order: ByteOrder,
    top_k: int,
) -> GroupRows:
    places = byte_order.rank[list(answer)].tolist()
    rows = [
        _keep_heaviest(found, j, place, top_k) if ok else _NO_GROUPS
        for j, (place, ok) in enumerate(zip(places, is_soft, strict=True))
    ]
    return GroupRows(
        low=_pad([[low for low, *_ in row.segments] for row in rows], 0, np.int64),
        high=_pad([[high for _, high, _ in row.segments] for row in rows], 0, np.int64),
        group=_pad([[group for *_, group in row.segments] for row in rows], 0, np.int64),
        logp=_pad([row.logp for row in rows], -np.inf, np.float32),
        tail_logp=np.array([row.tail_logp for row in rows], dtype=np.float32),
        byte_order=byte_order,
    )


class _GroupRow(NamedTuple):
    """The groups of one token; a segment is (low, high, group)."""

    segments: Sequence[tuple[int, int, int]] = ()
    logp: Sequence[float] = ()
    tail_logp: float = 0.0


_NO_GROUPS = _GroupRow()


def _keep_heaviest(found: Mapping[str, Any], j: int, place: int, top_k: int) -> _GroupRow:
    """Keep the `top_k` heaviest groups and the realised token's; the others join the tail.

    The tail is what lies outside all segments, so a group that leaves takes its segments along.
    """
    names = ("group_low", "group_high", "group_number")
    segments = list(zip(*(found[name][j] for name in names), strict=True))
    logp = found["group_logprobs"][j]
    heaviest = sorted(range(len(logp)), key=lambda group: -logp[group])[:top_k]
    realised = [group for low, high, group in segments if low <= place < high]
    number = {group: new for new, group in enumerate(sorted({*heaviest, *realised}))}
    dropped = sum(math.exp(value) for group, value in enumerate(logp) if group not in number)
    return _GroupRow(
        segments=[(low, high, number[g]) for low, high, g in segments if g in number],
        logp=[logp[group] for group in number],
        tail_logp=math.log(math.exp(found["tail_logp"][j]) + dropped),
    )


def _to_groups(rows: SoftRows, byte_order: ByteOrder) -> GroupRows:
    """Return targets over tokens as groups of one token each."""
    is_real = rows.ids >= 0
    low = np.where(is_real, byte_order.rank[np.maximum(rows.ids, 0)], 0)
    return GroupRows(
        low=low,
        high=low + is_real,
        group=np.where(is_real, np.arange(rows.ids.shape[1]), 0),
        logp=np.where(is_real, rows.logp, np.float32(-np.inf)),
        tail_logp=rows.tail_logp,
        byte_order=byte_order,
    )


def _no_tokens(count: int) -> SoftRows:
    nothing = np.zeros((count, 0))
    return SoftRows(
        nothing.astype(np.int64), nothing.astype(np.float32), np.zeros(count, dtype=np.float32)
    )


def _pad(rows: Sequence[Sequence[Any]], fill: float, dtype: Any) -> npt.NDArray[Any]:
    width = max(map(len, rows), default=0)
    padded = np.full((len(rows), width), fill, dtype=dtype)
    for j, row in enumerate(rows):
        padded[j, : len(row)] = row
    return padded


def _stack(parts: Sequence[npt.NDArray[Any]], *, fill: float) -> npt.NDArray[Any]:
    """Lay arrays [A, K] of several widths under each other."""
    width = max(part.shape[1] for part in parts)
    wide = [
        np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts
    ]
    return _join(wide)


def _join(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(parts)
