"""Which chunks may be found: a typed filter as a condition that LanceDB understands.

Belongs here: `ChunkFilter` to a condition, refusing values that no page or heading can have. Does
not belong here: searching (`retrieval`), what is stored (`indexing`).
"""

import unicodedata

from serving.errors import InvalidInputError
from serving.models.protocols import ChunkFilter

UNWRITABLE = frozenset({"Cc", "Cs"})
"""Unicode categories no heading has: control characters, and surrogates, which are no text."""


def write_condition(where: ChunkFilter) -> str | None:
    """Return the filter as a condition for LanceDB, None where it restricts nothing.

    Every value stands in a quoted literal with its quotes doubled, so none can end it.

    Raises:
        InvalidInputError: a value that no page or heading can have.
    """
    conditions = []
    if where.pages is not None:
        pages: object = where.pages  # unchecked callers pass one text, which is a sequence as well
        if not isinstance(pages, tuple):
            raise _explain("pages", pages, "a tuple of slugs")
        slugs = ", ".join(_quote_slug("pages", slug) for slug in where.pages)
        conditions.append(f"page IN ({slugs})" if slugs else "false")
    if where.below is not None:
        page = _quote_slug("below", where.below)
        conditions.append(f"(page = {page} OR starts_with(page, {page[:-1]}/'))")
    if where.heading is not None:
        conditions.append(f"array_has(heading_path, {_quote('heading', where.heading)})")
    return " AND ".join(conditions) or None


def _quote_slug(name: str, value: str) -> str:
    quoted = _quote(name, value)
    parts = value.split("/")
    if "" in parts or ".." in parts or value.endswith((".md", ".mdx")):
        shape = "a slug such as how-to/install, without extension and outer slashes"
        raise _explain(name, value, shape)
    return quoted


def _quote(name: str, value: str) -> str:
    is_text = isinstance(value, str) and bool(value.strip())
    if not is_text or not UNWRITABLE.isdisjoint(map(unicodedata.category, value)):
        raise _explain(name, value, "a text without control characters")
    return "'" + value.replace("'", "''") + "'"


def _explain(name: str, value: object, expected: str) -> InvalidInputError:
    return InvalidInputError(
        f"filtering chunks by `{name}`",
        expected=expected,
        found=repr(value),
        next_step="correct that part of the filter, or leave it out",
    )
