"""What operators read of a server that answers and yet needs mending."""

from pathlib import Path

import pytest

from serving.access.keys import KEYS_FILE, create_key
from tests.serving.fakes import make_engine
from tests.serving.running import run_app


@pytest.mark.parametrize("damaged", [b"", b'{"version": 1, "keys": [', None])
async def test_a_key_file_that_cannot_be_read_degrades_health_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bytes | None
) -> None:
    monkeypatch.setattr("serving.access.ring.RELOAD_SECONDS", 0.0)
    keys = tmp_path / "keys" / KEYS_FILE
    made = create_key(keys.parent, tenant="ops", scopes=["ask", "metrics:read"])
    whole = keys.read_bytes()
    async with run_app(make_engine(), tmp_path) as running:
        running.client.headers["Authorization"] = f"Bearer {made.text}"
        assert (await running.client.get("/healthz")).json()["degraded_because"] == []
        assert "understudy_keys_stale 0.0" in await running.metrics()

        keys.unlink()
        if damaged is not None:
            keys.write_bytes(damaged)
        health = (await running.client.get("/healthz")).json()
        assert health["status"] == "degraded"
        (reason,) = health["degraded_because"]
        assert reason.startswith("the key file cannot be read")
        assert str(tmp_path) not in reason  # anybody may ask
        assert "understudy_keys_stale 1.0" in await running.metrics()
        assert (await running.ask()).status_code == 200

        keys.write_bytes(whole)
        assert (await running.client.get("/healthz")).json()["status"] == "ok"
        assert "understudy_keys_stale 0.0" in await running.metrics()
