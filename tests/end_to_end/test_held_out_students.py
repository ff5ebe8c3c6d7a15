"""Held-out answers, their report and the calibration as Dagster makes them, and what checks say.

The students are canned models at the protocol seam; the lake, the assets, the checks and the
request path are the real ones.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import dagster as dg
import polars as pl
import pytest

from assets import keys, tables
from assets.students.calibration import read_calibrator
from assets.students.held_out import HeldOutPlan
from orchestration.config import read_config
from orchestration.definitions import build_defs
from serving.home import Home
from serving.models.protocols import ChatRequest, NoProgress
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.prompt import PromptFormat
from serving.pipeline.router import RouterPolicy
from serving.pipeline.validator import ValidatorPolicy
from tests.counting_embedder import CountingEmbedder
from tests.product import write_product
from tests.serving.fakes import GOOD, INVALID, CannedChatModel, CannedRetriever
from tests.serving.pipeline.test_low_confidence import SayingStudent

MADE = [keys.HELD_OUT_ANSWERS, keys.VALIDATION_REPORT, keys.CALIBRATION]
SHA = "b" * 64
ADAPTER = {"recipe": "tiny", "student": "tiny", "adapter": "tiny@1", "adapter_sha256": SHA}
INDEX = {"index_fingerprint": "feed", "embedder_fingerprint": "e0e0"}
WRONG = "Deploy with the build command. [2]"
CITED = ["docs:guides/environment-variables/2"]


@dataclass
class CannedParts:
    """The request path over a canned retriever."""

    embedder: CountingEmbedder = field(default_factory=lambda: CountingEmbedder("e0e0"))

    async def assemble(self, _fingerprint: str, *, student) -> AnswerPipeline:
        return AnswerPipeline(
            retriever=CannedRetriever(),
            teacher=CannedChatModel("teacher-1"),
            student=student,
            prompt=PromptFormat(),
            router=RouterPolicy(),
            validator=ValidatorPolicy(),
            count_tokens=len,
        )


@dataclass
class CannedStudents:
    """The student, and a base that says nothing usable; both remember what they were asked."""

    student: SayingStudent
    base: SayingStudent = field(default_factory=lambda: SayingStudent("base@1", INVALID))

    def find(self, _student: str) -> SimpleNamespace:
        return SimpleNamespace(provider="local")

    def open_base(self, _student: str) -> SimpleNamespace:
        return SimpleNamespace(model=self.base)

    def load(self, _adapter: dict) -> SayingStudent:
        self.student.dtype = "float32"  # as a student says it that runs here
        return self.student


def write_inputs(home: Home) -> None:
    """Write 30 seeds of 2 questions in each split; of validation's the last 25 are refused."""
    examples, answers, seeds = [], [], []
    for split in ("train", "validation", "calibration"):
        for number in range(60):
            refused = number >= 35
            identity = {"question_id": f"{split}{number}", "seed_id": f"{split}-s{number // 2}"}
            question = {"question": f"{'Sing' if refused else 'Where'} {split} {number}?"}
            examples.append(
                identity | question
                | {"example_id": f"{split}-e{number}", "split": split, "refused": refused}
            )  # fmt: skip
            answers.append(
                identity | question
                | {"answer": "no" if refused else "In it. [docs:guides/environment-variables/2]",
                   "citations": [] if refused else CITED, "refused": refused}
            )  # fmt: skip
        seeds += [{"question_id": f"{split}-s{n}", "text": "t", "tags": []} for n in range(30)]
    for key, rows, schema in (
        ("labels/labelled_examples", examples, tables.LABELLED_EXAMPLES),
        ("labels/teacher_answers", answers, tables.TEACHER_ANSWERS),
        ("seeds/seed_questions", seeds, tables.SEED_QUESTIONS),
        ("corpus/vector_index", [INDEX], tables.VECTOR_INDEX),
        ("students/student_adapter", [ADAPTER], tables.STUDENT_ADAPTER),
    ):
        path = home.table(key, "tiny" if key.startswith("students") else None)
        path.parent.mkdir(parents=True, exist_ok=True)
        blank = dict.fromkeys(schema)
        pl.DataFrame([blank | row for row in rows], schema=schema).write_parquet(path)


def answer_as(request: ChatRequest) -> str:
    """Refuse what does not begin with Where; cite the wrong source for a third of the rest."""
    question = request.messages[-1]["content"]
    if not question.startswith("Where"):
        return "REFUSE"
    return WRONG if int(question.strip("?").split()[-1]) % 3 == 0 else GOOD


@pytest.fixture
def materialize(tmp_path):
    config = read_config(write_product(tmp_path))
    home = Home(config.home)
    write_inputs(home)
    plan = HeldOutPlan(validation_cases=50, calibration_cases=50, base_cases=10)

    def run(
        students: CannedStudents, parts: CannedParts | None = None
    ) -> dg.ExecuteInProcessResult:
        definitions = build_defs(
            config, students=students, pipeline_parts=parts or CannedParts(), held_out_plan=plan,
            progress=NoProgress(),
        )  # fmt: skip
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("recipes", ["tiny"])
            return definitions.resolve_job_def("whole_chain").execute_in_process(
                asset_selection=MADE, partition_key="tiny", instance=instance, raise_on_error=False
            )

    return run, lambda name: pl.read_parquet(home.table(f"students/{name}", "tiny"))


def read_checks(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, str]]:
    return {
        check.check_name: (check.passed, (check.description or "").split(":")[0])
        for check in result.get_asset_check_evaluations()
    }


def test_a_student_is_asked_reported_and_calibrated(materialize):
    run, read = materialize
    students = CannedStudents(SayingStudent("tiny@1", answer_as))
    result = run(students)
    assert result.success
    assert (len(students.student.requests), len(students.base.requests)) == (100, 10)

    answers = read("held_out_answers")
    assert answers.group_by("arm").len().sort("arm").rows() == [
        ("base", 10), ("student", 100), ("top1", 50),
    ]  # fmt: skip
    assert answers["adapter_sha256"].unique().to_list() == [SHA]
    assert not answers["split"].is_in(["train"]).any()

    report = read("validation_report")
    numbers = {
        (arm, metric): (numerator, denominator)
        for arm, metric, numerator, denominator in report.filter(kind="arm")
        .select("arm", "metric", "numerator", "denominator")
        .iter_rows()
    }
    right, answerable = numbers["student", "same_citations"]
    assert 0 < right < answerable
    assert numbers["student", "refusal_recall"][0] == numbers["student", "refusal_recall"][1] > 0
    assert numbers["top1", "same_citations"] == (answerable, answerable)
    assert numbers["base", "valid"] == (0, 10)

    calibration = read("calibration").row(0, named=True)
    assert calibration["fit_count"] == 25
    assert 13 <= calibration["certify_count"] < 25  # its 25 answers are of so many seeds
    calibrator = read_calibrator(calibration)
    assert (calibrator.adapter_sha256, calibrator.engine, calibrator.dtype) == (
        SHA, "local", "float32",
    )  # fmt: skip
    assert calibrator.method != "constant"
    assert calibration["brier_after"] < calibration["brier_before"]


def test_checks_say_what_is_true_of_a_good_and_a_weak_student_and_stop_neither(materialize):
    run, _ = materialize
    first = CannedStudents(SayingStudent("tiny@1", answer_as))
    assert read_checks(run(first)) == {
        "held_out_questions_were_never_trained_on": (True, ""),
        "student_passes_the_validator": (True, "PASS"),
        "student_refuses_out_of_scope": (True, "PASS"),
        "student_beats_citing_the_top_chunk": (False, "FAIL"),
        "calibration_is_of_this_adapter": (True, ""),
        "calibration_improves_the_confidence": (True, "PASS"),
    }
    result = run(CannedStudents(SayingStudent("tiny@1", INVALID)))
    assert result.success
    assert read_checks(result) == {
        "held_out_questions_were_never_trained_on": (True, ""),
        "student_passes_the_validator": (False, "FAIL"),
        "student_refuses_out_of_scope": (False, "FAIL"),
        "student_beats_citing_the_top_chunk": (False, "FAIL"),
        "calibration_is_of_this_adapter": (True, ""),
        "calibration_improves_the_confidence": (False, "INCONCLUSIVE"),
    }


def test_a_student_that_fails_too_often_stops_the_chain(materialize):
    from serving.errors import UpstreamError

    down = UpstreamError("asking", expected="200", found="503", next_step="wait")
    run, _ = materialize
    result = run(CannedStudents(SayingStudent("tiny@1", down)))
    assert not result.success
    assert read_checks(result) == {"held_out_questions_were_never_trained_on": (False, "")}


def test_held_out_questions_are_not_looked_up_in_an_index_of_another_embedder(materialize):
    """Chunks would be found at random, and the student be calibrated on what it says of them."""
    run, _ = materialize
    students = CannedStudents(SayingStudent("tiny@1", answer_as))
    result = run(students, CannedParts(CountingEmbedder("other")))
    (failed,) = result.get_step_failure_events()
    assert "found vectors of e0e0" in str(failed.step_failure_data.error)
    assert students.student.requests == []
