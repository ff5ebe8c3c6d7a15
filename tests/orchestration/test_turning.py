"""What a turn remembers: a step that ended is not made again, one that failed is."""

import pytest

from orchestration.traffic import plan_traffic
from orchestration.turning import find_memory, is_unfinished, open_turn
from serving.home import Home

PLANS = (plan_traffic({"care": ["What is E4?"]}, days=1, asks_per_day=2, seed=1),)


def turn(home, made, *, fails=False, plans=PLANS, recipe="tiny"):
    told = []
    memory = open_turn(home, recipe, plans, told.append)
    found = memory.do("1/2 ask", "two questions", lambda: made.append("asked") or "r1")

    def train():
        made.append("trained")
        if fails:
            raise RuntimeError("no memory left")
        return {"release": "r2"}

    return found, memory.do("2/2 train", "a student", train), memory, told


def test_a_rerun_goes_on_with_the_step_that_failed_and_says_so(tmp_path):
    home, made = Home(tmp_path), []
    with pytest.raises(RuntimeError, match="no memory left"):
        turn(home, made, fails=True)
    first, second, memory, told = turn(home, made)
    assert made == ["asked", "trained", "trained"]
    assert (first, second) == ("r1", {"release": "r2"})
    assert told[0] == "1/2 ask: done before; two questions"
    assert told[1] == "2/2 train: a student …"
    assert told[2].startswith("2/2 train: done in")
    memory.forget()
    assert not find_memory(home).exists()
    turn(home, made)
    assert made.count("asked") == 2


def test_a_turn_of_other_questions_or_another_recipe_begins_anew(tmp_path):
    home, made = Home(tmp_path), []
    others = (plan_traffic({"care": ["What is E4?"]}, days=1, asks_per_day=2, seed=2),)
    for changed in ({}, {"recipe": "other"}, {"plans": others, "recipe": "other"}):
        turn(home, made, **changed)
    assert made.count("asked") == 3


def test_a_turn_is_unfinished_only_for_its_own_recipe_and_questions(tmp_path):
    home = Home(tmp_path)
    others = (plan_traffic({"care": ["What is E4?"]}, days=1, asks_per_day=2, seed=2),)
    assert not is_unfinished(home, "tiny", PLANS)
    *_, memory, _ = turn(home, [])
    assert is_unfinished(home, "tiny", PLANS)
    assert not is_unfinished(home, "other", PLANS)
    assert not is_unfinished(home, "tiny", others)
    memory.forget()
    assert not is_unfinished(home, "tiny", PLANS)


def test_a_dropped_step_is_made_again_and_the_turn_keeps_its_beginning(tmp_path):
    home, made = Home(tmp_path), []
    *_, first, _ = turn(home, made)
    first.drop("1/2 ask")
    *_, second, _ = turn(home, made)
    assert made == ["asked", "trained", "asked"]
    assert second.began_at == first.began_at
