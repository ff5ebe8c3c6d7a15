"""How long the texts should be whose vectors are compared with a question.

Run: `python bench/window_size.py [--json]`. Every development set is asked of the pages cut as the
product cuts them, of sections (what stands under one second heading) and of whole pages, with
windows of 64, 96, 128 and 254 tokens; the last is all that all-MiniLM-L6-v2 reads. Leave one set
out: the size that is best on the other sets, by the mean of their nDCG@8, is scored on the one left
out, as its gain over the longest with a 95 % bootstrap interval over questions. Only development
sets are read.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.development_questions import own_sets
from bench.indexes import build, open_built
from bench.page_weight import choose_without
from bench.question_sets import QuestionSet, load_sets, open_embedders
from bench.retrieval import describe_machine, score_questions, state_mean
from serving.models.protocols import Embedder
from serving.pipeline.indexing import IndexedChunk

SIZES = (64, 96, 128, 254)
LAYOUTS = {"as cut": None, "sections": 2, "whole pages": 1}
"""By name, so many headings that chunks share to be joined into one."""
MEASURE = "nDCG@8"


def load_development_sets(embedder: Embedder) -> list[QuestionSet]:
    """Return the sets of `data/retrieval`, and the written questions by page."""
    sets = [each for each in load_sets([], embedder) if each.name.startswith("dev ")]
    for base in [each for each in sets if not each.name.endswith("-formal")]:
        corpus = base.name.removeprefix("dev ")
        questions = [asked for some in own_sets(corpus) for asked in some]
        asked = {each.text: each.gold for each in questions if each.is_written and each.gold}
        sets.append(
            replace(
                base,
                name=f"written {corpus}",
                questions={text: text for text in asked},
                judgements={text: dict.fromkeys(gold, 1) for text, gold in asked.items()},
            )
        )
    return sets


def join_chunks(chosen: QuestionSet, headings: int | None) -> QuestionSet:
    """Return the set over chunks joined where page and the first `headings` are one."""
    if headings is None:
        return chosen
    groups: dict[tuple[str, tuple[str, ...]], list[IndexedChunk]] = {}
    for chunk in chosen.chunks:
        below = chunk.heading_path[1:headings]  # the first is the page's own
        groups.setdefault((chunk.page, below), []).append(chunk)
    chunks = [
        replace(
            group[0],
            chunk_id=f"docs:{page}/{number}",
            heading_path=group[0].heading_path[:headings],
            text="\n\n".join(chunk.text for chunk in group),
        )
        for number, ((page, _), group) in enumerate(groups.items(), start=1)
    ]
    return replace(chosen, chunks=chunks, documents=[chunk.page for chunk in chunks])


async def score_sizes(chosen: QuestionSet, embedder: Embedder) -> np.ndarray:
    """Return [sizes, questions] nDCG@8 of one set."""
    scores = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            built = build(chosen.chunks, embedder, Path(folder), window_tokens=size)
            retriever = await open_built(built, embedder)
            names = dict(zip([c.chunk_id for c in chosen.chunks], chosen.documents, strict=True))
            ranking = {}
            for key, question in chosen.questions.items():
                hits = await retriever.retrieve(question)
                ranking[key] = list(dict.fromkeys(names[hit.chunk_id] for hit in hits))
        scores.append(score_questions(chosen.judgements, ranking)[MEASURE])
    return np.stack(scores)


async def measure() -> dict[str, Any]:
    """Return and print the scores of every size, and what leaving a set out chooses."""
    embedder, kept = open_embedders()
    print(f"machine: {describe_machine()}\n{MEASURE:44}" + "".join(f"{s:>8}" for s in SIZES))
    scores: dict[str, np.ndarray] = {}
    layouts: dict[str, list[str]] = {}
    for chosen in load_development_sets(embedder):
        for layout, headings in LAYOUTS.items():
            name = f"{chosen.name}, {layout}"
            scores[name] = await score_sizes(join_chunks(chosen, headings), kept)
            layouts.setdefault(chosen.name, []).append(name)
            means = "".join(f"{mean:>8.3f}" for mean in scores[name].mean(axis=1))
            print(f"{name:44}{means}", flush=True)
    figures: dict[str, Any] = {}
    for name, own in layouts.items():
        best = choose_without(own, scores)
        gain = state_mean(np.concatenate([scores[n][best] - scores[n][-1] for n in own]))
        figures[name] = {"size": SIZES[best], "gain": gain}
        print(
            f"{name:44}the others choose {SIZES[best]}, which gains {gain['mean']:+.3f} "
            f"[{gain['low']:+.3f}, {gain['high']:+.3f}] here"
        )
    for layout in LAYOUTS:
        own = [name for name in scores if name.endswith(f", {layout}")]
        for row, size in enumerate(SIZES[:-1]):
            gain = state_mean(np.concatenate([scores[n][row] - scores[n][-1] for n in own]))
            figures[f"{layout} {size}"] = gain
            print(
                f"all questions, {layout}, {size} instead of {SIZES[-1]}: {gain['mean']:+.3f} "
                f"[{gain['low']:+.3f}, {gain['high']:+.3f}]"
            )
    return figures


def main() -> None:
    """Print the figures, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    figures = asyncio.run(measure())
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
