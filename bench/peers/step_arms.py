"""One LoRA step by arm: the factory's own loop, TRL's SFTTrainer and transformers' Trainer.

Belongs here: the model, the ids and the loop of an arm, made equal. Does not belong here: processes
and figures (`bench/train_step.py`).
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from assets import tables
from assets.students.flops import RowShape, count_step_flops, measure_shape
from assets.students.progress import StepReport
from assets.students.recipe import Recipe
from assets.students.training import learning_rate_at, train_adapter
from assets.students.weights import MAXIMUM_GRADIENT_NORM, add_lora
from serving.models.causal_lm import load_causal_lm, load_tokenizer
from serving.models.embedded import resolve_model

ROOT = Path(__file__).resolve().parents[2]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHAPES = {  # layers, hidden, intermediate, heads, key-value heads, vocabulary
    "tiny": (2, 64, 128, 4, 2, 512),
    "135m": (30, 576, 1536, 9, 3, 49152),
    "1b": (16, 2048, 8192, 32, 8, 128256),
    "7b": (32, 4096, 11008, 32, 32, 32000),
}
LORA, ALORA, ANEW = "lora", "alora", "alora, prompts anew"
TRL, TRL_ANSWERS, WHOLE = "trl", "trl, answers only", "whole logits"
PACKED, RECOMPUTED = "lora, packed", "lora, checkpointing"
ARMS = (LORA, PACKED, RECOMPUTED, ALORA, ANEW, TRL, TRL_ANSWERS, WHOLE)
UNEVEN = (1.0, 0.5, 0.75, 0.25)  # shares of the longest prompt, in turn

Rows = list[tuple[list[int], list[int]]]
"""Prompt and answer ids of each example."""

Tell = Callable[[dict[str, float]], None]
"""Told after each step; returns when the next one may start."""


def load_base(options: argparse.Namespace) -> Any:
    """Return the prepared model, or a random one of the shape asked for."""
    if options.model_shape == "real":
        folder = resolve_model(MODEL, "embedded", options.models).path
        return load_causal_lm(folder, options.dtype).to(options.device)
    from transformers import AutoModelForCausalLM, LlamaConfig

    layers, hidden, intermediate, heads, kv_heads, vocabulary = SHAPES[options.model_shape]
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=intermediate,
        num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=vocabulary,
        max_position_embeddings=8192, tie_word_embeddings=options.model_shape != "7b",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(options.device):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
        )
    return model.requires_grad_(requires_grad=False).eval()


def plan_lengths(options: argparse.Namespace) -> list[int]:
    """Return the tokens of each prompt: all alike, or in turn from the longest to a quarter."""
    shares = UNEVEN if options.uneven else (1.0,)
    return [round(options.prompt * shares[n % len(shares)]) for n in range(options.batch)]


def draw_rows(options: argparse.Namespace, vocabulary_size: int) -> Rows:
    """Return prompts and answers: consecutive documentation for the real model, else random ids."""
    lengths = plan_lengths(options)
    if options.model_shape == "real":
        folder = resolve_model(MODEL, "embedded", options.models).path
        pages = sorted((ROOT / "docs").rglob("*.mdx"))
        text = "\n".join(page.read_text(encoding="utf-8") for page in pages[:60])
        ids = load_tokenizer(folder)(text, verbose=False)["input_ids"]
    else:
        generator = torch.Generator().manual_seed(1)
        shape = (sum(lengths) + options.batch * options.answer,)
        ids = torch.randint(vocabulary_size, shape, generator=generator).tolist()
    rows, start = [], 0
    for length in lengths:
        middle, end = start + length, start + length + options.answer
        rows.append((ids[start:middle], ids[middle:end]))
        start = end
    return rows


def make_recipe(name: str, options: argparse.Namespace) -> Recipe:
    """Return hard training that visits the one batch once per epoch."""
    return Recipe(
        student="bench", kind="lora" if name not in (ALORA, ANEW) else "alora", alpha=1.0,
        batch_size=options.batch, epochs=options.steps + 1, learning_rate=1e-3,
        packing=name == PACKED, gradient_checkpointing=name == RECOMPUTED,
        max_packed_tokens=options.batch * (options.prompt + options.answer),
    )  # fmt: skip


def run_ours(name: str, options: argparse.Namespace, tell: Tell) -> None:
    """Train through the factory's own loop."""
    base = load_base(options)
    own = options.question if name in (ALORA, ANEW) else options.prompt
    rows = draw_rows(options, base.config.vocab_size)
    frame = pl.DataFrame(
        [
            {
                "example_id": f"e{number}", "split": "train", "refused": False, "weight": 1.0,
                "prefix_ids": prompt[:-own], "suffix_ids": prompt[-own:], "answer_ids": answer,
                "cite_mask": [False] * len(answer), "token_hash": f"t{number}",
            }
            for number, (prompt, answer) in enumerate(rows)
        ],
        schema=tables.TRAINING_SET,
    )  # fmt: skip

    def report(done: StepReport) -> None:
        told = {"seconds": done.step_seconds, "loss": done.loss, "floor_flops": done.floor_flops}
        tell(told)

    memory = {} if name != ANEW else {"prefix_bytes": 0}
    tell({})
    train_adapter(
        base, frame, None, make_recipe(name, options), base_hash="bench", on_step=report, **memory
    )


def run_trainer(name: str, options: argparse.Namespace, tell: Tell) -> None:
    """Train through SFTTrainer, or transformers' Trainer, with our adapter and our optimizer."""
    from datasets import Dataset, disable_progress_bars
    from transformers import TrainerCallback

    disable_progress_bars()
    base = load_base(options)
    rows = draw_rows(options, base.config.vocab_size)
    recipe, total = make_recipe(name, options), options.steps + 1
    model = add_lora(base, recipe)
    shape = measure_shape(base)
    shapes = [RowShape(prefix=0, trained=len(p) + len(a) - 1, answer=len(a)) for p, a in rows]
    floor = count_step_flops(shape, shapes)

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Times the step between its hooks, optimizer included, then waits for its turn."""

        started = loss = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            wait_for_gpu(options.device)
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait_for_gpu(options.device)
            seconds = time.perf_counter() - self.started
            tell({"seconds": seconds, "loss": self.loss, "floor_flops": floor})

    clock = Clock()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_at(min(step, total - 1), total, 1.0)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            name, folder, options, model=model, callbacks=[clock], data_collator=stack_rows,
            train_dataset=Dataset.from_list(
                [{"input_ids": p + a, "labels": [-100] * len(p) + a} for p, a in rows]
            ),
            optimizers=(optimizer, schedule),
        )  # fmt: skip
        take_step = trainer.training_step

        def record_loss(*arguments: Any, **keys: Any) -> Any:
            loss = take_step(*arguments, **keys)
            clock.loss = loss.item()
            return loss

        trainer.training_step = record_loss
        tell({})
        trainer.train()


def make_trainer(name: str, folder: str, options: argparse.Namespace, **parts: Any) -> Any:
    """Return the trainer of an arm: the same arguments for all of them."""
    common = {
        "output_dir": folder, "per_device_train_batch_size": options.batch,
        "max_steps": options.steps + 1, "gradient_checkpointing": False, "bf16": False,
        "use_cpu": options.device == "cpu", "report_to": "none", "save_strategy": "no",
        "logging_strategy": "no", "max_grad_norm": MAXIMUM_GRADIENT_NORM, "disable_tqdm": True,
        "remove_unused_columns": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    if name == WHOLE:
        from transformers import Trainer, TrainingArguments

        return Trainer(args=TrainingArguments(**common), **parts)
    import trl.trainer.utils
    from trl import SFTConfig, SFTTrainer

    if name == TRL_ANSWERS:
        # decides only which positions are scored here: the kernels ask their own module
        trl.trainer.utils._use_triton = lambda _device: True
    settings = SFTConfig(
        **common, loss_type="nll", max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
    )
    return SFTTrainer(args=settings, processing_class=make_stub_tokenizer(), **parts)


def stack_rows(examples: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Return a batch, rows padded on the right to the longest."""
    rows = {name: [torch.tensor(e[name]) for e in examples] for name in ("input_ids", "labels")}
    rows["attention_mask"] = [torch.ones_like(ids) for ids in rows["input_ids"]]
    return {
        name: torch.nn.utils.rnn.pad_sequence(
            values, batch_first=True, padding_value=-100 if name == "labels" else 0
        )
        for name, values in rows.items()
    }


def make_stub_tokenizer() -> Any:
    """Return a tokenizer of one word: SFTTrainer asks for one, and the ids are there already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"end": 0}, unk_token="end"))  # noqa: S106 - no secret
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="end", pad_token="end")  # noqa: S106


def wait_for_gpu(device: str) -> None:
    """Let queued kernels end: they are part of a time."""
    if device == "cuda":
        torch.cuda.synchronize()
