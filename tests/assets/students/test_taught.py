"""Which labels a student with rules is taught."""

import polars as pl

from assets import tables
from assets.students.taught import choose_taught
from serving.models.protocols import Hit
from serving.models.student_rules import NO_RULES, RefusalRule, StudentRules
from serving.pipeline.prompt import REFUSAL_WORD, PromptFormat

RULE = RefusalRule(intercept=10.0, weight=-20.0)  # refuses below 0.5
HITS = [
    Hit(chunk_id=f"docs:a/{n}", content_hash="h", text=f"Fact {n}.", title="T", url="u")
    for n in (1, 2, 3)
]


def make_tables(*cases):
    """Labelled examples and teacher answers of (completion, best score); None: no answer row."""
    messages = [dict(m) for m in PromptFormat().write_request("What?", HITS).messages]
    rows, answers = [], []
    for number, (completion, score) in enumerate(cases):
        text = {name: "" for name, kind in tables.LABELLED_EXAMPLES.items() if kind == pl.String}
        rows.append(
            text
            | {
                "example_id": f"e{number}",
                "question_id": f"q{number}",
                "messages": messages,
                "completion": completion,
                "refused": completion == REFUSAL_WORD,
                "split": "train",
                "weight": 1.0,
                "trainable": True,
            }
        )
        if score is not None:
            hit = {"chunk_id": "c", "content_hash": "h", "score": score}
            answers.append({"question_id": f"q{number}", "retrieved": [hit]})
    schema = {name: tables.TEACHER_ANSWERS[name] for name in ("question_id", "retrieved")}
    return pl.DataFrame(rows, schema=tables.LABELLED_EXAMPLES), pl.DataFrame(answers, schema=schema)


def kept(rules, *cases):
    return choose_taught(*make_tables(*cases), rules)["example_id"].to_list()


def test_without_rules_every_label_teaches():
    examples, answers = make_tables(("Fact 3. [3]", 0.1), (REFUSAL_WORD, 0.9))
    assert choose_taught(examples, answers, NO_RULES).equals(examples)


def test_what_the_rule_refuses_is_not_taught_and_a_near_refusal_is():
    cases = [("Fact 1. [1]", 0.8), (REFUSAL_WORD, 0.8), (REFUSAL_WORD, 0.2), ("Fact 2. [2]", 0.4)]
    assert kept(StudentRules(refusal=RULE), *cases) == ["e0", "e1"]


def test_a_label_of_another_lane_has_no_score_and_stays():
    assert kept(StudentRules(refusal=RULE), (REFUSAL_WORD, None)) == ["e0"]


def test_an_answer_from_a_source_that_is_not_read_is_not_taught():
    cases = [("Fact 1. [1]", 0.8), ("Fact 2. [2]", 0.8), ("Fact 1. [1] Fact 2. [2]", 0.8)]
    assert kept(StudentRules(sources=1), *cases) == ["e0"]
    assert kept(StudentRules(sources=2), *cases) == ["e0", "e1", "e2"]
    assert kept(StudentRules(sources=1), (REFUSAL_WORD, 0.8)) == ["e0"]


def test_what_is_taught_is_the_prompt_that_the_student_will_read():
    examples, answers = make_tables(("Fact 1. [1]", 0.8))
    taught = choose_taught(examples, answers, StudentRules(sources=1))
    expected = PromptFormat().write_request("What?", HITS[:1]).messages
    assert taught["messages"][0].to_list() == [dict(message) for message in expected]
