import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from serving.engine import load_engine
from serving.errors import IndexMismatchError, ReleaseError
from serving.hashing import folder_sha256
from serving.models import embedder as embedder_module
from serving.releases.bundle import build_bundle, ensure_signing_key, publish
from serving.releases.parts import choose_calibration
from serving.settings import ServerSettings
from serving.tracing.segments import read_segment
from tests.serving.fakes import make_engine, make_manifest
from tests.serving.pipeline.test_confidence import make_calibration
from tests.serving.torture import count, report

ROOT = Path(__file__).parents[2]


def _publish(home: Path, **changes: Any) -> ServerSettings:
    adapter = home / "staged"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    students = make_manifest().model_dump()["students"]
    students["compact"]["adapter_sha256"] = folder_sha256(adapter)
    manifest = make_manifest(**({"students": students} | changes))
    release_id = build_bundle(home / "releases", manifest, {"compact": adapter})
    key = ensure_signing_key(home / "keys")
    publish(home / "releases", release_id, expected_parent=None, signing_key=key)
    return ServerSettings(home=home)


async def test_without_a_key_or_a_release_nothing_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="release key"):
        await load_engine(ServerSettings(home=tmp_path))
    ensure_signing_key(tmp_path / "keys")
    with pytest.raises(ReleaseError, match="CURRENT"):
        await load_engine(ServerSettings(home=tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"prompt": {"citation_ids": "local", "version": "older", "max_answer_tokens": 120}},
            "prompt version older",
        ),
        ({"validator": {"version": "0"}}, "validator version 0"),
    ],
)
async def test_a_release_for_other_code_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ReleaseError, match=named):
        await load_engine(_publish(tmp_path, **changes))


async def test_another_embedder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stranger:
        fingerprint = "ffff"

    monkeypatch.setattr(embedder_module, "load_embedder", lambda *_: Stranger())
    with pytest.raises(IndexMismatchError, match="e0e0"):
        await load_engine(_publish(tmp_path))


def test_the_snapshot_hash_follows_what_decides_an_answer() -> None:
    same = make_engine(manifest=make_manifest(distillation_loss_statement="other words"))
    other = make_engine(manifest=make_manifest(router={"min_retrieval_score": 0.7}))
    assert same.snapshot_hash == make_engine().snapshot_hash
    assert other.snapshot_hash != make_engine().snapshot_hash


async def test_a_pipeline_without_a_student_warms_the_teacher_up() -> None:
    engine = make_engine(phase="hitchhiker")
    await engine.warm_up()
    teacher, student = engine.pipeline.teacher, engine.pipeline.student
    assert [len(getattr(m, "requests", ())) for m in (teacher, student)] == [1, 0]


_SERVER = """
import asyncio, sys
from pathlib import Path
import serving.app
from serving.settings import ServerSettings
from tests.serving.fakes import CannedChatModel, make_engine

async def load(settings):
    return make_engine(student=CannedChatModel("s", delay_seconds=0.3))

serving.app.load_engine = load
asyncio.run(serving.app.serve(ServerSettings(home=Path(sys.argv[1]), port=int(sys.argv[2]))))
"""


def test_sigterm_lets_questions_in_flight_finish(tmp_path: Path) -> None:
    """Whatever was taken is answered and stored, by one server after another."""
    stops = count(1, 50)
    answered = [_stop_under_load(tmp_path / str(number)) for number in range(stops)]
    report(f"{stops} stops, {sum(answered)} questions in flight, 0 lost")


def _stop_under_load(home: Path) -> int:
    """Stop a server while it answers; return how many questions it had taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(home), str(port)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        responses = asyncio.run(_ask_then_stop(server, f"http://127.0.0.1:{port}"))
    finally:
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=20)
    assert [r.status_code for r in responses] == [200] * 5, log
    assert "server" not in responses[0].headers
    assert QUESTION not in log
    segments = home / "traces" / "segments"
    stored = [r["trace_id"] for p in segments.glob("*.seg") for r in read_segment(p)]
    assert sorted(stored) == sorted(r.json()["trace_id"] for r in responses)
    return len(stored)


QUESTION = "Where do environment variables go?"


async def _ask_then_stop(server: "subprocess.Popen[str]", url: str) -> list[httpx2.Response]:
    async with httpx2.AsyncClient(base_url=url, timeout=20) as client:
        for _ in range(300):
            try:
                if (await client.get("/readyz")).status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            assert server.poll() is None
            await asyncio.sleep(0.05)
        asked = [
            asyncio.create_task(client.post("/ask", json={"question": QUESTION})) for _ in range(5)
        ]
        await asyncio.sleep(0.15)
        stopped_at = time.monotonic()
        server.send_signal(signal.SIGTERM)
        responses = await asyncio.gather(*asked)
        assert time.monotonic() - stopped_at < 5
        return responses


@pytest.mark.parametrize(("dtype", "is_used"), [("float32", True), ("bfloat16", False)])
def test_a_calibration_is_used_in_the_precision_it_was_fitted_in(
    dtype: str, is_used: bool, caplog: pytest.LogCaptureFixture
) -> None:
    students = make_manifest().model_dump()["students"]
    calibration = make_calibration(adapter_sha256="0" * 64)
    students["compact"]["calibration"] = asdict(calibration)
    manifest = make_manifest(students=students)
    found = choose_calibration(manifest.students["compact"], SimpleNamespace(dtype=dtype))
    assert found == (calibration if is_used else None)
    assert ("calibrated in float32" in caplog.text) != is_used
    plain_entry = make_manifest().students["compact"]
    assert choose_calibration(plain_entry, SimpleNamespace(dtype=dtype)) is None
    plain = make_engine().snapshot_hash
    assert make_engine(manifest=manifest).snapshot_hash != plain
