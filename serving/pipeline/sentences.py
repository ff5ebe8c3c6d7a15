"""A chunk's Markdown split into the units a model can quote and cite.

Belongs here: sentences, list items, table rows, fences as standalone units. Does not belong here:
what is cited and how ids look (`prompt`), sizes (`chunking`).
"""

from collections.abc import Callable, Iterator, Sequence

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

_ENDS = ".!?…"
_WIDE_ENDS = "\u3002\uff01\uff1f"  # the same marks of Chinese and Japanese
_CLOSERS = "\"'\u201d\u2019\u00bb)]*_~"
_OPENERS = "\"'\u201c\u2018\u00ab([*_`~"

_ABBREVIATIONS = frozenset(
    "approx ca cf dr e.g eg esp etc fig figs i.e ie incl mr mrs ms prof resp st viz vs".split()  # noqa: SIM905
)
"""Words whose full stop ends no sentence: two sentences taken for one cost less than half a one."""

_NUMBERED_THINGS = frozenset(
    "appendix chapter eq equation fig figure listing part sec section step table".split()  # noqa: SIM905
)
"""`Section 3.` names a thing: what follows its stop still belongs to it."""


def split_units(text: str) -> list[str]:
    """Return a chunk's quotable units in order; no visible word is lost.

    A unit is a sentence (of a paragraph, a list item, a quote), a lead-in ending in a colon, a
    table row written as `Header: cell; Header: cell.`, or a whole fence with its markers and
    newlines.
    """
    parser = MarkdownIt("commonmark", {"maxNesting": 200}).enable("table")
    parser.disable(["html_block", "html_inline", "reference", "lheading", "code"])
    return list(_units(SyntaxTreeNode(parser.parse(text)).children))


def split_sentences(text: str) -> list[str]:
    """Return the sentences of one paragraph's inline Markdown; hard line breaks end them too."""
    return [sentence for line in _hard_lines(text) for sentence in _sentences(line)]


def _units(nodes: Sequence[SyntaxTreeNode]) -> Iterator[str]:
    writers: dict[str, Callable[[SyntaxTreeNode], list[str]]] = {
        "inline": lambda node: split_sentences(node.content),
        "fence": _fence_units,
        "table": _row_units,
    }
    for node in nodes:
        yield from writers[node.type](node) if node.type in writers else _units(node.children)


def _fence_units(node: SyntaxTreeNode) -> list[str]:
    code = node.content.rstrip("\n")
    return [f"{node.markup}{node.info}\n{code}\n{node.markup}"]


def _row_units(node: SyntaxTreeNode) -> list[str]:
    rows = [
        [cell.children[0].content.strip() if cell.children else "" for cell in row.children]
        for row in node.walk()
        if row.type == "tr"
    ]
    header, *body = rows
    if not body:
        return [_as_sentence("; ".join(filter(None, header)))] if any(header) else []
    return [unit for row in body if (unit := _linearise(header, row))]


def _linearise(header: Sequence[str], row: Sequence[str]) -> str:
    """`Key: x; Default: -.`: an empty cell is said, so that no header is lost."""
    parts: list[str] = []
    for name, cell in zip(header, row, strict=True):
        value = cell.removesuffix(".") if not cell.endswith("..") else cell
        if name:
            parts.append(f"{name.removesuffix(':')}: {value or '-'}")
        elif value:
            parts.append(value)
    return _as_sentence("; ".join(parts))


def _as_sentence(text: str) -> str:
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def _hard_lines(text: str) -> list[str]:
    """Split at hard breaks (two spaces or a backslash before the newline), join soft ones."""
    lines: list[str] = []
    is_open = False
    for raw in text.split("\n"):
        is_hard = raw.endswith(("  ", "\\"))
        line = raw.removesuffix("\\").strip()
        if is_open and lines:
            lines[-1] = f"{lines[-1]} {line}"
        else:
            lines.append(line)
        is_open = not is_hard
    return [line for line in lines if line]


def _sentences(line: str) -> Iterator[str]:
    start = position = 0
    is_bold = False
    while position < len(line):
        if line[position] == "`":
            position = _skip_code(line, position)
            continue
        if line.startswith("**", position):
            is_bold = not is_bold
            position += 2
            continue
        end = _sentence_end(line, start, position, is_bold=is_bold)
        if end is None:
            position += 1
            continue
        yield line[start:end].strip()
        start = position = end
        is_bold = False
    if line[start:].strip():
        yield line[start:].strip()


def _sentence_end(line: str, start: int, position: int, *, is_bold: bool) -> int | None:
    """Return where the sentence ends whose last mark stands at `position`, None if none ends."""
    mark = line[position]
    if mark not in _ENDS + _WIDE_ENDS:
        return None
    end = position + 1
    while end < len(line) and line[end] in _ENDS + _WIDE_ENDS + _CLOSERS:
        end += 1
    closes_bold = "**" in line[position:end]
    if end >= len(line) or (is_bold and not closes_bold):
        return None
    if mark in _WIDE_ENDS:
        return end
    if not line[end].isspace() or not _begins_sentence(line[end:].lstrip()):
        return None
    return None if mark == "." and _is_abbreviation(line[start:position]) else end


def _begins_sentence(rest: str) -> bool:
    first = rest[:1]
    bare = rest.lstrip(_OPENERS)[:1]
    return first == "`" or (
        bare != "" and not bare.islower() and bare not in ",;:.!?)-\u2013\u2014"
    )


def _is_abbreviation(before: str) -> bool:
    """Say whether the full stop after `before` belongs to its last word."""
    words = before.split()
    if not words:
        return True
    word = words[-1].lstrip(_OPENERS)
    previous = words[-2].strip(_OPENERS + ",;:").casefold() if len(words) > 1 else ""
    if word.casefold() in _ABBREVIATIONS:
        return True
    is_initial = len(word) == 1 and word.isalpha() and word.isupper() and word != "I"
    is_number = word.replace(".", "").isdecimal()
    return is_initial or (is_number and (len(words) == 1 or previous in _NUMBERED_THINGS))


def _skip_code(line: str, position: int) -> int:
    """Return the index after the code span that begins at `position` (or after its backticks)."""
    ticks = len(line[position:]) - len(line[position:].lstrip("`"))
    opening = position + ticks
    search = opening
    while (close := line.find("`" * ticks, search)) >= 0:
        run = len(line[close:]) - len(line[close:].lstrip("`"))
        if run == ticks:
            return close + ticks
        search = close + run
    return opening
