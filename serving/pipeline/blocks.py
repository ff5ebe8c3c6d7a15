"""A page as a tree of blocks, each writable as clean Markdown and as the plain text a reader sees.

Belongs here: the kinds of blocks, how they are spelled. Does not belong here: how they are read
(`block_reader`), sizes and sections (`packing`, `chunking`).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph, a label or a table's cell: inline Markdown, and the same without markup.

    `is_field` marks the label of one documented parameter: it leads into the paragraph after it.
    """

    markdown: str
    plain: str
    is_label: bool = False
    is_field: bool = False

    @property
    def leads(self) -> bool:
        """True for text that says little without what follows: a label, `Do this:`, `**Title**`."""
        inner = self.markdown[2:-2]
        is_bold = self.markdown == f"**{inner}**" and inner != "" and "**" not in inner
        is_title = is_bold and not self.plain.endswith((".", "!", "?"))
        return self.is_label or self.plain.endswith(":") or is_title


@dataclass(frozen=True, kw_only=True)
class Fence:
    """A code block with its fence; never cut."""

    markdown: str
    plain: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A header row, and rows of at most as many cells."""

    header: tuple[Text, ...]
    rows: tuple[tuple[Text, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One list item: `marker` is `-` or `3.`."""

    marker: str
    children: tuple["Block", ...]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A bulleted or numbered list."""

    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A block quote."""

    children: tuple["Block", ...]


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A heading of level 1-6; its anchor is distinct on the page."""

    level: int
    text: Text
    anchor: str


Block = Text | Fence | Table | Listing | Quote | Heading


def write_block(block: Block) -> str:
    """Return a block as Markdown without a trailing newline; a heading becomes a bold line."""
    match block:
        case Text() | Fence():
            return block.markdown
        case Heading():
            return f"**{block.text.markdown}**"
        case Table():
            return write_table(block.header, block.rows)
        case Listing():
            return "\n".join(write_item(item) for item in block.items)
        case Quote():
            return prefix_lines(write_blocks(block.children), first="> ", rest="> ")


def write_blocks(blocks: Sequence[Block]) -> str:
    """Return blocks as Markdown; a list follows its paragraph closely, all else a blank line."""
    written: list[str] = []
    for before, block in zip((None, *blocks), blocks, strict=False):
        closely = (
            isinstance(before, Text)
            and isinstance(block, Listing)
            and block.items[0].marker in {"-", "1."}
        )
        separator = "" if before is None else "\n" if closely else "\n\n"
        written.append(separator + write_block(block))
    return "".join(written)


def write_item(item: Item) -> str:
    """Return a list item with its marker, its children indented under it."""
    indent = " " * (len(item.marker) + 1)
    return prefix_lines(write_blocks(item.children), first=f"{item.marker} ", rest=indent)


def write_table(header: Sequence[Text], rows: Sequence[Sequence[Text]]) -> str:
    """Return a pipe table; pipes within cells are escaped, line breaks become spaces."""
    lines = [_write_row(header), "| " + " | ".join("---" for _ in header) + " |"]
    return "\n".join([*lines, *(_write_row(row) for row in rows)])


def plain_text(block: Block) -> str:
    """Return what a reader sees of a block: no markup, no list markers, one line per part."""
    match block:
        case Text() | Fence():
            return block.plain
        case Heading():
            return block.text.plain
        case Table():
            return "\n".join(" ".join(c.plain for c in row) for row in (block.header, *block.rows))
        case Listing():
            return "\n".join(plain_text(child) for item in block.items for child in item.children)
        case Quote():
            return "\n".join(plain_text(child) for child in block.children)


def prefix_lines(text: str, *, first: str, rest: str) -> str:
    """Return the text with a prefix before its first line and another before all others."""
    head, *tail = text.split("\n")
    return "\n".join(
        [first + head, *((rest + line).rstrip() if not line else rest + line for line in tail)]
    )


def _write_row(cells: Sequence[Text]) -> str:
    return "| " + " | ".join(cell.markdown.replace("|", "\\|") for cell in cells) + " |"
