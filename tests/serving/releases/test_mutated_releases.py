"""Releases damaged at random, as disks and half-done copies do it: the old one serves on."""

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.serving.releases.test_live import Site
from tests.serving.torture import count, report


def mutate(folder: Path, lots: random.Random) -> str:
    """Damage one file of a bundle; return how."""
    path = lots.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    data = path.read_bytes()
    at = lots.randrange(len(data))
    how = lots.choice(("flip", "cut", "insert", "zero", "remove", "swap", "extra"))
    if how == "flip":
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << lots.randrange(8))]) + data[at + 1 :])
    elif how == "cut":
        path.write_bytes(data[:at])
    elif how == "insert":
        path.write_bytes(data[:at] + lots.randbytes(lots.randrange(1, 9)) + data[at:])
    elif how == "zero":
        path.write_bytes(data[:at] + b"\x00" * (len(data) - at))
    elif how == "remove":
        path.unlink()
    elif how == "swap":
        path.write_bytes(lots.randbytes(len(data)))
    else:
        path.with_name(f"{lots.randrange(9)}.json").write_bytes(b"{}")
    return how


async def test_no_damaged_release_is_served(tmp_path: Path) -> None:
    site = Site(tmp_path)
    first = site.publish("first")
    live = await site.follow()
    release = site.publish("second")
    folder = site.settings.releases_folder / release
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    lots = random.Random(2026)  # noqa: S311  (which damage, not a secret)
    kinds: Counter[str] = Counter()
    mutations = count(60, 500)
    for _ in range(mutations):
        how = mutate(folder, lots)
        live._retry_at = 0.0
        assert not await live.poll(), how
        assert (live.engine.release_id, live.failure is None) == (first, False)
        kinds[how] += 1
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
    live._retry_at = 0.0
    assert await live.poll()
    assert live.engine.release_id == release
    report(f"{mutations} damaged releases, 0 served: {dict(kinds)}")
    await live.close()


@pytest.mark.parametrize("half", ["no_current", "torn_current"])
async def test_a_torn_pointer_changes_nothing(tmp_path: Path, half: str) -> None:
    site = Site(tmp_path)
    first = site.publish("first")
    live = await site.follow()
    site.publish("second")
    pointer = site.settings.releases_folder / "CURRENT"
    data = pointer.read_bytes()
    end = len(data.rstrip())  # without its last line break it is whole
    cuts = range(0, end, max(1, end // count(15, 200)))
    for cut in cuts:
        if half == "no_current":
            pointer.unlink(missing_ok=True)
        else:
            pointer.write_bytes(data[:cut])
        live._retry_at = 0.0
        assert not await live.poll()
        assert live.engine.release_id == first
    report(f"{half}: {len(cuts)} cuts, 0 followed")
    pointer.write_bytes(data)
    live._retry_at = 0.0
    assert await live.poll()
    await live.close()
