"""A page's metadata: the YAML block before its Markdown.

Belongs here: where the block ends and what is wrong with it. Does not belong here: what the
metadata means (`chunking`).
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from serving.errors import InvalidInputError

KEY = re.compile(r"""["']?[A-Za-z_][\w.-]*["']?\s*:(\s|$)""")


class _Loader(yaml.SafeLoader):
    """A loader that says at which line a value is impossible: the 30th of February, hour 25."""

    def construct_object(
        self,
        node: yaml.Node,
        deep: bool = False,  # noqa: FBT001, FBT002 (as PyYAML calls it)
    ) -> Any:
        """Return a node's value."""
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:
            raise ConstructorError(None, None, str(error), node.start_mark) from error


def split_frontmatter(path: str, source: str) -> tuple[dict[str, Any], str]:
    """Return the YAML frontmatter and the Markdown after it.

    A first `---` that is never closed is a thematic break, unless a key follows: then its end was
    forgotten.

    Raises:
        InvalidInputError: the frontmatter is no YAML mapping or never ends; names path and line.
    """
    lines = source.removeprefix("\ufeff").splitlines(keepends=True)
    if not lines or lines[0].rstrip() != "---":
        return {}, "".join(lines)
    header = list(takewhile(lambda line: line.rstrip() != "---", lines[1:]))
    if len(header) == len(lines) - 1:
        if not _begins_with_key(header):
            return {}, "".join(lines)
        raise _broken_frontmatter(path, line=1, found="a block that never ends")
    try:
        metadata = yaml.load("".join(header), Loader=_Loader) or {}  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "unreadable YAML"
        line = mark.line + 2 if mark else 1
        found = str(problem).removeprefix("found ")
        raise _broken_frontmatter(path, line=line, found=found) from error
    if not isinstance(metadata, dict):
        raise _broken_frontmatter(path, line=2, found=f"a {type(metadata).__name__}")
    return metadata, "".join(lines[len(header) + 2 :])


def _begins_with_key(lines: Sequence[str]) -> bool:
    """Whether the first paragraph begins with `key:`, comments aside (in Markdown, headings)."""
    stripped = "".join(lines).lstrip().splitlines()
    paragraph = takewhile(str.strip, stripped)
    return bool(KEY.match(next((line for line in paragraph if not line.startswith("#")), "")))


def _broken_frontmatter(path: str, *, line: int, found: str) -> InvalidInputError:
    return InvalidInputError(
        f"reading the frontmatter of {path}",
        expected="a YAML mapping between two lines of `---`",
        found=f"{found} at {path}:{line}",
        next_step=f"correct {path} at line {line}, or leave it out with product.corpus.exclude",
    )
