"""A student that refuses by the score of its best source, before its model is asked."""

import asyncio
import math

import pytest

from serving.errors import ReleaseError
from serving.models.protocols import ChatModel, ChatRequest, Hit, Price
from serving.models.refusing import RULE_FILE, RefusalRule, RefusingStudent, read_rule
from serving.pipeline.confidence import read_signals
from serving.pipeline.prompt import REFUSAL_WORD, PromptFormat
from tests.serving.fakes import CannedChatModel

RULE = RefusalRule(intercept=10.0, weight=-20.0)  # even odds at a score of 0.5


def ask(model, score, *, streamed=None):
    student = RefusingStudent(model, RULE)
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
    assert isinstance(RefusingStudent(model, RULE), ChatModel)


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


def test_a_rule_is_read_as_it_was_written_and_a_folder_may_have_none(tmp_path):
    assert read_rule(tmp_path) is None
    RULE.write(tmp_path)
    assert read_rule(tmp_path) == RULE
    assert RULE.minimum_score == 0.5


@pytest.mark.parametrize("text", ["{}", '{"intercept": 1, "weight": 2}', "no"])
def test_a_broken_rule_is_refused(tmp_path, text):
    (tmp_path / RULE_FILE).write_text(text)
    with pytest.raises(ReleaseError, match="weight below 0"):
        read_rule(tmp_path)
