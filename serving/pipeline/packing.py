"""Blocks packed into chunks of bounded size, and the places where a block may be cut.

Belongs here: sizes, greedy filling, cutting between items, rows, sentences, words. Does not belong
here: sections and identities (`chunking`), how a block is spelled (`blocks`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from serving.errors import InvalidInputError
from serving.pipeline.blocks import (
    Block,
    Fence,
    Heading,
    Item,
    Listing,
    Quote,
    Table,
    Text,
    write_block,
    write_blocks,
)
from serving.pipeline.sentences import split_sentences

TINY_RATIO = 0.25  # of the target; below: text that may share a chunk with its neighbour

_Part = TypeVar("_Part")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The two limits in tokens, and a memory of what was counted.

    Raises:
        InvalidInputError: not 0 < target <= maximum.
    """

    target: int
    maximum: int
    count_tokens: Callable[[Sequence[str]], list[int]]
    counted: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse sizes that no chunk can have."""
        if not 0 < self.target <= self.maximum:
            raise _impossible_sizes(self)

    def of(self, text: str) -> int:
        """Return the number of tokens of a text."""
        if text not in self.counted:
            self.counted[text] = self.count_tokens([text])[0]
        return self.counted[text]

    def is_tiny(self, text: str) -> bool:
        """Return True for text too small to make a good chunk by itself."""
        return self.of(text) < self.target * TINY_RATIO


def fill_chunks(blocks: Sequence[Block], sizes: Sizes) -> list[str]:
    """Return the Markdown of the chunks that the blocks of one section fill, in order."""
    filled: list[list[Block]] = []
    for part in (part for block in blocks for part in _cut(block, sizes)):
        current = filled[-1] if filled else []
        if current and sizes.of(write_blocks([*current, part])) <= sizes.target:
            current.append(part)
            continue
        leads = _trailing_leads(current)
        if leads and sizes.of(write_blocks([*leads, part])) <= sizes.maximum:
            del current[len(current) - len(leads) :]
            filled = [chunk for chunk in filled if chunk]
            filled.append([*leads, part])
        else:
            filled.append([part])
    return [write_blocks(chunk) for chunk in _join_remainder(filled, sizes)]


def _trailing_leads(blocks: Sequence[Block]) -> list[Block]:
    first = len(blocks)
    while first and _leads(blocks[first - 1]):
        first -= 1
    return list(blocks[first:])


def _leads(block: Block) -> bool:
    return isinstance(block, Text) and block.leads


def _join_remainder(filled: list[list[Block]], sizes: Sizes) -> list[list[Block]]:
    if len(filled) < 2 or not sizes.is_tiny(write_blocks(filled[-1])):
        return filled
    *before, previous, remainder = filled
    joined = [*previous, *remainder]
    return [*before, joined] if sizes.of(write_blocks(joined)) <= sizes.maximum else filled


def _cut(block: Block, sizes: Sizes) -> list[Block]:
    """Return a block in parts no larger than the maximum, where the block can be cut at all."""
    if sizes.of(write_block(block)) <= sizes.maximum:
        return [block]
    match block:
        case Text():
            return _cut_text(block, sizes)
        case Listing():
            return _cut_list(block, sizes)
        case Table(header=header, rows=rows) if rows:
            return _group(rows, lambda some: Table(header=header, rows=tuple(some)), sizes)
        case Quote(children=children):
            return _cut_quote(children, sizes)
        case Fence() | Table() | Heading():
            return [block]


def _cut_text(block: Text, sizes: Sizes) -> list[Block]:
    parts: list[Block] = []
    short: list[str] = []
    for sentence in split_sentences(block.markdown):
        if sizes.of(sentence) <= sizes.maximum:
            short.append(sentence)
            continue
        parts += _group(short, _as_text, sizes)
        parts += _group(sentence.split(), _as_text, sizes)
        short = []
    return parts + _group(short, _as_text, sizes)


def _as_text(parts: Sequence[str]) -> Text:
    joined = " ".join(parts)
    return Text(markdown=joined, plain=joined)


def _cut_list(block: Listing, sizes: Sizes) -> list[Block]:
    parts: list[Block] = []
    short: list[Item] = []
    for item in block.items:
        if sizes.of(write_block(_as_list([item]))) <= sizes.maximum:
            short.append(item)
            continue
        parts += _group(short, _as_list, sizes)
        parts += _cut_item(item, sizes)
        short = []
    return parts + _group(short, _as_list, sizes)


def _as_list(items: Sequence[Item]) -> Listing:
    return Listing(items=tuple(items))


def _cut_item(item: Item, sizes: Sizes) -> list[Block]:
    """The marker stays with the item's first part; what follows it stands for itself."""
    first, *rest = (part for child in item.children for part in _cut(child, sizes))
    marked = Listing(items=(Item(marker=item.marker, children=(first,)),))
    is_small = sizes.of(write_block(marked)) <= sizes.maximum
    return [marked if is_small else first, *rest]


def _cut_quote(children: Sequence[Block], sizes: Sizes) -> list[Block]:
    parts = [part for child in children for part in _cut(child, sizes)]
    quoted = [Quote(children=(part,)) for part in parts]
    return [
        quote if sizes.of(write_block(quote)) <= sizes.maximum else part
        for part, quote in zip(parts, quoted, strict=True)
    ]


def _group(
    parts: Sequence[_Part], build: Callable[[Sequence[_Part]], Block], sizes: Sizes
) -> list[Block]:
    """Build blocks of as many consecutive parts as the target takes."""
    groups: list[list[_Part]] = []
    for part in parts:
        if groups and sizes.of(write_block(build([*groups[-1], part]))) <= sizes.target:
            groups[-1].append(part)
        else:
            groups.append([part])
    return [build(group) for group in groups]


def _impossible_sizes(sizes: Sizes) -> InvalidInputError:
    return InvalidInputError(
        "choosing chunk sizes",
        expected="0 < target_tokens <= maximum_tokens",
        found=f"target_tokens {sizes.target}, maximum_tokens {sizes.maximum}",
        next_step="correct chunking.target_tokens and chunking.maximum_tokens",
    )
