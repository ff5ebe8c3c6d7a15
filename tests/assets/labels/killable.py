"""What the process does that `test_labelling_interruptions` kills: label, and write the rows."""

import asyncio
from pathlib import Path

from assets import tables
from assets.labels.answering import AskedQuestion, keep_answers, label_questions
from resources.chat_models import CachedChatModel
from resources.pacing import Pace
from serving.models.openai_chat import connect
from serving.models.protocols import NoProgress, Price
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from tests.serving.fakes import CannedRetriever

CONCURRENCY = 6


def label_to_the_end(url: str, folder: Path, count: int) -> None:
    """Label `count` questions and write the rows."""
    teacher = CachedChatModel(
        connect(url, None, model="m-1", price=Price(), retries=0),
        folder / "cache",
        budget_usd=1.0,
        pace=Pace(CONCURRENCY, deadline_seconds=60),
    )
    pipeline = AnswerPipeline(
        retriever=CannedRetriever(),
        teacher=teacher,
        student=None,
        prompt=PromptFormat(),
        router=RouterPolicy(),
        validator=ValidatorPolicy(),
        count_tokens=len,
    )
    questions = [
        AskedQuestion(question_id=f"q{n}", seed_id=f"s{n}", text=f"where is variable {n}?")
        for n in range(count)
    ]
    frame = asyncio.run(
        label_questions(
            questions,
            pipeline=pipeline,
            kept=keep_answers(tables.TEACHER_ANSWERS.to_frame(), "test"),
            concurrency=CONCURRENCY,
            progress=NoProgress(),
        )
    )
    frame.write_parquet(folder / "answers.parquet")
