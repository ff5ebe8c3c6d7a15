"""Questions written by night: where they aim, what stops them, what becomes of them."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.paraphrases.dream_checks import dreams_are_new_and_within_the_limit
from assets.paraphrases.dreaming import (
    DreamPlan,
    choose_candidates,
    dream_questions,
    open_dreams,
)
from assets.paraphrases.rewriting import write_rewrite_request
from assets.paraphrases.weakness import WeakSpot, leave_out_dreamed, rank_weak_spots, select_asks
from assets.traces.hours import find_folder, list_hours, scan_hours
from orchestration.curate_cli import compact
from orchestration.traffic import PROFILES, plan_traffic
from resources.chat_models import CachedChatModel
from resources.spending import estimate_most_usd
from serving.home import Home
from serving.models.protocols import NoProgress, Price
from tests.assets.traces.served import TOPICS, make_keys, serve_plan
from tests.serving.fakes import CannedChatModel

PRICE = Price(input_usd_per_mtok=1.0, output_usd_per_mtok=1.0)
NOW = datetime(2026, 3, 3, 2, 30, tzinfo=UTC)
SEEDS = pl.DataFrame(
    {
        "question_id": ["env", "dep", "dep-harvested", "dep-2", "res"],
        "text": [
            "Where do I put an environment variable?", "How do I deploy a release of my project?",
            "deploy release 3", "How do I deploy my project again?",
            "When must the server restart?",
        ],
        "source": ["handwritten", "handwritten", "harvested", "handwritten", "handwritten"],
        "cluster_id": [0, 1, 1, 1, 2],
        "distance": [0.0, 0.2, 0.0, 0.1, 0.0],
    },
    schema_overrides={"cluster_id": pl.Int32},
)  # fmt: skip
SPOTS = [
    WeakSpot(
        seed_id=seed_id, text=text, evidence="production", asked_count=9, weak_count=weak_count
    )
    for seed_id, text, weak_count in (
        ("dep", "How do I deploy a release?", 8), ("res", "When must the server restart?", 1),
    )
]  # fmt: skip


def embed_by_words(texts):
    """Count words: equal bags are near, texts without a common word are orthogonal."""
    rows = np.zeros((len(texts), 512), np.float32)
    for row, text in enumerate(texts):
        for word in text.casefold().strip("?!.").split():
            rows[row, sum(word.encode()) * 31 % 512] += 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Traces of the real server, whose student fails at release 3; injectors and abusers too."""
    home = Home(tmp_path_factory.mktemp("home"))
    topics = {name: texts for name, texts in TOPICS.items() if name != "out_of_scope"}
    topics["deploying"] = [f"How do I deploy release 3{n} of my project?" for n in range(9)]
    assert {"injector", "abuser"} <= {profile.name for profile in PROFILES}
    plan = plan_traffic(topics, days=1, asks_per_day=250, seed=1, key_count=12)
    serve_plan(home.root, plan, keys=make_keys(home.root, 12))
    compact(home)
    return scan_hours(list_hours(find_folder(home)))


def rank(asks, *, is_taught=lambda _: True):
    return rank_weak_spots(
        asks, SEEDS, evidence="production", embed_asks=embed_by_words, embed_seeds=embed_by_words,
        is_taught=is_taught,
    )  # fmt: skip


def test_the_weakest_cluster_of_production_comes_first_by_its_own_handwritten_seed(records):
    spots = rank(select_asks(records))
    assert spots[0].seed_id == "dep-2"  # nearer to the medoid than `dep`; the medoid is harvested
    assert spots[0].weak_count >= 9
    assert spots[0].weak_ratio > 0.5
    assert all(spot.weak_ratio < 0.2 for spot in spots[1:])


def test_what_is_not_trained_on_is_not_written_around(records):
    asks = select_asks(records)
    assert rank(asks, is_taught=lambda seed_id: seed_id != "dep-2")[0].seed_id == "dep"
    assert rank(asks, is_taught=lambda _: False) == []


def test_nobody_steers_the_writing_by_injections_or_escalations(records):
    asked = select_asks(records)
    kept = records.filter(pl.col("question").is_in(asked["question"].to_list())).collect()
    everything = records.collect()
    assert everything["is_injection"].any()
    assert everything["escalation_requested"].any()
    assert not kept["is_injection"].any()
    escalated = records.with_columns(pl.lit(value=True).alias("escalation_requested"))
    assert select_asks(escalated).is_empty()
    assert asked["question"].is_unique().all()


class Writer:
    """A teacher that writes new rewordings whenever it is asked with another seed."""

    def __init__(self, folder, *, budget_usd: float = 1.0, repeats: bool = False) -> None:
        self.asked: list[str] = []
        self.requests = []
        self.repeats = repeats
        self.model = CachedChatModel(
            CannedChatModel("teacher-1", self._answer, PRICE), folder, budget_usd=budget_usd
        )

    def _answer(self, request) -> str:
        question = request.messages[-1]["content"].split("<question>\n")[1].split("\n<")[0]
        self.asked.append(question)
        self.requests.append(request)
        words, seed = question.rstrip("?"), 0 if self.repeats else request.seed
        texts = [f"{words} number{seed} way{n}?" for n in "abcd"]
        # Numbers would be details that the question does not have.
        return json.dumps({"paraphrases": [t.translate(str.maketrans("0123456789", "qwertyuiop"))
                                           for t in texts]})  # fmt: skip


def make_plan(*, maximum_questions, questions_per_spot):
    return DreamPlan(
        maximum_questions=maximum_questions, questions_per_spot=questions_per_spot,
        temperature=0.9, concurrency=1, window_days=7, is_taught=lambda _: True,
        read_misses=lambda: pl.DataFrame(), date_misses=lambda: None,
    )  # fmt: skip


def dream(home, writer, *, now=NOW, **limits):
    journal = open_dreams(home)
    plan = make_plan(maximum_questions=limits.get("maximum_questions", 100), questions_per_spot=4)
    night = asyncio.run(
        dream_questions(
            SPOTS, known=[(spot.seed_id, spot.text) for spot in SPOTS], dreams=journal.read(),
            keep=journal.append, teacher=writer.model, embed=embed_by_words, plan=plan, now=now,
            progress=NoProgress(),
        )
    )  # fmt: skip
    return night, journal.read()


def test_the_limit_of_questions_stops_a_night_at_the_weakest_and_holds_for_a_second_run(tmp_path):
    home, writer = Home(tmp_path), Writer(tmp_path / "cache")
    night, kept = dream(home, writer, maximum_questions=3)
    assert (night.stopped_by, night.written_count) == ("questions", 3)
    assert kept["seed_id"].to_list() == ["dep"] * 3
    assert set(kept["weak_ratio"]) == {SPOTS[0].weak_ratio}
    again, same = dream(home, writer, maximum_questions=3)
    assert (again.written_count, writer.asked) == (0, [SPOTS[0].text])
    assert same.equals(kept)


def test_the_next_night_writes_other_questions_about_the_same_spot(tmp_path):
    home, writer = Home(tmp_path), Writer(tmp_path / "cache")
    _, first = dream(home, writer)
    night, both = dream(home, writer, now=NOW + timedelta(days=1))
    assert night.stopped_by == "spots"
    assert both.height == 2 * first.height == 16
    assert both["text"].is_unique().all()
    assert both["generation"].n_unique() == 2
    assert night.barren == []


def test_validation_misses_are_written_around_once_until_another_student_is_asked(tmp_path):
    _, kept = dream(Home(tmp_path), Writer(tmp_path / "cache"), maximum_questions=3)
    asked_before, asked_since = NOW - timedelta(hours=1), NOW + timedelta(hours=1)
    assert leave_out_dreamed(SPOTS, kept, since=asked_before) == SPOTS[1:]
    assert leave_out_dreamed(SPOTS, kept, since=asked_since) == SPOTS
    assert leave_out_dreamed(SPOTS, kept, since=None) == SPOTS


def test_a_spot_whose_rewordings_are_all_known_holds_up_no_other_and_is_asked_otherwise_next_night(
    tmp_path,
):
    home, writer = Home(tmp_path), Writer(tmp_path / "cache", repeats=True)
    dream(home, writer)
    nights = [dream(home, writer, now=NOW + timedelta(days=day))[0] for day in (1, 2)]
    assert [night.written_count for night in nights] == [0, 0]
    assert [night.barren for night in nights] == [["dep", "res"]] * 2  # `res` had its turn too
    asked_seeds = [request.seed for request in writer.requests]
    assert len(asked_seeds) == 6
    assert len(set(asked_seeds)) == 3, "a night that repeats the last one's draw learns nothing"


def test_the_budget_stops_a_night_cleanly_and_what_was_bought_is_kept_and_not_bought_again(
    tmp_path,
):
    home = Home(tmp_path)
    most = estimate_most_usd(
        write_rewrite_request(SPOTS[0].text, count=4, temperature=0.9, seed=1), PRICE
    )
    poor = Writer(tmp_path / "cache", budget_usd=most)  # enough for one asking, not for two
    night, kept = dream(home, poor)
    assert night.stopped_by == "budget"
    assert kept["seed_id"].unique().to_list() == ["dep"]
    assert poor.model.meter.bought_count == 1
    open_dreams(home).path.unlink()  # as if the power had failed before anything was kept
    rich = Writer(tmp_path / "cache")
    _, again = dream(home, rich)
    assert rich.asked == [SPOTS[1].text]
    assert again.filter(seed_id="dep")["text"].equals(kept["text"])


def test_dreams_whose_seed_is_gone_or_that_became_a_seed_do_not_reach_the_guard(tmp_path):
    _, kept = dream(Home(tmp_path), Writer(tmp_path / "cache"))
    became = kept["text"][0].upper()
    seeds = pl.DataFrame({"question_id": ["dep", "new"], "text": ["How?", became]})
    chosen = choose_candidates(kept, seeds, tables.PARAPHRASES.to_frame())
    assert chosen["question_id"].to_list() == kept["question_id"].to_list()[1:4]
    assert set(chosen["origin"]) == {"dreamed"}


def test_the_check_counts_repeats_and_what_grew_from_users_texts(tmp_path):
    _, kept = dream(Home(tmp_path), Writer(tmp_path / "cache"))
    plan = make_plan(maximum_questions=1, questions_per_spot=1)
    seeds = SEEDS.select("question_id", "text", "source")

    def check(frame, seeds=seeds):
        return dreams_are_new_and_within_the_limit(frame, seeds, dream_plan=plan).passed

    assert check(kept)
    assert not check(pl.concat([kept, kept[:1]]))
    assert not check(kept, seeds.with_columns(pl.lit("harvested").alias("source")))
    tonight = kept.with_columns(pl.lit(datetime.now(UTC)).cast(kept["dreamed_at"].dtype).alias(
        "dreamed_at"))  # fmt: skip
    assert not check(tonight)
