"""MDX and Markdown pages read into markdown-it tokens.

A CommonMark parser with MDX's own rules added: components, raw headings and tables, expressions,
imports and exports, `:::` directives, content indented under a component. Belongs here: what the
syntax means. Does not belong here: what becomes of the tokens (`blocks`).
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock, reference
from markdown_it.token import Token

from serving.errors import InvalidInputError
from serving.pipeline.jsx import (
    Tag,
    is_placeholder,
    scan_balanced,
    scan_markup,
    visible_code,
    visible_label,
)
from serving.pipeline.mdx_inline import UNSEEN_TAGS, read_inline_expression, read_inline_tag

HEADING_TAGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_TABLE_TAGS = ("table", "caption", "thead", "tbody", "tfoot", "tr", "td", "th")
_SILENT = True  # a rule called so only says whether it would begin here
_INTERRUPTS: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}


def split_frontmatter(path: str, source: str) -> tuple[dict[str, Any], str]:
    """Return the YAML frontmatter and the Markdown after it.

    Raises:
        InvalidInputError: the frontmatter is no YAML mapping or never ends; names path and line.
    """
    lines = source.removeprefix("\ufeff").splitlines(keepends=True)
    if not lines or lines[0].rstrip() != "---":
        return {}, "".join(lines)
    header = list(takewhile(lambda line: line.rstrip() != "---", lines[1:]))
    if len(header) == len(lines) - 1:
        raise _broken_frontmatter(path, line=1, found="a block that never ends")
    try:
        metadata = yaml.safe_load("".join(header)) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "unreadable YAML"
        line = mark.line + 2 if mark else 1
        raise _broken_frontmatter(path, line=line, found=str(problem)) from error
    if not isinstance(metadata, dict):
        raise _broken_frontmatter(path, line=2, found=f"a {type(metadata).__name__}")
    return metadata, "".join(lines[len(header) + 2 :])


def parse_tokens(body: str, *, has_indented_code: bool) -> list[Token]:
    """Return the block tokens of a page's body; components are gone, their visible text is not.

    Headings carry an explicit id in `meta["anchor"]`, paragraphs made of a component's attributes
    carry `meta["label"]` ("title" or "field"). `has_indented_code` is CommonMark's meaning of four
    spaces; MDX has none, there they are indentation under a component.
    """
    parser = MarkdownIt("commonmark", {"maxNesting": 200})
    parser.enable(["table", "strikethrough"])
    if not has_indented_code:
        parser.disable("code")
    # Without this, escapes stay separate tokens, so that `\\*` can be written back as it was.
    parser.disable("text_join")
    parser.block.ruler.at("html_block", _markup_block, _INTERRUPTS)
    parser.block.ruler.at("reference", _reference)
    parser.block.ruler.at("paragraph", _paragraph)
    parser.block.ruler.before("table", "directive", _directive, _INTERRUPTS)
    parser.block.ruler.before("table", "module_code", _module_code)
    parser.inline.ruler.at("html_inline", read_inline_tag)
    parser.inline.ruler.before("autolink", "expression", read_inline_expression)
    return parser.parse(body, {"source": body})


def _broken_frontmatter(path: str, *, line: int, found: str) -> InvalidInputError:
    return InvalidInputError(
        f"reading the frontmatter of {path}",
        expected="a YAML mapping between two lines of `---`",
        found=f"{found} at {path}:{line}",
        next_step=f"correct {path} at line {line}",
    )


def _markup_block(state: StateBlock, start: int, _end: int, silent: bool) -> bool:  # noqa: FBT001
    """Lines that hold components and nothing else, raw headings, raw tables, comments."""
    position = state.bMarks[start] + state.tShift[start]
    if state.is_code_block(start) or not state.src.startswith(("<", "{"), position):
        return False
    first = scan_markup(state.src, position)
    if first is None or first.is_inline or is_placeholder(first, state.env["source"]):
        return False
    for claim in (_claim_unseen, _claim_heading, _claim_table, _claim_tags, _claim_one_liner):
        claimed = claim(state, first)
        if claimed is None:
            continue
        finish, emit = claimed
        last = _line_of(state, finish, start)
        if not silent:
            state.line = last + 1
            emit([start, state.line])
        return True
    return False


_Claim = tuple[int, Callable[[list[int]], None]]
"""Where the claimed source ends, and what writes its tokens given its lines."""


def _claim_unseen(state: StateBlock, first: Tag) -> _Claim | None:
    if first.name not in UNSEEN_TAGS or not first.opens:
        return None
    close = state.src.find(f"</{first.name}>", first.end)
    return (close + len(first.name) + 3, lambda _lines: None) if close >= 0 else None


def _claim_heading(state: StateBlock, first: Tag) -> _Claim | None:
    if first.name not in HEADING_TAGS or not first.opens:
        return None
    close = state.src.find(f"</{first.name}>", first.end)
    finish = close + len(first.name) + 3
    if close < 0 or not _ends_its_line(state.src, finish):
        return None

    def emit(lines: list[int]) -> None:
        content = " ".join(state.src[first.end : close].split())
        anchor = dict(first.attributes).get("id")
        _push(state, "heading", first.name, content, lines, meta={"anchor": anchor})

    return finish, emit


def _claim_table(state: StateBlock, first: Tag) -> _Claim | None:
    if first.name != "table" or not first.opens:
        return None
    close = state.src.find("</table>", first.end)
    finish = close + len("</table>")
    if close < 0 or not _ends_its_line(state.src, finish):
        return None

    def emit(lines: list[int]) -> None:
        caption, rows = _read_table(state.src[first.end : close])
        _push(state, "paragraph", "p", caption, lines)
        width = max((len(row) for row in rows), default=0)
        state.push("table_open", "table", 1).map = lines
        for number, row in enumerate(rows):
            kind = "td" if number else "th"
            state.push("tr_open", "tr", 1)
            for cell in (*row, *[""] * (width - len(row))):
                _push(state, kind, kind, cell, lines)
            state.push("tr_close", "tr", -1)
        state.push("table_close", "table", -1)

    return finish, emit


def _claim_tags(state: StateBlock, first: Tag) -> _Claim | None:
    tags = [first]
    while not _ends_its_line(state.src, tags[-1].end):
        following = scan_markup(state.src, _skip_blanks(state.src, tags[-1].end))
        if following is None or is_placeholder(following, state.env["source"]):
            return None
        if following.is_closing and following.name == tags[-1].name:
            tags[-1] = replace(tags[-1], is_self_closing=True)
        tags.append(following)

    def emit(lines: list[int]) -> None:
        for tag in tags:
            _push_tag(state, tag, lines)

    return tags[-1].end, emit


def _claim_one_liner(state: StateBlock, first: Tag) -> _Claim | None:
    """`<Card title="A">Text.</Card>` alone on its line: a label and a paragraph of its own."""
    line_end = state.src.find("\n", first.end)
    line_end = len(state.src) if line_end < 0 else line_end
    close = state.src.rfind(f"</{first.name}>", first.end, line_end)
    finish = close + len(first.name) + 3
    if not first.name or not first.opens or close < 0 or not _ends_its_line(state.src, finish):
        return None

    def emit(lines: list[int]) -> None:
        _push_tag(state, first, lines)
        _push(state, "paragraph", "p", state.src[first.end : close].strip(), lines)

    return finish, emit


def _push_tag(state: StateBlock, tag: Tag, lines: list[int]) -> None:
    # A label leads into its component's content; a component without content is content itself.
    meta = {"label": "field" if tag.is_field else "title"} if tag.opens else {}
    _push(state, "paragraph", "p", visible_label(tag), lines, meta=meta)
    code = visible_code(tag)
    if code:
        token = state.push("fence", "code", 0)
        token.markup, token.info = "`" * 6, dict(tag.attributes).get("lang") or ""
        token.content, token.map = code.strip("\n") + "\n", lines


def _push(
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


def _read_table(source: str) -> tuple[str, list[list[str]]]:
    """Return the text outside the cells (a caption) and the rows of cells, as inline Markdown."""
    caption: list[str] = []
    rows: list[list[list[str]]] = []
    pieces = caption
    position = 0
    while position < len(source):
        tag = scan_markup(source, position)
        end = tag.end if tag else position + 1
        if tag is None or tag.name not in _TABLE_TAGS:
            pieces.append(source[position:end])
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


def _directive(state: StateBlock, start: int, _end: int, silent: bool) -> bool:  # noqa: FBT001
    """`:::note Title`, `:::note[Title]{…}` and the closing `:::`."""
    line = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]].strip()
    if state.is_code_block(start) or not line.startswith(":::"):
        return False
    if not silent:
        state.line = start + 1
        meta = {"label": "title"}
        title = _directive_title(line.lstrip(":").strip())
        _push(
            state, "paragraph", "p", f"**{title}**" if title else "", [start, start + 1], meta=meta
        )
    return True


def _directive_title(rest: str) -> str:
    name_end = next((i for i, c in enumerate(rest) if not (c.isalnum() or c in "-_")), len(rest))
    title = rest[name_end:].strip()
    braces = title.rfind("{")
    if title.endswith("}") and braces >= 0 and not title.startswith("{{"):
        title = title[:braces].rstrip()
    return title[1:-1].strip() if title.startswith("[") and title.endswith("]") else title


def _module_code(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001
    """`import` and `export` statements at the top level, over as many lines as they need."""
    if silent or state.level or state.sCount[start] or not _is_module_code(_line(state, start)):
        return False
    begin = state.bMarks[start]
    last = start
    while not _is_complete(state.src[begin : state.eMarks[last]]) and last + 1 < end:
        last += 1
    if not _is_complete(state.src[begin : state.eMarks[last]]):
        last = start
        while last + 1 < end and not state.isEmpty(last + 1):
            last += 1
    state.line = last + 1
    return True


def _is_module_code(line: str) -> bool:
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if word == "import":
        return rest.startswith(("{", "*", "'", '"')) or _imports_a_name(rest)
    openings = ("const ", "let ", "var ", "function", "default ", "class ", "async ", "{", "*")
    return word == "export" and rest.startswith(openings)


def _imports_a_name(rest: str) -> bool:
    name, _, source = rest.partition(" from ")
    is_quoted = source.strip().startswith(("'", '"'))
    return is_quoted or (name.rstrip().endswith("{") and "," in name)


def _is_complete(statement: str) -> bool:
    wrapped = "{" + statement + "\n}"
    pairs = {"{": "}", "(": ")", "[": "]"}
    is_balanced = scan_balanced(wrapped, 0, pairs=pairs) == len(wrapped)
    return is_balanced and not statement.rstrip().endswith(("=", ",", "=>", " from"))


def _reference(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001
    """Link definitions are unseen, but `[^1]: …` is a footnote and its text is seen."""
    is_footnote = _line(state, start).startswith("[^")
    return not is_footnote and reference(state, start, end, silent)


def _paragraph(state: StateBlock, start: int, _end: int, _silent: bool) -> bool:  # noqa: FBT001
    """A paragraph that a fence or a component ends at any indentation.

    CommonMark's own rule takes lines indented by four as continuation, whatever they hold.
    """
    terminators = state.md.block.ruler.getRules("paragraph")
    outer_type, state.parentType = state.parentType, "paragraph"
    last = start + 1
    while last < state.lineMax and not state.isEmpty(last):
        is_lazy_quote = state.sCount[last] < 0
        if not is_lazy_quote and any(
            rule(state, last, state.lineMax, _SILENT) for rule in terminators
        ):
            break
        last += 1
    content = state.getLines(start, last, state.blkIndent, keepLastLF=False).strip()
    state.line = last
    _push(state, "paragraph", "p", content, [start, last])
    state.parentType = outer_type
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _line_of(state: StateBlock, position: int, start: int) -> int:
    """Return the line that holds the character before `position`, from line `start` on."""
    line = start
    while line + 1 < state.lineMax and state.eMarks[line] < position:
        line += 1
    return line


def _skip_blanks(source: str, position: int) -> int:
    while source.startswith((" ", "\t"), position):
        position += 1
    return position


def _ends_its_line(source: str, position: int) -> bool:
    position = _skip_blanks(source, position)
    return position >= len(source) or source[position] == "\n"
