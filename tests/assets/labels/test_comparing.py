"""Two answers side by side: order drawn from the content, both orders asked, bias seen as such."""

import asyncio
import json

import pytest

from assets.labels.comparing import (
    COMPARISON_VERSION,
    Preference,
    choose_first,
    compare_answers,
    read_comparison,
)
from assets.labels.judging import Inconclusive
from serving.errors import InvalidInputError
from tests.serving.fakes import CannedChatModel

GOOD, POOR = "Put it in .env. [1]", "Try something. [1]"


def compare(answer, a: str = GOOD, b: str = POOR):
    judge = CannedChatModel("judge-1", answer)
    return judge, asyncio.run(compare_answers(judge, "Where?", "[1] Keys: .env. [1]", a, b))


def reply(better: str) -> str:
    return json.dumps({"better": better, "rationale": "so"})


def prefer(text: str):
    """Return a judge that finds `text` wherever it stands."""

    def judge(request) -> str:
        first = request.messages[-1]["content"].partition("<first>")[2].partition("</first>")[0]
        return reply("first" if text in first else "second")

    return judge


@pytest.mark.parametrize(("a", "b", "winner"), [(GOOD, POOR, "a"), (POOR, GOOD, "b")])
def test_a_judge_that_reads_prefers_the_same_answer_in_both_orders(a, b, winner):
    judge, preference = compare(prefer(GOOD), a, b)
    assert isinstance(preference, Preference)
    assert preference.winner == winner
    assert not preference.is_positional
    assert {comparison.shown_first for comparison in preference.comparisons} == {"a", "b"}
    assert {comparison.better for comparison in preference.comparisons} == {"first", "second"}
    assert len(judge.requests) == 2


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_judge_that_prefers_a_place_has_no_preference(place):
    _, preference = compare(reply(place))
    assert preference.winner == "tie"
    assert preference.is_positional


def test_a_tie_in_both_orders_is_a_tie_and_no_bias():
    _, preference = compare(reply("tie"))
    assert (preference.winner, preference.is_positional) == ("tie", False)


def test_a_reply_that_cannot_be_read_is_inconclusive():
    _, verdict = compare("the first one")
    assert isinstance(verdict, Inconclusive)
    assert verdict.reason == "unreadable"


def test_the_order_is_a_fair_coin_thrown_for_texts():
    draws = [choose_first(f"question {n}", GOOD, POOR) for n in range(2000)]
    assert draws.count("a") / 2000 == pytest.approx(0.5, abs=0.04)
    swapped = [choose_first(f"question {n}", POOR, GOOD) for n in range(2000)]
    assert all(one != other for one, other in zip(draws, swapped, strict=True))
    assert draws == [choose_first(f"question {n}", GOOD, POOR) for n in range(2000)]
    assert draws != [choose_first(f"question {n}", GOOD, POOR, seed=1) for n in range(2000)]


def test_the_judge_is_asked_at_temperature_zero_with_a_schema():
    judge, _ = compare(reply("tie"))
    request = judge.requests[0]
    assert request.temperature == 0.0
    assert request.response_format["json_schema"]["name"] == "comparison"
    assert "<sources>\n[1] Keys: .env. [1]\n</sources>" in request.messages[-1]["content"]
    assert len(COMPARISON_VERSION) == 12


@pytest.mark.parametrize("wrap", ["{}", "```json\n{}\n```"])
def test_a_reply_is_read_with_and_without_a_fence(wrap):
    assert read_comparison(wrap.replace("{}", reply("second"))) == ("second", "so")


@pytest.mark.parametrize("text", ["", "[]", "null", "first", reply("third"), '{"better": null}'])
def test_what_names_no_place_is_no_preference(text):
    with pytest.raises(InvalidInputError, match="reading a comparison") as refused:
        read_comparison(text)
    assert "does not reason before it answers" in refused.value.next_step
