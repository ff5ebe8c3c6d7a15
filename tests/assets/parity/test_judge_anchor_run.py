"""Waves of anchor ratings: who is asked about what on which day, and that no history is lost."""

import json
from datetime import date

import polars as pl
import pytest

from assets import tables
from assets.eval_set.anchors import build_anchors
from assets.labels.judging import AXES, Judgement, Ruler
from assets.labels.rating import rate_answers
from assets.parity.waves import (
    append_wave,
    choose_wave,
    list_rateables,
    read_waves,
    reseed,
    tabulate_human,
    tabulate_wave,
)
from serving.errors import InvalidInputError
from serving.home import Home
from serving.models.protocols import NoProgress
from tests.assets.eval_set.test_suite_cases import cores
from tests.serving.fakes import CannedChatModel

ANCHORS = build_anchors("h1", cores(50))
RULER = Ruler(rater_id="judge-1", epoch="2026-11")
MONDAY, TUESDAY = date(2026, 11, 2), date(2026, 11, 3)
NOTHING = tables.JUDGE_ANCHOR_RUN.to_frame()


def rate(chosen: pl.DataFrame, day: date, *, ruler: Ruler = RULER) -> pl.DataFrame:
    ratings = [Judgement(scores=dict.fromkeys(AXES, 4), rationale="") for _ in range(chosen.height)]
    return tabulate_wave(ANCHORS, chosen, ratings, rater_kind="judge", ruler=ruler, wave=day)


def choose(waves, day, *, ruler=RULER, anchors=ANCHORS) -> pl.DataFrame:
    return choose_wave(anchors, waves, ruler=ruler, day=day)


FIRST = rate(choose(NOTHING, MONDAY), MONDAY)


def test_a_new_ruler_rates_every_anchor_and_the_next_days_fifty_each():
    assert choose(NOTHING, MONDAY).height == 450
    assert choose(FIRST, TUESDAY).height == 50
    assert choose(FIRST, TUESDAY, ruler=Ruler(rater_id="judge-1", epoch="2026-12")).height == 450


def test_new_anchors_are_rated_whole_again():
    edited = ANCHORS.with_columns(set_hash=pl.lit("h2"))
    assert choose(FIRST, TUESDAY, anchors=edited).height == 450


def test_a_wave_asked_again_on_its_day_is_the_same_and_replaces_itself():
    assert choose(FIRST, MONDAY).height == 450
    twice = append_wave(FIRST, rate(choose(FIRST, MONDAY), MONDAY))
    assert twice.height == FIRST.height
    assert append_wave(FIRST, rate(choose(FIRST, TUESDAY), TUESDAY)).height > FIRST.height


def test_every_labelled_axis_of_an_anchor_is_a_row():
    assert FIRST.height == ANCHORS.height == 850
    assert FIRST.filter(anchor_id="a03-no_citation").select("axis", "is_good", "score").rows() == [
        ("cites_right", False, 4)
    ]


async def test_the_judge_is_asked_in_another_draw_each_day_and_blind():
    reply = json.dumps({**dict.fromkeys(AXES, 5), "rationale": "fine"})
    judge = CannedChatModel("judge-1", reply)
    chosen = choose(NOTHING, MONDAY).head(2)
    for day, is_blind in ((MONDAY, False), (MONDAY, True), (TUESDAY, False)):
        ratings = await rate_answers(
            list_rateables(chosen), judge=reseed(judge, day, is_blind=is_blind), concurrency=1,
            progress=NoProgress(),
        )  # fmt: skip
        assert [rating.scores["clear"] for rating in ratings] == [5, 5]
    seeds = [request.seed for request in judge.requests]
    assert len(set(seeds)) == 3
    assert len({request.content_key("judge-1") for request in judge.requests}) == 6
    assert reseed(judge, MONDAY, is_blind=False).name == "judge-1"


def test_what_the_judge_could_not_decide_is_no_score():
    from assets.labels.judging import Inconclusive

    chosen = choose(NOTHING, MONDAY).head(1)
    doubt = [Inconclusive(reason="unreadable", detail="no JSON")]
    rows = tabulate_wave(ANCHORS, chosen, doubt, rater_kind="judge", ruler=RULER, wave=MONDAY)
    assert rows["score"].null_count() == rows.height > 0


def test_people_rate_anchors_that_exist():
    lines = [
        {"anchor_id": name, "axis": "clear", "score": 2, "rater_id": "ana", "wave": MONDAY}
        for name in ("a03-leftover_markup", "gone")
    ]
    human = tabulate_human(ANCHORS, lines)
    assert human.select("anchor_id", "rater_kind", "score", "judge_epoch").rows() == [
        ("a03-leftover_markup", "human", 2, "")
    ]


def test_the_history_is_read_back_and_a_damaged_one_is_never_begun_anew(tmp_path):
    home = Home(tmp_path)
    assert read_waves(home).is_empty()
    path = home.table("parity/judge_anchor_run")
    path.parent.mkdir(parents=True)
    FIRST.write_parquet(path)
    assert read_waves(home).equals(FIRST)
    FIRST.drop("wave").write_parquet(path)
    with pytest.raises(InvalidInputError, match="begin a new history"):
        read_waves(home)
    path.write_bytes(b"half a file")
    with pytest.raises(InvalidInputError, match="begin a new history"):
        read_waves(home)
