"""Held-out questions: which are drawn, how they are asked, what the baselines say."""

import asyncio
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest

from assets import tables
from assets.students.held_out import (
    HeldOutPlan,
    answer_cases,
    cite_top_chunk,
    draw_cases,
    spread_over_seeds,
)
from serving.errors import BudgetExceededError, InvalidInputError, UpstreamError
from serving.models.protocols import NoProgress
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.confidence import SIGNALS
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from tests.serving.fakes import GOOD, HITS, INVALID, CannedChatModel, CannedRetriever
from tests.serving.pipeline.test_low_confidence import SayingStudent

PLAN = HeldOutPlan(validation_cases=6, calibration_cases=4, base_cases=2)
DOWN = UpstreamError("asking", expected="200", found="503", next_step="wait")
BROKE = BudgetExceededError("asking", expected="budget", found="none", next_step="raise it")


def make_inputs(*, tags=("kiln",)) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Four seeds of five questions in each split; every fifth question is refused."""
    examples, answers = [], []
    for split in ("train", "validation", "calibration"):
        for number in range(20):
            refused = number % 5 == 4
            identity = {"question_id": f"{split}-q{number}", "seed_id": f"{split}-s{number // 5}"}
            question = {"question": f"Where is {split} {number}?"}
            examples.append(identity | question | {
                "example_id": f"{split}-e{number}", "split": split, "refused": refused,
            })  # fmt: skip
            answers.append(identity | question | {
                "answer": "Not found" if refused else "In a file. [docs:guides/deploy/1]",
                "citations": [] if refused else ["docs:guides/deploy/1"], "refused": refused,
            })  # fmt: skip
    seeds = [
        {"question_id": f"{split}-s{n}", "text": "t", "tags": list(tags) if n == 0 else ["kiln"]}
        for split in ("train", "validation", "calibration")
        for n in range(4)
    ]
    return (
        pl.DataFrame(examples, schema_overrides=tables.LABELLED_EXAMPLES),
        pl.DataFrame(answers, schema_overrides=tables.TEACHER_ANSWERS),
        pl.DataFrame(seeds),
    )


def make_pipeline(student, **changes) -> AnswerPipeline:
    settings = {
        "retriever": CannedRetriever(),
        "teacher": CannedChatModel("teacher-1", DOWN),
        "student": student,
        "prompt": PromptFormat(),
        "router": RouterPolicy(),
        "validator": ValidatorPolicy(),
        "count_tokens": len,
    }
    return AnswerPipeline(**(settings | changes))


def ask(student, cases, arm="student", **changes) -> list[dict]:
    work = answer_cases(
        cases, arm=arm, pipeline=make_pipeline(student, **changes), progress=NoProgress()
    )
    return asyncio.run(work)


def test_what_a_prompt_was_searched_on_is_not_asked():
    inputs = make_inputs()
    before = {case.example_id for case in draw_cases(*inputs, PLAN)}
    searched = {"validation-e0", "validation-e7"}  # of the seeds s0 and s1
    found = draw_cases(*inputs, PLAN, searched=searched)
    left = Counter(case.seed_id for case in found if case.split == "validation")
    assert left == {"validation-s2": 3, "validation-s3": 3}
    kept = {case.example_id for case in found if case.split == "calibration"}
    assert kept == {name for name in before if name.startswith("calibration")}


def test_a_search_that_asked_of_every_seed_leaves_nothing_to_judge_by():
    searched = {f"validation-e{number}" for number in (0, 5, 10, 15)}  # one wording of each seed
    with pytest.raises(InvalidInputError, match=r"all 4 seeds .*lower `calls`.*or add seeds"):
        draw_cases(*make_inputs(), PLAN, searched=searched)


def test_cases_are_of_the_held_out_splits_and_spread_over_seeds():
    cases = draw_cases(*make_inputs(), PLAN)
    assert Counter(case.split for case in cases) == {"validation": 6, "calibration": 4}
    for split, count in (("validation", 2), ("calibration", 1)):
        seeds = Counter(case.seed_id for case in cases if case.split == split)
        assert len(seeds) == 4
        assert max(seeds.values()) == count
    assert cases == draw_cases(*(frame.reverse() for frame in make_inputs()), PLAN)


def test_more_cases_take_in_the_fewer_ones():
    inputs = make_inputs()
    few, many = (
        {c.example_id for c in draw_cases(*inputs, replace(PLAN, validation_cases=n))}
        for n in (6, 11)
    )
    assert few < many
    everything = draw_cases(*inputs, HeldOutPlan())
    assert len(everything) == 40


def test_a_case_carries_the_teachers_label():
    cases = draw_cases(*make_inputs(), HeldOutPlan())
    refused = [case for case in cases if case.label_refused]
    assert len(refused) == 8
    assert all(case.label_citations == () for case in refused)
    answered = next(case for case in cases if not case.label_refused)
    assert answered.label_citations == ("docs:guides/deploy/1",)


def test_out_of_scope_is_the_seeds_tag_and_without_any_tag_the_teachers_refusal():
    tagged = draw_cases(*make_inputs(tags=("out_of_scope",)), HeldOutPlan())
    assert {c.seed_id for c in tagged if c.is_out_of_scope} == {"validation-s0", "calibration-s0"}
    plain = draw_cases(*make_inputs(), HeldOutPlan())
    assert all(c.is_out_of_scope == c.label_refused for c in plain)


def test_the_order_within_a_rank_is_by_hash_and_not_by_name():
    rows = [{"example_id": f"e{n}", "seed_id": f"s{n}"} for n in range(30)]
    order = [row["example_id"] for row in spread_over_seeds(rows)]
    assert sorted(order) == sorted(row["example_id"] for row in rows)
    assert order != sorted(order)


def test_each_validation_case_gives_the_student_and_the_top_chunk():
    cases = draw_cases(*make_inputs(), PLAN)
    rows = ask(SayingStudent("student@1", GOOD), cases)
    assert Counter((row["arm"], row["split"]) for row in rows) == {
        ("student", "validation"): 6,
        ("student", "calibration"): 4,
        ("top1", "validation"): 6,
    }
    frame = pl.DataFrame(rows, schema=tables.HELD_OUT_ANSWERS)
    student = frame.filter(arm="student")
    assert student["verdict"].unique().to_list() == ["valid"]
    assert student["citations"].to_list()[0] == ["docs:guides/environment-variables/2"]
    assert not any(student[name].null_count() for name in (*SIGNALS, "mean_logprob", "latency_ms"))
    assert [hit["chunk_id"] for hit in student["retrieved"][0]] == [h.chunk_id for h in HITS]
    top = frame.filter(arm="top1").row(0, named=True)
    assert top["raw"] == "Put environment variables in a .env file. [1]"
    assert (top["verdict"], top["refused"], top["raw_logit"]) == ("valid", False, None)


def test_the_base_model_is_asked_alone():
    cases = draw_cases(*make_inputs(), PLAN)[:2]
    rows = ask(SayingStudent("base", INVALID), cases, arm="base")
    assert [row["arm"] for row in rows] == ["base", "base"]


def test_an_invalid_answer_is_no_refusal_though_a_user_would_be_shown_one():
    (row, _) = ask(CannedChatModel("student@1", INVALID), draw_cases(*make_inputs(), PLAN)[:1])
    assert (row["refused"], row["verdict"]) == (False, "uncited_statement")
    assert row["answer"] == row["raw"] == INVALID
    (row, _) = ask(CannedChatModel("student@1", "REFUSE"), draw_cases(*make_inputs(), PLAN)[:1])
    assert (row["refused"], row["verdict"], row["citations"]) == (True, "valid", [])


def test_a_failure_is_a_row_without_an_answer_and_an_empty_purse_stops_everything():
    cases = draw_cases(*make_inputs(), PLAN)[:1]
    (row,) = ask(CannedChatModel("student@1", DOWN), cases)
    assert "503" in row["error"]
    assert "refused" not in row
    with pytest.raises(BudgetExceededError):
        ask(CannedChatModel("student@1", BROKE), cases)


def test_the_top_chunk_is_quoted_by_its_first_unit_that_says_something():
    prompt = PromptFormat()
    hit = replace(HITS[0], text="---\n\nRestart it. Then wait.")
    assert cite_top_chunk((hit, HITS[1]), prompt) == "Restart it. [1]"
    full = PromptFormat(citation_ids="full")
    assert cite_top_chunk(HITS, full).endswith(f"[{HITS[0].chunk_id}]")
    assert cite_top_chunk((), prompt) == ""
    assert cite_top_chunk((replace(hit, text="---"),), prompt) == ""


@pytest.mark.parametrize(
    ("policy", "is_routed"),
    [
        (RouterPolicy(long_context_tokens=100_000), True),
        (RouterPolicy(long_context_tokens=100_000, high_stakes_terms=("where",)), False),
        (RouterPolicy(long_context_tokens=10), False),
    ],
    ids=["default", "high stakes", "long"],
)
def test_what_production_would_not_ask_the_student_is_no_case_to_certify_on(policy, is_routed):
    cases = draw_cases(*make_inputs(), PLAN)
    rows = ask(CannedChatModel("student@1", GOOD), cases, router=policy)
    own = [row for row in rows if row["arm"] == "student"]
    assert {row["is_routed_to_student"] for row in own} == {is_routed}
    assert all(row["prompt_tokens_estimate"] > 10 for row in own)
