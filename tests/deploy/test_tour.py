"""The tour's own requests, taken from the page, answered by a server of a tiny release."""

import json
import re
import subprocess
import sys
from pathlib import Path

from serving.access.keys import create_key
from tests.deploy.tiny_site import TinySite, run_server

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "tour-of-a-server.mdx"


def _read_requests() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("curl ")]


def test_every_request_of_the_tour_does_what_the_page_says(tmp_path: Path) -> None:
    site = TinySite(tmp_path / "home")
    release = site.publish("first")
    scopes = ("ask", "feedback:write", "release:read", "metrics:read")
    key = create_key(site.home / "keys", tenant="tour", scopes=scopes).text
    told: list[str] = []
    with run_server(
        [sys.executable, "-m", "serving.command"],
        log=tmp_path / "log.txt",
        UNDERSTUDY_HOME=str(site.home),
        PYTHONPATH=str(ROOT),
    ) as server:
        address = str(server.base_url).rstrip("/")
        trace_id = ""
        for request in _read_requests():
            line = request.replace("http://127.0.0.1:8321", address)
            line = line.replace("PASTE-IT-HERE", trace_id)
            done = subprocess.run(
                ["bash", "-c", line], env={"KEY": key, "PATH": "/usr/bin:/bin"},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            told.append(done.stdout)
            trace_id = next(iter(re.findall(r'"trace_id":"([^"]+)"', done.stdout)), trace_id)
    ready, answer, stream, feedback, metrics, *releases = told
    assert json.loads(ready)["status"] == "ready"
    assert json.loads(answer)["route_reason"] == "phase"
    assert stream.rsplit("event: ", 1)[1].startswith("answer\n")
    assert json.loads(feedback)["feedback_id"]
    assert 'understudy_asks_total{outcome="' in metrics
    assert {json.loads(body)["release"] for body in releases} == {release}
