"""One request: routed, answered, validated, and never shown when it does not hold."""

import pytest

from serving.errors import UpstreamError
from serving.models.protocols import Hit, Price
from serving.pipeline.answer import AnswerPipeline
from serving.pipeline.prompt import PromptFormat, read_answer
from serving.pipeline.questions import normalise_question
from serving.pipeline.router import RouterPolicy, choose_route
from serving.pipeline.statements import split_statements, support_ratio
from serving.pipeline.validator import ValidatorPolicy, validate
from tests.serving.fakes import CannedChatModel, CannedRetriever

HITS = (
    Hit(
        chunk_id="docs:a/1",
        content_hash="h1",
        text="Traces are stored in segments. Each segment is sealed.",
        title="Traces",
        url="/a/",
        heading_path=("Traces", "Segments"),
        score=0.8,
    ),
    Hit(
        chunk_id="docs:b/2",
        content_hash="h2",
        text="The port is 8321.",
        title="Server",
        url="/b/",
        heading_path=("Server",),
        score=0.4,
    ),
)
GOOD = "Traces are stored in segments. [1]"
LOCAL = PromptFormat()
PRICE = Price(output_usd_per_mtok=25_000.0)  # half a dollar for each canned answer


def pipeline(teacher: str | Exception = GOOD, student: str | Exception = GOOD, **changes):
    settings = {
        "retriever": CannedRetriever(HITS),
        "teacher": CannedChatModel("teacher-1", teacher, PRICE),
        "student": CannedChatModel("student@1", student, PRICE),
        "prompt": LOCAL,
        "router": RouterPolicy(),
        "validator": ValidatorPolicy(),
        "count_tokens": len,
    }
    return AnswerPipeline(**(settings | changes))


def down() -> UpstreamError:
    return UpstreamError("asking", expected="200", found="503", next_step="wait")


async def test_a_valid_student_answer_is_served_with_full_citation_ids():
    answered = await pipeline().answer("Where?")
    assert (answered.served_by, answered.answer) == (
        "student",
        "Traces are stored in segments. [docs:a/1]",
    )
    assert [hit.chunk_id for hit in answered.cited] == ["docs:a/1"]
    assert answered.cost_usd == 0.5


@pytest.mark.parametrize(
    "bad", ["Traces are stored in segments.", "Traces sing. [9]", "", "Bananas grow fast. [1]"]
)
async def test_an_invalid_student_answer_falls_back_and_both_attempts_are_paid(bad):
    answered = await pipeline(student=bad).answer("Where?")
    assert (answered.served_by, answered.model, answered.used_fallback) == (
        "teacher",
        "teacher-1",
        True,
    )
    assert answered.cost_usd == 1.0
    assert [str(a.verdict) != "valid" for a in answered.attempts] == [True, False]


async def test_a_student_that_fails_falls_back():
    answered = await pipeline(student=down()).answer("Where?")
    assert answered.served_by == "teacher"
    assert "503" in answered.attempts[0].error


async def test_when_both_are_invalid_the_user_gets_a_refusal():
    answered = await pipeline(teacher="Nonsense. [7]", student="Nonsense. [8]").answer("Where?")
    assert answered.refused
    assert answered.cited == ()
    assert "Where?" in answered.answer


async def test_when_the_fallback_fails_the_user_gets_a_refusal_and_the_student_is_recorded():
    answered = await pipeline(teacher=down(), student="Nonsense. [8]").answer("Where?")
    assert answered.refused
    assert [a.role for a in answered.attempts] == ["student", "teacher"]
    assert answered.cost_usd == 0.5


async def test_when_nobody_answers_the_error_is_raised():
    with pytest.raises(UpstreamError):
        await pipeline(teacher=down(), student=down()).answer("Where?")


async def test_the_student_arm_stays_alone():
    answered = await pipeline(student="Nonsense. [8]").answer("Where?", mode="student")
    assert (answered.refused, len(answered.attempts), answered.served_by) == (True, 1, "student")


async def test_teacher_and_student_are_asked_the_very_same_request():
    path = pipeline(student="Nonsense. [8]")
    await path.answer("Where?")
    assert path.teacher.requests == path.student.requests


async def test_another_seed_is_another_request():
    path = pipeline()
    for seed in (0, 1):
        await path.answer("Where?", mode="teacher", seed=seed)
    first, second = path.teacher.requests
    assert first.content_key("t") != second.content_key("t")


@pytest.mark.parametrize(
    ("tokens", "score", "prefer", "phase", "route"),
    [
        (10, 0.9, False, "switch", ("student", "default")),
        (6001, 0.1, True, "switch", ("teacher", "long_context")),
        (6000, 0.549, True, "switch", ("teacher", "low_retrieval")),
        (6000, 0.55, True, "switch", ("teacher", "prefer_quality")),
        (6000, 0.55, False, "switch", ("student", "default")),
        (10, 0.9, False, "hitchhiker", ("teacher", "phase")),
    ],
)
def test_the_rules_hold_in_their_order(tokens, score, prefer, phase, route):
    found = choose_route(
        prompt_tokens=tokens,
        max_score=score,
        prefer_quality=prefer,
        phase=phase,
        policy=RouterPolicy(),
    )
    assert (found.to, found.reason) == route


async def test_nothing_retrieved_goes_to_the_teacher():
    answered = await pipeline(retriever=CannedRetriever(()), teacher="REFUSE").answer("Where?")
    assert (answered.route.reason, answered.refused) == ("low_retrieval", True)


def test_the_prompt_repeats_the_id_after_every_sentence_and_ends_with_the_question():
    request = LOCAL.write_request("Where?", HITS)
    system, user = request.messages
    first = "Traces are stored in segments. [1] Each segment is sealed. [1]"
    assert f"[1] Traces > Segments: {first}" in system["content"]
    assert "[2] Server: The port is 8321. [2]" in system["content"]
    assert user == {"role": "user", "content": "Where?"}


def test_full_ids_are_read_back_as_they_are():
    full = PromptFormat(citation_ids="full")
    draft = read_answer("The port is 8321. [docs:b/2] More. [docs:c/9]", HITS, full)
    assert [hit.chunk_id for hit in draft.cited] == ["docs:b/2"]
    assert draft.unknown_ids == ("docs:c/9",)
    assert full.version != LOCAL.version


@pytest.mark.parametrize("raw", ["REFUSE", " refuse. ", "Refuse"])
def test_the_bare_word_is_a_refusal(raw):
    assert read_answer(raw, HITS, LOCAL).refused


@pytest.mark.parametrize(
    ("raw", "verdict"),
    [
        (GOOD, "valid"),
        ("The port is 8321. [2] Traces are stored in segments. [1]", "valid"),
        ("REFUSE", "valid"),
        ("", "empty"),
        ("[1]", "empty"),
        ("The port is 8321.", "uncited_statement"),
        ("Traces are stored in segments. The port is 8321. [2]", "uncited_statement"),
        ("The port is 8321. [1]", "unsupported_statement"),
        ("The port is 8321. [2] [3]", "unknown_citation"),
        ("REFUSE The port is 8321. [2]", "refusal_inside_answer"),
        ("The port is 8321. [2] " * 300, "too_long"),
    ],
)
def test_the_validator_names_the_broken_rule(raw, verdict):
    found = validate(read_answer(raw, HITS, LOCAL), HITS, ValidatorPolicy())
    assert verdict in str(found)
    assert found.is_valid == (verdict == "valid")


def test_a_citation_belongs_to_the_sentence_before_it():
    statements = split_statements("One is here. Two is there. [1] [2] Three stands alone.")
    assert [(s.text, s.citation_ids) for s in statements] == [
        ("One is here.", ()),
        ("Two is there.", ("1", "2")),
        ("Three stands alone.", ()),
    ]


def test_support_counts_distinct_words_that_mean_something():
    assert support_ratio("The port is 8321", "the PORT: 8321") == 1.0
    assert support_ratio("The port is 9000", "the port is 8321") == 0.5
    assert support_ratio("of the", "anything") == 0.0


def test_questions_are_normalised_before_anything_sees_them():
    assert normalise_question("  What\tis\n\u200bthe \uff30ort\u00ad?  ") == "What is the Port?"
    assert normalise_question("joe\u200b@example.com") == "joe@example.com"
