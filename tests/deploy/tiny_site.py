"""A home with real releases, small: a random embedder, two pages, the extractive teacher."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx2

from serving.models.embedder import load_embedder
from serving.pipeline.indexing import IndexedChunk, build_index, plan_index
from serving.pipeline.prompt import PromptFormat
from serving.releases.bundle import build_bundle, ensure_signing_key, publish
from serving.releases.manifest import ReleaseManifest
from tests.tiny_embedder import make_embedder

TEXTS = {
    "guides/keys": "Put the key in the .env file. Restart the server after a change.",
    "guides/traces": "A trace is written before the answer. Each segment is sealed.",
}


class TinySite:
    """A home in which releases are published."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.model = make_embedder(home / "models" / "tiny-embedder")
        self.embedder = load_embedder(str(self.model), "unused", home / "models")
        chunks = [
            IndexedChunk(
                chunk_id=f"docs:{slug}/1", content_hash=slug, title=slug, url=f"/{slug}/",
                heading_path=(slug,), text=text,
            )
            for slug, text in TEXTS.items()
        ]  # fmt: skip
        plan = plan_index(
            chunks,
            maximum_tokens=self.embedder.maximum_tokens,
            count_tokens=self.embedder.count_tokens,
        )
        vectors = self.embedder.embed(plan.texts)
        self.index = build_index(home / "index", chunks, plan, vectors, self.embedder.fingerprint)
        self.releases: list[str] = []

    def publish(self, name: str) -> str:
        """Build and publish a release that differs from others in a sentence."""
        prompt = PromptFormat()
        manifest = ReleaseManifest.model_validate(
            {
                "created_at": datetime.now(UTC), "phase": "hitchhiker", "students": {},
                "teacher": {"provider": "extractive", "model": "extractive-v1", "price": {}},
                "embedder": {"model": str(self.model), "revision": "unused",
                             "fingerprint": self.embedder.fingerprint},
                "index": {"uri": f"index/{self.index}", "fingerprint": self.index},
                "retrieval": {"k": 2},
                "prompt": {"citation_ids": "local", "version": prompt.version,
                           "max_answer_tokens": prompt.max_answer_tokens},
                "gate": {"verdict": "HOLD", "gates": []},
                "distillation_loss_statement": f"There is no student ({name}).",
            }
        )  # fmt: skip
        folder = self.home / "releases"
        release = build_bundle(folder, manifest, {})
        parent = self.releases[-1] if self.releases else None
        key = ensure_signing_key(self.home / "keys")
        publish(folder, release, expected_parent=parent, signing_key=key)
        self.releases.append(release)
        return release


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_server(command: list[str], *, log: Path, **variables: str) -> Iterator[httpx2.Client]:
    """Run a server's own command, yield a client once it is ready; at the end SIGTERM must do."""
    port = find_port()
    given = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    given |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "UNDERSTUDY_SERVE_PORT": str(port)}
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, env=given | variables, stderr=stream, stdout=stream, cwd=log.parent
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            _wait_until_ready(server, client, log)
            yield client
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            raise
    assert code in (0, -signal.SIGTERM), log.read_text()


def _wait_until_ready(server: "subprocess.Popen[bytes]", client: httpx2.Client, log: Path) -> None:
    while True:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        assert server.poll() is None, log.read_text()
        time.sleep(0.05)
