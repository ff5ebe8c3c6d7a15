"""Sites to chunk, and what a good splitter must keep of them.

Belongs here: synthetic pages that note down their own fences, rows and words; folders read with a
plain line scan as their oracle. Does not belong here: splitting and timing (`chunking`).
"""

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

_LINK_TARGET = re.compile(r"\]\([^)]*\)")
_STEMS = ("gateway", "retry", "schema", "Größe", "漢字", "token", "model", "index", "stream")


@dataclass(frozen=True, kw_only=True)
class SitePage:
    """One page and its oracle; `words` and `unseen` are empty where nobody can know them."""

    path: str
    source: str
    fences: list[str] = field(default_factory=list)
    """The text between the fence lines, its common indentation removed."""
    rows: list[str] = field(default_factory=list)
    """Pipe-table rows that are no header, as `squeeze_row` leaves them."""
    words: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)


def write_site(pages: int, kilobytes: int, seed: int = 0) -> list[SitePage]:
    """Return `pages` synthetic MDX pages; sizes vary evenly around `kilobytes`, all seeded."""
    chance = random.Random(seed)  # noqa: S311
    return [
        _PageWriter(chance).write(f"page-{n}.mdx", int(kilobytes * 1000 * chance.uniform(0.2, 1.8)))
        for n in range(pages)
    ]


def read_site(folder: Path) -> list[SitePage]:
    """Return the pages of a folder, with the fences and rows that a plain line scan finds."""
    files = sorted([*folder.rglob("*.mdx"), *folder.rglob("*.md")])
    return [
        _scan(file.relative_to(folder).as_posix(), file.read_text(encoding="utf-8"))
        for file in files
    ]


def squeeze(text: str) -> str:
    """Return the text without spaces at the ends of its lines: indentation is layout."""
    return "\n".join(line.strip() for line in text.strip("\n").split("\n"))


def squeeze_row(line: str) -> str:
    """Return a table row's letters and digits: splitters may pad cells or drop link targets."""
    return "".join(c for c in _LINK_TARGET.sub("]", line) if c.isalnum())


class _PageWriter:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._serial = 0
        self._page = SitePage(path="", source="")

    def write(self, path: str, size: int) -> SitePage:
        blocks = [f"---\n# {self._unseen()}\ntitle: {path}\n---", self._paragraph()]
        blocks.append(f"import {{ Tabs }} from '{self._unseen()}'")
        while sum(map(len, blocks)) < size:
            blocks.append(f"{'#' * self._chance.randint(2, 4)} {self._words(3)}")
            writers = (self._paragraph, self._paragraph, self._fence, self._table, self._tabs)
            blocks += [self._chance.choice(writers)() for _ in range(self._chance.randint(1, 4))]
        page = self._page
        return SitePage(
            path=path,
            source="\n\n".join(blocks),
            fences=page.fences,
            rows=page.rows,
            words=page.words,
            unseen=page.unseen,
        )

    def _word(self) -> str:
        self._serial += 1
        word = f"{self._chance.choice(_STEMS)}{self._serial}q"
        self._page.words.append(word)
        return word

    def _unseen(self) -> str:
        self._serial += 1
        self._page.unseen.append(f"unseen{self._serial}q")
        return self._page.unseen[-1]

    def _words(self, count: int) -> str:
        return " ".join(self._word() for _ in range(count))

    def _paragraph(self) -> str:
        count = self._chance.randint(1, 8)
        return " ".join(f"The {self._words(4)} is `{self._word()}`." for _ in range(count))

    def _fence(self) -> str:
        lines = [f"{self._word()} = {self._word()}" for _ in range(self._chance.randint(1, 25))]
        lines += ["---", "# no heading", "```js", f"import a from '{self._word()}'", "```"]
        self._page.fences.append(squeeze("\n".join(lines)))
        return "\n".join(["``````text", *lines, "``````"])

    def _table(self) -> str:
        rows = [
            f"| `{self._word()}` | {self._words(4)} |" for _ in range(self._chance.randint(2, 20))
        ]
        self._page.rows.extend(squeeze_row(row) for row in rows)
        return "\n".join(["| Key | Meaning |", "| --- | --- |", *rows])

    def _tabs(self) -> str:
        tabs = [
            f'<Tab title="{self._word()}" icon="{self._unseen()}">\n\n{self._paragraph()}\n\n</Tab>'
            for _ in range(2)
        ]
        return "\n".join(["<Tabs>", *tabs, "</Tabs>"])


def _scan(path: str, source: str) -> SitePage:
    page = SitePage(path=path, source=source)
    fence: list[str] | None = None
    mark = ""
    previous: list[str] = []
    for line in source.splitlines():
        bare = line.strip().lstrip("> ")
        ticks = bare[: len(bare) - len(bare.lstrip(bare[:1]))] if bare[:1] in ("`", "~") else ""
        if fence is not None:
            if ticks.startswith(mark) and bare == ticks:
                page.fences.append(squeeze("\n".join(fence)))
                fence = None
            else:
                fence.append(bare)
        elif len(ticks) >= 3 and "`" not in bare[len(ticks) :]:
            fence, mark = [], ticks
        is_row = fence is None and bare.startswith("|") and bare.endswith("|")
        is_body = is_row and len(previous) > 1 and previous[1].strip("|-: ") == ""
        previous = [*previous, bare][-40:] if is_row else []
        if is_body and len(previous) > 2:
            page.rows.append(squeeze_row(bare))
    return page
