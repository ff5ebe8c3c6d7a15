"""What a gateway adds to a call: ours beside the LiteLLM proxy, over one stub upstream.

Run: `python bench/gateway.py [--requests 10000] [--rates 50,100,200] [--rounds 3] [--json]`; small:
`--requests 300 --rates 20 --rounds 1`. Arms, in turn in every round: the upstream itself; LiteLLM
with a log of every call; ours with retrieval stubbed, the same without traces, and ours whole
(MiniLM, hybrid search over docs/, the student's tokenizer). All get the prompts that our pipeline
writes, and a key; the load is open (`peers/open_loop.py`) and the same for every arm. A gateway has
a core of its own where there are two; what it adds is its latency less the upstream's in its round.

LiteLLM runs from a virtual environment of its own, made under --folder with the version that
--litellm names, or given by --peer-venv; it is never installed beside Understudy. `--soak N`
measures memory instead: N requests to ours; with `--outage` no trace can be stored meanwhile.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.indexes import build  # noqa: E402
from bench.peers.gateway_server import EMBEDDER, K  # noqa: E402
from bench.peers.gateways import (  # noqa: E402
    ARMS,
    OURS,
    PEER,
    UNTRACED,
    UPSTREAM,
    Arm,
    Site,
    find_port,
    install_peer,
    run_arm,
    run_upstream,
    share_cores,
)
from bench.question_sets import chunk_folder  # noqa: E402
from serving.models.embedder import load_embedder  # noqa: E402
from serving.pipeline.prompt import PromptFormat  # noqa: E402
from serving.pipeline.retrieval import LanceRetriever  # noqa: E402
from serving.tracing.record import write_time  # noqa: E402
from serving.tracing.segments import read_segment  # noqa: E402

LITELLM = "1.106.2"
WARM_UP_REQUESTS = 100
GOALS = (
    "goals: ours_stubbed at least 250 requests a CPU second at 0 errors; adds at most 0.25 times "
    "what litellm adds, and at 100 requests/s at most 5/13 ms; traces at most +3 ms at p99"
)
SHOWN = (
    "achieved_rate", "failed", "p50_ms", "p99_ms", "added_p50_ms", "added_p99_ms",
    "inside_p50_ms", "inside_p99_ms", "per_cpu_second", "memory_mib", "sent_late_p99_ms",
    "added_p50_to_peer", "added_p99_to_peer", "per_cpu_second_to_peer", "traces_cost_p99_ms",
)  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    """Print the figures of every arm, and with --json one object last."""
    options = read_options()
    with contextlib.ExitStack() as opened:
        folder = options.folder or Path(opened.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        site = asyncio.run(prepare(folder.resolve(), options))
        opened.enter_context(run_upstream(site, options.delay_ms))
        describe_run(site, options)
        rows = soak(site, options) if options.soak else compare(site, options)
    if options.json:
        print(json.dumps(rows))


def read_options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000, help="by arm, rate and round")
    parser.add_argument("--rates", default="50,100,200", help="requests a second, from low to high")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--delay-ms", type=float, default=20.0, help="of the upstream's answer")
    parser.add_argument("--litellm", default=LITELLM, help="the version to install and compare")
    parser.add_argument("--peer-venv", type=Path, help="an environment that has it already")
    parser.add_argument("--folder", type=Path, help="keep what is made here, for the next run")
    parser.add_argument("--soak", type=int, default=0, help="requests; measures memory instead")
    parser.add_argument("--outage", action="store_true", help="of the traces' disk, with --soak")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    options.arms = [OURS] if options.soak else [a for a in ARMS if a in options.arms.split(",")]
    options.rates = [float(rate) for rate in options.rates.split(",")]
    return options


def describe_run(site: Site, options: argparse.Namespace) -> None:
    """Print where and with what this runs."""
    peer = f", litellm {options.litellm}" if PEER in options.arms else ""
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"uvicorn {version('uvicorn')}, openai {version('openai')}{peer}; load average "
        f"{os.getloadavg()[0]:.1f} before; prompts of {site.prompt_words:.0f} words, an upstream "
        f"that takes {options.delay_ms:g} ms"
    )


async def prepare(folder: Path, options: argparse.Namespace) -> Site:
    """Write the bodies, build the index, install the peer."""
    embedder = load_embedder(EMBEDDER, "embedded", folder / "models")
    built = build(chunk_folder(ROOT / "docs", embedder), embedder, folder)
    retriever = await LanceRetriever.open(
        built.folder, fingerprint=built.fingerprint, embedder=embedder, k=K
    )
    cases = (ROOT / "data" / "seed_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(case)["text"] for case in cases]
    found = [await retriever.retrieve(question) for question in questions]
    (folder / "hits.json").write_text(json.dumps([vars(hit) for hit in found[0]]))
    chats = [write_chat(question, hits) for question, hits in zip(questions, found, strict=True)]
    _write_lines(folder / "asks.jsonl", [{"question": question} for question in questions])
    _write_lines(folder / "chats.jsonl", chats)
    words = [len(chat["messages"][0]["content"].split()) for chat in chats]
    is_compared = PEER in options.arms
    return Site(
        folder=folder,
        asks=folder / "asks.jsonl",
        chats=folder / "chats.jsonl",
        hits=folder / "hits.json",
        index=built.folder / built.fingerprint,
        prompt_words=float(np.mean(words)),
        peer_python=install_peer(folder, options.litellm, options.peer_venv)
        if is_compared
        else None,
        upstream_port=find_port(),
    )


def write_chat(question: str, hits: Sequence[Any]) -> Row:
    """Return the call that our pipeline makes for a question."""
    request = PromptFormat().write_request(question, tuple(hits))
    return {
        "model": "stub",
        "messages": [dict(message) for message in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
    }


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load(arm: Arm, *, count: int, rate: float, seed: int) -> Row:
    """Load a gateway and return what the generator saw."""
    command = [
        sys.executable, ROOT / "bench" / "peers" / "open_loop.py", arm.url, "--key", arm.key,
        "--bodies", arm.bodies, "--count", count, "--rate", rate, "--seed", seed, "--cores",
        ",".join(map(str, share_cores()[1])),
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE)  # noqa: S603
    seen: Row = json.loads(done.stdout)
    return seen


def measure(site: Site, name: str, options: argparse.Namespace, seed: int) -> list[Row]:
    """Return the figures of one arm in one round, a row for each rate."""
    rows = []
    with run_arm(site, name) as arm:
        load(arm, count=min(WARM_UP_REQUESTS, options.requests), rate=20, seed=1)
        for rate in options.rates:
            before, marked = arm.measure()[0], write_time(datetime.now(UTC))
            seen = load(arm, count=options.requests, rate=rate, seed=seed)
            after, memory = arm.measure()
            row = {"round": seed, "arm": name, "rate": rate, **summarise(seen)}
            if arm.process is not None:
                row["per_cpu_second"] = row["answered"] / (after - before)
                row["memory_mib"] = memory
            inside = seen["overhead_ms"] or read_overheads(arm.home, since=marked)
            if inside:
                row["inside_p50_ms"], row["inside_p99_ms"] = np.percentile(inside, [50, 99])
            rows.append(row)
            print(f"  round {seed} {write_row(row)}", file=sys.stderr)
    return rows


def summarise(seen: Mapping[str, Any]) -> Row:
    """Return the figures of a load as its sender saw it."""
    p50, p99 = np.percentile(seen["latency_ms"] or [np.nan], [50, 99])
    return {
        "answered": len(seen["latency_ms"]),
        "failed": sum(seen["failures"].values()),
        "failures": seen["failures"],
        "achieved_rate": len(seen["latency_ms"]) / seen["seconds"],
        "p50_ms": p50,
        "p99_ms": p99,
        "sent_late_p99_ms": np.percentile(seen["late_ms"], 99),
    }


def read_overheads(home: Path, *, since: str) -> list[float]:
    """Return what our traces say the server added, of questions asked since then."""
    paths = sorted((home / "traces" / "segments").glob("*.seg*"))
    records = [record for path in paths for record in read_segment(path)]
    known = [r for r in records if r["overhead_ms"] is not None]
    return [record["overhead_ms"] for record in known if record["asked_at"] >= since]


def compare(site: Site, options: argparse.Namespace) -> list[Row]:
    """Measure every arm in every round; print the medians with their spread, and the ratios."""
    rounds = range(options.rounds)
    rows = [row for n in rounds for arm in options.arms for row in measure(site, arm, options, n)]
    add_differences(rows)
    print("median [least to most] over the rounds")
    for rate in options.rates:
        for arm in options.arms:
            mine = [row for row in rows if (row["arm"], row["rate"]) == (arm, rate)]
            print(f"{arm} at {rate:g} requests/s")
            for name in SHOWN:
                values = [row[name] for row in mine if name in row]
                if values:
                    told = f"{np.median(values):,.2f} [{min(values):,.2f} to {max(values):,.2f}]"
                    print(f"{name:>26}  {told}")
    print(GOALS)
    return rows


def add_differences(rows: list[Row]) -> None:
    """Add to each row what it adds to the upstream, and how that compares with the peer."""
    found = {(row["round"], row["rate"], row["arm"]): row for row in rows}

    def find(row: Row, arm: str) -> Row | None:
        return found.get((row["round"], row["rate"], arm))

    for row in rows:
        if row["arm"] != UPSTREAM and (base := find(row, UPSTREAM)):
            row["added_p50_ms"] = row["p50_ms"] - base["p50_ms"]
            row["added_p99_ms"] = row["p99_ms"] - base["p99_ms"]
    for row in rows:
        if row["arm"] not in (UPSTREAM, PEER) and (peer := find(row, PEER)):
            row["per_cpu_second_to_peer"] = row["per_cpu_second"] / peer["per_cpu_second"]
            for name in ("added_p50", "added_p99"):
                if f"{name}_ms" in row:
                    row[f"{name}_to_peer"] = row[f"{name}_ms"] / peer[f"{name}_ms"]
        if row["arm"] == OURS and (untraced := find(row, UNTRACED)):
            row["traces_cost_p99_ms"] = row["p99_ms"] - untraced["p99_ms"]


def write_row(row: Row) -> str:
    """Return one measurement in a line."""
    return (
        f"{row['arm']} at {row['rate']:g}/s: {row['answered']} answered, {row['failed']} failed "
        f"{row['failures'] or ''}, p50 {row['p50_ms']:.1f} p99 {row['p99_ms']:.1f} ms, "
        f"{row.get('per_cpu_second', np.nan):.0f} a CPU second, "
        f"{row.get('memory_mib', np.nan):.0f} MiB"
    )


def soak(site: Site, options: argparse.Namespace) -> list[Row]:
    """Ask ours very often at the highest rate; print how its memory grows."""
    step = max(100, options.soak // 20)
    rows: list[Row] = []
    with run_arm(site, OURS, has_outage=options.outage) as arm:
        began = time.perf_counter()
        for asked in range(0, options.soak, step):
            count = min(step, options.soak - asked)
            seen = load(arm, count=count, rate=max(options.rates), seed=asked)
            rows.append({"asked": asked + count, "memory_mib": arm.measure()[1], **summarise(seen)})
            told = f"{asked + count:>10,} asked  {rows[-1]['memory_mib']:8.1f} MiB"
            print(f"{told}  {time.perf_counter() - began:6.0f} s  {seen['failures'] or ''}")
    grown = rows[-1]["memory_mib"] - rows[0]["memory_mib"]
    print(f"grew by {grown:.1f} MiB since the first {step:,} requests; goal: at most 20 MiB")
    return rows


if __name__ == "__main__":
    main()
