"""A generator of MDX pages that knows what a reader sees of them.

Belongs here: pages made of every construct the chunker has rules for, and the oracle: each word
carries a serial number, so that a lost, doubled, displaced or leaked word has a name. Does not
belong here: the chunker itself, which no part of this module calls.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

SERIAL = re.compile(r"(\d+)q")
_STEMS = (
    "plain",
    "漢字",
    "שלום",
    "مرحبا",
    "na\u0308h",
    "👩\u200d👩\u200d👧",
    "Größe",
    "ไทย",
    "x_y",
    "don't",
)
_CODE_LINES = (
    "---",
    "import {0} from '{1}'",
    "# {0}",
    "export const {0} = {{ a: '{1}' }}",
    "  <Tag {0}={{() => {{ '{1}' }}}}>",
    "| {0} | {1} |",
    "",
    "    {{{0}}} // {1}",
    ":::{0}",
    "- {0}: {1}",
)


@dataclass(frozen=True)
class Written:
    """A page's source and the serial numbers of its words, by what must become of them."""

    source: str
    body: list[int] = field(default_factory=list)
    """Seen exactly once, in this order."""
    labels: list[int] = field(default_factory=list)
    """Seen: headings, titles of components, table headers."""
    unseen: list[int] = field(default_factory=list)
    fences: list[list[str]] = field(default_factory=list)
    """The lines of each fence, without their indentation."""
    tables: list[tuple[list[int], list[list[int]]]] = field(default_factory=list)
    """The serials of each table's header and of its rows."""


class PageWriter:
    """Writes random MDX; what it notes down about it is the oracle."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._serial = 0
        self._page = Written(source="")

    def write_page(self) -> Written:
        """Return one page with frontmatter and up to 14 blocks."""
        title = f"# {self._word('unseen')}\ntitle: Title\nnote: {self._word('unseen')}"
        blocks = [self._block() for _ in range(self._chance.randint(1, 14))]
        source = f"---\n{title}\n---\n\n{self._paragraph()}\n\n" + "\n\n".join(blocks)
        if self._chance.random() < 0.2:
            source = source.replace("\n", "\r\n")
        if self._chance.random() < 0.2:
            source = f"\ufeff{source}"
        return replace(
            self._page,
            source=source,
            body=[n for n in serials(source) if n in set(self._page.body)],
        )

    def write_section(self, heading: str) -> str:
        """Return a section too large to share a chunk."""
        return f"## {heading}\n\n{self._sentences(12)}\n\n{self._fence()}\n\n{self._table()}"

    def _word(self, kind: str = "body") -> str:
        self._serial += 1
        noted: dict[str, list[int]] = {
            "body": self._page.body,
            "labels": self._page.labels,
            "unseen": self._page.unseen,
        }
        noted[kind].append(self._serial)
        return f"{self._chance.choice(_STEMS)}{self._serial}q"

    def _words(self, kind: str = "body", most: int = 6) -> str:
        return " ".join(self._word(kind) for _ in range(self._chance.randint(1, most)))

    def _block(self) -> str:
        writers: list[Callable[[], str]] = [
            *[self._flow] * 8,
            self._heading,
            self._heading,
            lambda: "## Same",
            lambda: f'<h3 id="unseen-id">{self._words("labels")}</h3>',
            lambda: f"import {{\n  {self._word('unseen')},\n}} from '{self._word('unseen')}'",
            lambda: f"export const meta = {{\n\n  a: `{self._word('unseen')}`,\n}}",
            lambda: f"{{/* {self._word('unseen')}\n\n{self._word('unseen')} */}}",
            lambda: f"<!-- {self._word('unseen')} -->",
            lambda: f"[ref{self._serial}]: /x-{self._word('unseen')}",
            lambda: "---",
        ]
        return self._chance.choice(writers)()

    def _flow(self, depth: int = 0) -> str:
        """Return a block that may stand inside another."""
        flat = [self._paragraph, self._fence, self._table, self._card, self._field]
        nesting = [self._list, self._quote, self._tabs, self._directive]
        writers = flat if depth > 2 else [*flat, *[lambda w=w: w(depth + 1) for w in nesting]]
        return self._chance.choice(writers)()

    def _heading(self) -> str:
        extra = self._chance.choice(["", " `{code}`", " {{x}}", " <a|b>", " *em*"])
        return f"{'#' * self._chance.randint(1, 5)} {self._words('labels')}{extra}"

    def _paragraph(self) -> str:
        return self._sentences(self._chance.randint(1, 7))

    def _sentences(self, count: int) -> str:
        return " ".join(f"{self._inline()} {self._words()}." for _ in range(count))

    def _inline(self) -> str:
        spellings = (
            "{0}",
            "`{{{0}}} <b>`",
            "**{0}**",
            "[{0}](/x)",
            "![{0}](/i.png)",
            '{{" "}}{0}',
            "{{{{ {0} }}}}",
            "<b>{0}</b>",
            "{0} &amp;",
            "<{0}|b>",
            "1 < 2 {0}",
            "{{/* gone */}} {0}",
            "\\*{0}",
            '<Badge text="{0}" />',
        )
        return self._chance.choice(spellings).format(self._word())

    def _fence(self) -> str:
        ticks = self._chance.randint(3, 6)
        markup = self._chance.choice("`~") * ticks
        lines = [f"{self._word()} code"]
        for _ in range(self._chance.randint(0, 9)):
            pattern = self._chance.choice(_CODE_LINES)
            words = [self._word() for _ in range(pattern.count("{0}") + pattern.count("{1}"))]
            lines.append(pattern.format(*words))
        if ticks > 3:
            lines += ["```js", self._word(), "```"]
        lines.append(f"end {self._word()}")
        self._page.fences.append([line.strip() for line in lines])
        return "\n".join([f"{markup}md", *lines, markup])

    def _table(self) -> str:
        header = self._cells("labels")
        rows = [self._cells("body") for _ in range(self._chance.randint(1, 9))]
        self._page.tables.append((_serials(header), [_serials(row) for row in rows]))
        if self._chance.random() < 0.25:
            cells = ["".join(f"<td>{c}</td>" for c in row) for row in (header, *rows)]
            return "<table>\n" + "\n".join(f"  <tr>{row}</tr>" for row in cells) + "\n</table>"
        lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * 2, *rows)]
        return "\n".join(lines)

    def _cells(self, kind: str) -> list[str]:
        return [self._words(kind, most=3), f"`a` {self._word(kind)}"]

    def _card(self) -> str:
        unseen = f"icon=\"{self._word('unseen')}\" style={{{{ color: '}}' }}}}"
        return (
            f'<Card\n  title="{self._word()}"\n  {unseen}\n  description={{"{self._word()}"}}\n/>'
        )

    def _field(self) -> str:
        name = self._word("labels")
        return (
            f'<ParamField path="{name}" type="int" required>\n  {self._sentences(1)}\n</ParamField>'
        )

    def _list(self, depth: int) -> str:
        is_ordered = self._chance.random() < 0.4
        items = []
        for number in range(1, self._chance.randint(2, 5)):
            marker = f"{number}. " if is_ordered else "- "
            inner = self._sentences(self._chance.randint(1, 3))
            if self._chance.random() < 0.4:
                inner += f"\n\n{self._flow(depth)}"
            items.append(marker + _indent(inner, len(marker)))
        return "\n".join(items)

    def _quote(self, depth: int) -> str:
        inner = f"{self._sentences(1)}\n\n{self._flow(max(depth, 2))}"
        return "\n".join(f"> {line}".rstrip() for line in inner.split("\n"))

    def _tabs(self, depth: int) -> str:
        by = self._chance.choice([0, 2, 6])
        inner = _indent(self._flow(depth), by)
        tab = f'  <Tab title="{self._word("labels")}">\n\n{" " * by}{inner}\n\n  </Tab>'
        return f"<Tabs>\n{tab}\n</Tabs>"

    def _directive(self, depth: int) -> str:
        return f":::note {self._word('labels')}\n\n{self._flow(depth)}\n\n:::"


def serials(text: str) -> list[int]:
    """Return the serial numbers of the words in a text, in order."""
    return [int(number) for number in SERIAL.findall(text)]


def _serials(cells: list[str]) -> list[int]:
    return serials(" ".join(cells))


def _indent(text: str, by: int) -> str:
    first, *rest = text.split("\n")
    return "\n".join([first, *(" " * by + line if line else line for line in rest)])
