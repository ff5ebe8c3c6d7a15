"""The Ask page as a reader uses it: in a headless Chromium, told by its DevTools protocol."""

import asyncio
import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect

from serving.models.protocols import ChatRequest
from serving.tracing.segments import read_segment
from tests.serving.fakes import GOOD, HITS, STUDENT_PRICE, make_engine
from tests.serving.running import listen
from tests.serving.test_streaming import TypingModel

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Keeps what a reader saw while the answer was on its way.
WATCH = """
  document.addEventListener('DOMContentLoaded', () => {
    window.drafts = [];
    new MutationObserver(() => {
      const shown = document.querySelector('.answer.draft');
      if (shown) window.drafts.push(shown.textContent);
    }).observe(document.body, {subtree: true, childList: true, characterData: true});
  });
"""
SETTLED = "document.querySelector('.answer')?.getAttribute('aria-busy') === 'false'"


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.requested: list[str] = []
        self.errors: list[str] = []

    async def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens meanwhile is noted."""
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]))

    async def read(self, expression: str) -> Any:
        """Return what a script says."""
        told = await self.tell("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def wait_for(self, expression: str) -> None:
        while not await self.read(expression):
            await asyncio.sleep(0.02)

    async def press(self, key: str, text: str = "") -> None:
        common = {"key": key, "windowsVirtualKeyCode": {"Enter": 13}.get(key, 0)}
        await self.tell("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.tell("Input.dispatchKeyEvent", type="keyUp", **common)

    async def ask(self, question: str) -> None:
        await self.tell("Input.insertText", text=question)
        await self.press("Enter", "\r")
        asked = json.dumps(question)
        await self.wait_for(f"document.querySelector('.asked')?.textContent === {asked}")
        await self.wait_for(SETTLED)


@contextlib.asynccontextmanager
async def open_page(address: str) -> AsyncIterator[Page]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = await asyncio.create_subprocess_exec(
            str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync",
            "--disable-component-update", "--remote-debugging-port=0",
            f"--user-data-dir={profile}", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            target = await _find_tab(Path(profile) / "DevToolsActivePort")
            async with connect(target, max_size=None, proxy=None) as socket:
                page = Page(socket)
                for domain in ("Network", "Page", "Runtime"):
                    await page.tell(f"{domain}.enable")
                await page.tell("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
                await page.tell("Page.navigate", url=address)
                await page.wait_for("document.readyState === 'complete' && !!window.drafts")
                yield page
        finally:
            browser.kill()
            await browser.wait()


async def _find_tab(port_file: Path) -> str:
    """Return the address of the first tab, once the browser listens."""
    while not port_file.exists() or "\n" not in port_file.read_text():
        await asyncio.sleep(0.05)
    port = port_file.read_text().split("\n")[0]
    async with httpx2.AsyncClient(trust_env=False) as client:
        while True:
            tabs = (await client.get(f"http://127.0.0.1:{port}/json/list")).json()
            pages = [str(t["webSocketDebuggerUrl"]) for t in tabs if t["type"] == "page"]
            if pages:
                return pages[0]
            await asyncio.sleep(0.05)


def _answer(request: ChatRequest) -> str:
    return "REFUSE" if "moon" in request.messages[-1]["content"] else GOOD


@pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")
async def test_a_reader_asks_reads_the_source_and_says_whether_it_helped(tmp_path: Path) -> None:
    async def pause(_number: int) -> None:
        await asyncio.sleep(0.01)  # a browser draws between two pieces

    student = TypingModel("compact", _answer, price=STUDENT_PRICE, pause=pause)
    async with asyncio.timeout(120), listen(make_engine(student=student), tmp_path) as port:
        address = f"http://127.0.0.1:{port}"
        async with open_page(address) as page:
            assert await page.read("document.activeElement.id") == "question"
            await page.ask("Where do I put environment variables?")
            await _check_answer(page)
            await _check_source(page)
            await _check_keys_and_thumbs(page)
            await page.ask("Who is on the moon?")
            assert await page.read(
                "document.querySelector('.answer').classList.contains('refused')"
            )
            assert "not in the docs" in await _read_badges(page)
            assert await page.read("document.querySelectorAll('.exchange').length") == 2
            await _check_colours(page)
            foreign = [url for url in page.requested if not url.startswith((address, "data:"))]
            assert [url for url in foreign if url != "about:blank"] == []
            assert page.errors == []
    traces = [r for p in (tmp_path / "traces/segments").glob("*.seg") for r in read_segment(p)]
    assert [trace["refused"] for trace in traces] == [False, True]
    kept = [r for p in (tmp_path / "traces/feedback").glob("*.seg") for r in read_segment(p)]
    assert [(k["rating"], k["trace_id"]) for k in kept] == [("up", traces[0]["trace_id"])]


async def _read_badges(page: Page) -> list[str]:
    script = "[...document.querySelector('.badges').children].map((b) => b.textContent)"
    badges: list[str] = await page.read(script)
    return badges


async def _check_answer(page: Page) -> None:
    shown = await page.read("document.querySelector('.answer').textContent")
    assert shown == GOOD.replace(" [1]", "1")
    drafts = await page.read("window.drafts")
    assert drafts, "the answer was shown before it was whole"
    assert all(GOOD.startswith(draft.split("[")[0]) for draft in drafts)
    badges = await _read_badges(page)
    assert badges[:2] == ["student", "route: default"]
    assert any(badge.startswith("saved ") for badge in badges)


async def _check_source(page: Page) -> None:
    is_open = "document.querySelector('.sources details').open"
    assert await page.read(is_open) is False
    await page.read("document.querySelector('a.cite').click()")
    assert await page.read(is_open) is True
    assert HITS[0].text in await page.read("document.querySelector('.sources').textContent")
    assert await page.read("document.activeElement.tagName") == "SUMMARY"


async def _check_keys_and_thumbs(page: Page) -> None:
    await page.read("document.querySelector('.thumbs button[data-rating=up]').click()")
    await page.wait_for("document.querySelector('.thanks').textContent.startsWith('Noted')")
    await page.press("/", "/")
    assert await page.read("document.activeElement.id") == "question"
    # The key brings back to the question and is not typed into it; what was there is selected.
    assert "/" not in await page.read("document.getElementById('question').value")


async def _check_colours(page: Page) -> None:
    seen = set()
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await page.tell("Emulation.setEmulatedMedia", features=[feature])
        seen.add(await page.read("getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2
