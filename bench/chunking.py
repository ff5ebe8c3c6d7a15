"""Chunking against its peers: how fast, and what each of them breaks.

Run: `python bench/chunking.py [--folder DOCS ...] [--pages 24] [--kilobytes 25] [--rounds 3]
[--json]`. With `--worst 50` the fifty chunks of ours that most need reading are printed instead.
Sites: a synthetic one whose generator knows every word, this repo's docs, and each
folder given. Arms, all with the embedder's tokenizer and the same maximum: ours; LangChain's
Markdown header splitter followed by its recursive splitter; semantic-text-splitter's Markdown
splitter (Rust). Arms are interleaved; times are of one process. One page is doubled three times.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.chunking_sites import SitePage, read_site, squeeze, squeeze_row, write_site
from bench.worst_chunks import print_worst, rank_chunks
from orchestration.config import load_config
from serving.models.embedder import SentenceEmbedder, load_embedder
from serving.pipeline.chunking import chunk_page, parse_page

ROOT = Path(__file__).parents[1]
LIBRARIES = ("markdown-it-py", "tokenizers", "langchain-text-splitters", "semantic-text-splitter")
TARGET, MAXIMUM = 90, 180


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A chunk as its splitter made it: what is embedded, and the headings that go with it."""

    text: str
    headings: str = ""


Split = Callable[[SitePage], list[Piece]]


@dataclass
class Meter:
    """Counts tokens as the product does, and how long that takes."""

    embedder: SentenceEmbedder
    seconds: float = 0.0
    calls: int = 0

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of texts."""
        started = time.perf_counter()
        counts = self.embedder.count_tokens(texts)
        self.seconds += time.perf_counter() - started
        self.calls += 1
        return counts


def make_arms(meter: Meter) -> dict[str, Split]:
    """Return the splitters; each returns the texts of a page's chunks."""
    from langchain_text_splitters import MarkdownHeaderTextSplitter, RecursiveCharacterTextSplitter
    from semantic_text_splitter import MarkdownSplitter

    headers = MarkdownHeaderTextSplitter(
        [("#" * n, f"h{n}") for n in range(1, 7)], strip_headers=False
    )
    recursive = RecursiveCharacterTextSplitter.from_language(
        "markdown",
        chunk_size=MAXIMUM,
        chunk_overlap=0,
        length_function=lambda text: meter([text])[0],
    )
    semantic = MarkdownSplitter.from_callback(lambda text: meter([text])[0], (TARGET, MAXIMUM))

    def ours(page: SitePage) -> list[Piece]:
        parsed = parse_page(page.path, page.source, url_template="/{slug}")
        chunks = chunk_page(
            parsed, target_tokens=TARGET, maximum_tokens=MAXIMUM, count_tokens=meter
        )
        return [Piece(text=c.text, headings="\n".join(c.heading_path)) for c in chunks]

    def langchain(page: SitePage) -> list[Piece]:
        documents = recursive.split_documents(headers.split_text(page.source))
        return [Piece(text=document.page_content) for document in documents]

    def rust(page: SitePage) -> list[Piece]:
        return [Piece(text=text) for text in semantic.chunks(page.source)]

    return {"ours": ours, "langchain": langchain, "semantic": rust}


def time_arms(
    site: Sequence[SitePage], arms: dict[str, Split], meter: Meter, rounds: int
) -> dict[str, Any]:
    """Return pages/s and MB/s (median, least, most) and the share of time spent on tokens."""
    megabytes = sum(len(page.source.encode()) for page in site) / 1e6
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    counting: dict[str, list[float]] = {name: [] for name in arms}
    calls: dict[str, int] = {}
    for _ in range(rounds):
        for name, split in arms.items():
            meter.seconds, meter.calls = 0.0, 0
            started = time.perf_counter()
            for page in site:
                split(page)
            seconds[name].append(time.perf_counter() - started)
            counting[name].append(meter.seconds / seconds[name][-1])
            calls[name] = meter.calls
    return {
        name: {
            "pages_per_second": _spread([len(site) / s for s in seconds[name]]),
            "megabytes_per_second": _spread([megabytes / s for s in seconds[name]]),
            "tokenising_ratio": statistics.median(counting[name]),
            "tokenizer_calls": calls[name],
        }
        for name in arms
    }


def judge(site: Sequence[SitePage], split: Split, meter: Meter) -> dict[str, int]:
    """Return how many fences and rows are cut, words lost, and unseen words leaked into texts."""
    board = dict.fromkeys(
        ("chunks", "over_maximum", "fences", "fences_cut", "rows", "rows_cut", "rows_headless"), 0
    )
    board |= dict.fromkeys(("words", "words_lost", "unseen", "unseen_leaked"), 0)
    for page in site:
        pieces = split(page)
        texts = [piece.text for piece in pieces]
        squeezed = [squeeze(text) for text in texts]
        lines = {squeeze_row(line) for text in texts for line in text.split("\n")}
        headed = {
            squeeze_row(line)
            for text in texts
            if "|---" in text.replace(" ", "")
            for line in text.split("\n")
        }
        everything = "\n".join(f"{piece.headings}\n{piece.text}" for piece in pieces)
        board["chunks"] += len(texts)
        board["over_maximum"] += sum(count > MAXIMUM for count in meter(texts))
        board["fences"] += len(page.fences)
        board["fences_cut"] += sum(
            not any(fence in text for text in squeezed) for fence in page.fences
        )
        board["rows"] += len(page.rows)
        board["rows_cut"] += sum(row not in lines for row in page.rows)
        board["rows_headless"] += sum(row in lines and row not in headed for row in page.rows)
        board["words"] += len(page.words)
        board["words_lost"] += sum(word not in everything for word in page.words)
        board["unseen"] += len(page.unseen)
        board["unseen_leaked"] += sum(word in everything for word in page.unseen)
    return board


def measure_scaling(arms: dict[str, Split], rounds: int) -> dict[str, Any]:
    """Return seconds for one page of 25 to 200 kB; a linear splitter doubles with the page."""
    sizes = (25, 50, 100, 200)
    pages = {size: write_site(1, size, seed=size)[0] for size in sizes}
    whole = {
        size: SitePage(path=page.path, source=(page.source * 9)[: size * 1000])
        for size, page in pages.items()
    }
    return {
        name: {size: _least_seconds(split, whole[size], rounds) for size in sizes}
        for name, split in arms.items()
    }


def _least_seconds(split: Split, page: SitePage, rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        split(page)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def describe_machine() -> str:
    """Return the processor's name and the number of its cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def print_site(name: str, timing: dict[str, Any], boards: dict[str, dict[str, int]]) -> None:
    """Print one site's table."""
    print(f"\n{name}")
    print(f"  {'':10} {'pages/s':>22} {'MB/s':>7} {'tokenising':>11} {'calls':>7}")
    for arm, figures in timing.items():
        pages = figures["pages_per_second"]
        spread = f"{pages['median']:.1f} ({pages['least']:.1f}-{pages['most']:.1f})"
        speed = figures["megabytes_per_second"]["median"]
        share, calls = figures["tokenising_ratio"], figures["tokenizer_calls"]
        print(f"  {arm:10} {spread:>22} {speed:7.3f} {share:11.0%} {calls:7}")
    print(f"  {'':10} {'chunks':>7} {'>max':>6} {'fences cut':>12} {'rows cut':>12}", end="")
    print(f" {'no header':>10} {'words lost':>14} {'leaked':>10}")
    for arm, board in boards.items():
        cut = f"{board['fences_cut']}/{board['fences']}"
        rows = f"{board['rows_cut']}/{board['rows']}"
        words = f"{board['words_lost']}/{board['words']}" if board["words"] else "-"
        leaked = f"{board['unseen_leaked']}/{board['unseen']}" if board["unseen"] else "-"
        line = f"  {arm:10} {board['chunks']:7} {board['over_maximum']:6} {cut:>12} {rows:>12}"
        print(f"{line} {board['rows_headless']:10} {words:>14} {leaked:>10}", flush=True)


def main() -> None:
    """Print the figures of every site, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--folder", type=Path, action="append", default=[], help="a site of MDX")
    parser.add_argument("--pages", type=int, default=24, help="pages of the synthetic site")
    parser.add_argument("--kilobytes", type=int, default=25, help="their average size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worst", type=int, help="print so many chunks of each site, time nothing")
    parser.add_argument("--arms", nargs="+", default=["ours", "langchain", "semantic"])
    options = parser.parse_args()
    config = load_config()
    meter = Meter(
        load_embedder(config.embedder.model, config.embedder.revision, config.home / "models")
    )
    if options.worst:
        for folder in options.folder or [ROOT / "docs"]:
            ranked = rank_chunks(
                read_site(folder), target=TARGET, maximum=MAXIMUM, count_tokens=meter
            )
            print_worst(str(folder), ranked, options.worst)
        return
    meter(["the model is loaded before any clock runs"])
    arms = {name: split for name, split in make_arms(meter).items() if name in options.arms}
    figures: dict[str, Any] = {
        "machine": describe_machine(),
        "versions": {name: version(name) for name in LIBRARIES},
        "sizes": {"target": TARGET, "maximum": MAXIMUM},
        "sites": {},
    }
    print(figures["machine"], figures["versions"])
    sites = {"synthetic": write_site(options.pages, options.kilobytes)}
    for folder in (ROOT / "docs", *options.folder):
        sites[folder.resolve().name] = read_site(folder)
    for name, site in sites.items():
        timing = time_arms(site, arms, meter, options.rounds)
        boards = {arm: judge(site, split, meter) for arm, split in arms.items()}
        print_site(f"{name}: {len(site)} pages", timing, boards)
        figures["sites"][name] = {"timing": timing, "board": boards}
    figures["scaling_seconds"] = measure_scaling(arms, options.rounds)
    print("\nseconds for one page of 25, 50, 100, 200 kB")
    for arm, seconds in figures["scaling_seconds"].items():
        times = list(seconds.values())
        steps = " ".join(f"x{b / a:.1f}" for a, b in itertools.pairwise(times))
        print(f"  {arm:10} {'  '.join(f'{s:.2f}' for s in times)}   {steps}")
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
