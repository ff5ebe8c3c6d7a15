"""The states of frozen prefixes during a training, read once where memory allows.

Belongs here: what is kept and what was read. Does not belong here: the forward pass over a prefix
(`serving.models.causal_lm`).
"""

from typing import Any

from serving.models.causal_lm import PrefixStates, read_prefix

PREFIX_BYTES = 4 * 1024**3


class PrefixStore:
    """Prefix states by ids, kept until the memory limit is reached and then read anew.

    Epochs visit every prefix once, so evicting the least recently used would evict what comes next.
    """

    def __init__(self, frozen: Any, maximum_bytes: int) -> None:
        """Start empty; `frozen` reads what is not kept."""
        self._frozen = frozen
        self._free = maximum_bytes
        self._states: dict[tuple[int, ...], PrefixStates] = {}
        self.lengths_read: list[int] = []

    def read(self, prefix_ids: tuple[int, ...]) -> PrefixStates:
        """Return the states of a prefix."""
        states = self._states.get(prefix_ids)
        if states is None:
            states = read_prefix(self._frozen, prefix_ids)
            self.lengths_read.append(len(prefix_ids))
            if states.nbytes <= self._free:
                self._free -= states.nbytes
                self._states[prefix_ids] = states
        return states

    def take_lengths_read(self) -> list[int]:
        """Return the lengths of the prefixes read since the last call."""
        lengths, self.lengths_read = self.lengths_read, []
        return lengths
