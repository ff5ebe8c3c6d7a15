"""MDX within a sentence: markdown-it inline rules for tags and braced expressions.

Belongs here: what a tag or an expression between words becomes. Does not belong here: components on
lines of their own (`mdx`), the scanning itself (`jsx`).
"""

from html import unescape

from markdown_it.rules_inline import StateInline

from serving.pipeline.jsx import Markup, literal_text, visible_label
from serving.pipeline.jsx_scanner import Scanner, Tag

UNSEEN_TAGS = ("script", "style")
_MARKS = {"b": "**", "strong": "**", "i": "*", "em": "*"}
_CODE_TAGS = ("code", "kbd", "samp", "tt")
_LONGEST_WORD = len("{false}")


def read_inline_expression(state: StateInline, silent: bool) -> bool:  # noqa: FBT001
    """Read a braced expression.

    `{" "}` and other literals show their text, `{/* … */}` nothing, `{{x}}` and `{x}` themselves.
    """
    if not state.src.startswith("{", state.pos):
        return False
    scanner = _markup(state).scanner(state.src)
    comment = scanner.tag(state.pos)
    end = comment.end if comment else scanner.expression_end(state.pos)
    if end is None:
        return False
    text = "" if comment else _shown_expression(state.src, state.pos, end)
    if text is None:
        return False
    if not silent and text:
        state.push("text", "", 0).content = text
    state.pos = end
    return True


def read_inline_tag(state: StateInline, silent: bool) -> bool:  # noqa: FBT001
    """Read a tag or a comment within a sentence."""
    if not state.src.startswith("<", state.pos):
        return False
    markup = _markup(state)
    scanner = markup.scanner(state.src)
    tag = scanner.tag(state.pos)
    if tag is None or markup.is_placeholder(tag):
        return False
    end = tag.end
    if tag.name in (*_CODE_TAGS, *UNSEEN_TAGS) and tag.opens:
        close = scanner.find(f"</{tag.name}>", tag.end)
        end = close + len(tag.name) + 3 if close >= 0 else end
    if not silent:
        _push_inline_tag(state, tag, end)
    state.pos = end
    return True


def _markup(state: StateInline) -> Markup:
    markup: Markup = state.env["markup"]
    return markup


def _shown_expression(source: str, start: int, end: int) -> str | None:
    """Return what an expression shows, None when it is no more than text between braces."""
    inside = source[start + 1 : start + 2]
    if inside.isalpha():
        # The usual `{variable}`: deep nests of them would be copied once per level.
        return None if end - start > _LONGEST_WORD else literal_text(source[start:end])
    expression = source[start:end]
    text = literal_text(expression)
    if text is None and inside == "{":
        return expression
    return None if text is None or text.startswith("<") else text


def _push_inline_tag(state: StateInline, tag: Tag, end: int) -> None:
    if tag.name in {"br", "hr"}:
        state.push("hardbreak", "br", 0)
    elif tag.name in _MARKS:
        state.push("mark", "", 0).markup = _MARKS[tag.name]
    elif tag.name in _CODE_TAGS and end > tag.end:
        inner = state.src[tag.end : end - len(tag.name) - 3]
        state.push("code_inline", "code", 0).content = " ".join(_code_text(inner).split())
    elif tag.name and not (tag.is_inline and tag.name != "img"):
        label = visible_label(tag)
        token = state.push("label", "", 0)
        token.children = []
        state.md.inline.parse(label, state.md, state.env, token.children)
        token.meta = {"separates": bool(label) or _separates_words(state.src, tag)}


def _code_text(source: str) -> str:
    """Return what `<code>` shows: no tags, literals resolved, Markdown untouched."""
    scanner = Scanner(source)
    shown: list[str] = []
    position = 0
    while position < len(source):
        tag = scanner.tag(position)
        end = tag.end if tag else None
        if end is None and source[position] == "{":
            end = scanner.expression_end(position)
            text = literal_text(source[position:end]) if end else None
            shown.append("" if end is None else (source[position:end] if text is None else text))
        if end is None:
            shown.append(source[position])
        position = position + 1 if end is None else end
    return unescape("".join(shown))


def _separates_words(source: str, tag: Tag) -> bool:
    """A component between two words keeps them apart: `<li>a</li><li>b</li>` is no `ab`."""
    before = source[max(tag.start - 1, 0) : tag.start]
    after = source[tag.end : tag.end + 1]
    return not before.isspace() and not after.isspace() and after not in ".,;:!?)"
