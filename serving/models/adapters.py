"""Adapters: trusted, then merged into a copy of their base.

Belongs here: what an adapter folder must hold, merging it. Does not belong here: loading a base
(`causal_lm`), running the two (`engines`), making adapters (`assets.students`).
"""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.errors import ReleaseError
from serving.models.causal_lm import PICKLE_SUFFIXES, hash_base_model, load_causal_lm
from serving.models.chat_tokens import Activation
from serving.models.engines import TransformersEngine

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder that holds a pickle: loading one runs its author's code.

    Raises:
        ReleaseError: a file ends in .bin, .pt, .pkl or another pickle suffix.
    """
    pickles = sorted(p.name for p in folder.rglob("*") if p.suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        raise ReleaseError(
            f"loading the adapter {folder}",
            expected="safetensors weights only",
            found=", ".join(pickles),
            next_step="remove the adapter, and train it again or convert it to safetensors",
        )


def verify_adapter(adapter_folder: Path, base_folder: Path, activation: Activation) -> None:
    """Check that an adapter is safe to load and belongs to this base and activation.

    Raises:
        ReleaseError: see `LocalStudent.load`.
    """
    refuse_pickles(adapter_folder)
    attempted = f"loading the adapter {adapter_folder}"
    missing = [
        name
        for name in (ADAPTER_WEIGHTS, "adapter_config.json", "provenance.json")
        if not (adapter_folder / name).is_file()
    ]
    if missing:
        raise ReleaseError(
            attempted,
            expected=f"{ADAPTER_WEIGHTS}, adapter_config.json and provenance.json",
            found=f"no {', '.join(missing)}",
            next_step="materialize students/student_adapter again",
        )
    provenance = json.loads((adapter_folder / "provenance.json").read_text(encoding="utf-8"))
    base_hash = hash_base_model(base_folder)
    if provenance.get("base_hash") != base_hash:
        raise ReleaseError(
            attempted,
            expected=f"an adapter trained for the loaded base {base_hash} ({base_folder})",
            found=f"one trained for base {provenance.get('base_hash')} "
            f"({provenance.get('base_model', 'unnamed')})",
            next_step="load the base it was trained on, or train an adapter for this one",
        )
    if provenance.get("activation") != activation:
        raise ReleaseError(
            attempted,
            expected=f"an adapter trained with activation {activation!r}",
            found=repr(provenance.get("activation")),
            next_step="serve it with the activation of its recipe",
        )


def merge_adapter(base: Any, adapter_folder: Path) -> Any:
    """Return a copy of `base` with the adapter added into its weights.

    Weights that the adapter does not touch are shared with `base`, which stays as it is.

    Raises:
        ReleaseError: a tensor of the adapter finds no place in the base, or has another shape, or
            its file is cut short.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(adapter_folder / ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise _unusable(adapter_folder, f"{ADAPTER_WEIGHTS}: {error}") from error
    touched = {_module_of(key) for key in weights}
    shared = {
        id(parameter): parameter
        for name, parameter in base.named_parameters()
        if name.rpartition(".")[0] not in touched
    }
    config = PeftConfig.from_pretrained(str(adapter_folder))
    config.alora_invocation_tokens = None  # where it acts is decided here, by the split
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what peft warns of is checked below, as an error
            peft_model: Any = PeftModel.from_pretrained(
                copy.deepcopy(base, shared), adapter_folder, config=config
            )
    except (ValueError, RuntimeError, KeyError) as error:
        raise _unusable(adapter_folder, str(error)) from error
    # False: by default peft asks the hub whether the base's vocabulary was resized
    loaded: dict[str, Any] = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    if loaded.keys() != weights.keys():
        odd = sorted(loaded.keys() ^ weights.keys())
        raise _unusable(adapter_folder, f"{len(odd)} tensors without a counterpart, as {odd[0]}")
    try:
        merged: Any = peft_model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # a weight that is not a number
        raise _unusable(adapter_folder, str(error)) from error
    return merged.eval()


def _module_of(key: str) -> str:
    return key.removeprefix("base_model.model.").rpartition(".lora_")[0]


def _unusable(adapter_folder: Path, found: str) -> ReleaseError:
    return ReleaseError(
        f"merging the adapter {adapter_folder}",
        expected="LoRA tensors that match the base's modules one to one",
        found=found,
        next_step="train the adapter again for this base",
    )


def load_transformers(
    base_folder: Path,
    adapter_folder: Path | None,
    dtype: str,
    *,
    load_base: Callable[[Path, str], Any] = load_causal_lm,
) -> TransformersEngine:
    """Load a base and the copy of it that the adapter is merged into."""
    base = load_base(base_folder, dtype)
    adapted = base if adapter_folder is None else merge_adapter(base, adapter_folder)
    return TransformersEngine(base=base, adapted=adapted)
