"""The judge is asked about many answers."""

import asyncio
import itertools
import json

import polars as pl
import pytest

from assets import tables
from assets.labels.judging import AXES, Inconclusive, Judgement, Ruler
from assets.labels.rating import Rateable, rate_answers, require_ruler, tabulate_ratings
from serving.errors import (
    BudgetExceededError,
    DeadlineExceededError,
    InvalidInputError,
    UpstreamError,
    UpstreamRejectedError,
)
from serving.models.protocols import ChatRequest, NoProgress
from serving.pipeline.prompt import PromptFormat
from tests.serving.fakes import HITS, CannedChatModel

FINE = json.dumps(dict.fromkeys(AXES, 5) | {"rationale": "fine"})
ITEM = Rateable(
    question="Where?",
    messages=PromptFormat().write_request("Where?", HITS).messages,
    answer="Put environment variables in a .env file. [1]",
)


def rate(answer, item: Rateable = ITEM, *, count: int = 1):
    judge = CannedChatModel("judge-1", answer)
    ratings = rate_answers([item] * count, judge=judge, concurrency=2, progress=NoProgress())
    return judge, asyncio.run(ratings)


def fail(kind=UpstreamError, found: str = "503"):
    return kind("asking", expected="200", found=found, next_step="wait")


def fail_every(nth: int, failure: Exception):
    """Return an answer of which every nth is a failure."""
    calls = itertools.count(1)

    def answer(_request: ChatRequest) -> str:
        if next(calls) % nth == 0:
            raise failure
        return FINE

    return answer


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
    judge, (rating,) = rate("no JSON")
    assert isinstance(rating, Inconclusive)
    assert (rating.reason, rating.detail) == ("unreadable", "none of 3 replies could be read")
    assert [request.seed for request in judge.requests] == [0, 1, 2]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (fail(), "unreachable"),
        (fail(DeadlineExceededError, "none yet"), "unreachable"),
        (fail(UpstreamRejectedError, "400 content filter"), "rejected"),
    ],
)
def test_a_failure_costs_its_answer_and_not_the_run(failure, reason):
    _, ratings = rate(fail_every(30, failure), count=60)
    doubts = [rating for rating in ratings if isinstance(rating, Inconclusive)]
    assert [(doubt.reason, doubt.detail) for doubt in doubts] == [(reason, failure.found)] * 2
    assert sum(isinstance(rating, Judgement) for rating in ratings) == 58


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (fail(), UpstreamError),
        (fail(UpstreamRejectedError, "401"), UpstreamRejectedError),
        ("no JSON", InvalidInputError),
    ],
)
def test_a_judge_that_is_down_or_mute_stops_the_run_early(answer, error):
    judge = CannedChatModel("judge-1", answer)
    ratings = rate_answers([ITEM] * 1000, judge=judge, concurrency=2, progress=NoProgress())
    with pytest.raises(error):
        asyncio.run(ratings)
    assert len(judge.requests) <= 3 * 6  # five in a row and one in flight, three draws each


def test_more_than_one_in_twenty_without_a_judgement_stops_the_run():
    with pytest.raises(UpstreamError):
        rate(fail_every(10, fail()), count=100)


def test_a_used_up_budget_and_messages_without_sources_raise():
    with pytest.raises(BudgetExceededError):
        rate(fail(BudgetExceededError, "0.01 spent"))
    with pytest.raises(InvalidInputError, match="sources"):
        rate(FINE, Rateable(question="q", messages=[{"content": "hello"}], answer="a"))


RULER = Ruler(rater_id="judge-1", epoch="2026-11", rubric_version="r1")


def tabulate(*ratings, ruler: Ruler = RULER) -> pl.DataFrame:
    names = ("content_key", "question_id", "judging_key")
    ids = [{name: f"{name}{n}" for name in names} for n in range(len(ratings))]
    return pl.DataFrame(tabulate_ratings(ids, ratings, ruler=ruler), schema=tables.JUDGED_ANSWERS)


def test_what_is_inconclusive_has_rows_with_a_reason_and_no_score():
    judged = Judgement(scores=dict.fromkeys(AXES, 4), rationale="fine")
    frame = tabulate(judged, Inconclusive(reason="rejected", detail="400"))
    assert frame["axis"].to_list() == [*AXES, *AXES]
    assert frame["score"].to_list() == [4] * 5 + [None] * 5
    assert frame["status"].unique(maintain_order=True).to_list() == ["judged", "rejected"]
    assert frame.row(5, named=True)["rationale"] == "400"
    assert frame["judge_epoch"].unique().to_list() == ["2026-11"]


@pytest.mark.parametrize(
    "change", [{"rater_id": "judge-2"}, {"epoch": "2027-01"}, {"rubric_version": "r2"}]
)
def test_scores_of_two_judges_epochs_or_rubrics_are_not_mixed(change):
    judged = Judgement(scores=dict.fromkeys(AXES, 4), rationale="fine")
    other = Ruler(**{**vars(RULER), **change})
    require_ruler(tabulate(judged), RULER)
    require_ruler(tabulate(), RULER)
    for frame in (
        tabulate(judged, ruler=other),
        pl.concat([tabulate(judged), tabulate(judged, ruler=other)]),
    ):
        with pytest.raises(InvalidInputError, match=next(iter(change.values()))):
            require_ruler(frame, RULER)
