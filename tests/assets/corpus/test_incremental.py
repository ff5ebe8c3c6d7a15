"""An edited page embeds its own chunks, and nothing else is embedded again."""

from pathlib import Path

import dagster as dg
import pytest

from assets import tables
from assets.corpus.assets import chunks, pages, vector_index
from assets.corpus.chunks import ChunkSizes
from resources.corpus import CorpusFolder
from resources.embeddings import CachedEmbedder
from resources.lake import LakeIOManager
from serving.home import Home
from tests.counting_embedder import CountingEmbedder

SECTIONS = 4


def write_page(folder: Path, name: str, word: str) -> None:
    sections = [
        f"## Part {part}\n\nThe {word} of {name} part {part} is set to {part}0 degrees.\n"
        for part in range(SECTIONS)
    ]
    (folder / f"{name}.mdx").write_text(
        f"---\ntitle: {name.title()}\n---\n\n" + "\n".join(sections), encoding="utf-8"
    )


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "pages"
    folder.mkdir()
    for name in ("alpha", "beta", "gamma", "delta"):
        write_page(folder, name, "heat")
    return folder


def build(site: Path) -> tuple[CountingEmbedder, dict[str, object]]:
    """Materialise the corpus in a fresh process's stead; return what was embedded and reported."""
    home = Home(site.parent / "home")
    inner = CountingEmbedder()
    done = dg.materialize(
        [pages, chunks, vector_index],
        instance=dg.DagsterInstance.ephemeral(),
        resources={
            "io_manager": LakeIOManager(home.lake, tables.BY_KEY),
            "corpus": CorpusFolder(path=site, include=("**/*.mdx",), url="/{slug}/"),
            "embedder": CachedEmbedder(inner, home.embeddings),
            "chunk_sizes": ChunkSizes(target_tokens=12, maximum_tokens=24),
            "home": home,
        },
    )
    (event,) = done.asset_materializations_for_node("corpus__vector_index")
    return inner, {name: value.value for name, value in event.metadata.items()}


def test_a_second_materialisation_embeds_nothing(site):
    first, report = build(site)
    assert len(first.embedded) == report["embedded_count"] == report["window_count"]
    assert report["window_count"] >= 4 * SECTIONS
    again, repeated = build(site)
    assert again.embedded == []
    assert (repeated["embedded_count"], repeated["reused_count"]) == (0, report["window_count"])
    assert repeated["index_fingerprint"] == report["index_fingerprint"]


def test_an_edited_page_embeds_its_own_chunks_only(site):
    _, before = build(site)
    write_page(site, "beta", "pressure")
    inner, after = build(site)
    assert len(inner.embedded) == after["embedded_count"] == before["window_count"] // 4
    assert all("pressure of beta" in text for text in inner.embedded)
    assert after["index_fingerprint"] != before["index_fingerprint"]


def test_an_edited_section_embeds_that_section_only(site):
    build(site)
    page = site / "gamma.mdx"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("part 2 is set to 20", "part 2 is set to 25"), encoding="utf-8")
    inner, _ = build(site)
    assert len(inner.embedded) == 1
    assert "set to 25" in inner.embedded[0]


def test_a_renamed_or_removed_page_embeds_nothing(site):
    build(site)
    (site / "delta.mdx").unlink()
    (site / "alpha.mdx").rename(site / "omega.mdx")
    assert build(site)[0].embedded == []
