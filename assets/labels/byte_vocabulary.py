"""A tokenizer's vocabulary as bytes, sorted: "all tokens that begin with this" is an interval.

Belongs here: the bytes of tokens, the sort and its identity. Does not belong here: what a teacher's
tokens mean over it (`projection`).
"""

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidInputError
from serving.hashing import content_hash


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

    @cached_property
    def rank(self) -> npt.NDArray[np.int64]:
        """The sorted position of each id: the inverse of `order`."""
        return np.argsort(self.order)

    def starting_with(self, text: bytes) -> tuple[int, int]:
        """Return the interval of tokens that begin with `text`."""
        low = bisect_left(self._sorted, text)
        end = _successor(text)
        return low, (bisect_left(self._sorted, end) if end is not None else len(self._sorted))

    def equal_to(self, text: bytes) -> tuple[int, int]:
        """Return the interval of tokens that are `text`."""
        return bisect_left(self._sorted, text), bisect_right(self._sorted, text)

    def find(self, text: bytes) -> int | None:
        """Return the id of the token that is `text`, None if there is none.

        Of several the last: SentencePiece lists single bytes before the pieces a model writes.
        """
        low, high = self.equal_to(text)
        return int(self.order[high - 1]) if low < high else None

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


def _successor(text: bytes) -> bytes | None:
    """Return the least bytes above everything that begins with `text`; None: there are none."""
    trimmed = text.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


def _read_sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()
