"""Training on a base of 4 bits, served on the base as it is; where bitsandbytes is installed."""

import asyncio

import pytest

from assets.students import adapters
from assets.students.recipe import parse_recipe
from assets.students.training import train_adapter
from assets.students.training_set import build_training_set
from serving.models.causal_lm import hash_base_model
from serving.models.local_student import LocalStudent
from serving.models.protocols import ChatRequest, Price
from tests.tiny_student import make_labelled, make_messages, make_tokenizer

RECIPE = {
    "student": "tiny", "kind": "qlora", "rank": 4, "lora_alpha": 8, "learning_rate": 0.01,
    "batch_size": 4, "epochs": 6, "alpha": 1.0, "target_modules": ["q_proj", "v_proj", "up_proj"],
}  # fmt: skip
FACTS = dict.fromkeys(adapters.REQUIRED_FACTS, "known") | {"training_key": "k"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_adapter_learns_on_four_bits_and_is_served_on_the_whole_base(tiny_base, tmp_path):
    pytest.importorskip("bitsandbytes", reason="kind qlora needs bitsandbytes, an optional package")
    from assets.students.quantised import load_quantised_lm

    base = load_quantised_lm(tiny_base, "float32")
    layers = {name: type(module).__name__ for name, module in base.named_modules()}
    assert layers["model.layers.0.self_attn.q_proj"] == "Linear4bit"
    assert layers["lm_head"] == "Linear", "the loss needs the head's weights as they are"
    recipe = parse_recipe(RECIPE, source="here")
    frame = build_training_set(
        make_labelled(24, splits=("train", "train", "train", "train", "validation")),
        make_tokenizer(),
        context_tokens=512,
        activation=recipe.activation,
    ).frame
    trained = train_adapter(base, frame, None, recipe, base_hash="b")
    losses = trained.curve["loss"]
    assert losses.tail(3).mean() < 0.8 * losses.head(3).mean()
    provenance = FACTS | {"base_hash": hash_base_model(tiny_base)}
    folder = adapters.write_adapter(
        tmp_path, trained, recipe, make_tokenizer(), provenance=provenance
    )
    student = LocalStudent.load(
        tiny_base, folder, name="t", price=Price(), activation="all", context_tokens=512,
        dtype="float32",
    )  # fmt: skip
    request = ChatRequest(messages=tuple(make_messages("How do I set key 3?")), max_tokens=4)
    assert asyncio.run(student.complete(request)).completion_tokens >= 1
