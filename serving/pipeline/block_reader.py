"""markdown-it tokens read into blocks.

Belongs here: what tokens become, inline text as Markdown and as plain text, the anchors of
headings. Does not belong here: MDX syntax (`mdx`), how blocks are spelled (`blocks`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unicodedata import category

from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode

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
from serving.pipeline.jsx_scanner import Scanner
from serving.pipeline.mdx import parse_tokens
from serving.pipeline.mdx_components import LONGEST_HEADING

_LINE_START_MARKS = "#>+-=~:0123456789"


def read_blocks(body: str, *, has_indented_code: bool) -> list[Block]:
    """Return the blocks of a page's body (without frontmatter), in the order a reader sees them."""
    tokens = parse_tokens(body, has_indented_code=has_indented_code)
    for token in tokens:
        # A tree of a sentence's own tokens has no use here and may outgrow Python's stack.
        token.meta["inline"], token.children = token.children or [], None
    reader = _Reader(used_anchors={})
    return reader.read(SyntaxTreeNode(tokens).children, is_top=True)


def github_slug(heading: str) -> str:
    """Return the anchor GitHub gives a heading: lower case, punctuation gone, spaces to hyphens.

    Combining marks stay: without them the words of many Indic scripts would not be words.
    """
    letters = heading.strip().lower()
    kept = (c for c in letters if c.isalnum() or c in "-_ " or category(c)[0] == "M")
    return "".join(kept).replace(" ", "-")


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
        for number, child in enumerate(node.children, start=_first_number(node)):
            children = tuple(self.read(child.children))
            marker = "-" if node.type == "bullet_list" else f"{number}."
            if children:
                items.append(Item(marker=marker, children=children))
        return Listing(items=tuple(items)) if items else None

    def _read_quote(self, node: SyntaxTreeNode) -> Quote | None:
        children = tuple(self.read(node.children))
        return Quote(children=children) if children else None

    def _read_heading(self, node: SyntaxTreeNode) -> Heading | Text | None:
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
        if len(text.plain) > LONGEST_HEADING:
            return text
        anchor = self._claim_anchor(explicit or github_slug(text.plain))
        return Heading(level=int(node.tag[1]), text=text, anchor=anchor)

    def _claim_anchor(self, wanted: str) -> str:
        anchor = wanted
        while anchor in self.used_anchors:
            self.used_anchors[wanted] += 1
            anchor = f"{wanted}-{self.used_anchors[wanted]}"
        self.used_anchors[anchor] = 0
        return anchor


def _first_number(node: SyntaxTreeNode) -> int:
    start = node.attrGet("start")
    return 1 if start is None else int(start)


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
    tokens: list[Token] = inline.meta["inline"]
    return tokens


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
    info, code = node.info.strip(), node.content.rstrip("\n")
    markup = node.markup or _fence_around(code)
    title = dict(_info_attributes(info)).get("title") or ""
    if not (code.strip() or title):
        return None
    return Fence(markdown=f"{markup}{info}\n{code}\n{markup}", plain=f"{title}\n{code}".strip("\n"))


def _fence_around(code: str) -> str:
    markup = "```"
    while markup in code:
        markup += "`"
    return markup


def _info_attributes(info: str) -> tuple[tuple[str, str | None], ...]:
    """Read `bash title="x"` the way a tag's attributes are read."""
    tag = Scanner(f"<info {info.partition(' ')[2]}>").tag(0)
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
    begins_line = True
    for token in tokens:
        marked, bare = _write_token(token, is_first=begins_line)
        markdown.append(marked)
        plain.append(bare)
        begins_line = marked == _BREAK or (begins_line and not marked.strip())
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
