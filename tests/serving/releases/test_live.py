"""Following CURRENT: real bundles and signatures, canned models."""

import asyncio
import gc
import shutil
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serving.app import create_app, set_loaded_aside
from serving.engine import ServingEngine
from serving.errors import ReleaseError, UpstreamError
from serving.hashing import folder_sha256
from serving.releases.bundle import (
    CURRENT,
    build_bundle,
    ensure_signing_key,
    load_current,
    load_public_key,
    publish,
)
from serving.releases.live import LiveRelease
from serving.settings import ServerSettings
from serving.tracing.segments import SegmentWriter
from tests.serving.fakes import CannedChatModel, make_engine, make_manifest
from tests.serving.torture import count, report


class Site:
    """A home with releases, and engines whose student is named after the release it came from."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.settings = ServerSettings(home=home, release_poll_seconds=0.01)
        self.key = ensure_signing_key(self.settings.keys_folder)
        self.closed: list[str] = []
        self.student_delay = 0.0
        self.warm_up_error: Exception | None = None
        self.published: list[str] = []
        self.settled: list[list[str]] = []

    def publish(self, name: str) -> str:
        adapter = self.home / "staged" / name
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "adapter_model.safetensors").write_bytes(name.encode() * 50)
        students = make_manifest().model_dump()["students"]
        students["compact"]["adapter_sha256"] = folder_sha256(adapter)
        manifest = make_manifest(students=students)
        release = build_bundle(self.settings.releases_folder, manifest, {"compact": adapter})
        self.point_at(release)
        return release

    def point_at(self, release: str) -> None:
        expected = self.published[-1] if self.published else None
        publish(
            self.settings.releases_folder, release, expected_parent=expected, signing_key=self.key
        )
        self.published.append(release)

    async def load(self) -> ServingEngine:
        public = load_public_key(self.settings.keys_folder)
        release = load_current(self.settings.releases_folder, public)

        async def close() -> None:
            self.closed.append(release.manifest.release_id)

        name = f"student of {release.manifest.release_id}"
        answer: Any = self.warm_up_error or "Put environment variables in a .env file. [1]"
        student = CannedChatModel(name, answer, delay_seconds=self.student_delay)
        engine = make_engine(manifest=release.manifest, student=student)
        return ServingEngine(
            pipeline=engine.pipeline,
            manifest=release.manifest,
            sequence=release.sequence,
            parent=release.parent,
            close=close,
        )

    async def follow(self) -> LiveRelease:
        return LiveRelease(
            await self.load(),
            releases_folder=self.settings.releases_folder,
            keys_folder=self.settings.keys_folder,
            load=self.load,
            poll_seconds=0.01,
        )

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[httpx2.AsyncClient]:
        app = create_app(
            engine=await self.load(),
            settings=self.settings,
            writer=SegmentWriter(self.settings.segments_folder),
            load=self.load,
            on_warm=lambda: self.settled.append([*self.closed]),
        )
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app=app), base_url="http://test"
            ) as client,
        ):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.001)
            yield client


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.publish("first")
    return made


async def _wait_for(client: httpx2.AsyncClient, release: str) -> None:
    async with asyncio.timeout(20):
        while (await client.get("/v1/release")).json()["release"] != release:
            await asyncio.sleep(0.005)


async def test_swaps_under_load_lose_and_mix_no_answer(site: Site) -> None:
    reloads = count(20, 1_000)
    site.student_delay = 0.002
    answers: list[dict[str, Any]] = []
    is_over = asyncio.Event()

    async def ask_on(client: httpx2.AsyncClient) -> None:
        while not is_over.is_set():
            reply = await client.post("/ask", json={"question": "Where?"})
            assert reply.status_code == 200, reply.text
            answers.append(reply.json())

    async with site.serve() as client:
        askers = [asyncio.create_task(ask_on(client)) for _ in range(4)]
        for number in range(reloads):
            release = await asyncio.to_thread(site.publish, f"release {number}")
            await _wait_for(client, release)
        is_over.set()
        await asyncio.gather(*askers)
        metrics = (await client.get("/metrics")).text
    mixed = [a for a in answers if a["model"] != f"student of {a['release']}"]
    report(f"{reloads} reloads, {len(answers)} answers, 0 failed, {len(mixed)} mixed")
    assert not mixed
    assert {answer["release"] for answer in answers} <= set(site.published)
    assert f"understudy_release_swaps_total {float(reloads)}" in metrics
    assert len(answers) > reloads
    assert sorted(site.closed) == sorted(site.published)  # each engine once, the last at the end


async def test_it_is_told_when_the_first_is_warm_and_when_a_replaced_one_is_closed(
    site: Site,
) -> None:
    async with site.serve() as client:
        assert site.settled == [[]]
        second = await asyncio.to_thread(site.publish, "second")
        await _wait_for(client, second)
        async with asyncio.timeout(20):
            while len(site.settled) < 2:
                await asyncio.sleep(0.001)
        assert site.settled == [[], site.published[:1]]


def test_what_is_loaded_is_set_aside_and_what_a_release_left_is_collected() -> None:
    class Loaded:
        """Refers to itself: only a collection lets go of it."""

        def __init__(self) -> None:
            self.itself = self

    loaded = weakref.ref(kept := Loaded())
    try:
        set_loaded_aside()
        assert gc.get_freeze_count() > 0
        del kept
        gc.collect()
        assert loaded() is not None  # no later collection looks at it
        set_loaded_aside()
        assert loaded() is None
    finally:
        gc.unfreeze()


async def test_a_request_keeps_the_release_it_began_with(site: Site) -> None:
    live = await site.follow()
    first = live.engine
    with live.lease() as leased:
        site.publish("second")
        assert await live.poll()
        assert live.engine is not first
        assert leased is first
        await asyncio.sleep(0)
        assert not site.closed
    await live.close()
    assert site.closed == [site.published[1], first.release_id]


async def test_rolling_back_is_publishing_the_parent(site: Site) -> None:
    live = await site.follow()
    site.publish("second")
    assert await live.poll()
    assert live.engine.parent == site.published[0]
    site.point_at(site.published[0])
    assert await live.poll()
    assert live.engine.release_id == site.published[0]
    assert (live.engine.sequence, live.swap_count) == (3, 2)
    assert not await live.poll()


@pytest.mark.parametrize("damage", ["weights", "manifest", "checksums", "extra", "missing", "link"])
async def test_a_damaged_release_leaves_the_old_one_in_force(site: Site, damage: str) -> None:
    live = await site.follow()
    first = live.engine
    release = site.publish("second")
    folder = site.settings.releases_folder / release
    whole = site.home / "whole"
    shutil.copytree(folder, whole)
    weights = next(folder.rglob("*.safetensors"))
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage in ("manifest", "checksums"):
        path = folder / ("manifest.json" if damage == "manifest" else "SHA256SUMS")
        path.write_bytes(path.read_bytes() + b" ")
    elif damage == "extra":
        (folder / "payload.pkl").write_bytes(b"x")
    elif damage == "missing":
        weights.unlink()
    else:
        weights.rename(site.home / "weights")
        weights.symlink_to(site.home / "weights")
    assert not await live.poll()
    assert live.engine is first
    assert live.failure is not None
    assert release in live.failure
    shutil.rmtree(folder)
    whole.rename(folder)
    live._retry_at = 0.0
    assert await live.poll()
    assert live.failure is None


async def test_a_refused_release_is_told_to_operators(site: Site) -> None:
    async with site.serve() as client:
        site.warm_up_error = UpstreamError("a", expected="b", found="c", next_step="d")
        site.publish("second")
        async with asyncio.timeout(20):
            while not (await client.get("/healthz")).json()["is_new_release_refused"]:
                await asyncio.sleep(0.005)
        assert (await client.get("/healthz")).json()["status"] == "degraded"
        told = (await client.get("/v1/release")).json()
        assert told["release"] == site.published[0]
        assert "expected b" in told["new_release_refused_because"]
        assert "understudy_release_refused 1.0" in (await client.get("/metrics")).text
        assert (await client.post("/ask", json={"question": "Where?"})).status_code == 200
    assert site.closed.count(site.published[1]) >= 1  # what could not warm up was let go


async def test_an_older_pointer_put_back_is_no_rollback(site: Site) -> None:
    current = site.settings.releases_folder / CURRENT
    old = current.read_bytes()
    site.publish("second")
    live = await site.follow()
    current.write_bytes(old)
    assert not await live.poll()
    assert "older pointer" in str(live.failure)


async def test_a_pointer_of_another_key_or_none_changes_nothing(site: Site) -> None:
    live = await site.follow()
    current = site.settings.releases_folder / CURRENT
    whole = current.read_bytes()
    for forged in (whole.replace(b'"sequence": 1', b'"sequence": 9'), b"", b"{}", b"\xff"):
        current.write_bytes(forged)
        live._retry_at = 0.0
        assert not await live.poll()
        assert live.failure is not None
    current.unlink()
    assert not await live.poll()
    current.write_bytes(whole)
    assert not await live.poll()
    assert live.failure is None


async def test_a_release_that_fails_is_not_loaded_at_every_poll(site: Site) -> None:
    moment = [0.0]
    loads = 0

    async def fail() -> ServingEngine:
        nonlocal loads
        loads += 1
        raise ReleaseError("a", expected="b", found="c", next_step="d")

    live = LiveRelease(
        await site.load(),
        releases_folder=site.settings.releases_folder,
        keys_folder=site.settings.keys_folder,
        load=fail,
        poll_seconds=1.0,
        clock=lambda: moment[0],
    )
    site.publish("second")
    for _ in range(120):
        await live.poll()
        moment[0] += 1.0
    assert 5 <= loads <= 8  # after 1, 2, 4, 8, 16, 32, then every 60 s


async def test_another_release_cures_a_server_that_never_got_warm(site: Site) -> None:
    engine = await site.load()
    site.warm_up_error = ValueError("a golden prompt retrieves something else")
    broken = await site.load()
    assert engine.release_id == broken.release_id
    site.warm_up_error = None
    app = create_app(
        engine=broken,
        settings=site.settings,
        writer=SegmentWriter(site.settings.segments_folder),
        load=site.load,
    )
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://test"
        ) as client,
    ):
        async with asyncio.timeout(20):
            while "failed" not in (await client.get("/readyz")).text:
                await asyncio.sleep(0.005)
            second = await asyncio.to_thread(site.publish, "second")
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.005)
        answer = await client.post("/ask", json={"question": "Where?"})
        assert (answer.status_code, answer.json()["release"]) == (200, second)
