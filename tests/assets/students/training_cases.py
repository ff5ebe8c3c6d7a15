"""A small training that every test of the loop shares: a tiny base, its examples, its spec."""

import polars as pl

from assets.students.adapters import REQUIRED_FACTS
from assets.students.recipe import Recipe
from assets.students.spec import TrainingSpec
from assets.students.training import train_adapter
from assets.students.training_set import build_training_set
from serving.models.causal_lm import hash_base_model, load_causal_lm
from tests.tiny_student import make_labelled, make_tokenizer

SPLITS = ("train", "train", "train", "train", "validation")
FACTS = dict.fromkeys(REQUIRED_FACTS, "known") | {"base_model": "org/tiny", "base_revision": "abc"}
TIMINGS = ("tokens_per_second", "step_seconds", "peak_memory_mb", "floor_flops")
"""Columns of a curve that an interruption changes: the clock, and prefixes that are read again."""


def make_recipe(**keys):
    defaults = {
        "student": "tiny", "rank": 4, "lora_alpha": 8, "learning_rate": 1e-2, "batch_size": 4,
        "epochs": 3, "alpha": 1.0, "dtype": "float32",
    }  # fmt: skip
    return Recipe(**(defaults | keys))


def make_frame(count=24):
    examples = make_labelled(count, splits=SPLITS)
    return build_training_set(examples, make_tokenizer(), context_tokens=512).frame


def train(tiny_base, *, frame=None, logprobs=None, keys=None, **options):
    return train_adapter(
        load_causal_lm(tiny_base, "float32"),
        make_frame() if frame is None else frame,
        logprobs,
        make_recipe(**(keys or {})),
        base_hash=hash_base_model(tiny_base),
        **options,
    )


def weights_of(trained):
    return {n: p.detach() for n, p in trained.model.named_parameters() if p.requires_grad}


def make_spec(tiny_base, folder, *, keys=None, **options):
    path = folder / "training_set.parquet"
    make_frame().write_parquet(path)
    return TrainingSpec(
        training_set=path,
        recipe=make_recipe(**(keys or {})),
        base_folder=tiny_base,
        base_hash=hash_base_model(tiny_base),
        adapters_folder=folder / "adapters",
        facts=FACTS,
        **options,
    )


def read_curve(adapter):
    return pl.read_parquet(adapter / "training_curve.parquet").drop(TIMINGS)
