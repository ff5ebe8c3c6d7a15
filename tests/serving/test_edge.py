"""What holds for every response, also for those that no route makes."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serving.edge import SECURITY_HEADERS
from serving.metrics import ServerMetrics
from tests.serving.fakes import make_engine
from tests.serving.running import QUESTION, run_app


def check_headers(response: httpx2.Response) -> None:
    for name, value in SECURITY_HEADERS.items():
        assert response.headers[name] == value, response.url


async def test_an_error_nobody_planned_for_is_a_problem_with_every_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> bytes:
        raise ZeroDivisionError("private")

    async with run_app(make_engine(), tmp_path) as running:
        monkeypatch.setattr(ServerMetrics, "render", fail)
        response = await running.client.get("/metrics")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["found"] == "ZeroDivisionError"
    assert response.json()["instance"] == response.headers["x-trace-id"]
    assert response.headers["x-trace-id"] in caplog.text
    assert "private" not in response.text
    check_headers(response)


async def test_whoever_asks_from_elsewhere_is_given_nothing_to_read_it_with(
    tmp_path: Path,
) -> None:
    """No CORS header at all: a browser keeps every answer from a page of another origin."""
    origin = {"origin": "https://elsewhere.example"}
    preflight = origin | {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    async with run_app(make_engine(), tmp_path) as running:
        client = running.client
        responses = [
            await client.options("/ask", headers=preflight),
            await client.post("/ask", json=QUESTION, headers=origin),
            await client.post("/ask", content=json.dumps({}), headers=origin),
            await client.get("/v1/release", headers=origin),
            await client.get("/metrics", headers=origin),
            await client.get("/openapi.json", headers=origin),
            await client.get("/nowhere", headers=origin),
        ]
    assert [r.status_code for r in responses] == [405, 200, 422, 200, 200, 200, 404]
    for response in responses:
        check_headers(response)
        assert not [name for name in response.headers if name.startswith("access-control-")]
