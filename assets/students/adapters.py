"""The adapter folder `<student>@<sha12>`: identity, provenance, writing it whole, finding it again.

Belongs here: everything about the files of an adapter. Does not belong here: training (`training`),
trusting a folder at load (`serving.models.local_student`).
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from assets.students.diverging import DivergedError
from assets.students.recipe import TRAINING_VERSION, Recipe
from assets.students.student_folders import (
    find_folder,
    read_key,
    set_aside_if_damaged,
    write_papers,
)
from assets.students.training import TrainedAdapter
from serving.errors import InvalidInputError
from serving.files import atomic_folder
from serving.hashing import content_hash, file_sha256
from serving.models.adapters import ADAPTER_WEIGHTS
from serving.models.chat_tokens import invocation_tokens
from serving.models.student_rules import NO_RULES, StudentRules, read_rules

ADAPTER_CONFIG = "adapter_config.json"
DIVERGED = ".diverged"

REQUIRED_FACTS = (
    "base_model",
    "base_revision",
    "example_counts",
    "teacher_ids",
    "teacher_licenses",
    "prompt_version",
    "index_fingerprint",
    "embedder_fingerprint",
)
"""What only the caller knows about the training data; more facts may be given and are kept."""


def hash_training_inputs(
    frame: pl.DataFrame, logprobs: pl.DataFrame | None
) -> tuple[str, str | None]:
    """Return the hash of the training set and of the logprobs that belong to its very tokens."""
    ids = ["example_id", "token_hash"]
    columns = [*ids, "split", "weight", pl.col("prefix_ids").list.len()]
    data_hash = content_hash(frame.select(columns).sort(ids).rows())
    if logprobs is None:
        return data_hash, None
    used = logprobs.join(frame.select(ids), on=ids, how="semi").sort(ids)
    return data_hash, content_hash(used.rows())


def make_training_key(
    recipe: Recipe,
    *,
    data_hash: str,
    base_hash: str,
    logprobs_hash: str | None,
    teachers: Any = None,
    rules: StudentRules = NO_RULES,
) -> str:
    """Return the identity of a training: equal keys give equal adapters, so one is trained once.

    `teachers` are those of the labels with their licences: where another teacher says the same, its
    adapter is another, because its provenance is.
    """
    return content_hash(
        recipe.fingerprint, data_hash, base_hash, logprobs_hash, teachers,
        *_identify_rules(rules), TRAINING_VERSION, digits=32,
    )  # fmt: skip


def find_adapter(adapters_folder: Path, student: str, training_key: str) -> Path | None:
    """Return the whole adapter folder whose provenance records this training key, or None."""
    return find_folder(adapters_folder, student, training_key, hash_adapter)


def check_facts(facts: Mapping[str, Any]) -> None:
    """Refuse facts that leave an adapter unable to say where it comes from.

    Raises:
        InvalidInputError: a required fact is missing.
    """
    missing = [name for name in REQUIRED_FACTS if name not in facts]
    if missing:
        raise InvalidInputError(
            "recording an adapter's provenance",
            expected=f"the facts {', '.join(REQUIRED_FACTS)}",
            found=f"no {', '.join(missing)}",
            next_step="add them to `facts` of the training spec",
        )


def write_adapter(
    adapters_folder: Path,
    trained: TrainedAdapter,
    recipe: Recipe,
    tokenizer: Any,
    *,
    provenance: Mapping[str, Any],
    rules: StudentRules = NO_RULES,
) -> Path:
    """Write the adapter as one folder, whole or not at all, and return it.

    Args:
        adapters_folder: where `<student>@<sha12>` is put.
        trained: what `train_adapter` returned.
        recipe: the recipe it was trained with.
        tokenizer: of the base; its user-turn header is recorded for aLoRA loaders.
        provenance: facts and hashes, `training_key` among them; the run's own numbers are added.
        rules: put beside the weights, where the student has some.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    # False: by default peft asks the hub whether the base's vocabulary was resized
    found = get_peft_model_state_dict(trained.model, save_embedding_layers=False)
    state = {name: found[name].detach().cpu().contiguous() for name in sorted(found)}
    weights = save(state, metadata={"format": "pt"})
    config = write_config(trained.model, recipe, tokenizer, provenance)
    sha = _hash_parts(
        hashlib.sha256(weights).hexdigest(),
        hashlib.sha256(config.encode()).hexdigest(),
        str(provenance["training_key"]),
        rules,
    )
    target = adapters_folder / f"{recipe.student}@{sha}"
    set_aside_if_damaged(target, hash_adapter)
    with atomic_folder(target) as staging:
        (staging / ADAPTER_WEIGHTS).write_bytes(weights)
        (staging / ADAPTER_CONFIG).write_text(config, encoding="utf-8")
        if rules != NO_RULES:
            rules.write(staging)
        record = {**provenance, **describe_run(trained, recipe), "adapter_sha": sha}
        write_papers(staging, recipe, record)
        trained.curve.write_parquet(staging / "training_curve.parquet", compression="zstd")
    return target


def keep_diverged(
    adapters_folder: Path, student: str, error: DivergedError, provenance: Mapping[str, Any]
) -> None:
    """Keep the weights of a diverged run for whoever investigates; no student loads them."""
    from safetensors.torch import save_file

    target = adapters_folder / DIVERGED / f"{student}-{provenance['training_key'][:12]}"
    with atomic_folder(target) as staging:
        save_file(error.last_good, staging / "last_good.safetensors")
        (staging / "error.txt").write_text(str(error), encoding="utf-8")


def hash_adapter(folder: Path) -> str:
    """Return the sha12 a folder's content gives; it must be the one in its name."""
    return _hash_parts(
        file_sha256(folder / ADAPTER_WEIGHTS),
        file_sha256(folder / ADAPTER_CONFIG),
        read_key(folder),
        read_rules(folder),
    )


def write_config(model: Any, recipe: Recipe, tokenizer: Any, provenance: Mapping[str, Any]) -> str:
    """Return adapter_config.json: peft's, in canonical order, naming the base instead of a path.

    Unless it acts on all tokens, the ones that switch it on are recorded, so that peft and vLLM
    load it as an activated LoRA.
    """
    config = model.peft_config["default"].to_dict()
    config |= {
        "base_model_name_or_path": provenance["base_model"],
        "revision": provenance["base_revision"],
        "inference_mode": True,
        "target_modules": sorted(recipe.target_modules),
    }
    if recipe.activation != "all":
        config["alora_invocation_tokens"] = invocation_tokens(tokenizer, recipe.activation)
    return json.dumps(config, indent=1, sort_keys=True, default=_to_plain) + "\n"


def describe_run(trained: TrainedAdapter, recipe: Recipe) -> dict[str, Any]:
    """Return what only the finished run knows: sizes, time, hardware, the losses it ended with."""
    import torch

    has_gpu = torch.cuda.is_available()
    return {
        "activation": recipe.activation,
        "seed": recipe.seed,
        "dtype": str(trained.model.get_base_model().dtype).removeprefix("torch."),
        "training_example_counts": {
            "train": trained.train_count,
            "train_with_soft_targets": trained.soft_count,
            "validation": trained.validation_count,
        },
        "steps": trained.steps,
        "is_stopped_early": trained.is_stopped_early,
        "resumed_at_step": trained.resumed_at_step,
        "process_count": trained.process_count,
        "best_epoch": trained.best_epoch + 1,
        "best_validation_loss": trained.best_validation_loss,
        "training_seconds": round(trained.seconds, 3),
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "device": torch.cuda.get_device_name() if has_gpu else platform.processor() or "cpu",
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "software": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _hash_parts(
    weights_sha256: str, config_sha256: str, training_key: str, rules: StudentRules
) -> str:
    """Join content and training key: equal weights of two trainings keep two provenances."""
    parts = [weights_sha256, config_sha256, training_key, *_identify_rules(rules)]
    return content_hash(*parts, digits=12)


def _identify_rules(rules: StudentRules) -> list[Any]:
    """Return what the rules add to a hash: nothing where there are none."""
    return [] if rules == NO_RULES else [rules.model_dump()]


def _to_plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
