"""A chunk's Markdown split into the units a model can quote and cite.

Belongs here: sentences, list items, table rows, fences as standalone units. Does not belong here:
what is cited and how ids look (`prompt`), sizes (`chunking`).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from unicodedata import category, east_asian_width

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from serving.pipeline.nesting import DEEPEST_INLINE, limit_nesting

TEXTS_KEPT = 4096
"""Chunks whose units are kept, a few kilobytes each."""

_ENDS = ".!?…"
WIDE_ENDS = "\u3002\uff01\uff1f"  # the same marks of Chinese and Japanese; no space follows
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
    newlines. Kept by text: a chunk is retrieved many times, and parsing it was most of the
    prompt's cost.
    """
    return list(_split_units(text))


@lru_cache(maxsize=TEXTS_KEPT)
def _split_units(text: str) -> tuple[str, ...]:
    parser = MarkdownIt("commonmark", {"maxNesting": DEEPEST_INLINE}).enable("table")
    limit_nesting(parser)
    parser.core.ruler.disable("inline")  # units are quoted as they were written
    parser.disable(["html_block", "html_inline", "reference", "lheading", "code"])
    return tuple(_units(SyntaxTreeNode(parser.parse(text)).children))


def split_sentences(text: str) -> list[str]:
    """Return the sentences of one paragraph's inline Markdown; hard line breaks end them too."""
    return [sentence for line in _hard_lines(text) for sentence in _sentences(line)]


def split_words(sentence: str) -> list[str]:
    """Return the pieces a sentence may be cut into; joined they are the sentence again.

    A piece is a word with the space behind it, a whole code span, or one character of a script
    that sets no spaces between words.
    """
    pieces: list[str] = []
    start = position = 0
    while position < len(sentence):
        if sentence[position] == "`":
            position = _skip_code(sentence, position)
            continue
        position += 1
        if sentence[position - 1].isspace() or _parts_words(sentence[position - 1 : position + 1]):
            pieces.append(sentence[start:position])
            start = position
    return [*pieces, sentence[start:]] if start < len(sentence) else pieces


def _parts_words(pair: str) -> bool:
    """Return True where a Chinese or Japanese letter begins behind one, or behind its stop."""
    is_wide = east_asian_width(pair[0]) in "WF"
    return is_wide and category(pair[-1]) == "Lo" and len(pair) == 2


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
        elif line.startswith("**", position):
            is_bold = not is_bold
            position += 2
        elif line[position] in _ENDS + WIDE_ENDS:
            end = _marks_end(line, position)
            marks = line[position:end]
            is_bold ^= marks.count("**") % 2 == 1
            if not is_bold and _is_sentence_end(line, start, position, end):
                yield line[start:end].strip()
                start = end
            position = end
        else:
            position += 1
    if line[start:].strip():
        yield line[start:].strip()


def _marks_end(line: str, position: int) -> int:
    """Return the index after a run of marks and what closes behind them: `.)`, `!?`, `.**`."""
    while position < len(line) and line[position] in _ENDS + WIDE_ENDS + _CLOSERS:
        position += 1
    return position


def _is_sentence_end(line: str, start: int, position: int, end: int) -> bool:
    """Say whether the marks `line[position:end]` end the sentence that began at `start`."""
    marks = line[position:end]
    if end >= len(line):
        return False
    if any(mark in WIDE_ENDS for mark in marks):
        return True
    if not line[end].isspace() or not _begins_sentence(line, end):
        return False
    is_full_stop = not any(mark in _ENDS for mark in marks[1:]) and marks[0] == "."
    return not (is_full_stop and _is_abbreviation(line[max(start, position - 100) : position]))


def _begins_sentence(line: str, position: int) -> bool:
    while position < len(line) and line[position].isspace():
        position += 1
    if line[position : position + 1] == "`":
        return True
    while position < len(line) and line[position] in _OPENERS:
        position += 1
    bare = line[position : position + 1]
    return bare != "" and not bare.islower() and bare not in ",;:.!?)-\u2013\u2014"


def _is_abbreviation(before: str) -> bool:
    """Say whether the full stop after `before` belongs to its last word."""
    words = before.split()
    if not words or before[-1].isspace():  # a stop that stands apart ends nothing: ` .env`
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
    opening = _ticks_end(line, position)
    ticks = line[position:opening]
    close = line.find(ticks, opening)
    while close >= 0:
        end = _ticks_end(line, close)
        if end - close == len(ticks):
            return end
        close = line.find(ticks, end)
    return opening


def _ticks_end(line: str, position: int) -> int:
    while position < len(line) and line[position] == "`":
        position += 1
    return position
