"""An edited page embeds its own chunks, and nothing else is embedded again."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import dagster as dg
import pytest

from assets import keys, tables
from assets.corpus import assets as corpus_assets
from assets.corpus.assets import chunks, pages, vector_index
from assets.corpus.chunks import ChunkSizes
from assets.corpus.snapshots import list_snapshots
from orchestration.planning import plan_run, read_states
from resources.corpus import CorpusFolder
from resources.embeddings import CachedEmbedder
from resources.lake import LakeIOManager
from serving.home import Home
from serving.pipeline import chunking, indexing
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


def open_resources(site: Path, inner: CountingEmbedder) -> dict[str, object]:
    home = Home(site.parent / "home")
    return {
        "io_manager": LakeIOManager(home.lake, tables.BY_KEY),
        "corpus": CorpusFolder(path=site, include=("**/*.mdx",), url="/{slug}/"),
        "embedder": CachedEmbedder(inner, home.embeddings),
        "chunk_sizes": ChunkSizes(target_tokens=12, maximum_tokens=24),
        "home": home,
    }


def materialise(site: Path, inner: CountingEmbedder, instance: dg.DagsterInstance):
    resources = open_resources(site, inner)
    return dg.materialize([pages, chunks, vector_index], instance=instance, resources=resources)


def build(site: Path) -> tuple[CountingEmbedder, dict[str, object]]:
    """Materialise the corpus in a fresh process's stead; return what was embedded and reported."""
    inner = CountingEmbedder()
    done = materialise(site, inner, dg.DagsterInstance.ephemeral())
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


def test_a_snapshot_that_is_current_again_counts_as_built_now(site):
    """So that it is not removed between a run that finds it there and the table that names it."""
    _, report = build(site)
    index = Home(site.parent / "home").index
    os.utime(index / report["index_fingerprint"], (0, 0))
    assert list_snapshots(index)[0].built_at.year == 1970
    build(site)
    (snapshot,) = list_snapshots(index)
    assert snapshot.fingerprint == report["index_fingerprint"]
    assert snapshot.built_at.year > 2000


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


def declare_anew() -> ModuleType:
    """Execute the declarations again, as a process of the next version would."""
    spec = importlib.util.spec_from_file_location("corpus_next", corpus_assets.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("module", "version", "planned"),
    [
        (indexing, None, []),
        (indexing, "RETRIEVAL_VERSION", ["corpus/vector_index"]),
        (chunking, "CHUNKER_VERSION", ["corpus/chunks", "corpus/vector_index"]),
    ],
)
def test_a_raised_version_plans_what_it_decides_anew(site, monkeypatch, module, version, planned):
    instance = dg.DagsterInstance.ephemeral()
    observed = dg.AssetObservation(keys.SOURCE_FILES, tags={"dagster/data_version": "v1"})
    instance.report_runless_asset_event(observed)
    materialise(site, CountingEmbedder(), instance)
    if version:
        monkeypatch.setattr(module, version, "next")
    declared = declare_anew()
    states = read_states(
        dg.Definitions(
            [declared.pages, declared.chunks, declared.vector_index],
            resources=open_resources(site, CountingEmbedder()),
        ),
        instance,
        partition="",
        sources={keys.SOURCE_FILES: "v1"},
        is_stored=lambda *_: True,
    )
    assert [asset.key for asset in plan_run(states)] == planned
