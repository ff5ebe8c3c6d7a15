"""The release in force: polled, loaded beside the old one, warmed up, swapped in between requests.

A request keeps the engine it began with, so no answer mixes two releases. Whatever is wrong with a
new release, the old one goes on serving and the reason can be read. Belongs here: when a release is
loaded, who still uses the old one. Does not belong here: verifying (`bundle`), assembling
(`engine`), HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import ReleaseError, UnderstudyError
from serving.releases.bundle import CURRENT, load_public_key
from serving.releases.signing import CurrentPointer, read_pointer

if TYPE_CHECKING:
    from serving.engine import ServingEngine

LONGEST_RETRY_SECONDS = 60.0
"""A release that cannot be loaded is tried again at most this rarely: it may still be arriving."""

_LOG = logging.getLogger(__name__)

Load = Callable[[], Awaitable["ServingEngine"]]


class LiveRelease:
    """The engine of the current release, and its replacement when CURRENT moves.

    Args:
        engine: what serves now; the caller warms it up.
        releases_folder: where CURRENT lies.
        keys_folder: where the key that verifies it lies.
        load: returns the engine of the release CURRENT points at.
        poll_seconds: how often CURRENT is looked at.
        on_closed: told of every replaced engine once it is closed.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        engine: "ServingEngine",
        *,
        releases_folder: Path,
        keys_folder: Path,
        load: Load,
        poll_seconds: float = 5.0,
        on_closed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.swap_count = 0
        self.failure: str | None = None
        self._folder, self._keys = releases_folder, keys_folder
        self._load = load
        self._poll_seconds = poll_seconds
        self._on_closed = on_closed
        self._clock = clock
        self._users: Counter[int] = Counter()
        self._retired: dict[int, ServingEngine] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._seen: bytes | None = None
        self._retry_at, self._pause = 0.0, poll_seconds

    @contextlib.contextmanager
    def lease(self) -> "Iterator[ServingEngine]":
        """Yield the engine in force; it is not closed before the block ends."""
        engine = self.engine
        self._users[id(engine)] += 1
        try:
            yield engine
        finally:
            self._users[id(engine)] -= 1
            self._close_if_unused(engine)

    async def watch(self, on_swap: Callable[[], None] = lambda: None) -> None:
        """Poll until cancelled; `on_swap` is told of every other release in force."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            if await self.poll():
                on_swap()

    async def poll(self) -> bool:
        """Look at CURRENT once; return whether another release is in force now."""
        try:
            found = await asyncio.to_thread((self._folder / CURRENT).read_bytes)
        except OSError:
            return False  # nothing to change to: a server started on a release keeps it
        is_known = found == self._seen and self.failure is None
        if is_known or (found == self._seen and self._clock() < self._retry_at):
            return False
        self._seen = found
        try:
            return await self._follow()
        except UnderstudyError as error:
            self._note_failure(str(error))
        except Exception as error:  # noqa: BLE001  (whatever it is, the old release serves on)
            _LOG.exception("loading the new release failed")
            self._note_failure(f"{type(error).__name__}: see the log")
        return False

    async def close(self) -> None:
        """Close the engine in force and wait for those that are closing."""
        for engine in (self.engine, *self._retired.values()):
            await engine.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _follow(self) -> bool:
        pointer = await asyncio.to_thread(self._read_pointer)
        if pointer is None or pointer.sequence == self.engine.sequence:
            self.failure = None
            return False
        if pointer.sequence < self.engine.sequence:
            raise ReleaseError(
                f"following {self._folder / CURRENT}",
                expected=f"a sequence above {self.engine.sequence}",
                found=f"{pointer.sequence}: an older pointer was put back",
                next_step="publish the older release anew: `understudy releases rollback`",
            )
        engine = await self._load()
        try:
            await engine.warm_up()
        except BaseException:
            await engine.close()
            raise
        old, self.engine = self.engine, engine
        self.swap_count += 1
        self.failure, self._pause = None, self._poll_seconds
        _LOG.info("release %s in force, was %s", engine.release_id, old.release_id)
        self._retired[id(old)] = old
        self._close_if_unused(old)
        return True

    def _read_pointer(self) -> CurrentPointer | None:
        return read_pointer(self._folder / CURRENT, load_public_key(self._keys))

    def _note_failure(self, reason: str) -> None:
        if reason != self.failure:
            _LOG.error("release %s stays in force: %s", self.engine.release_id, reason)
        self.failure = reason
        self._retry_at = self._clock() + self._pause
        self._pause = min(self._pause * 2, LONGEST_RETRY_SECONDS)

    def _close_if_unused(self, engine: "ServingEngine") -> None:
        if self._users[id(engine)] == 0:
            del self._users[id(engine)]
            if self._retired.pop(id(engine), None) is not None:
                task = asyncio.ensure_future(engine.close())
                self._closing.add(task)
                task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        self._on_closed()
