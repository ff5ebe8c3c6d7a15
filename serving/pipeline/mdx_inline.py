"""MDX within a sentence: markdown-it inline rules for tags and braced expressions.

Belongs here: what a tag or an expression between words becomes. Does not belong here: components on
lines of their own (`mdx`), the scanning itself (`jsx`).
"""

from html import unescape

from markdown_it.rules_inline import StateInline

from serving.pipeline.jsx import (
    Tag,
    is_placeholder,
    literal_text,
    scan_expression,
    scan_markup,
    visible_label,
)

UNSEEN_TAGS = ("script", "style")
_MARKS = {"b": "**", "strong": "**", "i": "*", "em": "*"}
_CODE_TAGS = ("code", "kbd", "samp", "tt")


def read_inline_expression(state: StateInline, silent: bool) -> bool:  # noqa: FBT001
    """Read a braced expression.

    `{" "}` and other literals show their text, `{/* … */}` nothing, `{{x}}` and `{x}` themselves.
    """
    if not state.src.startswith("{", state.pos):
        return False
    comment = scan_markup(state.src, state.pos)
    end = comment.end if comment else scan_expression(state.src, state.pos)
    if end is None:
        return False
    expression = state.src[state.pos : end]
    text = "" if comment else literal_text(expression)
    if text is None and expression.startswith("{{"):
        text = expression
    if text is None or text.startswith("<"):
        return False
    if not silent and text:
        state.push("text", "", 0).content = text
    state.pos = end
    return True


def read_inline_tag(state: StateInline, silent: bool) -> bool:  # noqa: FBT001
    """Read a tag or a comment within a sentence."""
    tag = scan_markup(state.src, state.pos) if state.src.startswith("<", state.pos) else None
    if tag is None or is_placeholder(tag, state.env["source"]):
        return False
    end = tag.end
    if tag.name in (*_CODE_TAGS, *UNSEEN_TAGS) and tag.opens:
        close = state.src.find(f"</{tag.name}>", tag.end)
        end = close + len(tag.name) + 3 if close >= 0 else end
    if not silent:
        _push_inline_tag(state, tag, end)
    state.pos = end
    return True


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
    shown: list[str] = []
    position = 0
    while position < len(source):
        tag = scan_markup(source, position)
        end = tag.end if tag else None
        if end is None and source[position] == "{":
            end = scan_expression(source, position)
            text = literal_text(source[position:end]) if end else None
            shown.append("" if end is None else (source[position:end] if text is None else text))
        if end is None:
            shown.append(source[position])
        position = position + 1 if end is None else end
    return unescape("".join(shown))


def _separates_words(source: str, tag: Tag) -> bool:
    """A component between two words keeps them apart: `<li>a</li><li>b</li>` is no `ab`."""
    before, after = source[: tag.start][-1:], source[tag.end : tag.end + 1]
    return not before.isspace() and not after.isspace() and after not in ".,;:!?)"
