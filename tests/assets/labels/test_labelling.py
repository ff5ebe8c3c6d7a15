"""Labelling: one row per question, also where the teacher's server refuses the question."""

import asyncio
from dataclasses import dataclass

import polars as pl
import pytest

from assets import tables
from assets.labels.answering import (
    ROWS_PER_FRAME,
    AskedQuestion,
    keep_answers,
    label_questions,
)
from assets.labels.assets import LabellingPlan, judged_answers
from assets.labels.checks import (
    every_answer_cites_a_chunk,
    every_answer_is_judged_on_every_axis,
    every_question_was_answered,
    teacher_rejected_few_questions,
)
from assets.labels.judging import AXES, Ruler
from assets.labels.selection import TeacherTerms, select_examples
from assets.labels.split_checks import splits_share_no_seed
from assets.losses import allowed_losses
from resources.last_tables import NoTables
from serving.errors import DeadlineExceededError, UpstreamError, UpstreamRejectedError
from serving.models.protocols import ChatRequest, NoProgress, Price
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from tests.counting_embedder import CountingEmbedder
from tests.serving.fakes import GOOD, INVALID, CannedChatModel, CannedRetriever

TERMS = TeacherTerms(teacher_id="teacher-1", license="MIT", is_trainable=True)
RULER = Ruler(rater_id="judge-1", epoch="test")
RATING = "{" + ", ".join(f'"{axis}": 5' for axis in AXES) + "}"


@dataclass
class PickyTeacher(CannedChatModel):
    """Refuses each question with `refused` in it, as a content filter does; fails at others."""

    async def complete(self, request: ChatRequest):
        question = request.messages[-1]["content"]
        if "refused" in question:
            raise UpstreamRejectedError("asking", expected="200", found="400", next_step="reword")
        if "broken" in question:
            raise UpstreamError("asking", expected="200", found="503", next_step="wait")
        if "slow" in question:
            raise DeadlineExceededError("asking", expected="60 s", found="none", next_step="wait")
        return await super().complete(request)


def label(*texts: str, concurrency: int = 4) -> pl.DataFrame:
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
    return asyncio.run(
        label_questions(
            questions,
            pipeline=pipeline,
            kept=keep_answers(tables.TEACHER_ANSWERS.to_frame(), "test"),
            concurrency=concurrency,
            progress=NoProgress(),
        )
    )


def judge(answers: pl.DataFrame) -> pl.DataFrame:
    plan = LabellingPlan(
        terms=TERMS,
        concurrency=2,
        ruler=RULER,
        judge_concurrency=2,
        minimum_score=4,
    )
    rate = judged_answers.op.compute_fn.decorated_fn
    last = NoTables(tables.BY_KEY)
    return rate(answers, CannedChatModel("judge-1", RATING), plan, last, NoProgress()).value


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


@pytest.mark.parametrize("how", ["broken", "slow"])
def test_a_question_the_server_fails_at_is_marked_and_stops_nobody(how):
    answers = label("where?", f"{how}?", "how?")
    assert answers["validator_verdict"].to_list() == ["valid", "unanswered", "valid"]
    assert answers.row(1, named=True)["messages"][-1]["content"] == f"{how}?"
    assert every_answer_cites_a_chunk(answers).passed
    warning = every_question_was_answered(answers)
    assert not warning.passed
    assert warning.metadata["unanswered"].value == ["q1"]
    assert judge(answers)["question_id"].unique().sort().to_list() == ["q0", "q2"]


def test_more_failures_than_chance_explains_stop_the_run_and_say_what_is_kept():
    texts = [f"broken {n}" if n % 10 == 0 else f"where {n}" for n in range(100)]
    with pytest.raises(UpstreamError, match=r"at most 2 .* found 3 unanswered beside \d+ .*503"):
        label(*texts)


def test_a_server_that_is_down_stops_the_run_long_before_its_share_is_used_up():
    texts = [f"where {n}" if n < 500 else f"broken {n}" for n in range(1000)]
    wanted = r"\d unanswered beside \d+ answers, 4 of them in a row"
    with pytest.raises(UpstreamError, match=wanted):
        label(*texts)


def test_rows_keep_the_order_of_the_questions_over_many_frames():
    count = 2 * ROWS_PER_FRAME + 10
    answers = label(*(f"where {n}" for n in range(count)), concurrency=16)
    assert answers["question_id"].to_list() == [f"q{n}" for n in range(count)]
    assert answers["question"].to_list() == [f"where {n}" for n in range(count)]
    assert answers.schema == tables.TEACHER_ANSWERS


def test_two_in_a_hundred_may_be_refused_and_one_in_any_case():
    assert [allowed_losses(n, 0.02) for n in (1, 50, 99, 100, 1000)] == [1, 1, 1, 2, 20]


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
    selection = select_examples(
        answers, judged, minimum_score=4, terms=TERMS, ruler=RULER,
        embedder=CountingEmbedder(),
    )  # fmt: skip
    assert selection.examples["question_id"].to_list() == ["q0"]
    assert selection.rejected_by_reason == {"invalid": 2}


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
