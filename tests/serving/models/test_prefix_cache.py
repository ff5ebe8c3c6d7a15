"""What several threads see of the prefixes they share; its bounds are tested with the student."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.models.causal_lm import load_causal_lm, read_prefix
from serving.models.prefix_cache import PrefixCache


def test_reading_one_prefix_keeps_nobody_from_another(tiny_base):
    """A prefix that is being read is waited for by those who want it, and by nobody else."""
    base = load_causal_lm(tiny_base, "float32")
    slow, quick, broken = (1, 2, 3), (4, 5, 6), (7, 8, 9)
    begun, released = threading.Event(), threading.Event()
    reads = []

    def read(prefix_ids):
        reads.append(prefix_ids)
        if prefix_ids == slow:
            begun.set()
            assert released.wait(timeout=20)
        if prefix_ids == broken and reads.count(broken) == 1:
            raise ValueError("out of memory")
        return read_prefix(base, prefix_ids)

    cache = PrefixCache(read, maximum_bytes=10**9)
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(cache.read, slow)]
        assert begun.wait(timeout=20)
        waiting.append(threads.submit(cache.read, slow))
        assert threads.submit(cache.read, quick).result(timeout=20) is cache.read(quick)
        released.set()
        one, other = (each.result(timeout=20) for each in waiting)
    assert one is other
    assert reads == [slow, quick]
    with pytest.raises(ValueError, match="out of memory"):
        cache.read(broken)
    assert cache.read(broken) is cache.read(broken)  # a failure is not kept
