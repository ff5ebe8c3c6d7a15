"""The gateways that `bench/gateway.py` compares: each configured, started, awaited and stopped.

Belongs here: processes, the peer's environment and configuration. Does not belong here: the load
(`open_loop`), what is measured and told (`bench.gateway`).
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from serving.access.keys import create_key

ROOT = Path(__file__).resolve().parents[2]
UPSTREAM, PEER = "upstream", "litellm"
OURS, UNTRACED, WHOLE = "ours_stubbed", "ours_untraced", "ours_whole"
ARMS = (UPSTREAM, PEER, OURS, UNTRACED, WHOLE)
START_SECONDS = 180
STOP_SECONDS = 30
PEER_KEY = "sk-bench"
_LOGGER = """import json, os
from litellm.integrations.custom_logger import CustomLogger

class FileLog(CustomLogger):
    def __init__(self):
        super().__init__()
        self.stream = open(os.environ["BENCH_LOG"], "a")

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        told = {"messages": kwargs["messages"], "answer": response_obj.model_dump(mode="json"),
                "seconds": (end_time - start_time).total_seconds()}
        self.stream.write(json.dumps(told) + "\\n")
        self.stream.flush()

log = FileLog()
"""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What all arms share: bodies, chunks, an index, places."""

    folder: Path
    asks: Path
    chats: Path
    hits: Path
    index: Path
    prompt_words: float
    peer_python: Path | None
    upstream_port: int

    @property
    def upstream(self) -> str:
        """The root of the stub's API."""
        return f"http://127.0.0.1:{self.upstream_port}/v1"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A running gateway; the upstream itself has no process here and no home."""

    url: str
    bodies: Path
    key: str
    home: Path
    process: psutil.Process | None = None

    def measure(self) -> tuple[float, float]:
        """Return the CPU seconds and the resident MiB of the gateway's processes."""
        if self.process is None:
            return 0.0, 0.0
        every = [self.process, *self.process.children(recursive=True)]
        times = [one.cpu_times() for one in every]
        seconds = sum(spent.user + spent.system for spent in times)
        return seconds, sum(one.memory_info().rss for one in every) / 2**20


def install_peer(folder: Path, wanted: str, venv: Path | None) -> Path:
    """Return the Python of an environment with this version of the peer, made where none is given.

    Raises:
        SystemExit: the environment has another version.
    """
    place = venv or folder / f"litellm-{wanted}"
    python = place / "bin" / "python"
    if not python.exists():
        print(f"installing litellm {wanted} into {place}", file=sys.stderr)
        package = f"litellm[proxy]=={wanted}"
        subprocess.run([sys.executable, "-m", "venv", place], check=True)  # noqa: S603
        subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)  # noqa: S603
    asked: list[str | Path] = [
        python,
        "-c",
        "from importlib.metadata import version as v; print(v('litellm'))",
    ]
    done = subprocess.run(asked, check=True, capture_output=True, text=True)  # noqa: S603
    found = done.stdout.strip()
    if found != wanted:
        raise SystemExit(f"{place} has litellm {found}, not {wanted}: name it with --litellm")
    return python


def find_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def share_cores() -> tuple[list[int], list[int]]:
    """Return the gateway's cores and those of everything else."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (cores[-1:], cores[:-1]) if len(cores) > 1 else (cores, cores)


@contextlib.contextmanager
def start(
    command: Sequence[object], *, cores: list[int], log: Path, **variables: str
) -> Iterator[psutil.Process]:
    """Run a server on some cores, and stop it at the end."""
    with log.open("ab") as stream:
        process = subprocess.Popen(  # noqa: S603
            [str(part) for part in command],
            stdout=stream,
            stderr=stream,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        )
    try:
        known = psutil.Process(process.pid)
        if cores:
            known.cpu_affinity(cores)
        yield known
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, process: psutil.Process, log: Path) -> None:
    """Wait until an address answers, with whatever status below 500.

    Raises:
        SystemExit: the server ended, or never answered.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.status() != psutil.STATUS_ZOMBIE:
        try:
            urllib.request.urlopen(url, timeout=5)  # noqa: S310  (an address of ours)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return
        except OSError:
            pass
        else:
            return
        time.sleep(0.2)
    raise SystemExit(f"{url} never answered; the end of its log:\n{log.read_text()[-3000:]}")


@contextlib.contextmanager
def run_upstream(site: Site, delay_ms: float) -> Iterator[None]:
    """Run the stub."""
    log = site.folder / "upstream.log"
    script = ROOT / "bench" / "peers" / "stub_upstream.py"
    command = [sys.executable, script, "--port", site.upstream_port, "--delay-ms", delay_ms]
    with start(command, cores=share_cores()[1], log=log) as process:
        wait_for(site.upstream, process, log)
        yield


@contextlib.contextmanager
def run_arm(site: Site, name: str, *, has_outage: bool = False) -> Iterator[Arm]:
    """Run a gateway; with an outage no trace can be stored."""
    home = Path(tempfile.mkdtemp(dir=site.folder, prefix=f"{name}-"))
    if name == UPSTREAM:
        yield Arm(
            url=f"{site.upstream}/chat/completions", bodies=site.chats, key=PEER_KEY, home=home
        )
        return
    port, log = find_port(), home / "log.txt"
    root = f"http://127.0.0.1:{port}"
    if has_outage:
        (home / "traces").write_text("not a folder: no segment can be opened in it")
    if name == PEER:
        command, variables = prepare_peer(site, home, port)
        path, ready, bodies, key = "/chat/completions", "/health/liveliness", site.chats, PEER_KEY
    else:
        command, variables = list_ours(site, name, home, port), {}
        path, ready, bodies = "/ask", "/readyz", site.asks
        key = create_key(home / "keys", tenant="bench", requests_per_minute=10**9).text
    with start(command, cores=share_cores()[0], log=log, **variables) as process:
        wait_for(root + ready, process, log)
        yield Arm(url=root + path, bodies=bodies, key=key, home=home, process=process)


def list_ours(site: Site, name: str, home: Path, port: int) -> list[object]:
    """Return the command of our server in this arm."""
    script = ROOT / "bench" / "peers" / "gateway_server.py"
    command: list[object] = [sys.executable, script, "--port", port, "--home", home]
    command += ["--upstream", site.upstream]
    command += ["--index", site.index] if name == WHOLE else ["--hits", site.hits]
    return command + (["--untraced"] if name == UNTRACED else [])


def prepare_peer(site: Site, home: Path, port: int) -> tuple[list[object], dict[str, str]]:
    """Configure the peer: one worker, a key, every call logged to a file without fsync.

    Returns:
        Its command, and the variables of its environment.
    """
    if site.peer_python is None:
        raise ValueError("the peer was not installed")
    (home / "bench_log.py").write_text(_LOGGER)
    answering = {"model": "openai/stub", "api_base": site.upstream, "api_key": PEER_KEY}
    config = {
        "model_list": [{"model_name": "stub", "litellm_params": answering}],
        "general_settings": {"master_key": PEER_KEY},
        "litellm_settings": {"callbacks": "bench_log.log", "telemetry": False},
    }
    (home / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    command: list[object] = [site.peer_python.with_name("litellm"), "--port", port]
    command += ["--config", home / "config.yaml", "--host", "127.0.0.1", "--num_workers", 1]
    variables = {
        "BENCH_LOG": str(home / "calls.jsonl"),
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "PYTHONPATH": str(home),
    }
    return command, variables
