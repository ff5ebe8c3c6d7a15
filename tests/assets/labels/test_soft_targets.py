"""Sources of soft targets, with a teacher that is a real model behind a chat completions server."""

import itertools
import math
import re
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from assets import tables
from assets.labels import assets, soft_targets
from assets.labels.answer_tokens import encode_answer
from assets.labels.byte_vocabulary import ByteVocabulary
from assets.labels.coverage import measure_coverage
from assets.labels.local_scoring import LocalScorer
from assets.labels.scoring import score_answers
from assets.labels.soft_targets import NOT_ASKED, gather_soft_targets, take_teacher_targets
from assets.labels.teacher_tokens import NO_LOGPROBS, NOT_KEPT
from assets.students.training_set import build_training_set
from resources.chat_models import CachedChatModel
from resources.last_tables import LastTables
from serving.aio import run_blocking
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.chat_tokens import split_chat
from serving.models.openai_chat import connect_in_process
from serving.models.protocols import ChatRequest, NoProgress, Price, ScoreRequest
from tests.tiny_student import make_labelled

LIMIT = 24  # max_answer_tokens the teacher was asked with


class Teacher:
    """Answers every prompt with its example's completion and the model's logprobs of it.

    `spell` turns an answer's (bytes, logprob, top) into the tokens the server reports.
    """

    def __init__(self, model: LocalScorer, examples: pl.DataFrame, spell=None, top_k=5) -> None:
        self.model, self.spell, self.top_k = model, spell or (lambda tokens: tokens), top_k
        self.answers = {
            str(row["messages"]): row["completion"] for row in examples.iter_rows(named=True)
        }
        self.vocabulary = ByteVocabulary.of(model.tokenizer)
        self.app = FastAPI()

        @self.app.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            return self.answer((await request.json())["messages"])

    def answer(self, messages) -> Response:
        text = self.answers[str(messages)]
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
            "logprobs": {
                "content": [self.write(t) for t in self.spell(self.score(messages, text))]
            },
        }
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        base = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        return JSONResponse(base | {"choices": [choice], "usage": usage})

    def score(self, messages, text):
        tokenizer = self.model.tokenizer
        chat, ids = split_chat(tokenizer, messages), encode_answer(tokenizer, text).ids
        request = ScoreRequest(
            prefix_ids=chat.prefix_ids, suffix_ids=chat.suffix_ids, answer_ids=ids
        )
        (scores,) = self.model.score([request], top_k=self.top_k)
        for j, token in enumerate(ids):
            top = zip(scores.top_ids[j].tolist(), scores.top_logprobs[j].tolist(), strict=True)
            yield self.name(token), scores.y_logprobs[j].item(), [(self.name(i), p) for i, p in top]

    def name(self, token: int) -> bytes:
        return self.vocabulary.token_bytes[token] or self.model.tokenizer.decode([token]).encode()

    @staticmethod
    def write(token):
        text, logp, top = token
        entry = {"token": text.decode(errors="replace"), "bytes": list(text), "logprob": logp}
        tops = [
            {"token": t.decode(errors="replace"), "bytes": list(t), "logprob": p} for t, p in top
        ]
        return entry | {"top_logprobs": tops}


def in_words(tokens):
    """Another tokenizer: whole words, each as likely as its parts in turn, and no end of turn."""
    *parts, _end = tokens
    text, ends = b"".join(t for t, _, _ in parts), np.cumsum([len(t) for t, _, _ in parts])
    logps = np.cumsum([0.0, *(logp for _, logp, _ in parts)])
    bounds = [0, *(m.end() for m in re.finditer(rb"\s*\S+", text) if m.end() in ends)]
    for start, stop in itertools.pairwise(bounds):
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left")) + 1
        word, logp = text[start:stop], float(logps[last] - logps[first])
        own = (parts[first][0] == word) or any(t == word for t, _ in parts[first][2])
        yield word, logp, [(t, p) for t, p in parts[first][2]] + ([] if own else [(word, logp)])


@pytest.fixture(scope="module")
def model(tiny_base):
    return LocalScorer.load(tiny_base, scorer_id="tiny@0", dtype="float32")


@pytest.fixture(scope="module")
def examples():
    keys = [
        ChatRequest(messages=tuple(row["messages"]), max_tokens=LIMIT).content_key("m")
        for row in make_labelled(10).iter_rows(named=True)
    ]
    return make_labelled(10).with_columns(pl.Series("content_key", keys))


def buy(folder, teacher: Teacher, examples: pl.DataFrame, *, top_logprobs: int = 5):
    """Return the cached teacher after it has answered all examples."""
    chat = connect_in_process(teacher.app, model="m", price=Price(output_usd_per_mtok=1e6))
    cached = CachedChatModel(replace(chat, top_logprobs=top_logprobs), folder, budget_usd=1e6)
    for row in examples.iter_rows(named=True):
        request = ChatRequest(messages=tuple(row["messages"]), max_tokens=LIMIT)
        run_blocking(cached.complete(request))
    return cached


def gather(model, examples, kept, scorer=None, **options):
    return gather_soft_targets(
        examples,
        scorer=scorer,
        kept=kept,
        tokenizer=model.tokenizer,
        max_answer_tokens=LIMIT,
        context_tokens=512,
        **{"minimum_mean_probability": 0.0} | options,  # a random model finds no text likely
    )


def test_a_teacher_with_the_students_tokenizer_gives_what_a_scorer_of_its_weights_gives(
    model, examples, tmp_path
):
    kept = buy(tmp_path, Teacher(model, examples), examples)
    spent = kept.meter.spent_usd
    taken = gather(model, examples, kept)
    scored = score_answers(examples, model, top_k=5, minimum_mean_probability=0.0)
    assert kept.meter.spent_usd == spent, "nothing is bought"
    assert taken.evidence.is_same
    assert taken.frame.schema == tables.TEACHER_LOGPROBS
    assert set(taken.frame["source"]) == {"teacher"}
    assert set(taken.frame["alignment"]) == {"exact"}
    same = ["example_id", "token_hash", "token_ids", "top_ids", "soft_ok", "cite", "reason"]
    assert taken.frame.select(same).equals(scored.select(same)), "the end of turn included"
    for column in ("y_logp", "tail_logp"):
        pair = [frame[column].explode().to_numpy() for frame in (taken.frame, scored)]
        np.testing.assert_allclose(*pair, atol=1e-5)


def test_a_teacher_with_another_tokenizer_is_projected(model, examples, tmp_path):
    kept = buy(tmp_path, Teacher(model, examples, in_words, top_k=150), examples)
    taken = gather(model, examples, kept)
    assert not taken.evidence.is_same
    for row in taken.frame.iter_rows(named=True):
        if row["alignment"] == "none":
            assert row["reason"] == "no token says enough"
            continue
        assert row["alignment"] == "bytes"
        assert row["top_ids"] == [[]] * len(row["token_ids"])
        for j in np.flatnonzero(row["soft_ok"]):
            mass = sum(map(math.exp, [*row["group_logprobs"][j], row["tail_logp"][j]]))
            assert mass == pytest.approx(1.0, abs=1e-5)
        assert row["soft_ok"][-1] is False, "the end of turn stays hard"
        assert row["soft_token_ratio"] == pytest.approx(np.mean(row["soft_ok"]))
    assert measure_coverage(taken.frame).by_supply["teacher bytes"] > 0.2


def test_each_example_gets_the_first_source_that_has_it(model, examples, tmp_path):
    kept = buy(tmp_path, Teacher(model, examples), examples)
    both = gather(model, examples, kept, scorer=model, maximum_examples=3).frame
    assert both["example_id"].to_list() == sorted(examples["example_id"])
    assert sorted(both["source"].value_counts().rows()) == [("scorer", 3), ("teacher", 7)]
    alone = gather(model, examples, None, scorer=model, maximum_examples=3).frame
    assert sorted(alone["source"].value_counts().rows()) == [("none", 7), ("scorer", 3)]
    rest = alone.filter(pl.col("source") == "none")
    assert set(rest["alignment"]) == {"none"}
    assert set(rest["reason"]) == {NOT_ASKED}
    assert not rest["soft_ok"].explode().any()


def test_a_rerun_tokenises_the_prompts_of_new_hard_examples_alone(model, examples, monkeypatch):
    first = gather(model, examples[:8], None, scorer=model, maximum_examples=2).frame
    fresh = gather(model, examples, None, scorer=model, maximum_examples=2).frame
    counted = []
    tokenise = soft_targets.tokenise_examples
    monkeypatch.setattr(
        soft_targets,
        "tokenise_examples",
        lambda rows, *a, **k: counted.append(rows.height) or tokenise(rows, *a, **k),
    )
    rerun = gather(model, examples, None, scorer=model, maximum_examples=2, last=first).frame
    assert rerun.equals(fresh)
    moved = fresh.filter(pl.col("source") == "none").join(
        first.filter(pl.col("source") == "none"), on="example_id", how="anti"
    )
    assert counted == [moved.height]
    assert 0 < moved.height < 8


@pytest.mark.parametrize(("before", "after"), [(3, 5), (5, 3)])
def test_a_rerun_with_another_sample_is_what_a_fresh_run_is(model, examples, before, after):
    last = gather(model, examples, None, scorer=model, maximum_examples=before).frame
    fresh = gather(model, examples, None, scorer=model, maximum_examples=after).frame
    rerun = gather(model, examples, None, scorer=model, maximum_examples=after, last=last).frame
    assert rerun.equals(fresh)


def test_what_a_rerun_would_write_otherwise_is_written_anew(model, examples):
    first = gather(model, examples, None, scorer=model, maximum_examples=2).frame
    said = examples.with_columns(completion=pl.lit("Another answer [1]."))
    for rows, last in [
        (said, first),
        (examples, first.with_columns(tokenizer_id=pl.lit("of another"))),
        (examples, first.with_columns(pl.col("cite").list.eval(~pl.element()))),
        (examples, first.with_columns(reason=pl.lit(NOT_KEPT))),
    ]:
        spoilt = last.with_columns(token_hash=pl.lit("kept"))
        found = gather(model, rows, None, scorer=model, maximum_examples=2, last=spoilt).frame
        assert found.equals(gather(model, rows, None, scorer=model, maximum_examples=2).frame)


def test_the_asset_keeps_the_hard_rows_of_its_last_table(model, examples, tmp_path, monkeypatch):
    without_floor = partial(gather_soft_targets, minimum_mean_probability=0.0)
    monkeypatch.setattr(assets, "gather_soft_targets", without_floor)
    home = Home(tmp_path)
    named = examples.with_columns(question_id="example_id", seed_id="example_id")
    plan = assets.ScorerPlan(
        open_scorer=lambda: model,
        open_tokenizer=lambda: model.tokenizer,
        max_answer_tokens=LIMIT,
        context_tokens=512,
        maximum_examples=2,
    )

    def run():
        return assets.teacher_logprobs(
            labelled_examples=named,
            seed_questions=tables.SEED_QUESTIONS.to_frame(),
            scorer_plan=plan,
            last_tables=LastTables(home, tables.BY_KEY),
            progress=NoProgress(),
        )

    first = run()
    home.table("labels/teacher_logprobs").parent.mkdir(parents=True)
    first.value.write_parquet(home.table("labels/teacher_logprobs"))
    second = run()
    assert second.value.equals(first.value)
    assert (first.metadata["kept_count"], second.metadata["kept_count"]) == (0, 8)


def test_why_an_answer_is_hard_only_is_recorded(model, examples, tmp_path):
    def say(text):
        return lambda _tokens: [(text, -0.1, [(text, -0.1)])]

    nothing = CachedChatModel(
        connect_in_process(FastAPI(), model="m", price=Price()), tmp_path / "a", budget_usd=1
    )
    silent = buy(tmp_path / "b", Teacher(model, examples), examples, top_logprobs=0)
    other = buy(tmp_path / "c", Teacher(model, examples, say(b"Something else")), examples)
    moved = examples.with_columns(content_key=pl.lit("of another prompt"))
    for kept, rows, reason in [
        (nothing, examples, NOT_KEPT),
        (silent, examples, NO_LOGPROBS),
        (other, examples, "the texts differ"),
        (other, moved, NOT_KEPT),
    ]:
        frame = gather(model, rows, kept).frame
        assert set(frame["reason"]) == {reason}
        assert set(frame["alignment"]) == {"none"}
        assert measure_coverage(frame).asked_soft_ratio == 0


@pytest.mark.parametrize("logp", [-20.0, -1e-7])
def test_the_writer_refuses_foreign_and_tempered_logprobs_of_a_teacher(
    model, examples, tmp_path, logp
):
    def flatten(tokens):
        for text, _, _ in tokens:
            yield text, logp, [(text, logp)]

    kept = buy(tmp_path, Teacher(model, examples, flatten), examples)
    match = "mean probability" if logp < -1 else "temperature 1, before sampling"
    with pytest.raises(InvalidInputError, match=match):
        gather(model, examples, kept, minimum_mean_probability=0.02)


def test_of_two_teacher_tokens_with_the_same_bytes_the_spoken_one_counts(model, examples, tmp_path):
    def double(tokens):
        for text, _, _ in tokens:
            yield text, -2.0, [(text, -1.0), (text, -2.0)]

    kept = buy(tmp_path, Teacher(model, examples, double), examples)
    frame = gather(model, examples, kept).frame
    rows = frame.filter(alignment="exact").explode("token_ids", "top_ids", "top_logprobs")
    assert rows.height
    assert rows["top_logprobs"].list.drop_nulls().explode().drop_nulls().unique().to_list() == [-2]


def test_rows_meet_the_training_set_by_token_hash(model, examples, tmp_path):
    kept = buy(tmp_path, Teacher(model, examples), examples)
    frame = gather(model, examples, kept).frame
    built = build_training_set(examples, model.tokenizer, context_tokens=512).frame
    ids = ["example_id", "token_hash"]
    assert built.select(ids).join(frame.select(ids), on=ids).height == examples.height


def test_a_student_too_short_for_an_example_gets_no_row(model, examples, tmp_path):
    kept = buy(tmp_path, Teacher(model, examples), examples)
    soft = take_teacher_targets(
        examples, kept, tokenizer=model.tokenizer, max_answer_tokens=LIMIT, context_tokens=10
    )
    assert soft.frame.is_empty()


def test_a_teacher_that_is_down_is_still_read(model, examples, tmp_path):
    buy(tmp_path, Teacher(model, examples), examples).close()
    down = connect_in_process(FastAPI(), model="m", price=Price())
    kept = CachedChatModel(replace(down, top_logprobs=5), tmp_path, budget_usd=0)
    assert set(gather(model, examples, kept).frame["alignment"]) == {"exact"}
