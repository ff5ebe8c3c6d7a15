"""A page as a tree of blocks, each writable as clean Markdown and as the plain text a reader sees.

Belongs here: what tokens become, how blocks are spelled, the anchors of headings. Does not belong
here: MDX syntax (`mdx`), sizes and sections (`chunking`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode

from serving.pipeline.jsx import scan_markup
from serving.pipeline.mdx import parse_tokens

_LINE_START_MARKS = "#>+-=~:0123456789"


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
        """True for text that says little without what follows: a label, `Do this:`."""
        return self.is_label or self.plain.endswith(":")


@dataclass(frozen=True, kw_only=True)
class Fence:
    """A code block with its fence; never cut."""

    markdown: str
    plain: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A header row and rows of as many cells."""

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


def read_blocks(body: str, *, has_indented_code: bool) -> list[Block]:
    """Return the blocks of a page's body (without frontmatter), in the order a reader sees them."""
    tokens = parse_tokens(body, has_indented_code=has_indented_code)
    reader = _Reader(used_anchors={})
    return reader.read(SyntaxTreeNode(tokens).children, is_top=True)


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
    written = ""
    for before, block in zip((None, *blocks), blocks, strict=False):
        is_close = isinstance(before, Text) and isinstance(block, Listing)
        closely = is_close and block.items[0].marker in {"-", "1."}  # type: ignore[union-attr]
        separator = "" if before is None else "\n" if closely else "\n\n"
        written += separator + write_block(block)
    return written


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


def github_slug(heading: str) -> str:
    """Return the anchor GitHub gives a heading: lower case, punctuation gone, spaces to hyphens."""
    kept = (c for c in heading.lower() if c.isalnum() or c in "-_ ")
    return "".join(kept).strip().replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Token tree to blocks; remembers the anchors the page has used so far."""

    used_anchors: dict[str, int]

    def read(self, nodes: Sequence[SyntaxTreeNode], *, is_top: bool = False) -> list[Block]:
        readers: dict[str, Callable[[SyntaxTreeNode], Block | None]] = {
            "paragraph": _read_paragraph,
            "fence": _read_fence,
            "code_block": _read_fence,
            "table": _read_table,
            "bullet_list": self._read_list,
            "ordered_list": self._read_list,
            "blockquote": self._read_quote,
            "heading": self._read_heading,
        }
        blocks: list[Block] = []
        for node in nodes:
            block = readers[node.type](node) if node.type in readers else None
            if isinstance(block, Heading) and not is_top:
                block = Text(markdown=write_block(block), plain=block.text.plain, is_label=True)
            if block is not None:
                _append(blocks, block)
        return blocks

    def _read_list(self, node: SyntaxTreeNode) -> Listing | None:
        items: list[Item] = []
        for number, child in enumerate(node.children, start=int(node.attrGet("start") or 1)):
            children = tuple(self.read(child.children))
            marker = "-" if node.type == "bullet_list" else f"{number}."
            if children:
                items.append(Item(marker=marker, children=children))
        return Listing(items=tuple(items)) if items else None

    def _read_quote(self, node: SyntaxTreeNode) -> Quote | None:
        children = tuple(self.read(node.children))
        return Quote(children=children) if children else None

    def _read_heading(self, node: SyntaxTreeNode) -> Heading | None:
        inline = node.children[0]
        children = _inline_tokens(inline)
        explicit = node.meta.get("anchor")
        text = write_inline(children, breaks=" ")
        if explicit is None and text.plain.endswith("}") and "{#" in text.plain:
            explicit = text.plain[text.plain.rindex("{#") + 2 : -1]
            text = Text(
                markdown=text.markdown[: text.markdown.rindex("{#")].rstrip(),
                plain=text.plain[: text.plain.rindex("{#")].rstrip(),
            )
        if not text.plain:
            return None
        anchor = self._claim_anchor(explicit or github_slug(text.plain))
        return Heading(level=int(node.tag[1]), text=text, anchor=anchor)

    def _claim_anchor(self, wanted: str) -> str:
        anchor = wanted
        while anchor in self.used_anchors:
            self.used_anchors[wanted] += 1
            anchor = f"{wanted}-{self.used_anchors[wanted]}"
        self.used_anchors[anchor] = 0
        return anchor


def _append(blocks: list[Block], block: Block) -> None:
    """Add a block; a field's label and the paragraph after it make one sentence."""
    last = blocks[-1] if blocks else None
    if isinstance(last, Text) and last.is_field and isinstance(block, Text) and not block.is_label:
        blocks[-1] = Text(
            markdown=f"{last.markdown}: {block.markdown}", plain=f"{last.plain}: {block.plain}"
        )
    else:
        blocks.append(block)


def _inline_tokens(inline: SyntaxTreeNode) -> list[Token]:
    return (inline.token.children or []) if inline.token else []


def _read_paragraph(node: SyntaxTreeNode) -> Text | None:
    text = write_inline(_inline_tokens(node.children[0]), breaks="  \n")
    if not text.plain:
        return None
    label = node.meta.get("label")
    return Text(
        markdown=text.markdown,
        plain=text.plain,
        is_label=label is not None,
        is_field=label == "field",
    )


def _read_fence(node: SyntaxTreeNode) -> Fence | None:
    markup, info = node.markup or "```", node.info.strip()
    code = node.content.rstrip("\n")
    title = dict(_info_attributes(info)).get("title") or ""
    if not (code.strip() or title):
        return None
    return Fence(markdown=f"{markup}{info}\n{code}\n{markup}", plain=f"{title}\n{code}".strip("\n"))


def _info_attributes(info: str) -> tuple[tuple[str, str | None], ...]:
    """Read `bash title="x"` the way a tag's attributes are read."""
    tag = scan_markup(f"<info {info.partition(' ')[2]}>", 0)
    return tag.attributes if tag else ()


def _read_table(node: SyntaxTreeNode) -> Table:
    header, *rows = (
        tuple(write_inline(_inline_tokens(cell.children[0]), breaks=" ") for cell in row.children)
        for row in node.walk()
        if row.type == "tr"
    )
    return Table(header=header, rows=tuple(rows))


def write_inline(tokens: Sequence[Token], *, breaks: str) -> Text:
    """Return inline tokens as Markdown and as plain text.

    Link targets are left out: a reader sees the text, and the page's own URL is the citation.
    `breaks` spells a hard line break.
    """
    markdown: list[str] = []
    plain: list[str] = []
    for token in tokens:
        marked, bare = _write_token(token, is_first=not "".join(markdown).strip())
        markdown.append(marked)
        plain.append(bare)
    return Text(markdown=_tidy("".join(markdown), breaks), plain=_tidy("".join(plain), breaks))


_BREAK = "\0"
_MARKS = {
    "em_open": "*",
    "em_close": "*",
    "strong_open": "**",
    "strong_close": "**",
    "s_open": "~~",
    "s_close": "~~",
}


def _write_token(token: Token, *, is_first: bool) -> tuple[str, str]:
    match token.type:
        case "text":
            return token.content, token.content
        case "text_special":
            must_stay = token.content in "*`" or (is_first and token.content in _LINE_START_MARKS)
            return token.markup if must_stay else token.content, token.content
        case "code_inline":
            return _write_code(token.content), token.content
        case "softbreak":
            return " ", " "
        case "hardbreak":
            return _BREAK, _BREAK
        case "image":
            inner = write_inline(token.children or [], breaks=" ")
            return inner.markdown, inner.plain
        case "label":
            inner = write_inline(token.children or [], breaks=" ")
            gap = " " if (token.meta or {}).get("separates") else ""
            return f"{gap}{inner.markdown}{gap}", f"{gap}{inner.plain}{gap}"
        case (
            "em_open" | "em_close" | "strong_open" | "strong_close" | "s_open" | "s_close" | "mark"
        ):
            return token.markup, ""
    return "", ""


def _write_code(code: str) -> str:
    ticks = "`"
    while ticks in code:
        ticks += "`"
    pad = " " if code.startswith("`") or code.endswith("`") else ""
    return f"{ticks}{pad}{code}{pad}{ticks}" if code else ""


def _tidy(text: str, breaks: str) -> str:
    lines = (" ".join(line.split()) for line in text.split(_BREAK))
    return breaks.join(line for line in lines if line)


def _write_row(cells: Sequence[Text]) -> str:
    return "| " + " | ".join(cell.markdown.replace("|", "\\|") for cell in cells) + " |"
