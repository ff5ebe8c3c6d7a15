import re
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serving.access.keys import create_key
from serving.page import FOLDER
from tests.serving.test_access import _bearer, _serve


async def test_the_pages_ask_no_other_server_and_run_no_inline_script(tmp_path: Path) -> None:
    async with _serve(tmp_path) as client:
        for path in ("/", "/docs"):
            page = await client.get(path)
            assert page.status_code == 200
            assert page.headers["content-type"].startswith("text/html")
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert not re.search(r"https?://", page.text)
            assert not re.search(r"<script(?![^>]*\bsrc=)", page.text)
            for link in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
                assert (await client.get(link)).status_code == 200, link
    for file in FOLDER.glob("*.*s"):
        assert not re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|eval\(", file.read_text()
        )


@pytest.mark.parametrize(
    "path",
    ["/page/__init__.py", "/page/../app.py", "/page/%2e%2e/app.py", "/page/", "/page/swagger/"],
)
async def test_nothing_but_scripts_and_styles_is_handed_out(tmp_path: Path, path: str) -> None:
    async with _serve(tmp_path) as client:
        assert (await client.get(path)).status_code in (404, 405)


async def test_pages_can_be_switched_off(tmp_path: Path) -> None:
    async with _serve(tmp_path, pages=False) as client:
        for path in ("/", "/docs", "/page/ask.js"):
            assert (await client.get(path)).status_code == 404


async def test_with_keys_the_pages_show_nothing_of_the_server(tmp_path: Path) -> None:
    reader = create_key(tmp_path / "keys", tenant="docs", scopes=["release:read"]).text
    async with _serve(tmp_path) as client:
        assert (await client.get("/")).status_code == 200
        for path in ("/openapi.json", "/v1/release", "/metrics"):
            assert (await client.get(path)).status_code == 401
        assert (await client.get("/openapi.json", headers=_bearer(reader))).status_code == 200


async def test_only_who_may_read_the_release_sees_costs(tmp_path: Path) -> None:
    async def ask(client: httpx2.AsyncClient, key: str) -> dict[str, Any]:
        reply = await client.post("/ask", json={"question": "Where?"}, headers=_bearer(key))
        body: dict[str, Any] = reply.json()
        return body

    plain = create_key(tmp_path / "keys", tenant="docs").text
    reader = create_key(tmp_path / "keys", tenant="docs", scopes=["ask", "release:read"]).text
    async with _serve(tmp_path) as client:
        assert (await ask(client, plain))["cost_usd"] is None
        seen = await ask(client, reader)
    assert 0 < seen["cost_usd"] < seen["counterfactual_cost_usd"]
    assert seen["citations"][0]["text"].startswith("Put environment variables")


async def test_every_problem_of_the_reference_is_shown_as_itself(tmp_path: Path) -> None:
    """One example for each problem a status can mean, with that status."""
    async with _serve(tmp_path) as client:
        described = (await client.get("/openapi.json")).json()["paths"]
    shown = 0
    for operations in described.values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {}).get("application/problem+json")
                for name, example in (content or {}).get("examples", {}).items():
                    assert example["value"]["type"].endswith(f":{name}")
                    assert str(example["value"]["status"]) == status
                    assert example["value"]["title"] in example["summary"]
                    shown += 1
    assert shown > 15
