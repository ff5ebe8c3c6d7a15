"""Labelling: one row per question, also where the teacher's server refuses the question."""

import asyncio
from dataclasses import dataclass

import polars as pl
import pytest

from assets import tables
from assets.labels.answering import AskedQuestion, allowed_rejections, label_questions
from assets.labels.assets import LabellingPlan, judged_answers
from assets.labels.checks import (
    every_answer_cites_a_chunk,
    every_answer_is_judged_on_every_axis,
    splits_share_no_seed,
    teacher_rejected_few_questions,
)
from assets.labels.judging import AXES
from assets.labels.selection import select_examples
from serving.errors import UpstreamRejectedError
from serving.models.protocols import ChatRequest, NoProgress, Price
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from tests.serving.fakes import GOOD, INVALID, CannedChatModel, CannedRetriever

RATING = "{" + ", ".join(f'"{axis}": 5' for axis in AXES) + "}"


@dataclass
class PickyTeacher(CannedChatModel):
    """Refuses every question with `refused` in it, as a content filter does."""

    async def complete(self, request: ChatRequest):
        if "refused" in request.messages[-1]["content"]:
            raise UpstreamRejectedError("asking", expected="200", found="400", next_step="reword")
        return await super().complete(request)


def label(*texts: str) -> pl.DataFrame:
    def answer(request: ChatRequest) -> str:
        return INVALID if "invalid" in request.messages[-1]["content"] else GOOD

    pipeline = AnswerPipeline(
        retriever=CannedRetriever(),
        teacher=PickyTeacher("teacher-1", answer, price=Price()),
        student=None,
        prompt=PromptFormat(),
        router=RouterPolicy(),
        validator=ValidatorPolicy(),
        count_tokens=len,
    )
    questions = [
        AskedQuestion(question_id=f"q{n}", seed_id=f"s{n}", text=text)
        for n, text in enumerate(texts)
    ]
    rows = label_questions(questions, pipeline=pipeline, concurrency=4, progress=NoProgress())
    return pl.DataFrame(asyncio.run(rows), schema=tables.TEACHER_ANSWERS)


def judge(answers: pl.DataFrame) -> pl.DataFrame:
    plan = LabellingPlan(
        teacher_license="MIT",
        is_trainable=True,
        concurrency=2,
        judge_epoch="test",
        judge_concurrency=2,
        minimum_score=4,
    )
    rate = judged_answers.op.compute_fn.decorated_fn
    return rate(answers, CannedChatModel("judge-1", RATING), plan, NoProgress()).value


def test_a_refused_question_gets_a_row_and_stops_nobody():
    answers = label("where?", "refused?", "how?")
    assert answers["validator_verdict"].to_list() == ["valid", "rejected_by_teacher", "valid"]
    row = answers.row(1, named=True)
    assert (row["answer"], row["raw"], row["refused"], row["citations"]) == ("", "", False, [])
    assert row["messages"][-1]["content"] == "refused?"
    assert answers["content_key"].n_unique() == 3
    assert every_answer_cites_a_chunk(answers).passed
    assert teacher_rejected_few_questions(answers).passed


def test_a_teacher_that_refuses_everything_raises_its_own_message():
    with pytest.raises(UpstreamRejectedError, match="400"):
        label(*(f"refused {n}" for n in range(9)))


def test_two_in_a_hundred_may_be_refused_and_one_in_any_case():
    assert [allowed_rejections(n) for n in (1, 50, 99, 100, 1000)] == [1, 1, 1, 2, 20]


def test_too_many_refused_fail_the_check():
    answers = label("refused?", "where?")
    check = teacher_rejected_few_questions(pl.concat([answers, answers.head(1)]))
    assert not check.passed
    assert "seeds" in (check.description or "")


def test_only_valid_answers_are_judged_and_selected():
    answers = label("where?", "refused?", "invalid?")
    judged = judge(answers)
    assert judged["question_id"].unique().to_list() == ["q0"]
    assert every_answer_is_judged_on_every_axis(judged, answers).passed
    assert not every_answer_is_judged_on_every_axis(judged.head(4), answers).passed
    selection = select_examples(answers, judged, minimum_score=4, teacher_license="MIT")
    assert selection.examples["question_id"].to_list() == ["q0"]
    assert selection.dropped_by_reason == {"invalid": 2}


@pytest.mark.parametrize(
    ("splits", "passed"),
    [
        (("train", "validation", "calibration"), True),
        (("train", "validation"), True),
        (("train", "calibration"), False),
        (("validation",), False),
    ],
)
def test_a_small_product_may_do_without_calibration(splits, passed):
    frame = pl.DataFrame({"seed_id": [f"s{n}" for n in range(len(splits))], "split": splits})
    check = splits_share_no_seed(frame)
    assert check.passed is passed
    assert passed or "add seed questions" in check.description


def test_a_seed_in_two_splits_fails_the_check():
    frame = pl.DataFrame({"seed_id": ["a", "a", "b"], "split": ["train", "validation", "train"]})
    assert not splits_share_no_seed(frame).passed
