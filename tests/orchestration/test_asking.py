"""Waiting for a release to be warm, without warming it up a second time."""

import httpx2
import pytest

from orchestration import asking
from orchestration.asking import wait_until_ready
from serving.errors import ReleaseError


def client(answers: list[httpx2.Response]) -> httpx2.AsyncClient:
    def answer(_request: httpx2.Request) -> httpx2.Response:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    return httpx2.AsyncClient(transport=httpx2.MockTransport(answer), base_url="http://release")


def not_ready(found: str) -> httpx2.Response:
    return httpx2.Response(503, json={"found": found})


async def test_it_waits_until_the_release_is_warm():
    answers = [not_ready("the release is still warming up"), httpx2.Response(200, json={})]
    async with client(answers) as http:
        await wait_until_ready(http)
    assert len(answers) == 1


async def test_a_failed_warm_up_ends_the_wait_with_its_detail():
    async with client([not_ready("the warm-up failed (UpstreamError, see the log)")]) as http:
        with pytest.raises(ReleaseError, match="UpstreamError"):
            await wait_until_ready(http)


async def test_a_warm_up_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(asking, "LONGEST_WARM_UP_SECONDS", 0.05)
    async with client([not_ready("the release is still warming up")]) as http:
        with pytest.raises(ReleaseError, match="still warming up"):
            await wait_until_ready(http)


def test_the_server_still_says_what_is_looked_for():
    from pathlib import Path

    import serving.server

    assert asking.WARM_UP_FAILED in Path(serving.server.__file__).read_text(encoding="utf-8")
