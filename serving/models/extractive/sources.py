"""Reading the numbered sources back out of a prompt, unit by unit.

The inverse of `PromptFormat.write_request`: a real model reads the prompt too, so the extractive
teacher gets nothing a remote one would not. Belongs here: parsing. Does not belong here: deciding
which unit answers (`answering`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from serving.pipeline.source_list import find_sources

_SOURCES_HEADING = "Sources:\n"
_REST_OF_A_HEADING = re.compile(
    r"(?:[^.!?:`]{1,80} > [^.!?:`]{1,80}|[a-z][^.!?:`]{0,60}): (?=[A-Z0-9`|*-])"
)
"""`Setup > Keys: Unit` after a title with a colon, or `the judge decides: Unit` after a heading
with one. Units begin with a capital, a digit or markup."""

_TABLE_ROW = re.compile(r"[^:;]{1,40}: [^;]*; [^:;]{1,40}: ")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One numbered source: the id to cite it by, its heading path, its units in document order."""

    label: str
    heading: str
    units: tuple[str, ...]

    @property
    def text(self) -> str:
        """The heading path and every unit: what a statement citing this source may rest on."""
        return " ".join((self.heading, *self.units))


def read_sources(text: str) -> tuple[Source, ...]:
    """Return the sources in `text`, which is a system message or only its list of sources.

    Unreadable text holds no sources, which callers answer with a refusal.
    """
    listed = text.partition(_SOURCES_HEADING)[2] or text
    starts = find_sources(listed)
    bounds = [*(start for start, _ in starts), len(listed)]
    return tuple(
        _read_source(label, listed[start:end].strip())
        for (_, label), (start, end) in zip(starts, pairwise(bounds), strict=True)
    )


def _read_source(label: str, block: str) -> Source:
    marker = f"[{label}]"
    body = block.removeprefix(marker).strip()
    pieces = [piece.strip() for piece in body.split(f" {marker}")]
    heading, first = _split_heading(pieces[0], others=pieces[1:])
    return Source(
        label=label, heading=heading, units=tuple(unit for unit in (first, *pieces[1:]) if unit)
    )


def _split_heading(text: str, others: Sequence[str]) -> tuple[str, str]:
    """Split `Title > Heading: unit`; a heading may itself hold a colon (`Kept: the lowest: unit`).

    The rows of a table (`field: x; type: y.`) begin with the same key in the units after it.
    """
    heading, _, rest = text.partition(": ")
    while _REST_OF_A_HEADING.match(rest):
        more, _, after = rest.partition(": ")
        is_row = bool(_TABLE_ROW.match(rest)) and (" " not in more or not others)
        if is_row or any(other.startswith(f"{more}: ") for other in others):
            break
        heading, rest = f"{heading}: {more}", after
    return heading.removesuffix(":"), rest
