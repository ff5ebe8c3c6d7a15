"""The corpus folder: a missing folder, an empty page, a foreign encoding are said by name."""

import os
from dataclasses import replace

import pytest

from resources.corpus import CorpusFolder
from serving.errors import InvalidInputError
from serving.pipeline.chunking import Chunk, chunk_page


def chunk_site(folder: CorpusFolder) -> list[Chunk]:
    return [
        chunk
        for page in folder.read_pages()
        for chunk in chunk_page(
            page,
            target_tokens=9,
            maximum_tokens=20,
            count_tokens=lambda texts: [len(text.split()) for text in texts],
        )
    ]


def corpus(path) -> CorpusFolder:
    return CorpusFolder(path=path, include=("**/*.md", "**/*.mdx"), url="/{slug}/")


def test_pages_are_read_sorted_and_hidden_files_are_left_out(tmp_path):
    for name in ("b.md", "a/c.mdx", ".hidden/x.md", "node_modules/y.md", "note.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("# Title\n\nText.\n", encoding="utf-8")
    assert [page.path for page in corpus(tmp_path).read_pages()] == ["a/c.mdx", "b.md"]


@pytest.mark.parametrize(
    ("exclude", "kept"),
    [
        ((), ["a.md", "drafts/b.md", "drafts/old/c.md"]),
        (("a.md",), ["drafts/b.md", "drafts/old/c.md"]),
        (("drafts",), ["a.md"]),
        (("drafts/**",), ["a.md"]),
        (("**/old/*", "none.md"), ["a.md", "drafts/b.md"]),
    ],
)
def test_excluded_pages_are_neither_read_nor_part_of_the_fingerprint(tmp_path, exclude, kept):
    (tmp_path / "drafts/old").mkdir(parents=True)
    for name in ("a.md", "drafts/b.md", "drafts/old/c.md"):
        text = "# Title\n\nText.\n" if name in kept else "---\ndate: 2024-02-30\n---\n"
        (tmp_path / name).write_text(text, encoding="utf-8")
    folder = replace(corpus(tmp_path), exclude=exclude)
    assert [page.path for page in folder.read_pages()] == kept
    before = folder.fingerprint()
    for name in {"a.md", "drafts/b.md", "drafts/old/c.md"} - set(kept):
        (tmp_path / name).unlink()
    assert folder.fingerprint() == before == corpus(tmp_path).fingerprint()


def test_a_folder_whose_pages_are_all_excluded_says_so(tmp_path):
    (tmp_path / "a.md").write_text("Text.", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"but not \['\*'\].*product\.corpus\.exclude"):
        replace(corpus(tmp_path), exclude=("*",)).read_pages()


def test_the_fingerprint_moves_with_names_and_bytes(tmp_path):
    (tmp_path / "a.md").write_text("# A\n\nText.\n", encoding="utf-8")
    before = corpus(tmp_path).fingerprint()
    (tmp_path / "a.md").rename(tmp_path / "b.md")
    renamed = corpus(tmp_path).fingerprint()
    (tmp_path / "b.md").write_text("# A\n\nOther text.\n", encoding="utf-8")
    assert len({before, renamed, corpus(tmp_path).fingerprint()}) == 3


def test_an_edited_page_moves_no_chunk_of_another(tmp_path):
    for name in ("a", "b", "c"):
        text = f"# {name}\n\n## Same\n\nText of {name}.\n\n```\ncode\n```\n"
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    before = chunk_site(corpus(tmp_path))
    (tmp_path / "b.md").write_text("# B\n\nNew.\n\n## Same\n\nNew.\n", encoding="utf-8")
    (tmp_path / "d.md").write_text("# D\n\nAdded.\n", encoding="utf-8")
    after = chunk_site(corpus(tmp_path))
    kept = [c for c in before if not c.chunk_id.startswith("docs:b/")]
    assert kept == [c for c in after if not c.chunk_id.startswith(("docs:b/", "docs:d/"))]


def test_windows_line_ends_and_a_byte_order_mark_change_no_chunk(tmp_path):
    text = "---\ntitle: T\n---\n\n## A\n\nText.\n\n```\na\n\nb\n```\n"
    (tmp_path / "a.md").write_bytes(text.encode())
    before = chunk_site(corpus(tmp_path))
    (tmp_path / "a.md").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert chunk_site(corpus(tmp_path)) == before


def test_a_missing_folder_says_which_key_to_set(tmp_path):
    with pytest.raises(InvalidInputError, match=r"product\.corpus\.path"):
        corpus(tmp_path / "none").read_pages()


def test_a_folder_without_pages_says_what_was_looked_for(tmp_path):
    with pytest.raises(InvalidInputError, match=r"\*\*/\*\.mdx"):
        corpus(tmp_path).read_pages()


@pytest.mark.parametrize("text", ["", "  \n", "---\ntitle: Empty\n---\n"])
def test_an_empty_page_is_named(tmp_path, text):
    (tmp_path / "void.mdx").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"void\.mdx.*product\.corpus\.exclude"):
        corpus(tmp_path).read_pages()


def test_a_page_that_is_not_utf8_is_named_with_the_byte(tmp_path):
    (tmp_path / "latin.md").write_bytes("# Größe\n".encode("latin-1"))
    with pytest.raises(InvalidInputError, match=r"latin\.md.*0xf6"):
        corpus(tmp_path).read_pages()


@pytest.mark.parametrize("name", [b"gr\xf6\xdfe.md", b"gr\xf6\xdfe/page.md"])
def test_a_name_that_is_not_utf8_is_shown_escaped_and_can_be_excluded(tmp_path, name):
    """Python reads such a byte as a lone surrogate, which no table and no terminal takes."""
    try:
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("# Size\n\nText.\n", encoding="utf-8")
    except OSError:
        pytest.skip("this file system takes no such name")
    (tmp_path / "maße.md").write_text("# Size\n\nText.\n", encoding="utf-8")
    for read in (corpus(tmp_path).fingerprint, corpus(tmp_path).read_pages):
        with pytest.raises(InvalidInputError, match=r"gr\\xf6\\xdfe") as refused:
            read()
        str(refused.value).encode()
        assert "product.corpus.exclude" in refused.value.next_step
    (page,) = replace(corpus(tmp_path), exclude=("gr??e*",)).read_pages()
    assert page.path == "maße.md"
