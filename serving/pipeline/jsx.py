"""What a reader sees of JSX: the text of a component's attributes, the value of an expression.

Belongs here: which tags are tags at all on a page, which of their text is visible. Does not belong
here: where a tag or an expression ends (`jsx_scanner`), Markdown (`mdx`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape

from serving.pipeline.jsx_scanner import (
    OPTIONAL_CLOSE_TAGS,
    VOID_TAGS,
    Scanner,
    Tag,
    skip_name,
)

FIELD_SUFFIXES = ("Field", "Param", "Parameter", "Prop", "Property")
_FIELD_NAMES = ("name", "path", "query", "body", "header", "param")
_TITLES = ("title", "label", "heading", "summary", "items")
_TEXTS = ("description", "text", "caption", "tip", "tagline", "alt")


@dataclass(frozen=True, kw_only=True)
class Markup:
    """What one page's tags have to be judged by: the page's own tag names, and its scanners."""

    opened: frozenset[str]
    closed: frozenset[str]
    scanners: dict[str, Scanner] = field(default_factory=dict)

    def scanner(self, source: str) -> Scanner:
        """Return the scanner of the page or of one sentence of it; the same one every time."""
        if source not in self.scanners:
            self.scanners[source] = Scanner(source)
        return self.scanners[source]

    def is_placeholder(self, tag: Tag) -> bool:
        """Return True for `<REGION>` in prose: a tag whose counterpart stands nowhere on the page.

        HTML's own tags that need no counterpart (`<br>`, `<li>`) are none.
        """
        if tag.name in VOID_TAGS or tag.name in OPTIONAL_CLOSE_TAGS:
            return False
        if tag.is_closing and tag.name:
            return tag.name not in self.opened
        return tag.opens and tag.name not in self.closed


def read_markup(page_source: str) -> Markup:
    """Collect the names of all tags that open or close anywhere on a page."""
    opened: set[str] = set()
    closed: set[str] = set()
    position = page_source.find("<")
    while position >= 0:
        is_closing = page_source.startswith("/", position + 1)
        start = position + 1 + is_closing
        end = skip_name(page_source, start)
        if end > start:
            (closed if is_closing else opened).add(page_source[start:end])
        position = page_source.find("<", start)
    return Markup(opened=frozenset(opened), closed=frozenset(closed))


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
    if inner and inner[0] in "\"'`" and Scanner(inner).opaque_end(0) == len(inner):
        is_fixed = inner[0] != "`" or "${" not in inner
        return inner[1:-1].replace(f"\\{inner[0]}", inner[0]) if is_fixed else None
    if inner in {"true", "false", "null"} or inner.replace(".", "", 1).lstrip("-").isdecimal():
        return inner
    return None


def is_field(tag: Tag) -> bool:
    """Return True for components that document one parameter (`<ParamField>`)."""
    return tag.name.endswith(FIELD_SUFFIXES)


def visible_label(tag: Tag) -> str:
    """Return the text of a tag's attributes that a reader sees, as Markdown; empty when none is.

    `<Card title="A" description="B">` gives `**A** — B`,
    `<ParamField path="x" type="int" required>` gives `` `x` (int, required) ``.
    """
    if tag.is_closing or not tag.name:
        return ""
    values = {name: _shown(value) for name, value in tag.attributes}
    if is_field(tag):
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
    scanner = Scanner(expression)
    position = 0
    while position < len(expression):
        if expression[position] not in "\"'`":
            position += 1
            continue
        end = scanner.opaque_end(position)
        if end is None:
            return
        if end > position + 1:
            yield expression[position + 1 : end - 1]
        position = end
