"""Compiling an embedding model once, and refusing the result where its vectors are not torch's.

The whole chain of modules is compiled (transformer, pooling, dense, normalisation), so whatever the
model's authors composed is honoured. Belongs here: conversion, its proof, its place on disk. Does
not belong here: running the result (`compiled_embedder`).
"""

import importlib.metadata
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from serving.files import atomic_folder
from serving.hashing import content_hash
from serving.models.compiled_embedder import GRAPH, TOKENIZER, CompiledEmbedder, InputPlan
from serving.models.embedded import RECEIPT, verify_prepared, write_receipt
from serving.models.protocols import Embedder, Progress

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CONVERSION_VERSION = 2
"""Raise it with every change to what is written: prepared folders of before are not read."""
LARGEST_DIFFERENCE = 1e-5  # of any coordinate of any probe; fp32 itself moves unit vectors by 2e-7
SMALLEST_COSINE = 0.99999
REFUSAL = "refused.json"
MAY_PASS = (MemoryError, RuntimeError)
"""What torch and OpenVINO raise when memory runs out. They raise `RuntimeError` for an operation
they cannot do as well: such a model is tried at each start, which is slow and never wrong."""

KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})

PROBES = (
    "x",
    "How do I reset my password?",
    "HOW DO I RESET MY PASSWORD?!",
    "  Spaces, a tab\tand\na new line.  ",
    "Größe, naïve façade, русский текст, 日本語の文章, العربية, 🙂",
    "Errors > E42\n`retry_after` is 30 s: set `{limits: {rpm: 60}}` in https://example.org/a?b=c#d.",
    "| key | default |\n|---|---|\n| `ramp_rate` | 150 |",
    "A sentence of ordinary length says one thing, and then it says another. " * 6,
    "far beyond what the model reads " * 400,
)
"""Texts both backends must agree on: short and cut off, cased, white space, scripts, code."""

_LOG = logging.getLogger(__name__)


class Original(Embedder, Protocol):
    """The torch embedder that is compiled, and that the result is measured against."""

    @property
    def model(self) -> "SentenceTransformer":
        """The sentence-transformers model."""
        ...


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two embedders are apart on the probes."""

    largest_difference: float
    smallest_cosine: float
    same_token_counts: bool

    @property
    def is_equal(self) -> bool:
        """Whether one can stand in for the other."""
        return (
            self.same_token_counts
            and self.largest_difference <= LARGEST_DIFFERENCE
            and self.smallest_cosine >= SMALLEST_COSINE
        )


class NotConvertibleError(Exception):
    """The model cannot be compiled to equal vectors; the message says why. It runs on torch."""


def prepare_compiled(
    original: Original,
    *,
    target_name: str,
    source_sha256: str,
    models_folder: Path,
    progress: Progress,
) -> CompiledEmbedder | None:
    """Return the compiled twin of `original`, made at the first call; None where there is none.

    The folder is named for the source's hash and the versions that made and proved it, so another
    OpenVINO proves it anew. A refusal is kept there too: it is not tried again at each start. A
    failure that may pass, such as too little memory, is not kept: torch does it until the next
    start.

    Raises:
        HashMismatchError: a file of the prepared folder is not what was prepared.
    """
    try:
        runtime = importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        _LOG.info("openvino is not installed: embedding by torch, about three times slower")
        return None
    key = content_hash(source_sha256, CONVERSION_VERSION, runtime, digits=12)
    target = models_folder / f"{target_name}@{key}"
    if not (target / RECEIPT).exists():
        description = "compiling the embedder"
        progress.advance(description, 0, 1, "once")
        try:
            with atomic_folder(target) as staging:
                _convert_or_refuse(original, staging)
                write_receipt(staging, source_sha256=source_sha256)
        except MAY_PASS as error:
            _LOG.warning("embedding by torch, the next start compiles again (%r)", error)
            progress.advance(description, 1, 1, "not this time")
            return None
        progress.advance(description, 1, 1, str(target))
    if REFUSAL in verify_prepared(target):
        return None
    return CompiledEmbedder(target, fingerprint=original.fingerprint)


def convert(original: Original, folder: Path) -> Agreement:
    """Compile `original` into `folder` and return how well the result agrees with it.

    Raises:
        NotConvertibleError: the model has no fast tokenizer, reads more than token ids, cannot be
            traced, or came out different.
    """
    model = original.model
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise NotConvertibleError("its tokenizer is not a fast one")
    _write_graph(model, _plan_inputs(original), folder)
    tokenizer = json.loads(backend.to_str())
    tokenizer.update(truncation=None, padding=None)
    (folder / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    agreement = compare(original, CompiledEmbedder(folder, fingerprint=original.fingerprint))
    if not agreement.is_equal:
        raise NotConvertibleError(f"the compiled model does not agree with torch: {agreement}")
    return agreement


def find_limit(model: "SentenceTransformer") -> int:
    """Return after how many tokens the model cuts its input off, prompt and specials included."""
    return int(model.max_seq_length or 512)


def find_prefix(model: "SentenceTransformer") -> str:
    """Return the model's default prompt, which is put before every text; empty for none."""
    return model.prompts.get(model.default_prompt_name or "", "") or ""


def compare(original: Embedder, other: Embedder) -> Agreement:
    """Embed the probes with both, all at once and one by one, and return how far they are apart."""
    probes = list(PROBES)
    expected = original.embed(probes)
    together = other.embed(probes)
    alone = np.concatenate([other.embed([probe]) for probe in probes])
    return Agreement(
        largest_difference=float(max(np.abs(v - expected).max() for v in (together, alone))),
        smallest_cosine=float(min((v * expected).sum(axis=1).min() for v in (together, alone))),
        same_token_counts=original.count_tokens(probes) == other.count_tokens(probes),
    )


def _convert_or_refuse(original: Original, folder: Path) -> None:
    try:
        agreement = convert(original, folder)
    except (OSError, *MAY_PASS):
        raise  # the machine's trouble, not the model's
    except Exception as error:  # noqa: BLE001 - tracing runs the model's code: it raises anything
        for path in folder.iterdir():
            path.unlink()
        reason = f"{type(error).__name__}: {error}"
        (folder / REFUSAL).write_text(json.dumps({"reason": reason}), encoding="utf-8")
        _LOG.warning("embedding by torch: the model was not compiled (%s)", reason)
    else:
        _LOG.info("compiled the embedder: %s", agreement)


def _plan_inputs(original: Original) -> InputPlan:
    model = original.model
    features = model.preprocess(list(PROBES[:2]))
    names = tuple(name for name, value in features.items() if hasattr(value, "shape"))
    if not {"input_ids", "attention_mask"} <= set(names) <= KNOWN_INPUTS:
        raise NotConvertibleError(f"it reads {sorted(names)}, not only {sorted(KNOWN_INPUTS)}")
    if features.get("modality", "text") != "text":
        raise NotConvertibleError("it puts each text into a chat template")
    tokenizer = model.tokenizer
    return InputPlan(
        input_names=names,
        dimension=original.dimension,
        maximum_tokens=find_limit(model),
        padding_id=int(tokenizer.pad_token_id or 0),
        pads=tokenizer.padding_side != "left",
        prefix=find_prefix(model),
    )


def _write_graph(model: "SentenceTransformer", plan: InputPlan, folder: Path) -> None:
    """Trace the modules and save the graph in full precision.

    The frontend is called directly: `openvino.convert_model` is a wrapper that asks for consent to
    telemetry, on the terminal, and none of that belongs in a library.
    """
    import openvino
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = torch.nn.ModuleList(model.children())

        def forward(self, *inputs: Any) -> Any:
            features = {**dict(zip(plan.input_names, inputs, strict=True)), "modality": "text"}
            for step in self.steps:
                features = step(features)
            return torch.nn.functional.normalize(features["sentence_embedding"], p=2, dim=1)

    features = model.preprocess(list(PROBES[:2]))  # of two lengths, so that the mask is used
    example = tuple(features[name] for name in plan.input_names)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's; whether it went well is measured
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            Chain().eval(), example, check_trace=False, strict=False
        )
        decoder = TorchScriptPythonDecoder(traced, example_input=example)
        frontend = FrontEndManager().load_by_framework("pytorch")
        graph = frontend.convert(frontend.load(decoder))
    if len(graph.inputs) != len(plan.input_names):
        raise NotConvertibleError(f"its graph has {len(graph.inputs)} inputs: {plan.input_names}")
    openvino.save_model(graph, folder / GRAPH, compress_to_fp16=False)
    plan.write(folder)
