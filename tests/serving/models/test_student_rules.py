"""A student that refuses by a score, and reads its best sources, before its model is asked."""

import asyncio
import math

import pytest

from serving.errors import ReleaseError
from serving.models.protocols import ChatModel, ChatRequest, Hit, Price
from serving.models.student_rules import (
    NO_RULES,
    RULES_FILE,
    RefusalRule,
    RuledStudent,
    StudentRules,
    follow_rules,
    read_rules,
)
from serving.pipeline.confidence import read_signals
from serving.pipeline.prompt import REFUSAL_WORD, PromptFormat
from tests.serving.fakes import CannedChatModel

RULE = RefusalRule(intercept=10.0, weight=-20.0)  # even odds at a score of 0.5


def ask(model, score, *, streamed=None):
    student = RuledStudent(model, StudentRules(refusal=RULE))
    request = ChatRequest(messages=({"role": "user", "content": "?"},), best_score=score)
    call = student.complete(request) if streamed is None else student.stream(request, streamed)
    return asyncio.run(call)


@pytest.mark.parametrize(("score", "asked"), [(0.49, 0), (0.51, 1), (None, 1)])
def test_a_question_without_a_near_source_costs_no_call(score, asked):
    model = CannedChatModel("tiny@1", price=Price(input_usd_per_mtok=1.0))
    completion = ask(model, score)
    assert len(model.requests) == asked
    assert (completion.text == REFUSAL_WORD) is (not asked)
    assert (completion.cost_usd == 0) is (not asked)
    assert completion.model == "tiny@1"
    assert isinstance(RuledStudent(model, StudentRules(refusal=RULE)), ChatModel)


def test_a_refusal_is_as_sure_as_the_rule():
    completion = ask(CannedChatModel("tiny@1"), 0.4)
    assert math.exp(completion.mean_logprob) == pytest.approx(1 / (1 + math.exp(-2)))
    signals = read_signals(completion, (), is_refusal=True)
    assert signals["raw_logit"] == pytest.approx(2)
    assert signals["first_margin"] == pytest.approx(2)


def test_a_stream_of_a_refusal_is_the_refusal_and_any_other_the_students():
    pieces = []
    assert ask(CannedChatModel("tiny@1"), 0.2, streamed=pieces.append).text == REFUSAL_WORD
    assert pieces == [REFUSAL_WORD]
    pieces.clear()
    answer = ask(CannedChatModel("tiny@1"), 0.9, streamed=pieces.append)
    assert "".join(pieces) == answer.text != REFUSAL_WORD


def test_a_request_of_the_pipeline_says_how_near_its_best_source_is():
    hits = [
        Hit(chunk_id=f"docs:a/{n}", content_hash="h", text="t", title="T", url="u", score=score)
        for n, score in enumerate((0.3, 0.7))  # ordered by relevance, not by score
    ]
    requests = [PromptFormat().write_request("q?", found) for found in (hits, [])]
    assert [request.best_score for request in requests] == [0.7, 0.0]
    unscored = ChatRequest(messages=requests[0].messages, max_tokens=requests[0].max_tokens)
    assert unscored.content_key("m") == requests[0].content_key("m")


def test_the_model_reads_the_best_sources_alone():
    hits = [
        Hit(chunk_id=f"docs:a/{n}", content_hash="h", text=f"Fact {n}.", title="T", url="u")
        for n in range(1, 4)
    ]
    request = PromptFormat().write_request("What?", hits)
    asked = []
    for count in (1, 2, 5):
        model = CannedChatModel("tiny@1")
        asyncio.run(RuledStudent(model, StudentRules(sources=count)).complete(request))
        asked.append(model.requests[0])
    for count, found in zip((1, 2, 3), asked, strict=True):
        expected = PromptFormat().write_request("What?", hits[:count])
        assert found.messages == expected.messages
        assert found.max_tokens == request.max_tokens


def test_rules_are_read_as_they_were_written_and_a_folder_may_have_none(tmp_path):
    student = CannedChatModel("tiny@1")
    assert read_rules(tmp_path) == NO_RULES
    assert follow_rules(student, tmp_path) is student
    rules = StudentRules(refusal=RULE, sources=2)
    rules.write(tmp_path)
    assert read_rules(tmp_path) == rules
    assert isinstance(follow_rules(student, tmp_path), RuledStudent)
    assert RULE.minimum_score == 0.5


@pytest.mark.parametrize("text", ['{"refusal": {}}', '{"sources": 0}', '{"score": 1}', "no"])
def test_broken_rules_are_refused(tmp_path, text):
    (tmp_path / RULES_FILE).write_text(text)
    with pytest.raises(ReleaseError, match="reading the rules"):
        read_rules(tmp_path)
