"""An open-loop load on one address: requests leave when they are due, whatever became of others.

Run by `bench/gateway.py` as a process of its own. A closed loop waits for the slow server it
measures and so never sees the requests that would have come meanwhile (coordinated omission); here
each latency counts from the moment the request was due, and how late the generator itself sent it
is told beside it. Arrivals are a Poisson process of a seed: the same for every arm.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import aiohttp

OVERHEAD_HEADERS = ("x-litellm-overhead-duration-ms",)
PATIENCE_SECONDS = 60.0


@dataclass
class Seen:
    """What came of a load."""

    latency_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    overhead_ms: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def draw_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Return when each request is due, in seconds from the start."""
    lots = random.Random(seed)  # noqa: S311  (arrivals)
    return list(accumulate(lots.expovariate(rate) for _ in range(count)))


async def load(url: str, bodies: list[bytes], arrivals: list[float], *, key: str) -> Seen:
    """Send every request when it is due; return once all are answered or given up."""
    seen = Seen()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers
    ) as session:
        began = time.perf_counter()
        tasks = []
        for number, due in enumerate(arrivals):
            wait = began + due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            body = bodies[number % len(bodies)]
            tasks.append(asyncio.create_task(_ask(session, url, body, began + due, seen)))
        await asyncio.gather(*tasks)
        seen.seconds = time.perf_counter() - began
    return seen


async def _ask(
    session: aiohttp.ClientSession, url: str, body: bytes, due: float, seen: Seen
) -> None:
    seen.late_ms.append((time.perf_counter() - due) * 1000)
    try:
        async with session.post(url, data=body) as response:
            await response.read()
            outcome = "" if response.status == 200 else f"status {response.status}"
            for name in OVERHEAD_HEADERS:
                if name in response.headers:
                    seen.overhead_ms.append(float(response.headers[name]))
    except (aiohttp.ClientError, TimeoutError) as error:
        outcome = type(error).__name__
    if outcome:
        seen.failures[outcome] = seen.failures.get(outcome, 0) + 1
    else:
        seen.latency_ms.append((time.perf_counter() - due) * 1000)


def main() -> None:
    """Load an address, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--bodies", type=Path, required=True, help="one JSON body a line")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key", default="none", help="sent as a bearer token")
    parser.add_argument("--cores", default="", help="to run on; empty: any")
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    bodies = options.bodies.read_bytes().splitlines()
    arrivals = draw_arrivals(options.count, options.rate, options.seed)
    seen = asyncio.run(load(options.url, bodies, arrivals, key=options.key))
    sys.stdout.write(json.dumps(vars(seen)) + "\n")


if __name__ == "__main__":
    main()
