"""A server of this home as a process of its own, started and stopped by whoever needs one.

Belongs here: the process and asking it whether it is ready. Does not belong here: the server
(`serving/app`), what it is asked (`traffic`).
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestration.config import Config, read_environment
from serving.errors import ReleaseError
from serving.home import Home

READY_SECONDS = 600.0  # a first load converts the student to its engine, on busy cores in minutes
STOP_SECONDS = 40.0  # more than the server takes to drain
POLL_SECONDS = 0.25


@dataclass(frozen=True)
class LiveServer:
    """A server that answers at `url` and tells `log`."""

    url: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def find_release(self) -> str | None:
        """Return the release in force, or None while the server is not ready."""
        import httpx2

        with suppress(httpx2.HTTPError):
            reply = httpx2.get(f"{self.url}/readyz", timeout=10)
            if reply.status_code == 200:
                return str(reply.json()["release"])
        return None

    def wait_until(self, *, released: str | None = None) -> str:
        """Wait until the server is ready and, if one is named, serves this release.

        Raises:
            ReleaseError: it ended, or took longer than ten minutes.
        """
        deadline = time.monotonic() + READY_SECONDS
        found = None
        while self.process.poll() is None and time.monotonic() < deadline:
            found = self.find_release()
            if found is not None and released in {None, found}:
                return found
            time.sleep(POLL_SECONDS)
        ended = self.process.poll()
        raise ReleaseError(
            f"waiting for the server at {self.url}",
            expected=f"the release {released}" if released else "any release, warm",
            found=f"exit status {ended}" if ended is not None else f"release {found}",
            next_step=f"read {self.log}; `understudy serve` shows the same",
        )


@contextmanager
def running_server(
    config: Config, settings: Mapping[str, str] | None = None
) -> Iterator[LiveServer]:
    """Run a server on a free loopback port; at the end it drains and seals its traces."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    home = Home(config.home)
    environment = {
        **read_environment(),
        "UNDERSTUDY_HOME": str(home.root),
        "UNDERSTUDY_CONFIG": str(config.source),
        "UNDERSTUDY_SERVE_PORT": str(port),
        **(settings or {}),
    }
    path = home.root / "server.log"
    with path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestration.cli", "serve"],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield LiveServer(url=f"http://127.0.0.1:{port}", log=path, process=process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
