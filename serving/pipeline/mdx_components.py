"""MDX on lines of its own: markdown-it block rules for components, raw headings, raw tables.

Belongs here: which lines a component claims and the tokens it becomes. Does not belong here: tags
within a sentence (`mdx_inline`), the scanning itself (`jsx_scanner`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from markdown_it.rules_block import StateBlock

from serving.pipeline.jsx import Markup, is_field, visible_code, visible_label
from serving.pipeline.jsx_scanner import Scanner, Tag
from serving.pipeline.mdx_inline import UNSEEN_TAGS

HEADING_TAGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_TABLE_TAGS = ("table", "caption", "thead", "tbody", "tfoot", "tr", "td", "th")
LEADING_TAGS = ("summary", "dt")  # their text leads into what follows, as a title does
LONGEST_QUOTED = 200  # lines of one component within a block quote, which are copied to be read
LONGEST_HEADING = 1000  # characters; a longer one is text, it would stand in every chunk's path

_Claim = tuple[int, Callable[[list[int]], None]]
"""Where the claimed source ends, and what writes its tokens given its lines."""


def read_component(state: StateBlock, start: int, _end: int, silent: bool) -> bool:  # noqa: FBT001
    """Read lines that hold components and nothing else, raw headings, raw tables, comments."""
    begin = state.bMarks[start] + state.tShift[start]
    if state.is_code_block(start) or not state.src.startswith(("<", "{"), begin):
        return False
    markup: Markup = state.env["markup"]
    scanner, position = _unquote(state, markup, start, begin)
    first = scanner.tag(position)
    if first is None or first.is_inline or markup.is_placeholder(first):
        return False
    for claim in (_claim_unseen, _claim_heading, _claim_table, _claim_tags, _claim_one_liner):
        claimed = claim(state, scanner, first)
        if claimed is None:
            continue
        finish, emit = claimed
        if not silent:
            state.line = start + scanner.source.count("\n", position, finish) + 1
            emit([start, state.line])
        return True
    return False


def _unquote(state: StateBlock, markup: Markup, start: int, begin: int) -> tuple[Scanner, int]:
    """Return where to read the component: in a block quote, without the `>` before each line."""
    line_start = state.src.rfind("\n", 0, begin) + 1
    if ">" not in state.src[line_start:begin]:
        return markup.scanner(state.src), begin
    last = min(state.lineMax, start + LONGEST_QUOTED)
    text = state.getLines(start, last, state.blkIndent, keepLastLF=False)
    return Scanner(text), len(text) - len(text.lstrip())


def push_block(
    state: StateBlock,
    kind: str,
    html_tag: str,
    content: str,
    lines: list[int],
    *,
    meta: dict[str, Any] | None = None,
) -> None:
    """Push one block that holds inline Markdown; an empty paragraph is nothing."""
    if kind == "paragraph" and not content:
        return
    opening = state.push(f"{kind}_open", html_tag, 1)
    opening.map, opening.meta = lines, meta or {}
    inline = state.push("inline", "", 0)
    inline.content, inline.map, inline.children = content, lines, []
    state.push(f"{kind}_close", html_tag, -1)


def _claim_unseen(state: StateBlock, scanner: Scanner, first: Tag) -> _Claim | None:
    """Scripts, styles and comments over many lines; what follows on their last line is seen."""
    close: int | None = first.end if first.is_comment else None
    if first.opens and first.name in UNSEEN_TAGS:
        close = _after_closing(scanner, first)
    if close is None:
        return None
    line_end = scanner.find("\n", close)
    finish = len(scanner.source) if line_end < 0 else line_end
    rest = scanner.source[close:finish].strip()
    if rest and "\n" not in scanner.source[first.start : close]:
        return None
    return finish, lambda lines: push_block(state, "paragraph", "p", rest, lines)


def _claim_heading(state: StateBlock, scanner: Scanner, first: Tag) -> _Claim | None:
    finish = _after_closing(scanner, first) if first.name in HEADING_TAGS else None
    if finish is None or not _ends_its_line(scanner.source, finish):
        return None
    if finish - first.end > LONGEST_HEADING:
        return None
    content = scanner.source[first.end : finish - len(first.name) - 3].strip()
    if any(not line.strip() for line in content.split("\n")):
        return None  # a heading that was never closed, up to the end of the next one

    def emit(lines: list[int]) -> None:
        anchor = dict(first.attributes).get("id")
        text = " ".join(content.split())
        push_block(state, "heading", first.name, text, lines, meta={"anchor": anchor})

    return finish, emit


def _claim_table(state: StateBlock, scanner: Scanner, first: Tag) -> _Claim | None:
    """A table of inline cells; one that holds code blocks or tables is read as its contents."""
    finish = _after_closing(scanner, first) if first.name == "table" else None
    if finish is None or not _ends_its_line(scanner.source, finish):
        return None
    close = finish - len("</table>")
    lines_within = scanner.source[first.end : close].split("\n")
    if any(line.lstrip().startswith(("```", "~~~", "<table")) for line in lines_within):
        return None

    def emit(lines: list[int]) -> None:
        caption, rows = _read_table(scanner, first.end, close)
        push_block(state, "paragraph", "p", caption, lines)
        width = max((len(row) for row in rows), default=0)
        state.push("table_open", "table", 1).map = lines
        for number, row in enumerate(rows):
            kind = "td" if number else "th"
            padding = [""] * (0 if number else width - len(row))
            state.push("tr_open", "tr", 1)
            for cell in (*row, *padding):
                push_block(state, kind, kind, cell, lines)
            state.push("tr_close", "tr", -1)
        state.push("table_close", "table", -1)

    return finish, emit


def _claim_tags(state: StateBlock, scanner: Scanner, first: Tag) -> _Claim | None:
    markup: Markup = state.env["markup"]
    tags = [first]
    while not _ends_its_line(scanner.source, tags[-1].end):
        following = scanner.tag(_skip_blanks(scanner.source, tags[-1].end))
        if following is None or markup.is_placeholder(following):
            return None
        if following.is_closing and following.name == tags[-1].name:
            tags[-1] = replace(tags[-1], is_self_closing=True)
        tags.append(following)

    def emit(lines: list[int]) -> None:
        for tag in tags:
            _push_tag(state, tag, lines)

    return tags[-1].end, emit


def _claim_one_liner(state: StateBlock, scanner: Scanner, first: Tag) -> _Claim | None:
    """`<Card title="A">Text.</Card>` alone on its line: a label and a paragraph of its own.

    `<details><summary>Text</summary>` is one too: its last tag holds the text.
    """
    following = scanner.tag(_skip_blanks(scanner.source, first.end))
    tags = [first]
    if following and following.opens and following.name in LEADING_TAGS:
        tags.append(following)
    last = tags[-1]
    line_end = scanner.find("\n", last.end)
    line_end = len(scanner.source) if line_end < 0 else line_end
    close = scanner.source.rfind(f"</{last.name}>", last.end, line_end)
    finish = close + len(last.name) + 3
    if not last.name or not first.opens or close < 0 or not _ends_its_line(scanner.source, finish):
        return None

    def emit(lines: list[int]) -> None:
        for tag in tags:
            _push_tag(state, tag, lines)
        meta = {"label": "title"} if last.name in LEADING_TAGS else {}
        content = scanner.source[last.end : close].strip()
        push_block(state, "paragraph", "p", content, lines, meta=meta)

    return finish, emit


def _after_closing(scanner: Scanner, tag: Tag) -> int | None:
    """Return the index after the first closing tag of this name, None if there is none."""
    closing = f"</{tag.name}>"
    found = scanner.find(closing, tag.end) if tag.opens else -1
    return None if found < 0 else found + len(closing)


def _push_tag(state: StateBlock, tag: Tag, lines: list[int]) -> None:
    # A label leads into its component's content; a component without content is content itself.
    meta = {"label": "field" if is_field(tag) else "title"} if tag.opens else {}
    push_block(state, "paragraph", "p", visible_label(tag), lines, meta=meta)
    code = visible_code(tag)
    if code:
        token = state.push("fence", "code", 0)
        token.info = dict(tag.attributes).get("lang") or ""
        token.content, token.map = code.strip("\n") + "\n", lines


def _read_table(scanner: Scanner, start: int, close: int) -> tuple[str, list[list[str]]]:
    """Return the text outside the cells (a caption) and the rows of cells, as inline Markdown."""
    caption: list[str] = []
    rows: list[list[list[str]]] = []
    pieces = caption
    position = start
    while position < close:
        tag = scanner.tag(position)
        end = tag.end if tag else position + 1
        if tag is None or tag.name not in _TABLE_TAGS:
            pieces.append(scanner.source[position:end])
        else:
            if tag.name == "tr" and not tag.is_closing:
                rows.append([])
            is_cell = tag.name in {"td", "th"} and not tag.is_closing and bool(rows)
            pieces = [] if is_cell else caption
            if is_cell:
                rows[-1].append(pieces)
        position = end
    return _squeeze(caption), [[_squeeze(cell) for cell in row] for row in rows if row]


def _squeeze(pieces: list[str]) -> str:
    return " ".join("".join(pieces).split())


def _skip_blanks(source: str, position: int) -> int:
    while source.startswith((" ", "\t"), position):
        position += 1
    return position


def _ends_its_line(source: str, position: int) -> bool:
    position = _skip_blanks(source, position)
    return position >= len(source) or source[position] == "\n"
