"""The JSX inside MDX, read character by character: tags, attributes, expressions, comments.

Markdown parsers know HTML, whose attributes hold no braces; MDX tags do, over many lines. Belongs
here: finding where a tag or an expression ends and which of its text a reader sees. Does not belong
here: Markdown (`mdx`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape

VOID_TAGS = frozenset("area br col embed hr img input link meta source track wbr".split())  # noqa: SIM905

INLINE_TAGS = frozenset(
    "a abbr b bdi bdo br cite code data del dfn em i img ins kbd label mark q s samp small span "  # noqa: SIM905
    "strong sub sup time u var wbr".split()
)
"""HTML tags that live inside a sentence: they neither end a paragraph nor separate words."""

FIELD_SUFFIXES = ("Field", "Param", "Parameter", "Prop", "Property")
_FIELD_NAMES = ("name", "path", "query", "body", "header", "param")
_TITLES = ("title", "label", "heading", "summary", "items")
_TEXTS = ("description", "text", "caption", "tip", "tagline", "alt")


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
    def opens(self) -> bool:
        """True when a closing tag has to follow."""
        return not (
            self.is_closing or self.is_self_closing or not self.name or self.name in VOID_TAGS
        )

    @property
    def is_field(self) -> bool:
        """True for components that document one parameter (`<ParamField>`)."""
        return self.name.endswith(FIELD_SUFFIXES)


def scan_markup(source: str, start: int) -> Tag | None:
    """Return the tag, fragment or comment that begins at `start`, or None when none does.

    `<a|b>`, `<5`, `a < b` and tags that never end are text, hence None.
    """
    for opening, closing in (("<!--", "-->"), ("{/*", "*/}")):
        if source.startswith(opening, start):
            end = source.find(closing, start + len(opening))
            return None if end < 0 else Tag(name="", start=start, end=end + len(closing))
    if not source.startswith("<", start):
        return None
    position = start + 1
    is_closing = source.startswith("/", position)
    position += is_closing
    name_end = _skip_name(source, position)
    name = source[position:name_end]
    is_fragment = not name and source.startswith(">", name_end)
    if not is_fragment and not (name and (name[0].isalpha() or name[0] in "_$")):
        return None
    return _scan_attributes(source, start, name_end, name=name, is_closing=is_closing)


def is_placeholder(tag: Tag, page_source: str) -> bool:
    """Return True for `<REGION>` in prose: a tag whose counterpart stands nowhere on the page."""
    if tag.is_closing and tag.name:
        return f"<{tag.name}" not in page_source
    return tag.opens and f"</{tag.name}" not in page_source


def scan_expression(source: str, start: int) -> int | None:
    """Return the index after the brace that closes the one at `start`, None if none does.

    Braces in JavaScript strings, templates and comments do not count.
    """
    return scan_balanced(source, start, pairs={"{": "}"})


def scan_balanced(source: str, start: int, *, pairs: dict[str, str]) -> int | None:
    """Return the index after the bracket that balances the one at `start`, None if none does."""
    waiting: list[str] = []
    position = start
    while position < len(source):
        character = source[position]
        if character in "\"'`" or source.startswith(("/*", "//"), position):
            end = _skip_opaque(source, position)
            if end is None:
                return None
            position = end
            continue
        if character in pairs:
            waiting.append(pairs[character])
        elif waiting and character == waiting[-1]:
            waiting.pop()
            if not waiting:
                return position + 1
        position += 1
    return None


def literal_text(expression: str) -> str | None:
    """Return the text a braced expression shows when that can be known, None when it cannot.

    `{" "}`, `{'x'}`, `` {`x`} `` and numbers can be known; an array shows its strings; a variable
    cannot be known.
    """
    inner = expression[1:-1].strip()
    if inner.startswith("<") and inner.endswith(">"):
        return inner
    if inner.startswith("["):
        return ", ".join(_string_literals(inner))
    if inner and inner[0] in "\"'`" and _skip_opaque(inner, 0) == len(inner):
        is_fixed = inner[0] != "`" or "${" not in inner
        return inner[1:-1].replace(f"\\{inner[0]}", inner[0]) if is_fixed else None
    if inner in {"true", "false", "null"} or inner.replace(".", "", 1).lstrip("-").isdecimal():
        return inner
    return None


def visible_label(tag: Tag) -> str:
    """Return the text of a tag's attributes that a reader sees, as Markdown; empty when none is.

    `<Card title="A" description="B">` gives `**A** — B`,
    `<ParamField path="x" type="int" required>` gives `` `x` (int, required) ``.
    """
    if tag.is_closing or not tag.name:
        return ""
    values = {name: _shown(value) for name, value in tag.attributes}
    if tag.is_field:
        return _field_label(values)
    texts = [values[name] for name in _TEXTS if values.get(name)]
    names = (*_TITLES, "name") if _shows_its_name(tag) else _TITLES
    titles = [f"**{values[name]}**" for name in names if values.get(name)]
    return " — ".join((*titles, *texts))


def visible_code(tag: Tag) -> str:
    """Return the code a component such as `<Code code={…} />` shows; empty when there is none."""
    for name, value in tag.attributes:
        if name == "code" and value is not None:
            return (literal_text(value) or "") if value.startswith("{") else value
    return ""


def _field_label(values: dict[str, str]) -> str:
    name = next((values[key] for key in _FIELD_NAMES if values.get(key)), "")
    details = [values["type"]] if values.get("type") else []
    details += [flag for flag in ("required", "deprecated") if values.get(flag) in {"", "true"}]
    if values.get("default"):
        details.append(f"default: `{values['default']}`")
    texts = [values[key] for key in (*_TITLES, *_TEXTS) if values.get(key)]
    spelled = f"`{name}`" if name else ""
    detail = f"({', '.join(details)})" if details else ""
    return " ".join(part for part in (spelled, detail, *texts) if part)


def _shows_its_name(tag: Tag) -> bool:
    """An icon's or an input's name is for machines."""
    return tag.name[0].isupper() and not tag.name.endswith("Icon")


def _shown(value: str | None) -> str:
    if value is None:
        return ""
    text = literal_text(value) if value.startswith("{") else value
    return " ".join(unescape(text or "").split())


def _string_literals(expression: str) -> Iterator[str]:
    position = 0
    while position < len(expression):
        if expression[position] in "\"'`":
            end = _skip_opaque(expression, position)
            if end is None:
                return
            yield expression[position + 1 : end - 1]
            position = end
        else:
            position += 1


def _scan_attributes(
    source: str, start: int, position: int, *, name: str, is_closing: bool
) -> Tag | None:
    attributes: list[tuple[str, str | None]] = []
    while position < len(source):
        gap_end = _skip_space(source, position)
        for ending in (">", "/>"):
            if source.startswith(ending, gap_end):
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
        attribute = _scan_attribute(source, gap_end)
        if attribute is None:
            return None
        key, value, position = attribute
        attributes.append((key, value))
    return None


def _scan_attribute(source: str, start: int) -> tuple[str, str | None, int] | None:
    if source.startswith("{", start):
        end = scan_expression(source, start)
        return None if end is None else ("", None, end)
    name_end = _skip_name(source, start, also="@#")
    if name_end == start:
        return None
    name = source[start:name_end]
    equals = _skip_space(source, name_end)
    if not source.startswith("=", equals):
        return name, None, name_end
    value_start = _skip_space(source, equals + 1)
    value_end = _skip_value(source, value_start)
    if value_end is None:
        return None
    value = source[value_start:value_end]
    return name, value[1:-1] if value[0] in "\"'" else value, value_end


def _skip_value(source: str, start: int) -> int | None:
    opening = source[start : start + 1]
    if opening == "{":
        return scan_expression(source, start)
    if opening in {'"', "'"}:
        end = source.find(opening, start + 1)
        return None if end < 0 else end + 1
    end = start
    while end < len(source) and not source[end].isspace() and source[end] not in "<>\"'`=|":
        end += 1
    return end if end > start else None


def _skip_opaque(source: str, start: int) -> int | None:
    """Return the index after the string, template or comment at `start`."""
    for opening, closing in (("/*", "*/"), ("//", "\n")):
        if source.startswith(opening, start):
            end = source.find(closing, start + 2)
            return None if end < 0 else end + len(closing)
    quote = source[start]
    position = start + 1
    while position < len(source):
        if source[position] == quote:
            return position + 1
        if source[position] == "\n" and quote != "`":
            return None
        position += 2 if source[position] == "\\" else 1
    return None


def _skip_name(source: str, position: int, *, also: str = "") -> int:
    legal = "_$.:-" + also
    while position < len(source) and (source[position].isalnum() or source[position] in legal):
        position += 1
    return position


def _skip_space(source: str, position: int) -> int:
    while position < len(source) and source[position].isspace():
        position += 1
    return position
