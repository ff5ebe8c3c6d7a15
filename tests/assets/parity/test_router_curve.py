"""The router curve: its ends, its lines, and figures against cases worked by hand."""

import numpy as np
import polars as pl
import pytest

from assets import tables
from assets.parity.flips import estimate_length, measure_flips
from assets.parity.router_curve import (
    SweptCases,
    draw_points,
    find_share_for,
    measure_recovery,
    summarise_curve,
    tabulate_curve,
)
from serving.errors import InvalidInputError
from serving.pipeline.router import RouterPolicy

POLICY = RouterPolicy(min_retrieval_score=0.5)


def make_cases(ranks, agrees, seeds=None) -> SweptCases:
    return SweptCases(
        ranks=np.asarray(ranks),
        agrees=np.asarray(agrees),
        seeds=np.arange(len(ranks)) if seeds is None else np.asarray(seeds),
        steps=len(ranks) + 1,
    )


def write_answers(scores, agrees, *, verdict="valid", by_rule=()) -> pl.DataFrame:
    rows = [
        {
            "arm": "student",
            "example_id": f"e{number}",
            "seed_id": f"s{number}",
            "split": "validation",
            "question": "q",
            "answer": "a",
            "refused": False,
            "label_refused": False,
            "label_answer": "a",
            "label_citations": ["docs:a/1"],
            "citations": ["docs:a/1"] if agree else ["docs:b/1"],
            "verdict": verdict,
            "retrieved": [{"chunk_id": "docs:a/1", "content_hash": "h", "score": score}],
            "prompt_tokens_estimate": 400,
            "prompt_tokens": 0 if number in by_rule else 400,
            "completion_tokens": 0 if number in by_rule else 20,
            "retrieval_score": score,
            "is_routed_to_student": score >= POLICY.min_retrieval_score,
        }
        for number, (score, agree) in enumerate(zip(scores, agrees, strict=True))
    ]
    return pl.DataFrame(rows, schema=tables.HELD_OUT_ANSWERS)


def test_an_oracle_recovers_the_gap_as_early_as_can_be():
    wrong_first = make_cases([1, 2, 3, 4], [False, False, True, True])
    share, quality = draw_points(wrong_first)
    assert share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert quality.tolist() == [0.5, 0.75, 1, 1, 1]
    base = np.array([0.5])
    # Areas of the trapezoids under 0, 1/2, 1, 1, 1.
    assert measure_recovery(share[None], quality[None], base)[0] == pytest.approx(0.75)
    assert find_share_for(share[None], quality[None], base, 0.5)[0] == 0.25
    assert find_share_for(share[None], quality[None], base, 0.95)[0] == 0.5


def test_a_router_that_sends_the_right_ones_first_is_worse_than_lots():
    share, quality = draw_points(make_cases([1, 2, 3, 4], [True, True, False, False]))
    assert measure_recovery(share[None], quality[None], np.array([0.5]))[0] == pytest.approx(0.25)


def test_lots_recover_half():
    rng = np.random.default_rng(3)
    agrees = rng.random(2_000) < 0.4
    cases = make_cases(rng.permutation(2_000) + 1, agrees)
    share, quality = draw_points(cases)
    found = measure_recovery(share[None], quality[None], np.array([agrees.mean()]))[0]
    assert found == pytest.approx(0.5, abs=0.03)


def test_the_curve_runs_from_the_student_alone_to_the_teacher_alone():
    answers = write_answers([0.2, 0.4, 0.6, 0.8], [False, False, True, True])
    curve = tabulate_curve(answers, None, policy=POLICY, teacher_usd=0.01, student_usd=0.001)
    first, last = curve.row(0, named=True), curve.row(-1, named=True)
    assert (first["teacher_ratio"], first["quality"]) == (0.0, 0.5)
    assert (last["teacher_ratio"], last["quality"]) == (1.0, 1.0)
    assert first["usd_per_1k"] == pytest.approx(1.0)
    assert last["usd_per_1k"] == pytest.approx(10.0)  # nothing is asked of the student any more
    assert (curve["quality"] <= curve["oracle_quality"] + 1e-12).all()
    assert curve["teacher_ratio"].is_sorted()


def test_invalid_answers_are_the_teachers_from_the_start():
    answers = write_answers([0.6, 0.7], [True, True], verdict="no_citation")
    curve = tabulate_curve(answers, None, policy=POLICY, teacher_usd=0.01, student_usd=0.001)
    assert curve["teacher_ratio"].to_list() == [1.0] * 3
    assert curve["quality"].to_list() == [1.0] * 3


def test_figures_carry_intervals_over_seeds():
    rng = np.random.default_rng(5)
    scores = rng.random(60)
    answers = write_answers(scores.tolist(), (scores + 0.3 * rng.random(60) > 0.6).tolist())
    rows = {row["figure"]: row for row in summarise_curve(answers, None, policy=POLICY)}
    assert set(rows) == {"apgr", "cpt_50", "cpt_80", "cpt_95"}
    for row in rows.values():
        assert row["lower"] <= row["value"] <= row["upper"]
    assert rows["apgr"]["lower"] > 0.5
    assert rows["cpt_50"]["value"] <= rows["cpt_80"]["value"] <= rows["cpt_95"]["value"]
    again = {row["figure"]: row for row in summarise_curve(answers, None, policy=POLICY)}
    assert again == rows


def test_a_student_that_agrees_everywhere_leaves_no_gap_to_recover():
    rows = summarise_curve(write_answers([0.6, 0.8], [True, True]), None, policy=POLICY)
    assert {row["value"] for row in rows} == {None}
    assert {row["method"] for row in rows} == {"none"}


def test_what_was_fitted_and_certified_on_the_calibration_split_is_not_judged_on_it():
    answers = write_answers([0.2, 0.4, 0.6, 0.8], [False, False, True, True])
    others = write_answers([0.1, 0.9], [True, True]).with_columns(split=pl.lit("calibration"))
    prices = {"teacher_usd": 0.01, "student_usd": 0.001}
    curve = tabulate_curve(pl.concat([answers, others]), None, policy=POLICY, **prices)
    assert curve.equals(tabulate_curve(answers, None, policy=POLICY, **prices))
    with pytest.raises(InvalidInputError, match="validation split"):
        tabulate_curve(others, None, policy=POLICY, **prices)


def test_a_curve_without_prices_has_no_cost_and_no_zero():
    answers = write_answers([0.2, 0.8], [False, True])
    curve = tabulate_curve(answers, None, policy=POLICY, teacher_usd=None, student_usd=0.001)
    assert curve["usd_per_1k"].null_count() == curve.height


def test_a_refusal_by_a_rule_costs_nothing_along_the_curve():
    """Of four questions, the student's model is asked two: half a call each, at the start."""
    answers = write_answers([0.2, 0.4, 0.6, 0.8], [True] * 4, by_rule=(0, 2))
    curve = tabulate_curve(answers, None, policy=POLICY, teacher_usd=0.01, student_usd=0.001)
    assert curve["student_calls_ratio"].to_list() == [0.5, 0.5, 0.25, 0.25, 0.0]
    assert curve["usd_per_1k"].to_list() == pytest.approx([0.5, 3.0, 5.25, 7.75, 10.0])


def test_a_price_of_zero_is_drawn_and_one_that_nobody_knows_is_not():
    answers = write_answers([0.2, 0.8], [False, True])
    free = tabulate_curve(answers, None, policy=POLICY, teacher_usd=0.01, student_usd=0.0)
    assert free["usd_per_1k"].to_list() == pytest.approx([0.0, 5.0, 10.0])
    unknown = tabulate_curve(answers, None, policy=POLICY, teacher_usd=0.01, student_usd=None)
    assert unknown["usd_per_1k"].null_count() == unknown.height


def test_no_answer_at_all_is_an_error():
    with pytest.raises(InvalidInputError, match="none of them an answer of the student"):
        tabulate_curve(
            tables.HELD_OUT_ANSWERS.to_frame(), None, policy=POLICY, teacher_usd=1, student_usd=0
        )


def write_wordings(groups: dict[str, list[float]]) -> pl.DataFrame:
    rows = [
        {
            "seed_id": seed,
            "question": f"{seed}, {score}",
            "retrieved": [{"chunk_id": "docs:c/1", "content_hash": "h", "score": score}],
            "messages": [{"role": "user", "content": f"{seed}, {score}"}],
        }
        for seed, scores in groups.items()
        for score in scores
    ]
    return pl.DataFrame(rows, schema=tables.TEACHER_ANSWERS)


def test_a_seed_flips_when_its_wordings_go_both_ways():
    groups = {"a": [0.4, 0.6], "b": [0.6, 0.7, 0.8], "c": [0.1, 0.2], "alone": [0.4]}
    flips = measure_flips(write_wordings(groups), POLICY, count_tokens=len)
    assert flips["n"] == 3
    assert flips["value"] == pytest.approx(1 / 3)


def test_without_paraphrases_there_is_no_flip_rate():
    assert measure_flips(write_wordings({"a": [0.4]}), POLICY, count_tokens=len)["value"] is None


def test_a_seed_flips_on_a_word_of_high_stakes_too():
    policy = RouterPolicy(min_retrieval_score=0.5, high_stakes_terms=("0.7",))
    flips = measure_flips(
        write_wordings({"a": [0.6, 0.7], "b": [0.6, 0.8]}), policy, count_tokens=len
    )
    assert (flips["value"], flips["n"]) == (0.5, 2)


def test_a_seed_flips_when_one_wording_is_too_long():
    policy = RouterPolicy(min_retrieval_score=0.5, long_context_tokens=6)
    flips = measure_flips(write_wordings({"a": [0.6, 0.75]}), policy, count_tokens=len)
    assert flips["value"] == 1.0  # "a, 0.6" has 6 characters, "a, 0.75" has 7


def test_tokens_are_counted_only_where_they_may_pass_the_limit():
    def refuse(text: str) -> int:
        raise AssertionError(text)

    assert estimate_length(["ab", "cd"], 4, refuse) == 4
    assert estimate_length(["ab", "cde"], 4, lambda text: len(text) // 2) == 2
