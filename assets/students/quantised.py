"""A base model in 4 bits, as `qlora` trains on it. The student answers on the base as it is.

The 4-bit base saves memory while gradients pass through it; served, and so measured by the parity
report, is the base in its own precision with the adapter merged. Belongs here: what 4 bits need of
a machine, loading. Does not belong here: the loop (`training`), the student (`serving.models`).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serving.errors import InvalidInputError

QUANTISER = "bitsandbytes"


def refuse_without_gpu(recipe: str) -> None:
    """Refuse a recipe of kind qlora where it cannot be trained.

    Raises:
        InvalidInputError: this machine has no CUDA device, or bitsandbytes is not installed.
    """
    import torch

    attempted = f"preparing the recipe {recipe!r} of kind qlora"
    if not torch.cuda.is_available():
        raise InvalidInputError(
            attempted,
            expected="a CUDA device: the base is trained on in 4 bits",
            found=f"none (torch {torch.__version__})",
            next_step="run it on a machine with a GPU, or change its kind to lora or alora",
        )
    if find_spec(QUANTISER) is None:
        raise InvalidInputError(
            attempted,
            expected=f"the package {QUANTISER}, which quantises the base",
            found="it is not installed",
            next_step=f"pip install {QUANTISER}, or change the recipe's kind to lora or alora",
        )


def load_quantised_lm(folder: Path, dtype: str = "auto") -> Any:
    """Return the model in `folder` with its linear layers in 4 bits (NF4, scales quantised too).

    What is not a linear layer, and the head, stay in `dtype`, in which products are computed.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    from serving.models.causal_lm import resolve_dtype

    logging.disable_progress_bar()
    compute = resolve_dtype(dtype)
    quantisation: Any = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=compute,
        quantization_config=quantisation,
        device_map={"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"},
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
    )
    model.requires_grad_(requires_grad=False)
    return model.eval()
