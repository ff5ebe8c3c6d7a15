"""The search finds the prompt that agrees with the teacher, within its calls, and says so."""

import asyncio

import pytest

from assets.students.few_shot import OWN_INSTRUCTIONS
from assets.students.prompt_search import (
    INSTRUCTIONS,
    SEARCH_LOG,
    measure_agreement,
    propose_candidates,
    search_prompt,
)
from serving.errors import InvalidInputError, ModelError
from serving.models.prompted_student import Example
from serving.models.protocols import NoProgress
from tests.assets.students.test_few_shot import draw_vectors, make_pool

LABELS = [
    Example(
        example_id=f"v{number}",
        sources="[1] A: b. [1]",
        question=f"question {number}",
        answer="REFUSE" if number % 4 == 3 else f"Fact {number} holds. [1]",
        refused=number % 4 == 3,
    )
    for number in range(20)
]


def propose(**changes):
    options = {
        "instructions": INSTRUCTIONS, "example_sets": 2, "examples": 3, "refusals": 1, "seed": 7,
    }  # fmt: skip
    return propose_candidates(make_pool(), draw_vectors(12), **(options | changes))


def answer_like(best):
    """Answer as the teacher with one prompt, and refuse everything with the others."""
    asked = []

    async def ask(prompt, label):
        asked.append((prompt, label.example_id))
        return label.answer if prompt == best else "REFUSE"

    return ask, asked


def search(candidates, ask, *, calls=64, labels=LABELS, seed=7):
    return asyncio.run(
        search_prompt(
            candidates, labels, ask=ask, calls=calls, seed=seed, concurrency=4,
            progress=NoProgress(),
        )
    )  # fmt: skip


def test_every_pair_of_instructions_and_examples_is_a_candidate_the_few_shot_one_first():
    candidates = propose()
    assert len({c.prompt.model_dump_json() for c in candidates}) == 2 * (1 + len(INSTRUCTIONS))
    assert candidates[0].prompt.instructions == OWN_INSTRUCTIONS
    assert (candidates[0].instructions, candidates[0].example_set) == (0, 0)
    assert all(sum(e.refused for e in c.prompt.examples) == 1 for c in candidates)
    assert propose() == candidates
    assert propose(seed=8)[1].prompt != candidates[1].prompt
    assert propose(seed=8)[0].prompt == candidates[0].prompt
    assert len(propose(instructions=[OWN_INSTRUCTIONS], example_sets=1)) == 1


@pytest.mark.parametrize("number", range(8))
def test_the_prompt_that_agrees_is_found_within_the_calls(number):
    candidates = propose()
    ask, asked = answer_like(candidates[number].prompt)
    found = search(candidates, ask)
    assert found.best.number == number
    assert found.agreement_ratio == 1.0
    assert found.call_count == len(asked) == found.log.height <= 64
    assert len(set(asked)) == len(asked), "no question is asked twice with one prompt"
    refused = sum(label.refused for label in LABELS) / len(LABELS)
    if number:
        assert found.first_agreement_ratio < 1.0
        assert found.first_agreement_ratio == pytest.approx(refused, abs=0.25)


def test_the_log_holds_every_call_and_the_first_candidate_is_never_dropped():
    candidates = propose()
    found = search(candidates, answer_like(candidates[5].prompt)[0])
    assert found.log.schema == SEARCH_LOG
    rounds = found.log.group_by("round").agg(c=found.log["candidate"].n_unique()).height
    assert rounds >= 2
    for _, asked in found.log.group_by("round"):
        assert 0 in asked["candidate"].to_list()
        per_candidate = asked.group_by("candidate").len()["len"]
        assert per_candidate.n_unique() == 1, "candidates of a round answer the same questions"
    first = found.log.filter(candidate=0)
    assert first["example_id"].n_unique() == found.question_count
    assert first["agreement"].mean() == pytest.approx(found.first_agreement_ratio)


def test_the_search_is_seeded_and_at_a_tie_the_first_wins():
    candidates = propose()

    async def refuse(_prompt, _label):
        return "REFUSE"

    one, again, other = (search(candidates, refuse, seed=seed) for seed in (7, 7, 8))
    assert one.best.number == 0
    assert one.log.equals(again.log)
    assert not one.log.equals(other.log)


@pytest.mark.parametrize(("calls", "labels"), [(8, LABELS), (9, LABELS), (5000, LABELS[:3])])
def test_few_calls_or_few_labels_end_the_search_early(calls, labels):
    candidates = propose()
    found = search(candidates, answer_like(candidates[2].prompt)[0], calls=calls, labels=labels)
    assert found.call_count <= min(calls, len(labels) * len(candidates))
    assert found.question_count >= 1


@pytest.mark.parametrize(
    ("calls", "labels", "found"),
    [(7, LABELS, "one call for each prompt, found calls: 7"), (64, [], "validation split")],
)
def test_a_search_that_cannot_be_made_is_refused_before_a_call(calls, labels, found):
    ask, asked = answer_like(None)
    with pytest.raises(InvalidInputError, match=found):
        search(propose(), ask, calls=calls, labels=labels)
    assert asked == []


def test_a_model_that_fails_stops_the_search_and_is_no_zero():
    async def fail(_prompt, _label):
        raise ModelError("asking", expected="an answer", found="none", next_step="wait")

    with pytest.raises(ModelError):
        search(propose(), fail)


@pytest.mark.parametrize(
    ("answer", "label", "agreement"),
    [
        ("REFUSE", "REFUSE", 1.0),
        ("refuse.", "REFUSE", 1.0),
        ("REFUSE", "Glaze is thick. [1]", 0.0),
        ("Glaze is thick. [1]", "REFUSE", 0.0),
        ("Glaze is thick. [1]", "Glaze is thick. [1]", 1.0),
        ("Glaze is thick. [2]", "Glaze is thick. [1]", 0.5),
        ("Something else entirely. [1]", "Glaze is thick. [1]", 0.5),
        ("Something else entirely.", "Glaze is thick. [1]", 0.0),
        ("Glaze is thick. [1] Glaze is thick. [2]", "Glaze is thick. [1]", (2 / 3 + 2 / 3) / 2),
        ("", "Glaze is thick. [1]", 0.0),
    ],
)
def test_agreement_is_about_refusing_citing_and_saying(answer, label, agreement):
    example = Example(
        example_id="e", sources="", question="?", answer=label, refused=label == "REFUSE"
    )
    assert measure_agreement(answer, example) == pytest.approx(agreement)
