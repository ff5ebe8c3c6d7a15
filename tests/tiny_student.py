"""A two-layer random student with a byte-level tokenizer and SmolLM2's chat template."""

import functools
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

torch.set_num_threads(1)  # matrices this small only make threads wait for each other

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "Answer the question only from the sources below.",
    "[1] Setup > Keys: Put the key in the .env file. [1] Restart the server. [1]",
    "[2] Guides > Traces: A trace is written before the answer. [2] REFUSE",
    "How do I set the key? What is a trace? system user assistant docs:guides/setup/2",
]
VOCABULARY = 400


@functools.cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT * 3, trainer)
    names = {"bos": "<|im_start|>", "eos": "<|im_end|>", "pad": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name}_token": token for name, token in names.items()}
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_base(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny base model; its weights are large enough that every token's logits differ."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,  # a pad token gets an embedding of zeros, and here it ends the turn
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_messages(question: str, sources: str = TEXT[1]) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": f"{TEXT[0]}\n\nSources:\n{sources}"},
        {"role": "user", "content": question},
    ]


def make_labelled(
    count: int, *, splits: Sequence[str] = ("train",), prefixes: int = 3
) -> pl.DataFrame:
    """Return labelled examples in the columns the student side reads; every fourth is a refusal."""
    rows = [
        {
            "example_id": f"e{number:03d}",
            "question": f"How do I set key {number}?",
            "messages": make_messages(
                f"How do I set key {number}?", f"{TEXT[1 + number % 2]} {number % prefixes}"
            ),
            "completion": "REFUSE" if number % 4 == 3 else f"Put the key {number} in it. [1]",
            "split": splits[number % len(splits)],
            "trainable": True,
            "weight": 1.0,
        }
        for number in range(count)
    ]
    return pl.DataFrame(rows)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tiny") / "base")


def make_adapter(
    folder: Path, base_folder: Path, *, activation: str = "question", seed: int = 5,
    std: float = 0.2,
) -> Path:  # fmt: skip
    """Write an adapter with random weights on both sides, as peft saves it, with provenance."""
    import json
    import warnings

    from peft import LoraConfig, get_peft_model

    from serving.models.causal_lm import hash_base_model, load_causal_lm
    from serving.models.chat_tokens import invocation_tokens

    tokens = None if activation == "all" else invocation_tokens(make_tokenizer(), activation)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM", alora_invocation_tokens=tokens,
    )  # fmt: skip
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = get_peft_model(load_causal_lm(base_folder, "float32"), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=std)
        model.save_pretrained(folder)
    provenance = {"base_hash": hash_base_model(base_folder), "base_model": "tiny"}
    (folder / "provenance.json").write_text(json.dumps(provenance | {"activation": activation}))
    return folder
