"""Rows of the last tables are kept where a fresh run would repeat them, and only there."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest

from assets import keys, tables
from assets.labels import answering, rating
from assets.labels.assets import (
    LabellingPlan,
    contaminated_examples,
    judged_answers,
    teacher_answers,
)
from assets.labels.judging import AXES, Ruler
from assets.labels.selection import TeacherTerms
from resources.chat_models import CachedChatModel
from resources.last_tables import LastTables, NoTables
from serving.errors import InvalidInputError, UpstreamError, UpstreamRejectedError
from serving.home import Home
from serving.models.protocols import ChatRequest, Completion, NoProgress, Price
from serving.pipeline import assembly
from serving.pipeline.assembly import PipelineParts
from serving.pipeline.indexing import IndexedChunk, build_index, plan_index
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from tests.counting_embedder import CountingEmbedder
from tests.serving.fakes import Answer, CannedChatModel

GUARDED = ("question_id", "seed_id", "text", "verdict")
TOPICS = ("kiln", "glaze", "shelf", "brush", "thermocouple")
PRICE = Price(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0)
RULER = Ruler(rater_id="judge-1", epoch="2026-11")
RATING = "{" + ", ".join(f'"{axis}": 5' for axis in AXES) + ', "rationale": "fine"}'


class WordReader:
    """A reranker: the share of a question's words that a text has."""

    fingerprint = "word-reader"

    def score(self, question: str, texts: Sequence[str]) -> np.ndarray:
        words = set(question.lower().split())
        shares = [len(words & set(text.lower().split())) / len(words) for text in texts]
        return np.array(shares, dtype=np.float32)


def quote(request: ChatRequest) -> str:
    """The first source, unit by unit with its label; refuses, drifts or fails where it is told."""
    question = request.messages[-1]["content"]
    if "broken" in question:
        raise UpstreamError("asking", expected="200", found="503", next_step="wait")
    if "banned" in question:
        raise UpstreamRejectedError("asking", expected="200", found="400", next_step="reword")
    if "drift" in question:
        return "Everything is stored on the moon."
    if "weather" in question:
        return "REFUSE"
    source = request.messages[0]["content"].partition("Sources:\n")[2].splitlines()[0]
    return source.partition(": ")[2]


class TalkativeModel(CannedChatModel):
    """Says what a canned model says; where the kiln is asked about, it was not done."""

    async def complete(self, request: ChatRequest) -> Completion:
        completion = await super().complete(request)
        is_cut_off = "kiln" in request.messages[-1]["content"]
        return replace(completion, finish_reason="length") if is_cut_off else completion


@dataclass
class Factory:
    """The labels of one home, made run by run; every run opens its resources as a process would."""

    folder: Path
    embedder: CountingEmbedder = field(default_factory=CountingEmbedder)
    mark: str = "1300"
    judge: CannedChatModel = field(default_factory=lambda: CannedChatModel("judge-1", RATING))

    @property
    def home(self) -> Home:
        return Home(self.folder)

    def build_index(self) -> str:
        chunks = [
            IndexedChunk(
                chunk_id=f"docs:{topic}/1",
                content_hash=f"{topic} {self.mark}",
                title=topic,
                url=f"/{topic}/",
                heading_path=(topic,),
                text=f"The {topic} is set to {self.mark} degrees. Check the {topic} every week.",
            )
            for topic in TOPICS
        ]
        plan = plan_index(chunks, maximum_tokens=64, count_tokens=self.embedder.count_tokens)
        vectors = self.embedder.embed(plan.texts)
        return build_index(self.home.index, chunks, plan, vectors, self.embedder.fingerprint)

    def tabulate_index(self) -> pl.DataFrame:
        index, embedder = self.build_index(), self.embedder.fingerprint
        return pl.DataFrame({"index_fingerprint": [index], "embedder_fingerprint": [embedder]})

    def open_parts(self, answer: Answer = quote, **changes: Any) -> PipelineParts:
        name = changes.pop("teacher_name", "teacher-1")
        price = changes.pop("price", PRICE)
        teacher = CachedChatModel(
            CannedChatModel(name, answer, price=price, delay_seconds=0.001),
            self.home.answer_cache,
            budget_usd=10.0,
            identity=changes.pop("identity", "server-1"),
        )
        parts = PipelineParts(
            index_folder=self.home.index,
            embedder=self.embedder,
            k=2,
            teacher=teacher,
            prompt=PromptFormat(),
            router=RouterPolicy(),
            validator=ValidatorPolicy(),
            count_tokens=len,
        )
        return replace(parts, **changes)

    def label(
        self, texts: Sequence[str], *, is_fresh: bool = False, store: bool = True, **changes: Any
    ) -> dg.MaterializeResult[pl.DataFrame]:
        """Run the asset; `is_fresh` is what --force gives, `store` is what the IO manager does."""
        guarded = pl.DataFrame(
            {
                "question_id": [f"q{n}" for n in range(len(texts))],
                "seed_id": [f"s{n}" for n in range(len(texts))],
                "text": list(texts),
                "verdict": ["kept"] * len(texts),
            }
        )
        index = self.tabulate_index()
        make = teacher_answers.op.compute_fn.decorated_fn
        parts = self.open_parts(**changes)
        self.embedder.embedded.clear()
        result = make(guarded, index, parts, plan(RULER), self.tables(is_fresh), NoProgress())
        return self._store(keys.TEACHER_ANSWERS, result) if store else result

    def rate(
        self,
        answers: pl.DataFrame,
        *,
        ruler: Ruler = RULER,
        identity: str = "server-1",
        is_fresh: bool = False,
        store: bool = True,
    ) -> dg.MaterializeResult[pl.DataFrame]:
        judge = CachedChatModel(
            self.judge, self.home.answer_cache, budget_usd=10.0, identity=identity
        )
        make = judged_answers.op.compute_fn.decorated_fn
        result = make(answers, judge, plan(ruler), self.tables(is_fresh), NoProgress())
        return self._store(keys.JUDGED_ANSWERS, result) if store else result

    def tables(self, is_fresh: bool) -> LastTables | NoTables:
        return NoTables(tables.BY_KEY) if is_fresh else LastTables(self.home, tables.BY_KEY)

    def _store(
        self, key: dg.AssetKey, result: dg.MaterializeResult[pl.DataFrame]
    ) -> dg.MaterializeResult[pl.DataFrame]:
        path = self.home.table("/".join(key.path))
        path.parent.mkdir(parents=True, exist_ok=True)
        result.value.write_parquet(path)
        return result


def plan(ruler: Ruler) -> LabellingPlan:
    terms = TeacherTerms(teacher_id="teacher-1", license="MIT", is_trainable=True)
    return LabellingPlan(
        terms=terms, concurrency=3, ruler=ruler, judge_concurrency=3, minimum_score=4
    )


QUESTIONS = [
    *(f"how hot is the {topic}?" for topic in TOPICS),
    "what is the weather?",
    "does the answer drift?",
]


@pytest.fixture
def factory(tmp_path) -> Factory:
    return Factory(tmp_path)


def test_a_second_run_asks_nobody_and_repeats_the_table(factory):
    first = factory.label(QUESTIONS)
    assert first.metadata["kept_count"] == 0
    assert first.metadata["bought_count"] == len(QUESTIONS)
    assert set(first.value["validator_verdict"]) > {"valid"}
    again = factory.label(QUESTIONS)
    assert again.value.equals(first.value)
    assert again.metadata["kept_count"] == len(QUESTIONS)
    assert (again.metadata["bought_count"], again.metadata["reused_count"]) == (0, 0)
    assert again.metadata["spent_usd"] == 0
    assert again.metadata["value_usd"] == pytest.approx(first.metadata["value_usd"])
    assert factory.embedder.embedded == []  # nothing was retrieved


def test_answers_cut_off_by_the_limit_are_counted_when_they_are_made(factory):
    def label(**changes: Any) -> int:
        teacher = CachedChatModel(
            TalkativeModel("teacher-1", quote, price=PRICE),
            factory.home.answer_cache,
            budget_usd=10.0,
            identity="server-1",
        )
        return factory.label(QUESTIONS, teacher=teacher, **changes).metadata["cut_off_count"]

    assert label() == 1
    assert label() == 0  # every row is kept
    assert label(is_fresh=True) == 1  # made anew, of cached answers


def test_the_contaminated_examples_say_what_they_cost(factory):
    cases = pl.DataFrame({"case_id": ["g1", "g2"], "question": QUESTIONS[:2]})
    index, context = factory.tabulate_index(), SimpleNamespace(run=SimpleNamespace(run_id="r"))
    make = contaminated_examples.op.compute_fn.decorated_fn

    def run() -> dict[str, Any]:
        parts = factory.open_parts()
        return make(context, cases, index, parts, plan(RULER), factory.home, NoProgress()).metadata

    first, again = run(), run()
    assert (first["example_count"], first["case_count"]) == (2, 2)
    assert (first["bought_count"], first["reused_count"], first["lost_usd"]) == (2, 0, 0)
    assert first["spent_usd"] == pytest.approx(2 * PRICE.cost_usd(100, 20))
    assert (again["bought_count"], again["reused_count"], again["spent_usd"]) == (0, 2, 0)


def test_after_an_edit_the_table_is_what_a_fresh_run_makes_bit_by_bit(factory):
    factory.label(QUESTIONS)
    edited = ["how hot is the shelf today?", *reversed(QUESTIONS[1:]), "  how hot is the brush? "]
    kept = factory.label(edited, store=False)
    assert kept.metadata["kept_count"] == len(QUESTIONS)  # the last one is normalised to a kept one
    assert kept.metadata["bought_count"] == 1
    assert kept.metadata["spent_usd"] == pytest.approx(PRICE.cost_usd(100, 20))
    fresh = factory.label(edited, is_fresh=True)
    assert fresh.metadata["kept_count"] == 0
    assert fresh.metadata["reused_count"] == len(edited)
    assert kept.value.equals(fresh.value)
    assert kept.value.schema == tables.TEACHER_ANSWERS
    assert kept.value["question_id"].to_list() == [f"q{n}" for n in range(len(edited))]


def test_a_question_that_is_gone_leaves_no_row(factory):
    factory.label(QUESTIONS)
    less = factory.label(QUESTIONS[:2])
    assert less.value["question"].to_list() == QUESTIONS[:2]
    assert factory.label(QUESTIONS).metadata["kept_count"] == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"k": 1},
        {"prompt": PromptFormat(citation_ids="full")},
        {"prompt": PromptFormat(max_answer_tokens=60)},
        {"validator": ValidatorPolicy(minimum_support_ratio=0.0)},
        {"teacher_name": "teacher-2"},
        {"identity": "server-2"},
        {"price": Price(input_usd_per_mtok=1.0, output_usd_per_mtok=5.0)},
        {"reranker": WordReader()},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_another_pipeline_keeps_nothing(factory, changes):
    factory.label(QUESTIONS)
    other = factory.label(QUESTIONS, store=False, **changes)
    assert other.metadata["kept_count"] == 0
    assert other.value.equals(factory.label(QUESTIONS, is_fresh=True, **changes).value)
    assert factory.label(QUESTIONS, **changes).metadata["kept_count"] == len(QUESTIONS)


def test_a_router_and_a_budget_have_no_part_in_it(factory):
    factory.label(QUESTIONS)
    other = factory.label(QUESTIONS, router=RouterPolicy(long_context_tokens=1), count_tokens=hash)
    assert other.metadata["kept_count"] == len(QUESTIONS)


def test_another_index_keeps_nothing(factory):
    before = factory.label(QUESTIONS).value
    factory.mark = "1250"
    after = factory.label(QUESTIONS)
    assert after.metadata["kept_count"] == 0
    assert "1250" in after.value["answer"][0]
    assert "1250" not in before["answer"][0]


def test_another_embedder_keeps_nothing(factory):
    factory.label(QUESTIONS)
    factory.embedder = CountingEmbedder("other")
    assert factory.label(QUESTIONS).metadata["kept_count"] == 0


def test_questions_are_not_looked_up_in_an_index_of_another_embedder(factory):
    index = factory.tabulate_index()
    factory.embedder = CountingEmbedder("other")  # its vectors are as long
    parts = factory.open_parts()
    empty = pl.DataFrame(schema={name: pl.String for name in GUARDED})
    label = teacher_answers.op.compute_fn.decorated_fn
    rest = (index, parts, plan(RULER), factory.tables(is_fresh=True), NoProgress())
    with pytest.raises(InvalidInputError, match="other, found vectors of counting") as refused:
        label(empty, *rest)
    assert "--select corpus" in refused.value.next_step


@pytest.mark.parametrize(
    ("module", "version"),
    [
        (assembly, "RETRIEVAL_VERSION"),
        (assembly, "VALIDATOR_VERSION"),
        (answering, "ANSWERING_VERSION"),
    ],
)
def test_a_raised_version_keeps_nothing(factory, monkeypatch, module, version):
    factory.label(QUESTIONS)
    monkeypatch.setattr(module, version, "next")
    assert factory.label(QUESTIONS).metadata["kept_count"] == 0


def test_what_was_left_without_an_answer_is_asked_again(factory):
    texts = [*QUESTIONS, "is it broken?", "is it banned?"]
    first = factory.label(texts)
    assert first.value["validator_verdict"].to_list()[-2:] == ["unanswered", "rejected_by_teacher"]
    again = factory.label(texts)
    assert again.metadata["kept_count"] == len(QUESTIONS)
    assert again.value.equals(first.value)
    mended = factory.label(texts, answer="REFUSE")
    assert mended.metadata["kept_count"] == len(QUESTIONS)
    assert mended.metadata["bought_count"] == 2
    assert mended.value["validator_verdict"].to_list()[-2:] == ["valid", "valid"]
    assert mended.value.head(len(QUESTIONS)).equals(first.value.head(len(QUESTIONS)))


def test_what_an_empty_account_rejected_is_asked_again_once_it_is_filled(factory):
    """Few new questions may all be rejected, and nothing of the pipeline changes with the cure."""

    def reject(_request: ChatRequest) -> str:
        raise UpstreamRejectedError("asking", expected="200", found="400 low credit", next_step="")

    texts = [f"kiln {number}" for number in range(100)]
    factory.label(texts)
    more = [*texts, "how hot is the shelf?", "how hot is the brush?"]
    empty = factory.label(more, answer=reject)
    assert empty.value["validator_verdict"].to_list()[-2:] == ["rejected_by_teacher"] * 2
    assert (empty.metadata["spent_usd"], empty.metadata["lost_usd"]) == (0, 0)
    filled = factory.label(more)
    assert (filled.metadata["kept_count"], filled.metadata["bought_count"]) == (100, 2)
    assert filled.value["validator_verdict"].unique().to_list() == ["valid"]


def test_losses_are_a_share_of_the_whole_set_also_where_only_they_are_asked(factory):
    texts = [f"broken {n}" if n % 75 == 0 else f"kiln {n}" for n in range(300)]
    first = factory.label(texts)
    assert first.metadata["unanswered_count"] == 4
    again = factory.label(texts)
    assert again.metadata["kept_count"] == 296
    assert again.metadata["unanswered_count"] == 4


@pytest.mark.parametrize("damage", ["truncated", "no table", "older", "gone"])
def test_a_last_table_that_cannot_be_trusted_keeps_nothing_and_stops_nobody(factory, damage):
    first = factory.label(QUESTIONS)
    path = factory.home.table("labels/teacher_answers")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "no table":
        path.write_bytes(b"PAR1 this is no table PAR1")
    elif damage == "older":
        first.value.drop("pipeline_fingerprint").write_parquet(path)
    else:
        path.unlink()
    again = factory.label(QUESTIONS)
    assert again.metadata["kept_count"] == 0
    assert again.metadata["reused_count"] == len(QUESTIONS)
    assert again.value.equals(first.value)


def test_judgements_of_the_same_answers_are_kept_bit_by_bit(factory):
    answers = factory.label(QUESTIONS).value
    first = factory.rate(answers)
    valid_count = first.metadata["judged_count"]
    assert first.metadata["bought_count"] == valid_count == len(QUESTIONS) - 1
    again = factory.rate(answers)
    assert again.metadata["kept_count"] == valid_count
    assert (again.metadata["bought_count"], again.metadata["reused_count"]) == (0, 0)
    assert again.value.equals(first.value)
    more = factory.label([*reversed(QUESTIONS), "how hot is the kiln now?"]).value
    kept, fresh = factory.rate(more, store=False), factory.rate(more, is_fresh=True)
    assert (kept.metadata["kept_count"], fresh.metadata["kept_count"]) == (valid_count, 0)
    assert kept.metadata["bought_count"] == 1
    assert kept.value.equals(fresh.value)
    assert kept.value.schema == tables.JUDGED_ANSWERS


@pytest.mark.parametrize(
    "changes",
    [
        {"ruler": replace(RULER, epoch="2027-01")},
        {"ruler": replace(RULER, rater_id="judge-2")},
        {"ruler": replace(RULER, rubric_version="next")},
        {"identity": "server-2"},
    ],
)
def test_another_judge_epoch_or_rubric_judges_anew(factory, changes):
    answers = factory.label(QUESTIONS).value
    factory.rate(answers)
    assert factory.rate(answers, **changes).metadata["kept_count"] == 0


def test_a_raised_version_judges_anew(factory, monkeypatch):
    answers = factory.label(QUESTIONS).value
    factory.rate(answers)
    monkeypatch.setattr(rating, "RATING_VERSION", "next")
    assert factory.rate(answers).metadata["kept_count"] == 0


def test_another_answer_to_the_same_request_is_judged_anew(factory):
    answers = factory.label(QUESTIONS).value
    factory.rate(answers)
    other = answers.with_columns(
        raw=pl.when(pl.col("question_id") == "q1").then(pl.lit("Else. [1]")).otherwise("raw")
    )
    judged = factory.rate(other)
    assert judged.metadata["kept_count"] == judged.metadata["judged_count"] - 1


def test_what_the_judge_could_not_decide_is_asked_again(factory):
    def rate(request: ChatRequest) -> str:
        return "no JSON" if "glaze?" in request.messages[-1]["content"] else RATING

    answers = factory.label(QUESTIONS).value
    factory.judge = CannedChatModel("judge-1", rate)
    first = factory.rate(answers)
    assert first.metadata["inconclusive_count"] == 1
    again = factory.rate(answers)
    assert again.metadata["kept_count"] == first.metadata["judged_count"] - 1
    assert again.value.equals(first.value)


def test_a_judgement_without_one_of_its_axes_is_not_kept(factory):
    answers = factory.label(QUESTIONS).value
    first = factory.rate(answers)
    path = factory.home.table("labels/judged_answers")
    first.value.slice(1).write_parquet(path)
    again = factory.rate(answers)
    assert again.metadata["kept_count"] == first.metadata["judged_count"] - 1
    assert again.value.equals(first.value)
