"""Documentation pages cut into the chunks that are embedded, retrieved, quoted and cited.

Belongs here: what a page and a chunk are, a page's sections and which of them share a chunk. Does
not belong here: Markdown and MDX (`mdx`, `blocks`), sizes (`packing`), files on disk, embeddings.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath
from urllib.parse import quote

from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.pipeline.block_reader import read_blocks
from serving.pipeline.blocks import Block, Heading, Text, plain_text, write_block, write_blocks
from serving.pipeline.cutting import cut_blocks, list_parts
from serving.pipeline.frontmatter import split_frontmatter
from serving.pipeline.packing import Packed, fill_chunks
from serving.pipeline.sizes import Sizes

CHUNKER_VERSION = "3"
READ_PAGES_KEPT = 512
"""Pages whose visible text stays in memory: three checks of a run read the text of every page. Of a
larger corpus it is read three times."""

_UNCITABLE = re.compile(r"[\s\[\]]|%(?=[0-9A-F]{2})")
"""What a citation's id cannot hold (`prompt.CITATION_PATTERN`), and a `%` that would be taken for
the beginning of such an encoding: two paths never share a slug."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One documentation page as it was written.

    `page_id` is the hash of `path` (posix, relative to the corpus root), `slug` the path without
    its extension, spaces and square brackets percent-encoded, `source` the raw text and
    `content_hash` its hash.
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
    `token_count` counts `text`. It may pass the maximum only when `is_oversized`: then the chunk is
    a single fence or table row, which are never cut, behind the line that leads into it.
    `content_hash` covers path and text.
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
    name = PurePosixPath(path).with_suffix("").as_posix()
    first_h1 = next((b.text.plain for b in blocks if isinstance(b, Heading) and b.level == 1), None)
    title = " ".join(str(metadata.get("title") or "").split()) or first_h1 or _humanise(name)
    return Page(
        page_id=content_hash(path),
        path=path,
        slug=_UNCITABLE.sub(lambda found: quote(found[0]), name),
        title=title,
        url=_write_url(url_template, name),
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

    The tokenizer is called a few times a page, with many texts each: the blocks, the parts of those
    that have to be cut, the chunks.

    Args:
        page: a page from `parse_page`.
        target_tokens: size to aim at.
        maximum_tokens: size never to pass, at least the target.
        count_tokens: number of tokens of each text, as the embedder counts them.
    """
    sizes = Sizes(target=target_tokens, maximum=maximum_tokens, count_tokens=count_tokens)
    sections = _read_sections(page)
    blocks = [block for section in sections for block in _with_heading(section)]
    sizes.prepare(write_block(block) for block in blocks)
    large = [block for block in blocks if sizes.of(write_block(block)) > maximum_tokens]
    sizes.prepare(text for block in large for text in list_parts(block))
    passages = _fill_sections(_merge_tiny(sections, sizes), sizes)
    return [
        _make_chunk(page, ordinal=ordinal, section=section, packed=packed, sizes=sizes)
        for ordinal, (section, packed) in enumerate(passages, start=1)
    ]


def _fill_sections(sections: Sequence[_Section], sizes: Sizes) -> Iterator[tuple[_Section, Packed]]:
    """Pack by estimates, count what came of it, and pack anew where the maximum was passed."""
    cut = [cut_blocks(section.blocks, sizes) for section in sections]
    sizes.prepare(write_block(part) for parts in cut for part in parts)
    filled = [fill_chunks(parts, sizes) for parts in cut]
    sizes.prepare(write_blocks(packed.blocks) for chunks in filled for packed in chunks)
    exact = sizes.exactly()
    for section, chunks in zip(sections, filled, strict=True):
        is_sound = all(_is_sound(packed, sizes) for packed in chunks)
        sound = chunks if is_sound else fill_chunks(cut_blocks(section.blocks, exact), exact)
        yield from ((section, packed) for packed in sound)


def _is_sound(packed: Packed, sizes: Sizes) -> bool:
    return packed.is_uncuttable or sizes.of(write_blocks(packed.blocks)) <= sizes.maximum


@lru_cache(maxsize=READ_PAGES_KEPT)
def visible_text(page: Page) -> str:
    """Return everything a reader sees of the page's body, in order, without markup.

    Headings are in it; metadata, link targets and list markers are not.
    """
    _, body = split_frontmatter(page.path, page.source)
    return "\n".join(plain_text(block) for block in _read_body(page.path, body))


def _read_body(path: str, body: str) -> list[Block]:
    return read_blocks(body, has_indented_code=not path.endswith(".mdx"))


def _empty_page(path: str) -> InvalidInputError:
    return InvalidInputError(
        f"reading the page {path}",
        expected="text that a reader sees",
        found="none besides metadata and components without text",
        next_step=f"write the page {path} or leave it out with product.corpus.exclude",
    )


def _write_url(template: str, name: str) -> str:
    """Return where a page is published: an index page at its folder, unless pages are files."""
    _, _, after = template.partition("{slug}")
    if after[:1] in {"", "/", "?", "#"}:  # not `{slug}.html`
        name = f"/{name}".removesuffix("/index").removeprefix("/")
    filled = template if name else template.replace("{slug}/", "{slug}")
    return filled.replace("{slug}", quote(name))


def _humanise(name: str) -> str:
    parts = name.split("/")
    last = parts[-2] if parts[-1] == "index" and len(parts) > 1 else parts[-1]
    words = last.replace("-", " ").replace("_", " ").strip()
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
    """Join sections that would each make a poor chunk, in groups that fit one chunk."""
    groups: list[list[_Section]] = []
    alone = joined = 0  # cost of the last group, as it stands and with all its headings
    for section in sections:
        cost = _cost(_with_heading(section), sizes)
        total = joined + sizes.blank_line + cost
        may_join = groups and sizes.is_tiny(alone) and _are_siblings(groups[-1][-1], section)
        if may_join and total <= sizes.target:
            groups[-1].append(section)
            alone = joined = total
        else:
            groups.append([section])
            alone, joined = _cost(section.blocks, sizes), cost
    return [_merge(group) for group in groups]


def _are_siblings(last: _Section, section: _Section) -> bool:
    """Return True for two sections with headings under one parent, below the page's title."""
    have_headings = last.heading is not None and section.heading is not None
    are_below_title = len(section.path) > 1 and len(last.path) > 1
    return have_headings and are_below_title and last.parent == section.parent


def _merge(group: Sequence[_Section]) -> _Section:
    if len(group) == 1:
        return group[0]
    blocks = [block for section in group for block in _with_heading(section)]
    return replace(group[0], path=group[0].path[:-1], blocks=blocks)


def _with_heading(section: _Section) -> list[Block]:
    if section.heading is None:
        return section.blocks
    line = _heading_line(section.heading)
    return section.blocks if section.blocks == [line] else [line, *section.blocks]


def _cost(blocks: Sequence[Block], sizes: Sizes) -> int:
    parts = sum(sizes.of(write_block(block)) for block in blocks)
    return parts + sizes.blank_line * (len(blocks) - 1)


def _make_chunk(
    page: Page, *, ordinal: int, section: _Section, packed: Packed, sizes: Sizes
) -> Chunk:
    text = write_blocks(packed.blocks)
    token_count = sizes.tokens(text)
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
        is_oversized=packed.is_uncuttable and token_count > sizes.maximum,
    )
