"""Labelling that is killed twenty times over a run buys nothing twice.

The moments are drawn with a seed, in answers served and not in seconds, so that they are spread
over the whole run on any machine.
"""

import multiprocessing
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import polars as pl

from resources.answer_store import FILE_NAME
from tests.assets.labels.killable import CONCURRENCY, label_to_the_end
from tests.chat_stub import ChatStub, serve

QUESTIONS = 240
KILLS = 20
# Children of a server that has imported everything: a fresh process without seconds of imports.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([label_to_the_end.__module__])


def start(url: str, folder: Path) -> multiprocessing.Process:
    process = PROCESSES.Process(target=label_to_the_end, args=(url, folder, QUESTIONS))
    process.start()
    return process


def read_keys(folder: Path) -> set[str]:
    """The keys of the answers on disk, as the next run will find them."""
    path = folder / "cache" / FILE_NAME
    if not path.exists():
        return set()
    with closing(sqlite3.connect(path, timeout=30)) as store:
        return {key for (key,) in store.execute("select key from answers")}


def kill_at(process: multiprocessing.Process, stub: ChatStub, answers: int) -> bool:
    """Kill the process once so many answers were made; False: it ended before."""
    while sum(stub.calls.values()) < answers:
        if not process.is_alive():
            return False
        time.sleep(0.001)
    process.kill()
    process.join()
    while stub.under_way:  # the server goes on with what it was asked
        time.sleep(0.01)
    return True


def label_with_kills(stub: ChatStub, folder: Path) -> list[int]:
    """Run to the end with `KILLS` kills; return, for each, the answers made and not kept.

    No run asks for a key that was on disk when it started.
    """
    moments = sorted(random.Random(7).sample(range(1, QUESTIONS), KILLS))  # noqa: S311
    lost: list[int] = []
    called: dict[str, int] = {}  # kept keys, with how often each had been called by then
    with serve(stub) as url:
        for moment in moments:
            made, kept = sum(stub.calls.values()), read_keys(folder)
            called |= {key: stub.calls_by_key[key] for key in kept - called.keys()}
            if kill_at(start(url, folder), stub, max(moment, made + 1)):
                new = sum(stub.calls.values()) - made
                lost.append(new - len(read_keys(folder) - kept))
            assert {key: stub.calls_by_key[key] for key in called} == called
        called |= {key: stub.calls_by_key[key] for key in read_keys(folder) - called.keys()}
        last = start(url, folder)
        last.join()
        assert last.exitcode == 0
    assert {key: stub.calls_by_key[key] for key in called} == called
    assert called.keys() <= stub.calls_by_key.keys()  # the server saw the keys that lie on disk
    assert len(called) > QUESTIONS / 2
    return lost


def assert_complete(folder: Path) -> None:
    frame = pl.read_parquet(folder / "answers.parquet")
    assert frame["question_id"].to_list() == [f"q{n}" for n in range(QUESTIONS)]
    assert frame["validator_verdict"].unique().to_list() == ["valid"]
    assert frame["content_key"].n_unique() == QUESTIONS


def test_a_server_that_honours_the_key_bills_each_answer_once_however_often_we_are_killed(tmp_path):
    stub = ChatStub(latency_seconds=0.02, is_idempotent=True)
    lost = label_with_kills(stub, tmp_path)
    assert len(lost) == KILLS
    assert_complete(tmp_path)
    assert len(stub.keys) == QUESTIONS
    assert set(stub.billed.values()) == {1}
    assert sum(stub.billed.values()) == QUESTIONS


def test_any_other_server_repeats_only_what_was_in_flight_at_a_kill(tmp_path):
    stub = ChatStub(latency_seconds=0.02)
    lost = label_with_kills(stub, tmp_path)
    assert len(lost) == KILLS
    assert_complete(tmp_path)
    # Every repeat is accounted for: it was served to a process that died before it had it on disk.
    assert sum(stub.calls.values()) == QUESTIONS + sum(lost)
    assert max(lost) <= CONCURRENCY
    assert len(stub.calls) == QUESTIONS
