"""What a better fusion could gain at most, and which right documents it cannot reach.

Run: `python bench/fusion_limits.py [--beir FOLDER ...] [--worst N] [--json]`. The candidates of the
retriever are ordered with every weight of the words in the relevance (the retriever's own is a
half). Bounds, which need the judgements and are thus no retriever: the weight that is best for the
set in hindsight, the best weight for each question, and the best order of the candidates. Nothing
may be chosen by them; they say whether fusion, the searches or the judgements hold a score back.
`--worst` prints the questions that lose most, with the ranks of their documents by words, by
vectors and by relevance.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.indexes import build, open_built
from bench.question_sets import CORPORA, Judgements, QuestionSet, load_sets, open_embedders
from bench.retrieval import describe_machine, score_questions, state_mean
from serving.models.protocols import Embedder
from serving.pipeline.fusion import fuse, read_vectors

WEIGHTS = tuple(n / 20 for n in range(21))
OWN = WEIGHTS.index(0.5)
MEASURE = "nDCG@8"

Ranking = list[str]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The candidates of one question as documents, and the two halves of their relevance."""

    documents: list[str]
    nearness: np.ndarray
    words: np.ndarray

    def rank(self, values: np.ndarray) -> Ranking:
        """Return the documents by these values, each where it stands first."""
        order = np.argsort(-values, kind="stable")
        return list(dict.fromkeys(self.documents[n] for n in order))


async def read_parts(
    chosen: QuestionSet, embedder: Embedder, kept: Embedder, folder: Path
) -> dict[str, Parts]:
    """Return what the retriever orders, by question."""
    retriever = await open_built(build(chosen.chunks, kept, folder), embedder)
    parts = {}
    for key, question in chosen.questions.items():
        found = await retriever.find_candidates(question)
        _, nearness = read_vectors(found.question, found.windows, found.pages)
        nothing = np.zeros(len(nearness))
        parts[key] = Parts(
            documents=[chosen.documents[chunk] for chunk in found.chunks],
            nearness=2 * fuse(nearness, nothing, limit=1.0),
            words=2 * fuse(nothing, found.bm25, limit=found.bm25_limit),
        )
    return parts


def score_weights(judgements: Judgements, parts: dict[str, Parts]) -> np.ndarray:
    """Return [weights, questions] scores."""
    rankings = [
        {
            key: each.rank((1 - weight) * each.nearness + weight * each.words)
            for key, each in parts.items()
        }
        for weight in WEIGHTS
    ]
    return np.stack([score_questions(judgements, ranking)[MEASURE] for ranking in rankings])


def score_best_order(judgements: Judgements, parts: dict[str, Parts]) -> np.ndarray:
    """Return [questions] scores of the candidates in the order of their grades."""
    ranking = {
        key: sorted(dict.fromkeys(each.documents), key=lambda name: -judgements[key].get(name, 0))
        for key, each in parts.items()
    }
    return score_questions(judgements, ranking)[MEASURE]


def state_bounds(judgements: Judgements, parts: dict[str, Parts]) -> dict[str, Any]:
    """Return the retriever's score and the three bounds, and how many documents are out of reach.

    The best weight for the set gains over the retriever by chance as well, since it is chosen on
    the very questions that it is scored on.
    """
    by_weight = score_weights(judgements, parts)
    best = int(by_weight.mean(axis=1).argmax())
    missed = [set(judgements[key]) - set(each.documents) for key, each in parts.items()]
    return {
        "retriever": state_mean(by_weight[OWN]),
        "best_weight": WEIGHTS[best],
        "best_weight_scores": float(by_weight[best].mean()),
        "best_weight_by_question": float(by_weight.max(axis=0).mean()),
        "best_order": float(score_best_order(judgements, parts).mean()),
        "without_loss": int((by_weight[OWN] > 1 - 1e-9).sum()),
        "missed_documents": sum(map(len, missed)),
        "judged_documents": sum(len(judgements[key]) for key in parts),
    }


def print_worst(chosen: QuestionSet, parts: dict[str, Parts], count: int) -> None:
    """Print the questions that lose most: where their documents stand among the candidates."""
    scores = score_weights(chosen.judgements, parts)[OWN]
    keys = list(parts)
    for place in np.argsort(scores, kind="stable")[:count]:
        each, judged = parts[keys[place]], chosen.judgements[keys[place]]
        print(f"  {scores[place]:.2f} {chosen.questions[keys[place]]}")
        halves = (each.words, each.nearness, each.words + each.nearness)
        rankings = [each.rank(values) for values in halves]
        for name, grade in judged.items():
            ranks = [str(r.index(name) + 1) if name in r else "-" for r in rankings]
            print(f"       {name} (grade {grade}): words, vectors, relevance {', '.join(ranks)}")


async def measure(beir: Sequence[Path], worst: int) -> dict[str, Any]:
    """Return and print the bounds of the development sets and of every BEIR folder."""
    embedder, kept = open_embedders()
    names = [folder.name for folder in beir]
    print(f"machine: {describe_machine()}; {MEASURE}")
    figures: dict[str, Any] = {}
    for chosen in load_sets(beir, embedder):
        if not chosen.name.startswith("dev ") and chosen.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            parts = await read_parts(chosen, embedder, kept, Path(folder))
        found = figures[chosen.name] = state_bounds(chosen.judgements, parts)
        print(
            f"{chosen.name}: retriever {found['retriever']['mean']:.3f}; in hindsight: weight of "
            f"words {found['best_weight']:.2f} {found['best_weight_scores']:.3f}, best weight by "
            f"question {found['best_weight_by_question']:.3f}, best order of the candidates "
            f"{found['best_order']:.3f}; {found['without_loss']} of {len(parts)} questions lose "
            f"nothing; {found['missed_documents']} of {found['judged_documents']} judged documents "
            "are no candidates"
        )
        print_worst(chosen, parts, worst)
    return figures


def main() -> None:
    """Print the bounds, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = [CORPORA / "anthropic-docs-qa"] if (CORPORA / "anthropic-docs-qa").is_dir() else []
    parser.add_argument("--beir", type=Path, nargs="*", default=default, help="BEIR folders")
    parser.add_argument("--worst", type=int, default=0, help="questions to print of each set")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.beir, options.worst))
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
