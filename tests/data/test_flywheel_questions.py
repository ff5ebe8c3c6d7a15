"""The questions of `understudy demo --flywheel`: new to the seeds, and none of the golden set's."""

import json
from collections import Counter
from pathlib import Path

import pytest

from orchestration.flywheel_cli import MINIMUM_TEACHER_TRACES, QUESTIONS
from orchestration.traffic_cli import read_topics
from resources.input_files import SeedFile
from serving.pipeline.questions import fold_text

DATA = Path(__file__).parents[2] / "data"


def fold(path: Path, key: str) -> set[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {fold_text(json.loads(line)[key]) for line in lines}


@pytest.fixture(scope="module")
def asked() -> set[str]:
    return fold(DATA / QUESTIONS, "text")


def test_nothing_is_asked_that_a_seed_or_a_golden_case_asks(asked):
    assert asked & fold(DATA / "seed_prompts.jsonl", "text") == set()
    for golden in sorted((DATA / "eval").glob("golden_v*.jsonl")):
        assert asked & fold(golden, "question") == set(), golden.name


def test_there_are_enough_of_several_topics(asked):
    topics = read_topics(SeedFile(DATA / QUESTIONS))
    assert Counter({topic: len(texts) for topic, texts in topics.items()}).total() == len(asked)
    assert len(asked) >= 4 * MINIMUM_TEACHER_TRACES
    assert min(map(len, topics.values())) >= 4
