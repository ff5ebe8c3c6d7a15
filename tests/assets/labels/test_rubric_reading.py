"""The rubric's prompt and its reader."""

import json

import pytest

from assets.labels.judging import (
    AXES,
    RUBRIC_VERSION,
    Judgement,
    read_judgement,
    write_judge_request,
)
from serving.errors import InvalidInputError

SCORES = {"grounded": 5, "complete": 4, "cites_right": 5, "refuses_right": 5, "clear": 3}


def reply(**changes: object) -> str:
    return json.dumps({**SCORES, "rationale": "fine", **changes})


def test_the_request_holds_question_sources_and_answer_at_temperature_zero():
    request = write_judge_request("Why {x}?", "[1] A: B. [1]", "REFUSE", seed=4)
    content = request.messages[-1]["content"]
    assert "<question>\nWhy {x}?\n</question>" in content
    assert "<sources>\n[1] A: B. [1]\n</sources>" in content
    assert "<answer>\nREFUSE\n</answer>" in content
    assert (request.temperature, request.seed) == (0.0, 4)


def test_the_schema_asks_for_every_axis():
    request = write_judge_request("q", "s", "a")
    assert request.response_format is not None
    schema = request.response_format["json_schema"]
    assert schema["name"] == "judgement"
    assert schema["schema"]["required"] == [*AXES, "rationale"]
    assert len(RUBRIC_VERSION) == 12


@pytest.mark.parametrize("wrap", ["{}", "```json\n{}\n```"])
def test_a_reply_is_read_with_and_without_a_fence(wrap):
    judgement = read_judgement(wrap.replace("{}", reply()))
    assert judgement == Judgement(scores=SCORES, rationale="fine")


@pytest.mark.parametrize(
    "text",
    ["", "5 out of 5", "[]", "null", reply(clear=None), reply(clear=0), reply(clear=6),
     reply(clear=True), reply(clear="5"), reply(clear=4.5),
     json.dumps({axis: 5 for axis in AXES[:-1]})],
)  # fmt: skip
def test_what_cannot_be_read_raises_and_is_never_a_score(text):
    with pytest.raises(InvalidInputError, match="reading a judgement") as refused:
        read_judgement(text)
    assert "does not reason before it answers" in refused.value.next_step
