"""MDX and Markdown pages read into markdown-it tokens.

A CommonMark parser with MDX's own rules added: components (`mdx_components`, `mdx_inline`), imports
and exports, `:::` directives, content indented under a component. Belongs here: what the syntax
means. Does not belong here: what becomes of the tokens (`block_reader`).
"""

from markdown_it import MarkdownIt
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock, reference
from markdown_it.token import Token

from serving.pipeline.jsx import Markup, read_markup
from serving.pipeline.mdx_components import push_block, read_component
from serving.pipeline.mdx_inline import read_inline_expression, read_inline_tag
from serving.pipeline.nesting import DEEPEST_INLINE, limit_nesting

_SILENT = True  # a rule called so only says whether it would begin here
_INTERRUPTS: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}


def parse_tokens(body: str, *, has_indented_code: bool) -> list[Token]:
    """Return the block tokens of a page's body; components are gone, their visible text is not.

    Headings carry an explicit id in `meta["anchor"]`, paragraphs made of a component's attributes
    carry `meta["label"]` ("title" or "field"). `has_indented_code` is CommonMark's meaning of four
    spaces; MDX has none, there they are indentation under a component.
    """
    parser = MarkdownIt("commonmark", {"maxNesting": DEEPEST_INLINE})
    parser.enable(["table", "strikethrough"])
    if not has_indented_code:
        parser.disable("code")
    # Without this, escapes stay separate tokens, so that `\\*` can be written back as it was.
    parser.disable("text_join")
    limit_nesting(parser)
    parser.block.ruler.at("html_block", read_component, _INTERRUPTS)
    parser.block.ruler.at("reference", _reference)
    parser.block.ruler.at("paragraph", _paragraph)
    parser.block.ruler.before("table", "directive", _directive, _INTERRUPTS)
    parser.block.ruler.before("table", "module_code", _module_code)
    parser.inline.ruler.at("html_inline", read_inline_tag)
    parser.inline.ruler.before("autolink", "expression", read_inline_expression)
    return parser.parse(body, {"markup": read_markup(body)})


def _directive(state: StateBlock, start: int, _end: int, silent: bool) -> bool:  # noqa: FBT001
    """`:::note Title`, `:::note[Title]{…}` and the closing `:::`."""
    line = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]].strip()
    if state.is_code_block(start) or not line.startswith(":::"):
        return False
    if not silent:
        state.line = start + 1
        meta = {"label": "title"}
        title = _directive_title(line.lstrip(":").strip())
        push_block(
            state, "paragraph", "p", f"**{title}**" if title else "", [start, start + 1], meta=meta
        )
    return True


def _directive_title(rest: str) -> str:
    name_end = next((i for i, c in enumerate(rest) if not (c.isalnum() or c in "-_")), len(rest))
    title = rest[name_end:].strip()
    braces = title.rfind("{")
    if title.endswith("}") and braces >= 0 and not title.startswith("{{"):
        title = title[:braces].rstrip()
    return title[1:-1].strip() if title.startswith("[") and title.endswith("]") else title


def _module_code(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001
    """`import` and `export` statements at the top level, over as many lines as they need.

    One that never ends, as far as can be told, takes the lines up to the next blank one.
    """
    if silent or state.level or state.sCount[start] or not _is_module_code(_line(state, start)):
        return False
    markup: Markup = state.env["markup"]
    finish = markup.scanner(state.src).statement_end(state.bMarks[start])
    if finish is not None:
        last = start + state.src.count("\n", state.bMarks[start], finish)
    else:
        last = start
        while last + 1 < end and not state.isEmpty(last + 1):
            last += 1
    state.line = last + 1
    return True


def _is_module_code(line: str) -> bool:
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if word == "import":
        return rest.startswith(("{", "*")) or _imports_a_file(rest) or _imports_a_name(rest)
    openings = ("const ", "let ", "var ", "function", "default ", "class ", "async ", "{", "*")
    return word == "export" and rest.startswith(openings)


def _imports_a_file(rest: str) -> bool:
    """`import './style.css'`, but not `import 'quoted words' into your page`."""
    after = rest[1:].partition(rest[0])[2].strip() if rest.startswith(("'", '"')) else "no string"
    return after in {"", ";"} or after.startswith(("with ", "assert "))


def _imports_a_name(rest: str) -> bool:
    name, _, source = rest.partition(" from ")
    is_quoted = source.strip().startswith(("'", '"'))
    return is_quoted or (name.rstrip().endswith("{") and "," in name)


def _reference(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001
    """Link definitions are unseen, but `[^1]: …` is a footnote and its text is seen."""
    is_footnote = _line(state, start).startswith("[^")
    return not is_footnote and reference(state, start, end, silent)


def _paragraph(state: StateBlock, start: int, _end: int, _silent: bool) -> bool:  # noqa: FBT001
    """A paragraph that a fence or a component ends at any indentation.

    CommonMark's own rule takes lines indented by four as continuation, whatever they hold.
    """
    terminators = state.md.block.ruler.getRules("paragraph")
    outer_type, state.parentType = state.parentType, "paragraph"
    last = start + 1
    while last < state.lineMax and not state.isEmpty(last):
        is_lazy_quote = state.sCount[last] < 0
        if not is_lazy_quote and any(
            rule(state, last, state.lineMax, _SILENT) for rule in terminators
        ):
            break
        last += 1
    content = state.getLines(start, last, state.blkIndent, keepLastLF=False).strip()
    state.line = last
    push_block(state, "paragraph", "p", content, [start, last])
    state.parentType = outer_type
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]
