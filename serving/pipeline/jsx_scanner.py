"""Where a tag, an expression or a statement ends in MDX, read character by character.

Markdown parsers know HTML, whose attributes hold no braces; MDX tags do, over many lines. Belongs
here: tags as they are spelled and where things end, in time linear in the page whatever it holds.
Does not belong here: what a tag shows (`jsx`), Markdown (`mdx`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

VOID_TAGS = frozenset("area br col embed hr img input link meta source track wbr".split())  # noqa: SIM905

INLINE_TAGS = frozenset(
    "a abbr b bdi bdo br cite code data del dfn em i img ins kbd label mark q s samp small span "  # noqa: SIM905
    "strong sub sup time u var wbr".split()
)
"""HTML tags that live inside a sentence: they neither end a paragraph nor separate words."""

OPTIONAL_CLOSE_TAGS = frozenset("dd dt li option p tbody td tfoot th thead tr".split())  # noqa: SIM905
"""HTML tags whose closing tag may be left out."""

_BRACES: Mapping[str, str] = {"{": "}"}
_BRACKETS: Mapping[str, str] = {"{": "}", "(": ")", "[": "]"}
_CODE = re.compile(r"""["'`{}()\[\]]|/[*/]""")
_STATEMENT = re.compile(r"""["'`{}()\[\]\n]|/[*/]""")
_STRINGS = {
    '"': re.compile(r'"(?:[^"\\\n]++|\\[\s\S])*+"'),
    "'": re.compile(r"'(?:[^'\\\n]++|\\[\s\S])*+'"),
    "`": re.compile(r"`(?:[^`\\]++|\\[\s\S])*+`"),
}
_CONTINUES = ("=", ",", "=>", " from", "(", "[", "{")


@dataclass(frozen=True, kw_only=True)
class Tag:
    """One tag, comment or fragment; `source[start:end]` is its spelling.

    `name` is empty for comments and fragments. A value that is no literal text is kept as its
    expression's source, braces included; an attribute without a value has the value None.
    """

    name: str
    attributes: tuple[tuple[str, str | None], ...] = ()
    is_closing: bool = False
    is_self_closing: bool = False
    start: int
    end: int

    @property
    def is_inline(self) -> bool:
        """True for HTML tags that belong inside a sentence."""
        return self.name in INLINE_TAGS

    @property
    def is_comment(self) -> bool:
        """True for `<!-- … -->` and `{/* … */}`; a fragment (`<>`) is shorter than either."""
        return not self.name and self.end - self.start > len("</>")

    @property
    def opens(self) -> bool:
        """True when a closing tag has to follow."""
        return not (
            self.is_closing or self.is_self_closing or not self.name or self.name in VOID_TAGS
        )


class Scanner:
    """One text with a memory of what was looked for in it.

    A page can hold thousands of brackets, quotes and tags that never close. Looking for each end
    anew would cost a pass over the page every time, so both ends and their absence are kept.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._tags: dict[int, Tag | None] = {}
        self._ends: dict[tuple[int, int, str], int | None] = {}
        self._absent: dict[str, tuple[int, int]] = {}

    def find(self, wanted: str, start: int) -> int:
        """Return the index of `wanted` from `start` on, -1 when it stands nowhere there."""
        if self._is_absent(wanted, start):
            return -1
        found = self.source.find(wanted, start)
        if found < 0:
            self._absent[wanted] = (start, len(self.source))
        return found

    def tag(self, start: int) -> Tag | None:
        """Return the tag, fragment or comment that begins at `start`, or None when none does.

        `<a|b>`, `<5`, `a < b` and tags that never end are text, hence None.
        """
        if start not in self._tags:
            self._tags[start] = self._scan_comment(start) or self._scan_tag(start)
        return self._tags[start]

    def expression_end(self, start: int) -> int | None:
        """Return the index after the brace that closes the one at `start`, None if none does.

        Braces in JavaScript strings, templates and comments do not count.
        """
        return self._balanced_end(start, _BRACES)

    def statement_end(self, start: int) -> int | None:
        """Return where the `import` or `export` at `start` ends: its newline or the text's end.

        None when a bracket, string or comment in it never closes.
        """
        position = line_start = start
        while found := _STATEMENT.search(self.source, position):
            at = found.start()
            character = self.source[at]
            end: int | None = at + 1
            if character == "\n":
                is_open = self.source[line_start:at].rstrip().endswith(_CONTINUES)
                if not is_open or self._is_blank_line(at + 1):
                    return at
                line_start = at + 1
            elif character in _BRACKETS:
                end = self._balanced_end(at, _BRACKETS)
            elif character in ")]}":
                return None
            else:
                end = self.opaque_end(at)
            if end is None:
                return None
            position = end
        return len(self.source)

    def opaque_end(self, start: int) -> int | None:
        """Return the index after the string, template or comment at `start`, None if it is open."""
        opening = self.source[start]
        if opening == "/":
            closing = "*/" if self.source.startswith("/*", start) else "\n"
            end = self.find(closing, start + 2)
            return None if end < 0 else end + len(closing)
        # `don't`: a quote behind a letter is an apostrophe in the text of an element.
        if opening == "'" and start and self.source[start - 1].isalpha():
            return start + 1
        unclosed = f"unclosed {opening}"
        if self._is_absent(unclosed, start):
            return None
        found = _STRINGS[opening].match(self.source, start)
        if found:
            return found.end()
        line_end = -1 if opening == "`" else self.find("\n", start)
        self._absent[unclosed] = (start, len(self.source) if line_end < 0 else line_end)
        return None

    def _is_absent(self, wanted: str, start: int) -> bool:
        first, last = self._absent.get(wanted, (0, 0))
        return first <= start < last or (start >= last > first and last == len(self.source))

    def _is_blank_line(self, start: int) -> bool:
        end = self.find("\n", start)
        return not self.source[start : len(self.source) if end < 0 else end].strip()

    def _balanced_end(self, start: int, pairs: Mapping[str, str]) -> int | None:
        """Return the index after the bracket that balances the one at `start`.

        What follows a position is the same however the scan got there. So each open bracket keeps
        the positions passed within it, and their common end is remembered once it is known.
        """
        levels: list[tuple[str, list[int]]] = [(pairs[self.source[start]], [])]
        position = start + 1
        while levels:
            closer, passed = levels[-1]
            key = (len(pairs), position, closer)
            if key in self._ends:
                end = self._ends[key]
            else:
                passed.append(position)
                end = self._next_bracket(position, pairs, closer)
                if end is not None and (opener := self.source[end - 1]) in pairs:
                    levels.append((pairs[opener], []))
                    position = end
                    continue
            settled = levels if end is None else [levels.pop()]
            for bracket, positions in settled:
                self._ends.update({(len(pairs), p, bracket): end for p in positions})
            if end is None:
                return None
            position = end
        return position

    def _next_bracket(self, position: int, pairs: Mapping[str, str], closer: str) -> int | None:
        """Return the index after the next bracket that counts: an opening one or `closer`."""
        while found := _CODE.search(self.source, position):
            character = found.group()
            if character in pairs or character == closer:
                return found.end()
            is_bracket = character in "{}()[]"
            following = found.end() if is_bracket else self.opaque_end(found.start())
            if following is None:
                return None
            position = following
        return None

    def _scan_comment(self, start: int) -> Tag | None:
        for opening, closing in (("<!--", "-->"), ("{/*", "*/}")):
            if self.source.startswith(opening, start):
                end = self.find(closing, start + len(opening))
                return None if end < 0 else Tag(name="", start=start, end=end + len(closing))
        return None

    def _scan_tag(self, start: int) -> Tag | None:
        if not self.source.startswith("<", start):
            return None
        position = start + 1
        is_closing = self.source.startswith("/", position)
        position += is_closing
        name_end = skip_name(self.source, position)
        name = self.source[position:name_end]
        is_fragment = not name and self.source.startswith(">", name_end)
        if not is_fragment and not (name and (name[0].isalpha() or name[0] in "_$")):
            return None
        return self._scan_attributes(start, name_end, name=name, is_closing=is_closing)

    def _scan_attributes(
        self, start: int, position: int, *, name: str, is_closing: bool
    ) -> Tag | None:
        attributes: list[tuple[str, str | None]] = []
        while position < len(self.source):
            gap_end = _skip_space(self.source, position)
            for ending in (">", "/>"):
                if self.source.startswith(ending, gap_end):
                    return Tag(
                        name=name,
                        attributes=tuple(attributes),
                        is_closing=is_closing,
                        is_self_closing=ending == "/>",
                        start=start,
                        end=gap_end + len(ending),
                    )
            if gap_end == position and not attributes:
                return None
            attribute = self._scan_attribute(gap_end)
            if attribute is None:
                return None
            key, value, position = attribute
            attributes.append((key, value))
        return None

    def _scan_attribute(self, start: int) -> tuple[str, str | None, int] | None:
        if self.source.startswith("{", start):
            end = self.expression_end(start)
            return None if end is None else ("", None, end)
        name_end = skip_name(self.source, start, also="@#")
        if name_end == start:
            return None
        name = self.source[start:name_end]
        equals = _skip_space(self.source, name_end)
        if not self.source.startswith("=", equals):
            return name, None, name_end
        value_start = _skip_space(self.source, equals + 1)
        value_end = self._value_end(value_start)
        if value_end is None:
            return None
        value = self.source[value_start:value_end]
        return name, value[1:-1] if value[0] in "\"'" else value, value_end

    def _value_end(self, start: int) -> int | None:
        opening = self.source[start : start + 1]
        if opening == "{":
            return self.expression_end(start)
        if opening in {'"', "'"}:
            end = self.find(opening, start + 1)
            return None if end < 0 else end + 1
        end = start
        while (
            end < len(self.source)
            and not self.source[end].isspace()
            and self.source[end] not in "<>\"'`=|"
        ):
            end += 1
        return end if end > start else None


def skip_name(source: str, position: int, *, also: str = "") -> int:
    """Return the index after the tag's or attribute's name that begins at `position`."""
    legal = "_$.:-" + also
    while position < len(source) and (source[position].isalnum() or source[position] in legal):
        position += 1
    return position


def _skip_space(source: str, position: int) -> int:
    while position < len(source) and source[position].isspace():
        position += 1
    return position
