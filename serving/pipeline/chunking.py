"""Documentation pages cut into the chunks that are embedded, retrieved, quoted and cited.

Belongs here: what a page and a chunk are, a page's sections and which of them share a chunk. Does
not belong here: Markdown and MDX (`mdx`, `blocks`), sizes (`packing`), files on disk, embeddings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.pipeline.blocks import (
    Block,
    Heading,
    Text,
    plain_text,
    read_blocks,
    write_block,
    write_blocks,
)
from serving.pipeline.mdx import split_frontmatter
from serving.pipeline.packing import Sizes, fill_chunks

CHUNKER_VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class Page:
    """One documentation page as it was written.

    `page_id` is the hash of `path` (posix, relative to the corpus root), `slug` the path without
    its extension, `source` the raw text and `content_hash` its hash.
    """

    page_id: str
    path: str
    slug: str
    title: str
    url: str
    source: str
    content_hash: str


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A passage small enough to embed and to cite.

    `chunk_id` is `docs:<slug>/<ordinal>`, `ordinal` counts from 1 within the page. `heading_path`
    begins with the page's title; its headings are not in `text`, which is clean Markdown.
    `token_count` counts `text`. It passes the maximum only when `is_oversized`: then the chunk is a
    single fence, table row or word, which are never cut. `content_hash` covers path and text.
    """

    chunk_id: str
    page_id: str
    ordinal: int
    heading_path: tuple[str, ...]
    anchor: str
    url: str
    text: str
    token_count: int
    content_hash: str
    is_oversized: bool = False


def parse_page(path: str, source: str, *, url_template: str) -> Page:
    """Read one page's metadata.

    Args:
        path: posix path relative to the corpus root.
        source: the file's text.
        url_template: where the page is published, with `{slug}` in it.

    Raises:
        InvalidInputError: broken frontmatter (names path and line), or a page without visible text.
    """
    metadata, body = split_frontmatter(path, source)
    blocks = _read_body(path, body)
    if not blocks:
        raise _empty_page(path)
    slug = PurePosixPath(path).with_suffix("").as_posix()
    first_h1 = next((b.text.plain for b in blocks if isinstance(b, Heading) and b.level == 1), None)
    title = str(metadata.get("title") or "").strip() or first_h1 or _humanise(slug)
    return Page(
        page_id=content_hash(path),
        path=path,
        slug=slug,
        title=title,
        url=url_template.replace("{slug}", slug),
        source=source,
        content_hash=content_hash(source),
    )


def chunk_page(
    page: Page,
    *,
    target_tokens: int,
    maximum_tokens: int,
    count_tokens: Callable[[Sequence[str]], list[int]],
) -> list[Chunk]:
    """Cut a page into chunks, in reading order; nothing visible is lost.

    Blocks of one section fill a chunk up to `target_tokens`. Above `maximum_tokens` a block is cut
    between list items, table rows (the header repeats), sentences or, in a monster of a sentence,
    words; only what cannot be cut may be larger. A lead-in (`Do this:`) stays with what it leads
    to and a short last remainder joins its predecessor where the maximum allows it. A tiny section
    shares a chunk with the next section of the same parent: both headings become bold lines.

    Args:
        page: a page from `parse_page`.
        target_tokens: size to aim at.
        maximum_tokens: size never to pass, at least the target.
        count_tokens: number of tokens of each text, as the embedder counts them.
    """
    sizes = Sizes(target=target_tokens, maximum=maximum_tokens, count_tokens=count_tokens)
    passages = [
        (section, text)
        for section in _merge_tiny(_read_sections(page), sizes)
        for text in fill_chunks(section.blocks, sizes)
    ]
    return [
        _make_chunk(page, ordinal=ordinal, section=section, text=text, sizes=sizes)
        for ordinal, (section, text) in enumerate(passages, start=1)
    ]


def visible_text(page: Page) -> str:
    """Return everything a reader sees of the page's body, in order, without markup.

    Headings are in it; metadata, link targets and list markers are not.
    """
    _, body = split_frontmatter(page.path, page.source)
    return "\n".join(plain_text(block) for block in _read_body(page.path, body))


@dataclass(frozen=True, kw_only=True)
class _Section:
    """What stands under one heading, up to the next heading of any level."""

    heading: Heading | None
    path: tuple[str, ...]
    parent: int
    blocks: list[Block]

    @property
    def anchor(self) -> str:
        return self.heading.anchor if self.heading else ""


def _read_body(path: str, body: str) -> list[Block]:
    return read_blocks(body, has_indented_code=not path.endswith(".mdx"))


def _empty_page(path: str) -> InvalidInputError:
    return InvalidInputError(
        f"reading the page {path}",
        expected="text that a reader sees",
        found="none besides metadata and components without text",
        next_step=f"write the page {path} or exclude it from the corpus",
    )


def _humanise(slug: str) -> str:
    parts = slug.split("/")
    name = parts[-2] if parts[-1] == "index" and len(parts) > 1 else parts[-1]
    words = name.replace("-", " ").replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _read_sections(page: Page) -> list[_Section]:
    """Return the sections that hold text; a heading over nothing at all is its section's text."""
    _, body = split_frontmatter(page.path, page.source)
    root = _Section(heading=None, path=(page.title,), parent=-1, blocks=[])
    sections = [root]
    open_sections: list[tuple[int, int]] = []
    parents: set[int] = set()
    for block in _read_body(page.path, body):
        if not isinstance(block, Heading):
            sections[-1].blocks.append(block)
            continue
        # The page's own title in the body is no level of the path: it is there already.
        is_title = block.level == 1 and block.text.plain == page.title
        level = 0 if is_title else block.level
        while open_sections and open_sections[-1][0] >= level:
            open_sections.pop()
        parent = open_sections[-1][1] if open_sections else -1
        above = sections[parent].path if open_sections else root.path
        path = root.path if is_title else (*above, block.text.plain)
        open_sections.append((level, len(sections)))
        parents.add(parent)
        moved = _take_trailing_labels(sections[-1].blocks)
        sections.append(_Section(heading=block, path=path, parent=parent, blocks=moved))
    for number, section in enumerate(sections):
        if section.heading and not section.blocks and number not in parents:
            section.blocks.append(_heading_line(section.heading))
    return [section for section in sections if section.blocks]


def _take_trailing_labels(blocks: list[Block]) -> list[Block]:
    """Remove and return the labels at the end: a tab or an accordion whose content is headings."""
    first = len(blocks)
    while first and isinstance(label := blocks[first - 1], Text) and label.is_label:
        first -= 1
    taken = blocks[first:]
    del blocks[first:]
    return taken


def _heading_line(heading: Heading) -> Text:
    return Text(markdown=write_block(heading), plain=heading.text.plain, is_label=True)


def _merge_tiny(sections: Sequence[_Section], sizes: Sizes) -> list[_Section]:
    merged: list[_Section] = []
    is_group = False
    for section in sections:
        last = merged[-1] if merged else None
        if last and _may_share(last, section, sizes):
            blocks = last.blocks if is_group else _with_heading(last)
            joined = [*blocks, *_with_heading(section)]
            if sizes.of(write_blocks(joined)) <= sizes.target:
                merged[-1] = _Section(
                    heading=last.heading,
                    path=last.path if is_group else last.path[:-1],
                    parent=last.parent,
                    blocks=joined,
                )
                is_group = True
                continue
        merged.append(section)
        is_group = False
    return merged


def _may_share(last: _Section, section: _Section, sizes: Sizes) -> bool:
    """Both stand under one parent, with a heading below the page's title, and the first is tiny."""
    are_siblings = bool(last.heading and section.heading) and last.parent == section.parent
    is_below_title = len(section.path) > 1 and len(last.path) >= 1
    return are_siblings and is_below_title and sizes.is_tiny(write_blocks(last.blocks))


def _with_heading(section: _Section) -> list[Block]:
    if section.heading is None:
        return section.blocks
    line = _heading_line(section.heading)
    return section.blocks if section.blocks == [line] else [line, *section.blocks]


def _make_chunk(page: Page, *, ordinal: int, section: _Section, text: str, sizes: Sizes) -> Chunk:
    token_count = sizes.of(text)
    return Chunk(
        chunk_id=f"docs:{page.slug}/{ordinal}",
        page_id=page.page_id,
        ordinal=ordinal,
        heading_path=section.path,
        anchor=section.anchor,
        url=f"{page.url}#{section.anchor}" if section.anchor else page.url,
        text=text,
        token_count=token_count,
        content_hash=content_hash(section.path, text),
        is_oversized=token_count > sizes.maximum,
    )
