"""The states of frozen prefixes during a training, read once where memory allows.

Belongs here: what is kept and what was read, the choice of who reads. Does not belong here: the
forward pass over a prefix (`serving.models.causal_lm`, `serving.models.openvino_engine`).
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from serving.models.causal_lm import PrefixStates, read_prefix

PREFIX_BYTES = 4 * 1024**3

PrefixEngine = Literal["transformers", "openvino"]
"""Who reads frozen prefixes for a training on a CPU. Both compute the same float32 numbers;
`openvino` takes less than half of the time."""

PrefixReader = Callable[[Sequence[int]], PrefixStates]


def read_with_transformers(frozen: Any) -> PrefixReader:
    """Return the reader that is the frozen base itself."""
    return partial(read_prefix, frozen)


def open_prefix_reader(
    engine: PrefixEngine, frozen: Any, base_folder: Path, models_folder: Path
) -> PrefixReader:
    """Return the reader of an engine; where `frozen` is no float32 model on a CPU, it reads itself.

    Raises:
        ReleaseError: openvino is missing, or computes something else than transformers does.
    """
    import torch

    if engine == "transformers" or frozen.dtype != torch.float32 or frozen.device.type != "cpu":
        return read_with_transformers(frozen)

    @cache
    def open_graph() -> Any:  # compiling takes half a minute, and `lora` has no frozen prefixes
        from serving.models.engine_conversion import prepare_prefix_graph

        return prepare_prefix_graph(base_folder, models_folder)

    def read(prefix_ids: Sequence[int]) -> PrefixStates:
        if not prefix_ids:
            return PrefixStates(keys=None, values=None)
        keys, values = map(torch.from_numpy, open_graph().read(prefix_ids))
        return PrefixStates(keys=keys, values=values)

    return read


class PrefixStore:
    """Prefix states by ids, kept until the memory limit is reached and then read anew.

    Epochs visit every prefix once, so evicting the least recently used would evict what comes next.
    """

    def __init__(self, reader: PrefixReader, maximum_bytes: int) -> None:
        """Start empty; `reader` reads what is not kept."""
        self._reader = reader
        self._free = maximum_bytes
        self._states: dict[tuple[int, ...], PrefixStates] = {}
        self.lengths_read: list[int] = []

    def read(self, prefix_ids: tuple[int, ...]) -> PrefixStates:
        """Return the states of a prefix."""
        states = self._states.get(prefix_ids)
        if states is None:
            states = self._reader(prefix_ids)
            self.lengths_read.append(len(prefix_ids))
            if states.nbytes <= self._free:
                self._free -= states.nbytes
                self._states[prefix_ids] = states
        return states

    def take_lengths_read(self) -> list[int]:
        """Return the lengths of the prefixes read since the last call."""
        lengths, self.lengths_read = self.lengths_read, []
        return lengths
