"""A student that is a prompt: what a base model is shown, and which folder is refused."""

import asyncio
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from serving.errors import ReleaseError
from serving.models.causal_lm import hash_base_model
from serving.models.local_student import LocalStudent
from serving.models.prompted_student import (
    PROMPT_FILE,
    VECTORS_FILE,
    VECTORS_NAME,
    Example,
    OpenedBase,
    PromptedStudent,
    StudentPrompt,
    drop_until_fitting,
    interleave,
    load_prompted_student,
)
from serving.models.protocols import ChatModel, ChatRequest, Price
from tests.serving.fakes import CannedChatModel
from tests.serving.models.extractive.conftest import WordHashEmbedder
from tests.tiny_student import make_messages

PRICE = Price(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)
SOURCES = "[1] Setup > Keys: Put the key in the .env file. [1]"
TOPICS = ("glaze thickness", "kiln shelves", "error code", "football match", "rain poem")
EXAMPLES = tuple(
    Example(
        example_id=f"e{number}",
        sources=f"[1] Page: About {topic}. [1]",
        question=f"What about {topic}?",
        answer="REFUSE" if number > 2 else f"About {topic}. [1]",
        refused=number > 2,
    )
    for number, topic in enumerate(TOPICS)
)
FIXED = StudentPrompt(layout="turns-1", instructions="Quote.", examples=EXAMPLES[:2])


def make_base(model, **changes):
    options = {"identity": "b1", "count_tokens": lambda t: len(t.split()), "context_tokens": 400}
    return OpenedBase(**({"model": model} | options | changes))


def ask(student, question="How do I set the key?", **changes):
    messages = tuple(make_messages(question, SOURCES))
    return asyncio.run(student.complete(ChatRequest(messages=messages, max_tokens=12, **changes)))


def shown(model):
    return [(m["role"], m["content"]) for m in model.requests[-1].messages]


def test_rules_come_first_then_examples_as_turns_then_the_question_with_its_sources():
    model = CannedChatModel("base", price=PRICE)
    student = PromptedStudent(name="tiny@1", base=make_base(model), prompt=FIXED)
    completion = ask(student, seed=3)
    assert isinstance(student, ChatModel)
    assert shown(model) == [
        ("system", "Quote."),
        ("user", "Sources:\n[1] Page: About glaze thickness. [1]\n\n"
                 "Question: What about glaze thickness?"),
        ("assistant", "About glaze thickness. [1]"),
        ("user", "Sources:\n[1] Page: About kiln shelves. [1]\n\n"
                 "Question: What about kiln shelves?"),
        ("assistant", "About kiln shelves. [1]"),
        ("user", f"Sources:\n{SOURCES}\n\nQuestion: How do I set the key?"),
    ]  # fmt: skip
    assert (model.requests[-1].seed, model.requests[-1].max_tokens) == (3, 12)
    assert (completion.model, completion.cost_usd) == ("tiny@1", PRICE.cost_usd(100, 20))
    assert student.price == PRICE


def test_a_stream_is_the_bases_or_else_the_whole_answer(tiny_base):
    local = LocalStudent.load(
        tiny_base, None, name="base", price=PRICE, activation="question", context_tokens=1000,
        dtype="float32",
    )  # fmt: skip
    for model, several in ((local, True), (CannedChatModel("base"), False)):
        student = PromptedStudent(name="t@1", base=make_base(model), prompt=FIXED)
        pieces = []
        messages = tuple(make_messages("How?", SOURCES))
        request = ChatRequest(messages=messages, max_tokens=12)
        completion = asyncio.run(student.stream(request, pieces.append))
        assert "".join(pieces) == completion.text
        assert (len(pieces) > 1) == several
        assert completion.model == "t@1"


def test_the_plain_layout_asks_the_base_as_the_pipeline_would():
    model = CannedChatModel("base")
    student = PromptedStudent(
        name="t@1", base=make_base(model), prompt=StudentPrompt(layout="plain")
    )
    assert ask(student).model == "t@1"
    assert list(model.requests[-1].messages) == make_messages("How do I set the key?", SOURCES)


def test_an_example_that_does_not_fit_is_dropped_whole_the_first_first():
    model = CannedChatModel("base")
    base = make_base(model, context_tokens=90)
    ask(PromptedStudent(name="t@1", base=base, prompt=FIXED))
    texts = " ".join(text for _, text in shown(model))
    assert "kiln shelves" in texts
    assert "glaze" not in texts
    assert drop_until_fitting([0, 1, 2], [5, 50, 5], 20) == [2], "nothing before a gap is kept"
    assert drop_until_fitting([0, 1], [5, 5], -1) == []


def test_refusals_stand_among_the_answers_and_the_best_answer_last():
    assert interleave([1, 2, 3], [9]) == [3, 9, 2, 1]
    assert interleave([1, 2, 3, 4], [8, 9]) == [4, 9, 3, 2, 8, 1]
    assert interleave([], [9]) == [9]


def write_nearest(folder, embedder, **changes):
    prompt = StudentPrompt(
        layout="turns-1", instructions="Quote.", examples=EXAMPLES, is_nearest=True, shown=3,
        refusals=1, embedder_fingerprint=embedder.fingerprint,
    )  # fmt: skip
    folder.mkdir()
    (folder / PROMPT_FILE).write_text(prompt.model_copy(update=changes).model_dump_json())
    vectors = embedder.embed([example.question for example in EXAMPLES])
    save_file({VECTORS_NAME: vectors}, folder / VECTORS_FILE)
    return folder


def load(folder, model, embedder, identity="b1"):
    return load_prompted_student(
        folder,
        make_base(model),
        name="tiny@1",
        base_identity=identity,
        open_embedder=lambda: embedder,
    )


@pytest.mark.parametrize(
    ("question", "last", "refused"),
    [
        ("What error code has a football match?", "error code", "football match"),
        ("Which football match about glaze thickness?", "glaze thickness", "football match"),
        ("A poem of rain on kiln shelves?", "kiln shelves", "rain poem"),
    ],
)
def test_the_examples_nearest_to_the_question_are_shown(tmp_path, question, last, refused):
    embedder, model = WordHashEmbedder(dimension=4096), CannedChatModel("base")
    ask(load(write_nearest(tmp_path / "s", embedder), model, embedder), question)
    turns = shown(model)
    answers = [text for role, text in turns if role == "assistant"]
    assert len(answers) == 3
    assert answers.count("REFUSE") == 1
    assert answers[-1] == f"About {last}. [1]"
    assert any(refused in text and "Question" in text for _, text in turns[:-1])


def test_a_folder_of_another_base_embedder_or_size_is_refused(tmp_path):
    embedder, model = WordHashEmbedder(), CannedChatModel("base")
    folder = write_nearest(tmp_path / "s", embedder)
    with pytest.raises(ReleaseError, match="the base it was made for, b2, found b1"):
        load(folder, model, embedder, identity="b2")
    with pytest.raises(ReleaseError, match="word-hash-1, found other"):
        load(folder, model, WordHashEmbedder(fingerprint="other"))
    save_file({VECTORS_NAME: np.zeros((2, 64), np.float32)}, folder / VECTORS_FILE)
    with pytest.raises(ReleaseError, match=r"vector of 64 for each of 5 .*\(2, 64\)"):
        load(folder, model, embedder)
    (folder / VECTORS_FILE).unlink()
    with pytest.raises(ReleaseError, match="found none"):
        load(folder, model, embedder)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "No such file"),
        ("{", "Invalid JSON"),
        (json.dumps({"layout": "turns-9"}), "layout: Input should be 'plain' or 'turns-1'"),
        (json.dumps({"layout": "plain", "code": "x"}), "code: Extra inputs"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(tmp_path, text, found):
    if text is not None:
        (tmp_path / PROMPT_FILE).write_text(text)
    with pytest.raises(ReleaseError, match=found):
        load(tmp_path, CannedChatModel("base"), None)


def test_a_local_base_reads_the_fixed_part_of_the_prompt_once(tiny_base):
    local = LocalStudent.load(
        tiny_base, None, name="base", price=PRICE, activation="question", context_tokens=1000,
        dtype="float32",
    )  # fmt: skip
    base = make_base(
        local, identity=hash_base_model(tiny_base), count_tokens=local.count_prompt_tokens,
        context_tokens=1000,
    )  # fmt: skip
    student = PromptedStudent(name="tiny@1", base=base, prompt=FIXED)
    first, second = ask(student, "How?"), ask(student, "Why is it so?")
    assert first.completion_tokens >= 1
    assert second.prompt_tokens > first.prompt_tokens
    assert local._prefixes.hits == 1, "rules and examples are the same for every question"
