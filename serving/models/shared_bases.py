"""Frozen bases of one release: each loaded once, however many adapters stand on it.

A merged copy shares every weight its adapter does not touch, and the base's states of a prefix are
the same for all adapters of it: a further skill costs the weights it changes. Belongs here: who
shares what. Does not belong here: loading (`causal_lm`), merging (`adapters`), keeping states
(`prefix_cache`).
"""

from pathlib import Path
from typing import Any

from serving.models.causal_lm import load_causal_lm, read_prefix
from serving.models.prefix_cache import PREFIX_CACHE_BYTES, PrefixCache


class SharedBases:
    """The bases opened so far. For transformers: a compiled engine holds its weights itself."""

    def __init__(self, prefix_cache_bytes: int = PREFIX_CACHE_BYTES) -> None:
        """Hold nothing yet; each base keeps up to `prefix_cache_bytes` of states."""
        self._prefix_cache_bytes = prefix_cache_bytes
        self._bases: dict[tuple[Path, str], Any] = {}
        self._prefixes: dict[int, PrefixCache] = {}

    def load(self, folder: Path, dtype: str) -> Any:
        """Return the base in a folder, loaded unless it is already."""
        key = folder.resolve(), dtype
        if key not in self._bases:
            self._bases[key] = load_causal_lm(folder, dtype)
        return self._bases[key]

    def find_prefixes(self, base: Any) -> PrefixCache:
        """Return the states kept of a base that `load` returned."""
        if id(base) not in self._prefixes:
            self._prefixes[id(base)] = PrefixCache(
                lambda prefix_ids: read_prefix(base, prefix_ids), self._prefix_cache_bytes
            )
        return self._prefixes[id(base)]
