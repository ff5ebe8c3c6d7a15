"""Blocks cut where a reader can bear it: between items, rows, sentences and, at the worst, words.

Belongs here: the places where a block may be cut. Does not belong here: which parts share a chunk
(`packing`), where a sentence ends (`sentences`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar
from unicodedata import category

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
)
from serving.pipeline.sentences import WIDE_ENDS, split_sentences, split_words
from serving.pipeline.sizes import Sizes

_JOINERS = "\u200c\u200d\ufe0e\ufe0f"
_EMPTY = Text(markdown="", plain="")

_Part = TypeVar("_Part")


def cut_blocks(blocks: Iterable[Block], sizes: Sizes) -> list[Block]:
    """Return blocks in parts within the maximum, where they can be cut at all."""
    return [part for block in blocks for part in cut_block(block, sizes, sizes.maximum)]


def is_whole(block: Block) -> bool:
    """Return True for what is never cut: a fence, a single table row."""
    return isinstance(block, Fence) or (isinstance(block, Table) and len(block.rows) <= 1)


def list_parts(block: Block) -> list[str]:
    """Return the texts that cutting a block counts first, so that many can be counted at once."""
    match block:
        case Text(markdown=markdown):
            return split_sentences(markdown)
        case Listing(items=items):
            return [write_block(_as_list([item])) for item in items]
        case Table(header=header, rows=rows):
            return [write_block(_as_table(header, some)) for some in ([], *([row] for row in rows))]
        case Quote(children=children):
            return [write_block(child) for child in children]
        case Fence() | Heading():
            return []


def cut_block(block: Block, sizes: Sizes, limit: int) -> list[Block]:
    """Return a block in parts that cost no more than `limit`, where it can be cut at all."""
    if sizes.of(write_block(block)) <= limit:
        return [block]
    match block:
        case Text():
            return _cut_text(block, sizes, limit)
        case Listing():
            return _cut_list(block, sizes, limit)
        case Table(rows=rows) if rows:
            return _cut_table(block, sizes, limit)
        case Quote(children=children):
            return _cut_quote(children, sizes, limit)
        case Fence() | Table() | Heading():
            return [block]


def _cut_text(block: Text, sizes: Sizes, limit: int) -> list[Block]:
    sentences = split_sentences(block.markdown)
    sizes.prepare(sentences)
    parts: list[Block] = []
    short: list[str] = []
    for sentence in sentences:
        if sizes.of(sentence) <= limit:
            short.append(sentence if sentence[-1] in WIDE_ENDS else f"{sentence} ")
            continue
        parts += _group(short, _as_text, sizes, limit)
        words = split_words(sentence)
        sizes.prepare(words)
        pieces = [piece for word in words for piece in _slice_word(word, sizes, limit)]
        parts += _group(pieces, _as_text, sizes, limit)
        short = []
    return parts + _group(short, _as_text, sizes, limit)


def _slice_word(word: str, sizes: Sizes, limit: int) -> list[str]:
    """Halve a word that is no word: base64, a minified line, a script without spaces."""
    middle = len(word) // 2
    while middle < len(word) and (category(word[middle])[0] == "M" or word[middle] in _JOINERS):
        middle += 1
    if sizes.of(word) <= limit or not 0 < middle < len(word):
        return [word]
    return [
        piece
        for half in (word[:middle], word[middle:])
        for piece in _slice_word(half, sizes, limit)
    ]


def _as_text(parts: Sequence[str]) -> Text:
    joined = "".join(parts).strip()
    return Text(markdown=joined, plain=joined)


def _cut_list(block: Listing, sizes: Sizes, limit: int) -> list[Block]:
    sizes.prepare(write_block(_as_list([item])) for item in block.items)
    parts: list[Block] = []
    short: list[Item] = []
    for item in block.items:
        if sizes.of(write_block(_as_list([item]))) <= limit:
            short.append(item)
            continue
        parts += _group(short, _as_list, sizes, limit)
        parts += _cut_item(item, sizes, limit)
        short = []
    return parts + _group(short, _as_list, sizes, limit)


def _as_list(items: Sequence[Item]) -> Listing:
    return Listing(items=tuple(items))


def _cut_item(item: Item, sizes: Sizes, limit: int) -> list[Block]:
    """The marker stays with the item's first part; what follows it stands for itself."""
    sizes.prepare(write_block(child) for child in item.children)
    first, *rest = (part for child in item.children for part in cut_block(child, sizes, limit))
    marked = Listing(items=(Item(marker=item.marker, children=(first,)),))
    is_small = sizes.of(write_block(marked)) <= limit
    return [marked if is_small else first, *rest]


def _cut_table(table: Table, sizes: Sizes, limit: int) -> list[Block]:
    """Every part repeats the header, unless it is too large to stand beside a row anywhere."""
    header = Table(header=table.header, rows=())
    if sizes.of(write_block(header)) <= limit:
        return _group(table.rows, lambda rows: _as_table(table.header, rows), sizes, limit)
    blank = (_EMPTY,) * max(len(row) for row in table.rows)
    return [header, *_group(table.rows, lambda rows: _as_table(blank, rows), sizes, limit)]


def _as_table(header: tuple[Text, ...], rows: Sequence[tuple[Text, ...]]) -> Table:
    return Table(header=header, rows=tuple(rows))


def _cut_quote(children: Sequence[Block], sizes: Sizes, limit: int) -> list[Block]:
    sizes.prepare(write_block(child) for child in children)
    parts = [part for child in children for part in cut_block(child, sizes, limit)]
    quoted = [Quote(children=(part,)) for part in parts]
    sizes.prepare(write_block(quote) for quote in quoted)
    return [
        quote if sizes.of(write_block(quote)) <= limit else part
        for part, quote in zip(parts, quoted, strict=True)
    ]


def _group(
    parts: Sequence[_Part],
    build: Callable[[Sequence[_Part]], Block],
    sizes: Sizes,
    limit: int,
) -> list[Block]:
    """Build blocks of as many consecutive parts as the target takes.

    `build` of no part is what every block repeats: a table's header.
    """
    written = [write_block(build([part])) for part in parts]
    repeated = write_block(build([]))
    sizes.prepare([*written, repeated])
    groups: list[list[_Part]] = []
    cost = 0
    for part, text in zip(parts, written, strict=True):
        alone = sizes.of(text)
        if groups and sizes.is_exact:
            joined = sizes.of(write_block(build([*groups[-1], part])))
        else:
            joined = cost + alone - sizes.of(repeated) + sizes.blank_line
        if groups and joined <= min(sizes.target, limit):
            groups[-1].append(part)
            cost = joined
        else:
            groups.append([part])
            cost = alone
    return [build(group) for group in groups]
