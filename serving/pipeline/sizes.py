"""The two limits of a chunk, and what texts cost against them.

Belongs here: counting tokens, as few calls of the tokenizer as can be. Does not belong here: what
is packed (`packing`) or cut (`cutting`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from serving.errors import InvalidInputError

TINY_RATIO = 0.25  # of the target; below: text that may share a chunk with its neighbour
LONGEST_TOKEN = 32
"""Characters a token has at most, whatever the tokenizer says: WordPiece counts any word of over
100 letters as one unknown token, so a megabyte of base64 would look tiny."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The two limits in tokens, and a memory of what was counted.

    Joined texts cost the sum of their parts, plus what the tokenizer takes for a blank line. That
    holds for tokenizers that split at white space first; for others `exactly` counts every
    candidate as it would stand.

    Raises:
        InvalidInputError: not 0 < target <= maximum.
    """

    target: int
    maximum: int
    count_tokens: Callable[[Sequence[str]], list[int]]
    is_exact: bool = False
    counted: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse sizes that no chunk can have."""
        if not 0 < self.target <= self.maximum:
            raise _impossible_sizes(self)

    def exactly(self) -> "Sizes":
        """Return the same sizes, with nothing estimated."""
        return replace(self, is_exact=True)

    def prepare(self, texts: Iterable[str]) -> None:
        """Count many texts in one call of the tokenizer."""
        unknown = [text for text in dict.fromkeys(texts) if text not in self.counted]
        if unknown:
            self.counted.update(zip(unknown, self.count_tokens(unknown), strict=True))

    def tokens(self, text: str) -> int:
        """Return the number of tokens of a text."""
        self.prepare([text])
        return self.counted[text]

    def of(self, text: str) -> int:
        """Return what a text costs: its tokens, or more where they hide its length."""
        return max(self.tokens(text), len(text) // LONGEST_TOKEN)

    def is_tiny(self, cost: int) -> bool:
        """Return True for text too small to make a good chunk by itself."""
        return cost < self.target * TINY_RATIO

    @property
    def blank_line(self) -> int:
        """What it costs to set a blank line between two texts."""
        return max(0, self.tokens("a\n\na") - 2 * self.tokens("a"))


def _impossible_sizes(sizes: Sizes) -> InvalidInputError:
    return InvalidInputError(
        "choosing chunk sizes",
        expected="0 < target_tokens <= maximum_tokens",
        found=f"target_tokens {sizes.target}, maximum_tokens {sizes.maximum}",
        next_step="correct chunking.target_tokens and chunking.maximum_tokens",
    )
