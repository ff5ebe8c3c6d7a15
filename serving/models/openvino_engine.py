"""A compiled student engine: OpenVINO runs two graphs, no torch is loaded.

One graph reads a prefix with the frozen base, one continues it with the adapted model and keeps
its keys and values in place. Belongs here: running a folder that `engine_conversion` made. Does not
belong here: making it, and deciding whether it computes what transformers does.
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serving.models.causal_lm import Generation, append_step

if TYPE_CHECKING:
    import openvino

PREFIX_GRAPH, STEP_GRAPH, PLAN = "prefix.xml", "step.xml", "engine.json"
STATE_NAME = re.compile(r"past\.(\d+)present\.\d+$")

HIDDEN = float(np.finfo(np.float32).min)
"""Added to a score that must not count. Not infinity: a padded row sees nothing, and must stay a
number."""

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """What a compiled folder holds."""

    dtype: str
    layers: int
    heads: int
    head_size: int
    stop_ids: tuple[int, ...]
    quantisation_group: int
    """How many activations share a scale where they are rounded to 8 bits; 0: none are."""

    def write(self, folder: Path) -> None:
        """Write the plan into the folder of the compiled engine."""
        (folder / PLAN).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "EnginePlan":
        """Read the plan of the compiled engine in `folder`."""
        values = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return cls(**{**values, "stop_ids": tuple(values["stop_ids"])})


@dataclass(frozen=True, eq=False)
class CompiledPrefix:
    """Keys and values of a prefix, [2, layers, heads, tokens, head size]."""

    states: Floats

    def __len__(self) -> int:
        """Return the number of prefix tokens."""
        return int(self.states.shape[3])

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return int(self.states.nbytes)


class PrefixGraph:
    """Reads prefixes with the frozen base. For one thread at a time.

    Args:
        folder: holds the graph of the base.
        quantisation_group: as in the plan.
    """

    def __init__(self, folder: Path, quantisation_group: int = 0) -> None:
        self._request = compile_graph(folder / PREFIX_GRAPH, quantisation_group)

    def read(self, prefix_ids: Sequence[int]) -> Floats:
        """Return keys and values, [2, layers, heads, tokens, head size], of at least one token."""
        ids = np.array([list(prefix_ids)], np.int64)
        positions = np.arange(len(prefix_ids), dtype=np.int64)[None]
        self._request.infer({"input_ids": ids, "position_ids": positions})
        return np.array(self._request.get_output_tensor(0).data)


class OpenVinoEngine:
    """Runs a compiled folder. For one thread at a time.

    Args:
        prefix_folder: holds the graph of the base.
        step_folder: holds the graph of the adapted model, and the plan.
    """

    def __init__(self, prefix_folder: Path, step_folder: Path) -> None:
        self._plan = EnginePlan.read(step_folder)
        self._prefix = PrefixGraph(prefix_folder, self._plan.quantisation_group)
        self._step = compile_graph(step_folder / STEP_GRAPH, self._plan.quantisation_group)

    @property
    def dtype(self) -> str:
        """What it computes with, as `openvino-float32`."""
        return self._plan.dtype

    @property
    def configured_stop_ids(self) -> Sequence[int]:
        """The tokens that the base's generation config ends an answer with."""
        return self._plan.stop_ids

    def read_prefix(self, prefix_ids: Sequence[int]) -> CompiledPrefix:
        """Return the base's states of a prefix."""
        if not prefix_ids:
            plan = self._plan
            empty = np.zeros((2, plan.layers, plan.heads, 0, plan.head_size), np.float32)
            return CompiledPrefix(empty)
        return CompiledPrefix(self._prefix.read(prefix_ids))

    def decode(
        self,
        prefixes: Sequence[CompiledPrefix],
        suffixes: Sequence[Sequence[int]],
        *,
        max_tokens: Sequence[int],
        stop_ids: frozenset[int],
        is_abandoned: Callable[[int], bool] = lambda _row: False,
        on_token: Callable[[int, int], None] = lambda _row, _token: None,
    ) -> list[Generation]:
        """Continue every row with its most probable token; rows that are done leave the batch."""
        results = [Generation() for _ in suffixes]
        rows = list(range(len(suffixes)))
        self._keep_states(prefixes)
        ids, real = pad_rows([len(prefix) for prefix in prefixes], suffixes)
        positions = _count(real, ids.shape[1])
        chosen = list(rows)
        while True:
            steps = read_steps(self._infer(ids, real, positions, chosen))
            now = time.perf_counter()
            for row, step in zip(rows, steps, strict=True):
                append_step(results[row], step, now, stop_ids)
                on_token(row, step[0])
            chosen = [
                place
                for place, row in enumerate(rows)
                if results[row].finish_reason != "stop"
                and len(results[row].ids) < max_tokens[row]
                and not is_abandoned(row)
            ]
            if not chosen:
                self._step.reset_state()
                return results
            ids = np.array([[steps[place][0]] for place in chosen], np.int64)
            real = np.concatenate([real[chosen], np.ones((len(chosen), 1), np.int64)], axis=1)
            positions = positions[chosen, -1:] + 1
            rows = [rows[place] for place in chosen]

    def predict(
        self, prefixes: Sequence[CompiledPrefix], suffixes: Sequence[Sequence[int]]
    ) -> Floats:
        """Return the logits [batch, vocabulary] after the last token of each suffix."""
        self._keep_states(prefixes)
        ids, real = pad_rows([len(prefix) for prefix in prefixes], suffixes)
        logits = self._infer(ids, real, _count(real, ids.shape[1]), range(len(suffixes)))
        return logits.copy()  # the next request writes over it

    def _infer(self, ids: Ids, real: Ids, positions: Ids, chosen: Sequence[int]) -> Floats:
        """Return the logits after the last token of each row; `chosen` are rows of the states."""
        self._step.infer(
            {
                "input_ids": ids,
                "mask": hide_unreadable(real, ids.shape[1]),
                "position_ids": positions,
                "beam_idx": np.array(chosen, np.int32),
            }
        )
        logits: Floats = self._step.get_output_tensor(0).data
        return logits

    def _keep_states(self, prefixes: Sequence[CompiledPrefix]) -> None:
        """Put the prefixes side by side, padded on the left, where the graph keeps its states."""
        import openvino

        self._step.reset_state()
        longest = max(len(prefix) for prefix in prefixes)
        if longest == 0:
            return
        plan = self._plan
        for state in self._step.query_state():
            number = _read_number(state.name)
            joined = np.zeros((len(prefixes), plan.heads, longest, plan.head_size), np.float32)
            for row, prefix in enumerate(prefixes):
                joined[row, :, longest - len(prefix) :] = prefix.states[number % 2, number // 2]
            state.state = openvino.Tensor(joined)


def compile_graph(graph: Path, quantisation_group: int) -> "openvino.InferRequest":
    """Return what runs a graph on all cores; activations are rounded where a group is given."""
    import openvino

    settings: dict[str, Any] = {
        # bf16 is the default where a processor has it, and gives other answers.
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(quantisation_group),
        # One batch at a time, on all cores, which two processes would otherwise fight for.
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    return openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()


def pad_rows(prefix_lengths: Sequence[int], suffixes: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Return suffix ids padded on the left, and [batch, prefix + suffix] ones where one is real."""
    before, after = max(prefix_lengths), max(map(len, suffixes))
    ids = np.zeros((len(suffixes), after), np.int64)
    real = np.zeros((len(suffixes), before + after), np.int64)
    for row, (length, suffix) in enumerate(zip(prefix_lengths, suffixes, strict=True)):
        ids[row, after - len(suffix) :] = suffix
        real[row, before - length : before] = 1
        real[row, before + after - len(suffix) :] = 1
    return ids, real


def _count(real: Ids, asked: int) -> Ids:
    """Return the positions of the last `asked` tokens: padding takes none."""
    positions: Ids = np.maximum(real.cumsum(axis=1) - 1, 0)[:, -asked:]
    return positions


def hide_unreadable(real: Ids, asked: int) -> Floats:
    """Return what is added to the scores [batch, 1, asked, all]: nothing, or `HIDDEN`.

    A token reads the real tokens up to itself.
    """
    everything = real.shape[1]
    own = np.arange(everything - asked, everything)[:, None]
    may_read = (np.arange(everything)[None] <= own)[None] & (real[:, None, :] == 1)
    return np.where(may_read, np.float32(0), np.float32(HIDDEN))[:, None]


def read_steps(logits: Floats) -> list[tuple[int, float, float]]:
    """Return the most probable token of each row, its logprob and its margin to the runner-up."""
    best_two = np.partition(logits, -2, axis=1)[:, -2:].astype(np.float64)
    top = best_two[:, 1]
    sums = np.exp(logits.astype(np.float64) - top[:, None]).sum(axis=1)
    rows = zip(logits.argmax(axis=1), -np.log(sums), top - best_two[:, 0], strict=True)
    return [(int(token), float(logprob), float(margin)) for token, logprob, margin in rows]


def _read_number(name: str) -> int:
    """Return which state a name means: keys of layer n are 2n, values 2n + 1."""
    found = STATE_NAME.search(name)
    if found is None:
        raise ValueError(f"expected a state named as {STATE_NAME.pattern}, found {name}")
    return int(found[1])
