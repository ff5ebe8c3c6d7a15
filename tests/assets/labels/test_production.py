"""Which answers of production stand in for bought ones: the very same request, or none."""

import asyncio

import polars as pl
import pytest

from assets import tables
from assets.labels.production import find_releases, restore_answers, write_raw
from resources.chat_models import CachedChatModel
from resources.recalled import RecallingChatModel
from serving.models.protocols import ChatRequest, Completion, Hit, Price
from serving.pipeline.prompt import REFUSAL_WORD, PromptFormat, read_answer
from tests.serving.fakes import make_manifest

TEACHER = "teacher-v1"
OURS = {"0123456789ab"}
QUESTION = "Where do traces go?"
RAW = "Into segments [2]. Then into hours [1]."
HITS = tuple(
    Hit(
        chunk_id=f"docs:traces/{n}", content_hash=f"h{n}", text=f"Text {n}. More of {n}.",
        title="Traces", url="/traces/", heading_path=("Traces", f"Part {n}"), score=0.8,
    )
    for n in (1, 2)
)  # fmt: skip
FORMATS = [PromptFormat(citation_ids="local"), PromptFormat(citation_ids="full")]
CHUNKS = pl.DataFrame(
    [
        {"chunk_id": h.chunk_id, "page_id": "traces", "ordinal": n, "title": h.title,
         "heading_path": list(h.heading_path), "anchor": "", "url": h.url, "text": h.text,
         "token_count": 5, "is_oversized": False, "content_hash": h.content_hash}
        for n, h in enumerate(HITS)
    ],
    schema=tables.CHUNKS,
)  # fmt: skip


def trace(prompt: PromptFormat = FORMATS[0], raw: str = RAW, **changes) -> pl.DataFrame:
    draft = read_answer(raw, HITS, prompt)
    attempt = {
        "role": "teacher", "model": TEACHER, "latency_ms": 7.5, "prompt_tokens": 90,
        "completion_tokens": 12, "cost_usd": 0.2, "finish_reason": "stop", "verdict": "valid",
    } | changes.pop("attempt", {})  # fmt: skip
    row = {
        "trace_id": "t1", "release_id": "0123456789ab", "question": QUESTION,
        "prompt_version": prompt.version,
        "retrieved": [{"chunk_id": h.chunk_id, "content_hash": h.content_hash, "score": h.score}
                      for h in HITS],
        "attempts": [attempt], "served_by": "teacher", "model": TEACHER, "answer": draft.text,
        "refused": draft.refused,
    }  # fmt: skip
    return pl.DataFrame([row | changes], schema=tables.STORED_TRACES)


class Counting:
    """A teacher that counts what it is asked."""

    name, price = TEACHER, Price(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0)

    def __init__(self) -> None:
        self.asked: list[ChatRequest] = []

    async def complete(self, request: ChatRequest) -> Completion:
        self.asked.append(request)
        return Completion(
            text="REFUSE", model=TEACHER, prompt_tokens=1, completion_tokens=1,
            finish_reason="stop", latency_ms=1.0, cost_usd=1.0,
        )  # fmt: skip


@pytest.mark.parametrize("prompt", FORMATS, ids=["local", "full"])
def test_an_answer_is_found_under_the_request_that_labelling_sends(prompt):
    raw = RAW if prompt.citation_ids == "local" else write_raw(
        read_answer(RAW, HITS, FORMATS[0]).text, HITS, prompt
    )  # fmt: skip
    restored = restore_answers(
        trace(prompt, raw), CHUNKS, prompt=prompt, teacher=TEACHER, releases=OURS
    )
    found = restored[prompt.write_request(QUESTION, HITS).content_key(TEACHER)]
    assert found.text == raw
    assert (found.prompt_tokens, found.completion_tokens, found.cost_usd) == (90, 12, 0.0)


def test_a_refusal_is_restored_as_the_word_that_the_model_wrote():
    prompt = FORMATS[0]
    restored = restore_answers(
        trace(raw=REFUSAL_WORD, answer="The documentation does not say."), CHUNKS, prompt=prompt,
        teacher=TEACHER, releases=OURS,
    )  # fmt: skip
    assert [completion.text for completion in restored.values()] == [REFUSAL_WORD]


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": {"model": "teacher-v2"}},
        {"attempt": {"finish_reason": "length"}},
        {"attempt": {"verdict": "no_citation"}},
        {"attempt": {"prompt_tokens": None}},
        {"served_by": "student"},
        {"release_id": "ba9876543210"},
        {"prompt_version": "another"},
        {"question": "I am [email], where do traces go?"},
        {"answer": "Call [phone]."},
        {"retrieved": []},
        {"retrieved": [{"chunk_id": HITS[0].chunk_id, "content_hash": "changed", "score": 0.8}]},
        {"attempts": []},
    ],
    ids=lambda c: next(iter(c)),
)
def test_what_cannot_be_restored_exactly_is_bought(changes):
    assert (
        restore_answers(trace(**changes), CHUNKS, prompt=FORMATS[0], teacher=TEACHER, releases=OURS)
        == {}
    )


def test_answers_of_a_release_that_asked_another_server_are_not_ours(tmp_path):
    here, there = (
        make_manifest(teacher={"provider": "openai", "model": TEACHER, "base_url": url})
        for url in ("http://here/v1", "http://there/v1")
    )
    for manifest in (here, there):
        folder = tmp_path / manifest.release_id
        folder.mkdir()
        (folder / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{", encoding="utf-8")
    (tmp_path / "garbled").mkdir()
    (tmp_path / "garbled" / "manifest.json").write_bytes(b'{"release_id": "\xff\xfe"}')
    ours = find_releases(tmp_path, lambda m: m.teacher.base_url == "http://here/v1")
    assert ours == {here.release_id}
    options = {"prompt": FORMATS[0], "teacher": TEACHER, "releases": ours}
    assert len(restore_answers(trace(release_id=here.release_id), CHUNKS, **options)) == 1
    assert restore_answers(trace(release_id=there.release_id), CHUNKS, **options) == {}


def test_a_known_answer_is_kept_unbilled_and_only_others_are_bought(tmp_path):
    prompt, inner = FORMATS[0], Counting()
    known = restore_answers(trace(), CHUNKS, prompt=prompt, teacher=TEACHER, releases=OURS)
    model = CachedChatModel(
        RecallingChatModel(inner, lambda: known), tmp_path, budget_usd=10.0, identity="there"
    )
    asked, other = (prompt.write_request(q, HITS) for q in (QUESTION, "Something else?"))
    assert asyncio.run(model.complete(asked)).text == RAW
    assert model.meter.spent_usd == 0
    assert asyncio.run(model.complete(other)).text == "REFUSE"
    assert [r.messages[-1]["content"] for r in inner.asked] == ["Something else?"]
    assert model.meter.spent_usd == 1.0
    again = CachedChatModel(inner, tmp_path, budget_usd=10.0, identity="there")
    assert asyncio.run(again.complete(asked)).is_cached
    assert len(inner.asked) == 1
    model.close()
    again.close()
