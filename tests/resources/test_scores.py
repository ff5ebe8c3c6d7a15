"""Scores that landed are read again and never made again; a killed scorer loses one at most."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import httpx2
import numpy as np
import polars as pl
import pytest

from assets.labels.local_scoring import LocalScorer
from assets.labels.scoring import score_answers
from resources.erasing import NotErasedError
from resources.pacing import Pace
from resources.scorers import VLLMScorer
from resources.scores import FILE_NAME, KeptScorer, ScoresNotKeptError, ScoreStore, forget_scores
from serving.errors import InvalidInputError, UpstreamRejectedError
from serving.models.protocols import ScoreRequest, TokenScores
from tests.resources.test_scorers import Server
from tests.tiny_student import make_base, make_labelled

LOOSE = {"minimum_mean_probability": 0.0}  # a random model gives the teacher's tokens nothing

KILLED = """
import sys
from pathlib import Path
from tests.resources.test_scores import Telling, ask
from resources.scores import KeptScorer
scorer = KeptScorer(Telling(), Path(sys.argv[1]))
for number, _ in enumerate(scorer.score((ask(n) for n in range(100_000)), top_k=3)):
    print(number, flush=True)
"""


class Telling:
    """A scorer that tells what it was asked: scores drawn from the answer's ids."""

    scorer_id, scorer_hash, scorer_dtype, tokenizer = "telling@1", "hash-1", "float32", None

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked: list[ScoreRequest] = []
        self._fails_at = fails_at

    def score(self, requests, *, top_k, keep=None) -> Iterator[TokenScores]:
        for request in requests:
            if len(self.asked) == self._fails_at:
                raise RuntimeError("the server is gone")
            self.asked.append(request)
            scores = draw(request, top_k)
            if keep is not None:
                keep(request, scores)
            yield scores


def ask(number: int) -> ScoreRequest:
    return ScoreRequest(prefix_ids=(1, 2), suffix_ids=(3,), answer_ids=(number, number + 1))


def draw(request: ScoreRequest, top_k: int) -> TokenScores:
    generator = np.random.default_rng(request.answer_ids)
    return TokenScores(
        top_ids=generator.integers(0, 1_000, (2, top_k)),
        top_logprobs=-np.sort(generator.random((2, top_k))),
        y_logprobs=np.array([-generator.random(), -np.inf]),
    )


def assert_equal(found: list[TokenScores], count: int, top_k: int = 3) -> None:
    expected = [draw(ask(n), top_k) for n in range(count)]
    assert len(found) == count
    for one, other in zip(found, expected, strict=True):
        for name in ("top_ids", "top_logprobs", "y_logprobs"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).dtype == getattr(other, name).dtype


def score(inner: Telling, folder, count: int, top_k: int = 3) -> list[TokenScores]:
    return list(KeptScorer(inner, folder).score((ask(n) for n in range(count)), top_k=top_k))


def test_only_what_is_new_is_scored_and_the_rest_comes_back_bit_for_bit(tmp_path):
    score(Telling(), tmp_path, 20)
    again = Telling()
    assert_equal(score(again, tmp_path, 22), 22)
    assert again.asked == [ask(20), ask(21)]


@pytest.mark.parametrize(
    "change", [{"scorer_hash": "hash-2"}, {"scorer_dtype": "bfloat16"}, {"top_k": 2}]
)
def test_another_scorer_precision_or_number_of_candidates_finds_nothing(tmp_path, change):
    score(Telling(), tmp_path, 4)
    other, top_k = Telling(), change.get("top_k", 3)
    for name, value in change.items():
        setattr(other, name, value)
    assert_equal(score(other, tmp_path, 4, top_k=top_k), 4, top_k=top_k)
    assert len(other.asked) == 4


@pytest.mark.parametrize("part", ["prefix_ids", "suffix_ids", "answer_ids"])
def test_other_ids_are_another_score(tmp_path, part):
    score(Telling(), tmp_path, 1)
    inner = Telling()
    changed = replace(ask(0), **{part: (9, 9)})
    list(KeptScorer(inner, tmp_path).score([changed], top_k=3))
    assert inner.asked == [changed]


def test_two_servers_of_one_name_share_no_score(tmp_path):
    first, second, again = Telling(), Telling(), Telling()
    for inner, server in ((first, "http://a/v1"), (second, "http://b/v1"), (again, "http://b/v1")):
        list(KeptScorer(inner, tmp_path, server=server).score([ask(0)], top_k=3))
    assert (first.asked, second.asked, again.asked) == ([ask(0)], [ask(0)], [])


def test_the_store_holds_what_was_asked_last(tmp_path):
    score(Telling(), tmp_path, 9)
    score(Telling(), tmp_path, 3)
    assert len(ScoreStore(tmp_path / FILE_NAME).list_keys()) == 3


def test_a_failure_loses_what_had_not_landed(tmp_path):
    score(Telling(), tmp_path, 2)
    with pytest.raises(RuntimeError, match="gone"):
        score(Telling(fails_at=5), tmp_path, 20)
    again = Telling()
    assert_equal(score(again, tmp_path, 20), 20)
    assert again.asked[0] == ask(7)


def test_a_killed_scorer_goes_on_where_it_was(tmp_path):
    """Killed three times with SIGKILL: whatever was seen to land is never asked again."""
    done = -1
    for _ in range(3):
        worker = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."},
        )  # fmt: skip
        target = done + 40
        for line in worker.stdout:
            done = int(line)
            if done >= target:
                break
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
    inner = Telling()
    assert_equal(score(inner, tmp_path, done + 30), done + 30)
    assert done >= 119
    assert inner.asked == [] or inner.asked[0].answer_ids[0] > done


def test_the_table_is_the_same_and_an_edited_label_costs_one_score(tmp_path):
    local = LocalScorer.load(make_base(tmp_path / "base"), scorer_id="tiny@0", dtype="float32")
    labelled = make_labelled(6)
    expected = score_answers(labelled, local, top_k=5, **LOOSE)
    assert score_answers(labelled, KeptScorer(local, tmp_path), top_k=5, **LOOSE).equals(expected)

    class Counting(Telling):
        scorer_id, scorer_hash, scorer_dtype, tokenizer = (
            local.scorer_id, local.scorer_hash, local.scorer_dtype, local.tokenizer,
        )  # fmt: skip

        def score(self, requests, *, top_k, keep=None):
            self.asked = list(requests)
            yield from local.score(self.asked, top_k=top_k, keep=keep)

    counting = Counting()
    found = score_answers(labelled, KeptScorer(counting, tmp_path), top_k=5, **LOOSE)
    assert (found.equals(expected), counting.asked) == (True, [])
    again = LocalScorer.load(tmp_path / "base", scorer_id="tiny@0", dtype="float32")
    assert score_answers(labelled, KeptScorer(again, tmp_path), top_k=5, **LOOSE).equals(expected)
    assert "model" not in vars(again), "no weights are read where nothing is to be scored"
    row = pl.int_range(pl.len()) == 0
    edited = labelled.with_columns(
        pl.when(row).then(pl.lit("Another answer.")).otherwise("completion").alias("completion")
    )
    assert score_answers(edited, KeptScorer(counting, tmp_path), top_k=5, **LOOSE).height == 6
    assert len(counting.asked) == 1


def test_what_a_server_has_answered_is_kept_when_another_answer_fails(tmp_path):
    local = LocalScorer.load(make_base(tmp_path / "base"), scorer_id="tiny@0", dtype="float32")
    server = Server(local)
    refused = []

    class Refusing(httpx2.ASGITransport):
        async def handle_async_request(self, request):
            if len(server.bodies) == 3 and not refused:
                refused.append(request)
                return httpx2.Response(400, text="no", request=request)
            return await super().handle_async_request(request)

    scorer = VLLMScorer(
        model="tiny", revision="0", base_url="http://vllm.invalid/v1", tokenizer=local.tokenizer,
        pace=Pace(1, deadline_seconds=30, draw=lambda: 0.0), transport=Refusing(app=server.app),
    )  # fmt: skip
    kept = KeptScorer(scorer, tmp_path)
    with pytest.raises(UpstreamRejectedError):
        score_answers(make_labelled(6), kept, top_k=5, **LOOSE)
    assert len(server.bodies) == 3
    score_answers(make_labelled(6), kept, top_k=5, **LOOSE)
    assert len(server.bodies) == 6


def test_forgotten_scores_are_in_no_byte_of_the_store(tmp_path):
    store = ScoreStore(tmp_path / FILE_NAME)
    ids = np.full((1, 64), int.from_bytes(b"canary!!", "little"))
    store.keep("k", TokenScores(top_ids=ids, top_logprobs=ids * -1.0, y_logprobs=np.zeros(1)))
    store.close()
    assert forget_scores(tmp_path) == 1
    assert all(b"canary!!" not in path.read_bytes() for path in tmp_path.iterdir())
    assert forget_scores(tmp_path / "elsewhere") == 0
    (tmp_path / FILE_NAME).write_bytes(b"no store at all" * 100)
    with pytest.raises(NotErasedError):
        forget_scores(tmp_path)


@pytest.mark.parametrize("value", ["x'00'", "substr(value, 1, 300)"])
def test_a_damaged_or_held_store_says_so(tmp_path, monkeypatch, value):
    score(Telling(), tmp_path, 1)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute(f"UPDATE scores SET value = {value}")  # noqa: S608 - fixed
    with pytest.raises(InvalidInputError, match="answers are scored again"):
        score(Telling(), tmp_path, 1)
    monkeypatch.setattr("resources.kept_file.LOCK_SECONDS", 0.01)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("DELETE FROM scores")
        connection.commit()
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ScoresNotKeptError, match="not computed again"):
            score(Telling(), tmp_path, 2)
