"""Compiling a student once, and refusing the result where it is not the student of transformers.

What is compiled is the base, for prefixes, and the base with the adapter merged into its weights:
an adapter cannot be lost on the way without the proof noticing. Belongs here: conversion, its
proof, its place on disk. Does not belong here: running the result (`openvino_engine`).
"""

import importlib.metadata
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serving.errors import ReleaseError
from serving.hashing import content_hash, folder_sha256
from serving.models.causal_lm import (
    PrefixStates,
    hash_base_model,
    load_causal_lm,
    pad_batch,
    read_prefix,
    run_decoder,
)
from serving.models.embedded import RECEIPT, preparing, verify_prepared, write_receipt
from serving.models.engines import LocalEngine, TransformersEngine, list_stop_ids
from serving.models.openvino_engine import (
    PREFIX_GRAPH,
    STEP_GRAPH,
    EnginePlan,
    Floats,
    OpenVinoEngine,
    PrefixGraph,
)

if TYPE_CHECKING:
    import openvino

CONVERSION_VERSION = 2
"""Raise it with every change to what is written: prepared folders of before are not read."""
LARGEST_STATE_DIFFERENCE = 1e-3  # of a prefix's states, as a share of the largest of them
LARGEST_DIFFERENCE = 0.01  # of any logprob of the probes in float32; 135M parameters move by 1e-4
QUANTISATION_GROUP = 64  # of 32 and 64, the faster on a processor with AVX-512 VNNI
PROBE_PREFIXES, PROBE_SUFFIXES = (40, 0, 23), (10, 12, 5)
PROOF = "proof.json"
DTYPES: dict[LocalEngine, str] = {
    "openvino": "openvino-float32",
    "openvino_int8": "openvino-int8",
}


def prepare_engine(
    base_folder: Path, adapter_folder: Path | None, local_engine: LocalEngine, models_folder: Path
) -> OpenVinoEngine:
    """Return the compiled engine of a base and its adapter, made and proved at the first call.

    Folders are named for what decides them: base, adapter, precision, the versions that made them.
    A base is compiled once for all its adapters.

    Raises:
        ReleaseError: openvino is missing, or computes something else than transformers does.
        HashMismatchError: a file of a prepared folder is not what was prepared.
        InvalidInputError: there is nowhere to write what is prepared.
    """
    base_hash = hash_base_model(base_folder)
    adapter_hash = "" if adapter_folder is None else folder_sha256(adapter_folder)
    versions = (CONVERSION_VERSION, _find_version(local_engine))
    step_key = content_hash(base_hash, adapter_hash, local_engine, *versions, digits=12)
    name = (adapter_folder or base_folder).name
    prefixes = _prefix_folder(base_folder, base_hash, local_engine, models_folder)
    steps = models_folder / f"{name}.{local_engine}-step@{step_key}"
    if not ((prefixes / RECEIPT).exists() and (steps / RECEIPT).exists()):
        _convert_both(base_folder, adapter_folder, local_engine, prefixes, steps)
    verify_prepared(prefixes)
    verify_prepared(steps)
    return OpenVinoEngine(prefixes, steps)


def prepare_prefix_graph(base_folder: Path, models_folder: Path) -> PrefixGraph:
    """Return what reads prefixes in float32: made, and proved against transformers, once.

    Raises:
        ReleaseError: openvino is missing, or computes something else than transformers does.
        HashMismatchError: a file of a prepared folder is not what was prepared.
        InvalidInputError: there is nowhere to write what is prepared.
    """
    base_hash = hash_base_model(base_folder)
    folder = _prefix_folder(base_folder, base_hash, "openvino", models_folder)
    if not (folder / RECEIPT).exists():
        _convert_prefix(load_causal_lm(base_folder, "float32"), base_folder, "openvino", folder)
    verify_prepared(folder)
    return PrefixGraph(folder)


def _prefix_folder(
    base_folder: Path, base_hash: str, local_engine: LocalEngine, models_folder: Path
) -> Path:
    versions = (CONVERSION_VERSION, _find_version(local_engine))
    key = content_hash(base_hash, local_engine, *versions, digits=12)
    return models_folder / f"{base_folder.name}.{local_engine}-prefix@{key}"


def _convert_prefix(
    base: Any, base_folder: Path, local_engine: LocalEngine, prefixes: Path
) -> None:
    _refuse_unknown_attention(base, base_folder)
    with preparing(base_folder.name, prefixes) as staging:
        _save(convert_prefix(base), staging / PREFIX_GRAPH, local_engine)
        if local_engine == "openvino":
            _refuse_other_states(base, PrefixGraph(staging))
        write_receipt(staging, source_sha256=hash_base_model(base_folder))


def _convert_both(
    base_folder: Path,
    adapter_folder: Path | None,
    local_engine: LocalEngine,
    prefixes: Path,
    steps: Path,
) -> None:
    from serving.models.adapters import load_transformers

    original = load_transformers(base_folder, adapter_folder, "float32")
    if not (prefixes / RECEIPT).exists():
        _convert_prefix(original.base, base_folder, local_engine, prefixes)
    if not (steps / RECEIPT).exists():
        with preparing((adapter_folder or base_folder).name, steps) as staging:
            plan_engine(original.adapted, local_engine).write(staging)
            _save(convert_step(original.adapted), staging / STEP_GRAPH, local_engine)
            agreement = compare(original, OpenVinoEngine(prefixes, staging))
            refuse_other_answers(agreement, local_engine)
            (staging / PROOF).write_text(json.dumps(asdict(agreement), indent=1), encoding="utf-8")
            write_receipt(staging, source_sha256=hash_base_model(base_folder))


def plan_engine(model: Any, local_engine: LocalEngine) -> EnginePlan:
    """Return what a compiled folder of this model holds."""
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return EnginePlan(
        dtype=DTYPES[local_engine],
        layers=config.num_hidden_layers,
        heads=config.num_key_value_heads,
        head_size=size,
        stop_ids=tuple(list_stop_ids(model)),
        quantisation_group=QUANTISATION_GROUP if local_engine == "openvino_int8" else 0,
    )


def convert_prefix(model: Any) -> "openvino.Model":
    """Return the graph from ids and positions to keys and values; it computes no logits."""
    import torch

    from serving.models.engine_graphs import ReadPrefix

    length = 7  # any: what is traced holds for every length, which the proof tries
    example = (torch.ones(1, length, dtype=torch.int64), torch.arange(length)[None])
    return _trace(ReadPrefix(model), example)


def convert_step(model: Any) -> "openvino.Model":
    """Return the graph from ids to the next token's logits that keeps its own keys and values."""
    import torch

    from serving.models.engine_graphs import Step, keep_states

    plan = plan_engine(model, "openvino")
    past = [torch.zeros(2, plan.heads, 3, plan.head_size) for _ in range(2 * plan.layers)]
    example = (
        torch.ones(2, 2, dtype=torch.int64),
        torch.zeros(2, 1, 2, 5),
        torch.tensor([[3, 4], [3, 4]]),
        past,
    )
    return keep_states(_trace(Step(model), example), plan)


def _trace(module: Any, example: Any) -> "openvino.Model":
    import openvino
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: the proof is what counts
        # Tracing it again to compare, as convert_model would, takes a third of the time.
        traced = torch.jit.trace(module.eval(), example, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
        return openvino.convert_model(traced, example_input=example)


def _save(graph: "openvino.Model", path: Path, local_engine: LocalEngine) -> None:
    import openvino

    from serving.models.engine_graphs import round_weights

    if local_engine == "openvino_int8":
        round_weights(graph)
    openvino.save_model(graph, path, compress_to_fp16=False)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far the engine's logprobs are from those of transformers, over the whole vocabulary.

    Distances are root mean squares. `from_base` is the distance from the base without the adapter,
    None where there is no adapter: an adapter that was lost would make it the smaller one.
    """

    largest_difference: float
    from_adapted: float
    from_base: float | None

    @property
    def has_adapter(self) -> bool:
        """Whether the engine is nearer to the adapted model than to the base."""
        return self.from_base is None or self.from_adapted < self.from_base


def compare(original: TransformersEngine, engine: OpenVinoEngine) -> Agreement:
    """Ask both what follows the probes, prefix and padding included."""
    prefixes, suffixes = make_probes(original.base.config.get_text_config().vocab_size)
    found = _take_logprobs(engine.predict([engine.read_prefix(p) for p in prefixes], suffixes))
    states = [original.read_prefix(p) for p in prefixes]
    expected = _take_logprobs(predict_next(original.adapted, states, suffixes))
    from_base = None
    if original.adapted is not original.base:
        plain = _take_logprobs(predict_next(original.base, states, suffixes))
        from_base = _distance(found, plain)
    return Agreement(
        largest_difference=float(np.abs(found - expected).max()),
        from_adapted=_distance(found, expected),
        from_base=from_base,
    )


def refuse_other_answers(agreement: Agreement, local_engine: LocalEngine) -> None:
    """Refuse an engine that is not the student.

    Raises:
        ReleaseError: in float32 the logprobs differ; rounded, the adapter is lost, or moves them
            less than rounding does.
    """
    limit = LARGEST_DIFFERENCE if local_engine == "openvino" else float("inf")
    if agreement.largest_difference <= limit and agreement.has_adapter:
        return
    raise ReleaseError(
        f"compiling the student for {local_engine}",
        expected=f"logprobs within {limit:g} of those of transformers, nearer to those of the "
        "adapted model than to those of the base",
        found=str(agreement),
        next_step="set the student's local_engine to transformers",
    )


def _refuse_other_states(base: Any, graph: PrefixGraph) -> None:
    """Refuse a graph of the base that reads a prefix into other states."""
    probe = make_probes(base.config.get_text_config().vocab_size)[0][0]
    states = read_prefix(base, probe)
    tensors: tuple[Any, Any] = (states.keys, states.values)
    for found, expected in zip(graph.read(probe), tensors, strict=True):
        wanted = expected.float().cpu().numpy()
        difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        if not difference <= LARGEST_STATE_DIFFERENCE:  # also where it is no number
            raise ReleaseError(
                "compiling the base model for openvino",
                expected=f"states within {LARGEST_STATE_DIFFERENCE:g} of the largest of them",
                found=f"{difference:g}",
                next_step="set the student's local_engine to transformers",
            )


def make_probes(vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return prefixes and suffixes of ids: long, empty and short, so that rows are padded."""
    random = np.random.default_rng(11)

    def draw(count: int) -> list[int]:
        return [int(token) for token in random.integers(0, vocabulary, count)]

    return [draw(n) for n in PROBE_PREFIXES], [draw(n) for n in PROBE_SUFFIXES]


def predict_next(
    model: Any, prefixes: Sequence[PrefixStates], suffixes: Sequence[Sequence[int]]
) -> Floats:
    """Return a torch model's logits [batch, vocabulary] after the last token of each suffix."""
    import torch

    with torch.inference_mode():
        batch = pad_batch(model, prefixes, suffixes, pad_side="left", room=1)
        logits = model.get_output_embeddings()(run_decoder(model, batch)[:, -1]).float()
    found: Floats = logits.cpu().numpy()
    return found


def _take_logprobs(logits: Floats) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logprobs: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logprobs


def _distance(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean((one - other) ** 2)))


def _refuse_unknown_attention(model: Any, folder: Path) -> None:
    """Refuse a model whose layers see only what is near: the graphs let every token see all."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window is None:
        return
    raise ReleaseError(
        f"compiling the base model {folder}",
        expected="full attention in every layer",
        found=f"sliding_window {window}",
        next_step="set the student's local_engine to transformers",
    )


def _find_version(local_engine: LocalEngine) -> str:
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError as error:
        raise ReleaseError(
            f"opening a student with local_engine {local_engine}",
            expected="the package openvino",
            found="no such package",
            next_step="pip install openvino, or set local_engine to transformers",
        ) from error
