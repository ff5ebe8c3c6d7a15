"""The extractive teacher on questions it was not written for: what it answers, and how well.

Run: `python -m bench.extractive_teacher [--limit 20] [--json]`. Every development question goes
through retrieval, prompt and quotation as in production; the answers are then read at each limit of
support, and the limit is chosen by `choose_limit`. The golden set and the suites are never read.
Vectors of documents are kept in UNDERSTUDY_HOME, so a second run is faster; `--limit` takes that
many questions of each set, to see that it works.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assets.eval_set.facts import has_fact
from bench.development_questions import Asked, Corpus, load_corpora, load_questions
from bench.indexes import build, open_built
from bench.question_sets import open_embedders
from bench.retrieval import describe_machine
from orchestration.config import load_config
from serving.models.extractive.answering import MINIMUM_SUPPORT, answer_question
from serving.models.extractive.sources import read_sources
from serving.models.extractive.vectors import SentenceVectors
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.questions import normalise_question
from serving.pipeline.retrieval import LanceRetriever

LIMITS = tuple(sorted({*np.round(np.arange(0.20, 0.521, 0.02), 2).tolist(), MINIMUM_SUPPORT}))
MAXIMUM_ANSWERED_RATIO = 0.15  # of out-of-scope questions, in the mean of the corpora
MINIMUM_REFUSED_RATIO = 0.85  # of written questions that nothing answers: what the gate asks for
DEPTHS = (1, 3, 4, 5)  # k at which facts are looked for
FEATURES = ("support", "score", "relevance")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One question: what the teacher would quote if it may not refuse, and how sure it is."""

    asked: Asked
    support: float
    score: float
    relevance: float
    is_right: bool
    """Every fact is quoted; without facts to look for, a page that answers is cited."""
    facts_within: tuple[bool, ...]
    """Whether the best k chunks hold every fact, for each k of `DEPTHS`."""
    prompt_tokens: tuple[int, ...]
    answer_words: int


async def ask(
    asked: Asked,
    corpus: Corpus,
    retriever: LanceRetriever,
    vectors: SentenceVectors,
    k: int,
) -> Outcome:
    """Put one question to the teacher, as production does, with no support too low to answer."""
    question = normalise_question(asked.text)
    hits = await retriever.retrieve(question, k=max(*DEPTHS, k))
    prompt = PromptFormat()
    requests = {
        depth: prompt.write_request(question, hits[:depth]).messages[0]["content"]
        for depth in {*DEPTHS, k}
    }
    quotation = answer_question(
        question,
        read_sources(requests[k]),
        vectors,
        fits=lambda text: vectors.count_tokens([text]) <= prompt.max_answer_tokens,
        minimum_support=0.0,
    )
    cited = {corpus.documents[hits[int(unit.label) - 1].chunk_id] for unit in quotation.units}
    facts, quoted = asked.must_include, " ".join(unit.text for unit in quotation.units)
    return Outcome(
        asked=asked,
        support=quotation.support,
        score=max((hit.score for hit in hits[:k]), default=0.0),
        relevance=max((hit.relevance for hit in hits[:k]), default=0.0),
        is_right=all(has_fact(quoted, fact) for fact in facts)
        if facts
        else bool(cited & asked.gold),
        facts_within=tuple(all(has_fact(requests[d], fact) for fact in facts) for d in DEPTHS),
        prompt_tokens=tuple(vectors.count_tokens([requests[d]]) for d in DEPTHS),
        answer_words=len(quoted.split()),
    )


def answered_ratio(outcomes: Sequence[Outcome], limit: float) -> float:
    """Return the share that is answered at this limit."""
    return sum(outcome.support >= limit for outcome in outcomes) / max(1, len(outcomes))


def choose_limit(
    out_of_scope: Mapping[str, Sequence[Outcome]], unanswerable: Sequence[Outcome]
) -> float:
    """Return the lowest limit that keeps both promises; a lower one answers more questions.

    Args:
        out_of_scope: outcomes by corpus; each corpus counts the same.
        unanswerable: written questions, next to the docs or far from them, that nothing answers.
    """
    return next(
        (
            limit
            for limit in LIMITS
            if np.mean([answered_ratio(group, limit) for group in out_of_scope.values()])
            <= MAXIMUM_ANSWERED_RATIO
            and 1 - answered_ratio(unanswerable, limit) >= MINIMUM_REFUSED_RATIO
        ),
        LIMITS[-1],
    )


def compare_features(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Return the AUROC of support, of retrieval's score and of a logistic mixture of `FEATURES`.

    The mixture is fitted on the other corpora; a set of answerable questions is told apart from all
    that its corpus does not answer.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    known = [outcome for outcome in outcomes if outcome.asked.bucket != "boundary"]
    found: dict[str, dict[str, float]] = {}
    for corpus in sorted({outcome.asked.corpus for outcome in known}):
        train = [outcome for outcome in known if outcome.asked.corpus != corpus]
        mixture = LogisticRegression(C=1e3, class_weight="balanced", max_iter=1000)
        mixture.fit(_features(train), [outcome.asked.is_answerable for outcome in train])
        test = [outcome for outcome in known if outcome.asked.corpus == corpus]
        negatives = [outcome for outcome in test if not outcome.asked.is_answerable]
        for name in sorted({o.asked.set for o in test if o.asked.is_answerable}):
            both = [o for o in test if o.asked.is_answerable and o.asked.set == name] + negatives
            truth, rows = [o.asked.is_answerable for o in both], _features(both)
            found[name] = {
                "support": float(roc_auc_score(truth, rows[:, 0])),
                "score": float(roc_auc_score(truth, rows[:, 1])),
                "mixture": float(roc_auc_score(truth, mixture.decision_function(rows))),
            }
    return found


def _features(outcomes: Sequence[Outcome]) -> np.ndarray:
    return np.array([[getattr(outcome, name) for name in FEATURES] for outcome in outcomes])


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return all figures: by set and limit, the limit chosen, with and without each corpus."""
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    far: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.asked.set, outcome.asked.bucket].append(outcome)
        if outcome.asked.bucket == "out_of_scope":
            far[outcome.asked.corpus].append(outcome)
    written = [o for o in outcomes if o.asked.is_written and not o.asked.is_answerable]
    left_out = {
        corpus: {
            "limit": (limit := choose_limit({k: v for k, v in far.items() if k != corpus}, ())),
            "answered_of_left_out": answered_ratio(group, limit),
        }
        for corpus, group in far.items()
    }
    return {
        "sets": {f"{name}, {bucket}": _describe(g) for (name, bucket), g in groups.items()},
        "limit": choose_limit(far, written),
        "limit_in_use": MINIMUM_SUPPORT,
        "left_out": left_out,
        "auroc": compare_features(outcomes),
    }


def _describe(group: Sequence[Outcome]) -> dict[str, Any]:
    with_facts = [outcome for outcome in group if outcome.asked.must_include]
    return {
        "questions": len(group),
        "answered_ratio": {limit: answered_ratio(group, limit) for limit in LIMITS},
        "right": {limit: sum(o.is_right and o.support >= limit for o in group) for limit in LIMITS},
        "facts_within_k": {
            k: sum(outcome.facts_within[n] for outcome in with_facts)
            for n, k in enumerate(DEPTHS)
            if with_facts
        },
        "prompt_tokens": {
            k: float(np.mean([outcome.prompt_tokens[n] for outcome in group]))
            for n, k in enumerate(DEPTHS)
        },
        "answer_words": float(np.mean([outcome.answer_words for outcome in group])),
    }


async def measure(limit: int | None) -> dict[str, Any]:
    """Ask every question of every corpus that is here, and return the figures."""
    config = load_config()
    embedder, kept = open_embedders()
    corpora = load_corpora(embedder)
    vectors, outcomes = SentenceVectors(kept), list[Outcome]()
    for name, corpus in corpora.items():
        with tempfile.TemporaryDirectory() as folder:
            retriever = await open_built(build(corpus.chunks, kept, Path(folder)), embedder)
            for asked in load_questions(name, corpora, limit=limit):
                outcomes.append(await ask(asked, corpus, retriever, vectors, config.retrieval.k))
    return {"machine": describe_machine(), **summarise(outcomes)}


def print_figures(figures: Mapping[str, Any]) -> None:
    """Print one line a set, at the limit in use and around it."""
    shown = sorted({0.28, 0.32, figures["limit"], figures["limit_in_use"], 0.40, 0.44})
    print(f"machine: {figures['machine']}\nanswered, right at support " + str(shown))
    for name, found in figures["sets"].items():
        cells = [f"{found['answered_ratio'][t]:.2f} {found['right'][t]:>3}" for t in shown]
        facts = f"  facts in k: {found['facts_within_k']}" if found["facts_within_k"] else ""
        print(f"  {name:34}{found['questions']:>4}  " + "  ".join(cells) + facts)
    print(f"limit by the rule: {figures['limit']}, in use: {figures['limit_in_use']}")
    for corpus, found in figures["left_out"].items():
        print(f"  without {corpus}: {found['limit']}, which answers of its out-of-scope "
              f"questions {found['answered_of_left_out']:.2f}")  # fmt: skip
    for name, found in figures["auroc"].items():
        print(f"  AUROC {name:26}" + "".join(f"{k} {v:.3f}  " for k, v in found.items()))


def main() -> None:
    """Print the figures, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, help="questions of each set; all by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.limit))
    print_figures(figures)
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
