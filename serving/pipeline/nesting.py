"""How deep Markdown may nest before it is text.

markdown-it drops what stands deeper than its own limit, and every level costs frames of Python's
stack. Belongs here: one limit that drops nothing. Does not belong here: any other syntax (`mdx`).
"""

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, blockquote, list_block

DEEPEST_BLOCK = 30  # markdown-it levels: 15 nested lists, or 30 quotes
DEEPEST_INLINE = 32  # markdown-it's own limit: above DEEPEST_BLOCK, so that no block ever meets it


def limit_nesting(parser: MarkdownIt) -> None:
    """Make lists and quotes below `DEEPEST_BLOCK` levels paragraphs, markers included."""
    interrupted = ["paragraph", "reference", "blockquote"]
    parser.block.ruler.at("list", _list, {"alt": interrupted})
    parser.block.ruler.at("blockquote", _blockquote, {"alt": [*interrupted, "list"]})


def _list(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001
    return state.level < DEEPEST_BLOCK and list_block(state, start, end, silent)


def _blockquote(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001
    return state.level < DEEPEST_BLOCK and blockquote(state, start, end, silent)
