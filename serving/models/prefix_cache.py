"""Prefix states of a frozen base, kept: many questions share sources, several adapters a base.

Belongs here: keeping and forgetting states. Does not belong here: computing them (`causal_lm`,
`openvino_engine`), whose they are (`shared_bases`).
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from serving.models.engines import Prefix

PREFIX_CACHE_BYTES = 512 * 1024**2


class PrefixCache:
    """The most recently used prefix states of a frozen model, bounded in bytes.

    Adapters of one base may share it from threads of their own: a prefix that one of them is
    reading is waited for, not read twice, and keeps nobody from another one.
    """

    def __init__(self, read: Callable[[tuple[int, ...]], Prefix], maximum_bytes: int) -> None:
        """Start empty; `read` computes what is not kept."""
        self._read = read
        self._maximum_bytes = maximum_bytes
        self._states: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self._reading: dict[tuple[int, ...], Future[Prefix]] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        self.hits = 0

    def read(self, prefix_ids: tuple[int, ...]) -> Prefix:
        """Return the states of a prefix, computing them unless they are kept."""
        with self._lock:
            known = self._states.get(prefix_ids)
            if known is not None:
                self.hits += 1
                self._states.move_to_end(prefix_ids)
                return known
            is_read_already = prefix_ids in self._reading
            self.hits += is_read_already
            reading = self._reading.setdefault(prefix_ids, Future())
        if is_read_already:
            return reading.result()
        try:
            states = self._read(prefix_ids)
        except BaseException as failure:
            with self._lock:
                del self._reading[prefix_ids]
            reading.set_exception(failure)
            raise
        with self._lock:
            del self._reading[prefix_ids]
            self._keep(prefix_ids, states)
        reading.set_result(states)
        return states

    def _keep(self, prefix_ids: tuple[int, ...], states: Prefix) -> None:
        self._states[prefix_ids] = states
        self._bytes += states.nbytes
        while self._bytes > self._maximum_bytes:
            _, dropped = self._states.popitem(last=False)
            self._bytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop what is kept."""
        with self._lock:
            self._states.clear()
            self._bytes = 0
