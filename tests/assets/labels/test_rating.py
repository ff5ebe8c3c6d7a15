"""The judge is asked about many answers."""

import asyncio
import json

import pytest

from assets.labels.judging import AXES
from assets.labels.rating import Rateable, rate_answers
from serving.errors import InvalidInputError, UpstreamError
from serving.models.protocols import NoProgress
from serving.pipeline.prompt import PromptFormat
from tests.serving.fakes import HITS, CannedChatModel

FINE = json.dumps(dict.fromkeys(AXES, 5) | {"rationale": "fine"})
ITEM = Rateable(
    question="Where?",
    messages=PromptFormat().write_request("Where?", HITS).messages,
    answer="Put environment variables in a .env file. [1]",
)


def rate(answer, item: Rateable = ITEM):
    judge = CannedChatModel("judge-1", answer)
    ratings = rate_answers([item], judge=judge, concurrency=2, progress=NoProgress())
    return judge, asyncio.run(ratings)


def test_the_judge_sees_the_sources_as_the_model_did():
    judge, (rating,) = rate(FINE)
    assert rating is not None
    assert (
        "<sources>\n[1] Environment variables > Files: Put"
        in (judge.requests[0].messages[-1]["content"])
    )


def test_an_unreadable_reply_is_asked_again_with_another_seed():
    _, (rating,) = rate(lambda request: FINE if request.seed == 2 else "no JSON")
    assert rating is not None
    assert rating.scores == dict.fromkeys(AXES, 5)


def test_a_judge_that_cannot_be_read_at_all_is_inconclusive():
    judge, ratings = rate("no JSON")
    assert ratings == [None]
    assert [request.seed for request in judge.requests] == [0, 1, 2]


def test_a_judge_out_of_reach_and_messages_without_sources_raise():
    down = UpstreamError("asking", expected="200", found="503", next_step="wait")
    with pytest.raises(UpstreamError):
        rate(down)
    with pytest.raises(InvalidInputError, match="sources"):
        rate(FINE, Rateable(question="q", messages=[{"content": "hello"}], answer="a"))
