"""How much a chunk's page should count: chosen for each development set by the other ones.

Run: `python bench/page_weight.py [--json]`. The candidates of the retriever are ordered anew with
every weight of the page in the nearness (the retriever's own is a half), and with no page at all
(weight 0). Leave one set out: the weight that is best on the other sets, by the mean of their
nDCG@8, is scored on the one left out, as its gain over no pages with a 95 % bootstrap interval over
questions. Only development sets are read. Two of them ask about one documentation, so a second
choice leaves out all sets of a documentation together.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.indexes import build, open_built
from bench.question_sets import QuestionSet, load_sets, open_embedders
from bench.retrieval import describe_machine, score_questions, state_mean
from serving.models.protocols import Embedder
from serving.pipeline.fusion import fuse, read_vectors

WEIGHTS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
MEASURE = "nDCG@8"


async def score_weights(chosen: QuestionSet, embedder: Embedder, kept: Embedder) -> np.ndarray:
    """Return [weights, questions] nDCG@8 of one set."""
    rankings: list[dict[str, list[str]]] = [{} for _ in WEIGHTS]
    with tempfile.TemporaryDirectory() as folder:
        retriever = await open_built(build(chosen.chunks, kept, Path(folder)), embedder)
        for key, question in chosen.questions.items():
            found = await retriever.find_candidates(question)
            best, nearness = read_vectors(found.question, found.windows, found.pages)
            page = 2 * nearness - best
            for weight, ranking in zip(WEIGHTS, rankings, strict=True):
                near = (1 - weight) * best + weight * page
                order = np.argsort(-fuse(near, found.bm25, limit=found.bm25_limit), kind="stable")
                documents = [chosen.documents[found.chunks[n]] for n in order]
                ranking[key] = list(dict.fromkeys(documents))
    return np.stack([score_questions(chosen.judgements, ranking)[MEASURE] for ranking in rankings])


def choose_without(left_out: Sequence[str], scores: dict[str, np.ndarray]) -> int:
    """Return which weight has the highest mean over the sets that are not left out."""
    others = [values.mean(axis=1) for name, values in scores.items() if name not in left_out]
    return int(np.mean(others, axis=0).argmax())


def leave_out(name: str, left_out: Sequence[str], scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the weight the other sets choose, and its gain over no pages on this set."""
    chosen = choose_without(left_out, scores)
    gain = state_mean(scores[name][chosen] - scores[name][0])
    return {"weight": WEIGHTS[chosen], "score": float(scores[name][chosen].mean()), "gain": gain}


async def measure() -> dict[str, Any]:
    """Return and print the scores of every weight, and what leaving a set out chooses."""
    embedder, kept = open_embedders()
    sets = [each for each in load_sets([], embedder) if each.name.startswith("dev ")]
    scores = {each.name: await score_weights(each, embedder, kept) for each in sets}
    print(f"machine: {describe_machine()}\n{MEASURE:32}" + "".join(f"{w:>8}" for w in WEIGHTS))
    for name, values in scores.items():
        print(f"{name:32}" + "".join(f"{mean:>8.3f}" for mean in values.mean(axis=1)))
    figures: dict[str, Any] = {"sets": {}, "documentations": {}}
    for chosen in sets:
        same = [each.name for each in sets if each.chunks is chosen.chunks]
        for kind, left_out in (("sets", [chosen.name]), ("documentations", same)):
            if len(left_out) < len(sets):
                found = leave_out(chosen.name, left_out, scores)
                figures[kind][chosen.name] = found
                gain = found["gain"]
                print(
                    f"{chosen.name:32} chosen by the other {kind}: {found['weight']}, scores "
                    f"{found['score']:.3f}, gains {gain['mean']:+.3f} "
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
