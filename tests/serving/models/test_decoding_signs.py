"""The signs of an answer: which tokens cite, and margins against a forward pass of its own."""

import asyncio

import pytest
import torch

from serving.models.causal_lm import load_causal_lm
from serving.models.chat_tokens import split_chat
from serving.models.decoding_signs import find_citation_tokens, read_signs
from serving.models.local_student import LocalStudent
from serving.models.protocols import ChatRequest, Price
from tests.tiny_student import make_messages, make_tokenizer

TEXT = "Put the key in it. [2] Restart. [docs:guides/setup/2]"


def join(tokenizer, ids, positions):
    return tokenizer.decode([ids[i] for i in positions])


def test_the_tokens_of_every_citation_are_found_and_no_other():
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    found = join(tokenizer, ids, find_citation_tokens(tokenizer, TEXT, ids))
    assert found.replace(" ", "") == "[2][docs:guides/setup/2]"
    assert find_citation_tokens(tokenizer, "No source.", ids) == []


def test_a_spelling_that_the_tokenizer_would_not_choose_is_placed_token_by_token():
    tokenizer = make_tokenizer()
    ids = [i for letter in TEXT for i in tokenizer.encode(letter, add_special_tokens=False)]
    assert len(ids) > len(tokenizer.encode(TEXT, add_special_tokens=False))
    found = join(tokenizer, ids, find_citation_tokens(tokenizer, TEXT, ids))
    assert found == "[2][docs:guides/setup/2]"


def test_the_least_sure_citation_token_counts_and_the_stop_token_is_in_the_means():
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("A [1]", add_special_tokens=False)
    logprobs = [-9.0, *[-0.1 * n for n in range(1, len(ids))], -8.0]
    signs = read_signs(tokenizer, "A [1]", ids, logprobs=logprobs, margins=[3.0] + [1.0] * len(ids))
    assert signs["minimum_citation_logprob"] == pytest.approx(-0.1 * (len(ids) - 1))
    assert signs["first_margin"] == 3.0
    assert signs["mean_margin"] == pytest.approx((3 + len(ids)) / (len(ids) + 1))
    uncited = read_signs(tokenizer, "A", ids[:1], logprobs=[-1.0], margins=[1.0])
    assert uncited["minimum_citation_logprob"] is None


def test_margins_are_those_of_a_forward_pass_over_the_whole_answer(tiny_base):
    student = LocalStudent.load(
        tiny_base, None, name="tiny", price=Price(), activation="question", context_tokens=400,
        dtype="float32",
    )  # fmt: skip
    messages = make_messages("How do I set the key?")
    asked = ChatRequest(messages=tuple(messages), max_tokens=6)
    found = asyncio.run(student.complete(asked))
    prompt = split_chat(make_tokenizer(), messages).whole
    ids, margins = list(prompt), []
    with torch.no_grad():
        model = load_causal_lm(tiny_base, "float32")
        for _ in range(found.completion_tokens):
            best = model(input_ids=torch.tensor([ids])).logits[0, -1].topk(2)
            margins.append((best.values[0] - best.values[1]).item())
            ids.append(int(best.indices[0]))
    assert found.signs["first_margin"] == pytest.approx(margins[0], abs=1e-4)
    assert found.signs["mean_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    assert student.dtype == "float32"
