"""The extractive teacher on some pages of these docs, and the rule by which its limit is chosen."""

import asyncio
import shutil
from pathlib import Path

import pytest

from bench.development_questions import OWN, Asked, Corpus, own_sets
from bench.extractive_teacher import LIMITS, Outcome, answered_ratio, ask, choose_limit, summarise
from bench.indexes import build, open_built
from bench.question_sets import ROOT, chunk_folder
from serving.models.embedded import resolve_model
from serving.models.embedder import SentenceEmbedder
from serving.models.extractive.answering import MINIMUM_SUPPORT
from serving.models.extractive.vectors import SentenceVectors

PAGES = (
    "reference/chunking",
    "concepts/labelling",
    "how-to/hand-out-keys",
    "how-to/serve-a-release",
)


def make_outcome(support: float, *, bucket="answerable", corpus="a") -> Outcome:
    return Outcome(
        asked=Asked(set="seeds", corpus=corpus, bucket=bucket, text="?"),
        support=support,
        score=support,
        relevance=support,
        is_right=True,
        facts_within=(True,) * 4,
        prompt_tokens=(1,) * 4,
        answer_words=1,
    )


def test_the_lowest_limit_that_keeps_both_promises_is_chosen():
    tens = [make_outcome(0.305)] + [make_outcome(0.1)] * 9
    assert choose_limit({"a": tens}, ()) == LIMITS[0]
    half = [make_outcome(0.305)] * 5 + [make_outcome(0.1)] * 5
    assert choose_limit({"a": half}, ()) == 0.32
    assert choose_limit({"a": half, "b": tens, "c": tens, "d": tens}, ()) == 0.32
    assert choose_limit({"a": tens}, [make_outcome(0.41)] * 4 + [make_outcome(0.1)] * 6) == 0.42
    assert choose_limit({"a": [make_outcome(0.9)]}, ()) == LIMITS[-1]


def test_every_corpus_is_left_out_once_and_shown_its_own_share():
    groups = [
        make_outcome(support, bucket=bucket, corpus=corpus)
        for corpus, least in (("a", 0.2), ("b", 0.4))
        for bucket, support in (("out_of_scope", least), ("answerable", 0.6))
    ]
    found = summarise(groups)
    assert found["left_out"] == {
        "a": {"limit": 0.42, "answered_of_left_out": 0.0},
        "b": {"limit": 0.22, "answered_of_left_out": 1.0},
    }
    assert found["sets"]["seeds, answerable"]["right"][LIMITS[-1]] == 2


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[Outcome]]:
    """What the teacher makes of the seeds these pages answer, and of those nothing answers."""
    model = "sentence-transformers/all-MiniLM-L6-v2"
    resolved = resolve_model(model, "embedded", tmp_path_factory.mktemp("models"))
    embedder = SentenceEmbedder(resolved.path, sha256=resolved.sha256)
    folder = tmp_path_factory.mktemp("pages")
    for page in PAGES:
        (folder / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "docs" / f"{page}.mdx", folder / f"{page}.mdx")
    chunks = chunk_folder(folder, embedder)
    corpus = Corpus(chunks=chunks, documents={chunk.chunk_id: chunk.page for chunk in chunks})
    questions = [asked for group in own_sets(OWN) for asked in group if asked.set == "seeds"]
    asked_of = {
        "answerable": [q for q in questions if q.gold & set(PAGES)],
        "out_of_scope": [q for q in questions if q.bucket == "out_of_scope"][::3],
    }

    async def ask_all(folder: Path) -> dict[str, list[Outcome]]:
        retriever = await open_built(build(chunks, embedder, folder), embedder)
        vectors = SentenceVectors(embedder)
        return {
            bucket: [await ask(q, corpus, retriever, vectors, 3) for q in group]
            for bucket, group in asked_of.items()
        }

    return asyncio.run(ask_all(tmp_path_factory.mktemp("index")))


@pytest.mark.real_models
def test_seeds_are_answered_from_their_page_and_the_others_refused(outcomes):
    answerable, foreign = outcomes["answerable"], outcomes["out_of_scope"]
    assert len(answerable) >= 12
    assert len(foreign) >= 15
    assert answered_ratio(answerable, MINIMUM_SUPPORT) >= 0.9
    assert sum(outcome.is_right for outcome in answerable) >= 0.8 * len(answerable)
    assert answered_ratio(foreign, MINIMUM_SUPPORT) <= 0.15


@pytest.mark.real_models
def test_an_answer_stays_short(outcomes):
    longest = max(outcome.answer_words for group in outcomes.values() for outcome in group)
    assert longest <= 90
