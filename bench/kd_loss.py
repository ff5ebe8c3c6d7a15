"""The distillation loss layer against its peers: time, peak memory, and who computes what it says.

Run: `python bench/kd_loss.py [--json] [--rounds 7] [--tokens 512] [--hidden 576]
[--vocabulary 49152] [--top-k 20] [--dtypes float32,bfloat16] [--threads N] [--device cuda]
[--arms ours,liger]`, after `pip install -e '.[bench]'` for TRL and Liger.

One process per arm lives through all rounds; rounds are interleaved in an order that rotates, and a
round is one forward and backward to the hidden states. Memory is taken in processes of their own:
the most that was resident beyond what was before the call (CUDA: allocated). There every block over
64 kB is its own mapping, so memory that an earlier step gave back cannot hide in the heap.
`product` is the floor: the two matrix products and nothing else. The board comes first: an arm that
is fast and wrong is wrong. What an arm is, and which were written from a definition, stands in
`peers/kd.py`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch  # noqa: E402 - run as a script from anywhere

from bench.peers.kd import ARMS, OURS, KdCase, find_arms  # noqa: E402
from bench.peers.kd_board import describe_teacher, judge  # noqa: E402

TIME_GOAL, MEMORY_GOAL = 0.7, 0.15
PRODUCT = "product"
LIBRARIES = ("torch", "transformers", "trl", "liger_kernel")
MIB = 1024**2


def make_case(options: argparse.Namespace, dtype: str) -> KdCase:
    """Return random states of a student and of a teacher near it, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    head = torch.randn(options.vocabulary, options.hidden, generator=generator) * 0.08
    teacher = torch.randn(options.tokens, options.hidden, generator=generator) * 2
    student = teacher + torch.randn(options.tokens, options.hidden, generator=generator) * 0.5
    targets = torch.randint(options.vocabulary, (options.tokens,), generator=generator)
    parts = (student.to(kind), head.to(kind), targets, teacher.to(kind))
    hidden, head, targets, teacher = (part.to(options.device) for part in parts)
    return describe_teacher(
        hidden.requires_grad_(), head, targets, teacher, alpha=0.3, temperature=2.0,
        k=options.top_k,
    )  # fmt: skip


def run_once(name: str, case: KdCase) -> float:
    """Run one arm forward and backward; return its loss."""
    case.hidden.grad = None
    if name == PRODUCT:
        with torch.no_grad():
            logits = case.hidden @ case.head.T
            torch.mm(logits, case.head)
        return 0.0
    loss = ARMS[name].run(case, len(case.targets))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def wait_for_gpu(device: str) -> None:
    """Let queued kernels end: they are part of a time."""
    if device == "cuda":
        torch.cuda.synchronize()


def serve_rounds(name: str, options: argparse.Namespace) -> None:
    """Be the process of one arm: for each line read, take a round and write its seconds."""
    torch.set_num_threads(options.threads)
    case = make_case(options, options.dtypes)
    run_once(name, case)
    wait_for_gpu(options.device)
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        loss = run_once(name, case)
        wait_for_gpu(options.device)
        taken = {"seconds": time.perf_counter() - started, "loss": loss}
        print(json.dumps(taken), flush=True)


def print_memory(name: str, options: argparse.Namespace) -> None:
    """Be a fresh process: write what one call holds at most beyond what was there."""
    torch.set_num_threads(options.threads)
    small = argparse.Namespace(**vars(options) | {"tokens": 8, "vocabulary": 512})
    run_once(name, make_case(small, options.dtypes))  # what libraries load once is not the loss
    case = make_case(options, options.dtypes)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(name, case)
        wait_for_gpu(options.device)
        held = (torch.cuda.max_memory_allocated() - before) / MIB
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held
        before = read_status_mib("VmRSS")
        run_once(name, case)
        held = read_status_mib("VmHWM") - before
    print(json.dumps({"held_mib": held}), flush=True)


def read_status_mib(field: str) -> float:
    """Return VmRSS (held now) or VmHWM (the most since the last reset) of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


class Worker:
    """The process of one arm."""

    def __init__(self, name: str, options: argparse.Namespace, dtype: str, role: str) -> None:
        """Start it; it makes its inputs and warms up, which `wait` waits for."""
        sizes = [f"--{key.replace('_', '-')}={getattr(options, key)}"
                 for key in ("tokens", "hidden", "vocabulary", "top_k", "device")]  # fmt: skip
        command = [sys.executable, "-W", "ignore", __file__, f"--{role}", name, *sizes,
                   f"--dtypes={dtype}", f"--threads={options.threads}"]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        if role == "memory":
            environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        self._process = subprocess.Popen(  # noqa: S603 - this very script
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def read(self) -> str:
        """Return the next line it writes."""
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"an arm's process ended with {self._process.wait()}: see above")
        return line

    def ask(self) -> dict[str, float]:
        """Have it take one round."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self.read())
        return answer

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def measure(names: Sequence[str], options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Return seconds by round and memory of every arm in one dtype."""
    held = {}
    for name in names:
        worker = Worker(name, options, dtype, "memory")
        held[name] = json.loads(worker.read())["held_mib"]
        worker.close()
    workers = {}
    for name in names:
        workers[name] = Worker(name, options, dtype, "serve")
        workers[name].read()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, float] = {}
    for turn in range(options.rounds):
        start = turn % len(names)
        for name in (*names[start:], *names[:start]):
            answer = workers[name].ask()
            seconds[name].append(answer["seconds"])
            losses[name] = answer["loss"]
    for worker in workers.values():
        worker.close()
    return {
        name: {
            "min_seconds": min(values),
            "median_seconds": statistics.median(values),
            "max_seconds": max(values),
            "held_mib": held[name],
            "loss": losses[name],
        }
        for name, values in seconds.items()
    }


def compare_with_best(figures: dict[str, Any]) -> dict[str, Any]:
    """Return our time and memory over the best peer's, arm by arm the better of each."""
    peers = {name: arm for name, arm in figures.items() if name not in (OURS, PRODUCT)}
    if not peers or OURS not in figures:
        return {}
    fastest = min(peers, key=lambda name: peers[name]["median_seconds"])
    leanest = min(peers, key=lambda name: peers[name]["held_mib"])
    ours = figures[OURS]
    return {
        "fastest_peer": fastest,
        "time_ratio": ours["median_seconds"] / peers[fastest]["median_seconds"],
        "time_ratio_of_minima": ours["min_seconds"]
        / min(arm["min_seconds"] for arm in peers.values()),
        "leanest_peer": leanest,
        "memory_ratio": ours["held_mib"] / peers[leanest]["held_mib"],
    }


def show_board(names: Sequence[str]) -> dict[str, Any]:
    """Judge the arms, print the board and return it."""
    print(
        "\nSoft term at T = 2, float32. Student = teacher: loss and gradient are to be 0. Slope\n"
        "of the printed loss over the gradient: to be 1. A step in two unequal micro-batches: its\n"
        "gradient is to be the whole step's."
    )
    print(f"{'arm':<16}{'loss at q=p':>12}{'gradient':>10}{'slope':>9}{'micro-batch':>13}  verdict")
    found = {}
    for name in names:
        verdict = judge(ARMS[name])
        found[name] = vars(verdict) | {"is_right": verdict.is_right}
        print(f"{name:<16}{verdict.fixed_point_loss:>12.4f}{verdict.fixed_point_gradient:>10.4f}"
              f"{verdict.finite_difference_ratio:>9.3f}{verdict.micro_batch_error:>13.4f}  "
              f"{'right' if verdict.is_right else 'WRONG'}")  # fmt: skip
    return found


def show_figures(figures: dict[str, Any], verdict: dict[str, Any], title: str) -> None:
    """Print one table of times and memory, then the ratios with their goals."""
    print(f"\n{title}")
    print(f"{'arm':<16}{'ms min':>9}{'median':>9}{'max':>9}{'MiB':>8}{'loss':>10}  what it is")
    for name, arm in sorted(figures.items(), key=lambda item: item[1]["median_seconds"]):
        times = "".join(f"{arm[f'{k}_seconds'] * 1e3:>9,.1f}" for k in ("min", "median", "max"))
        note = "the two matrix products" if name == PRODUCT else ARMS[name].note
        origin = "" if name == PRODUCT else f" [{ARMS[name].origin}]"
        print(f"{name:<16}{times}{arm['held_mib']:>8,.0f}{arm['loss']:>10.4f}  {note}{origin}")
    if verdict:
        for what, goal, peer in (
            ("time", TIME_GOAL, "fastest"),
            ("memory", MEMORY_GOAL, "leanest"),
        ):
            ratio = verdict[f"{what}_ratio"]
            print(f"{what}: {ratio:.2f} x the {peer} peer ({verdict[f'{peer}_peer']}), goal at "
                  f"most {goal}: {'met' if ratio <= goal else 'MISSED'}")  # fmt: skip
        print(f"time by least rounds: {verdict['time_ratio_of_minima']:.2f} x")


def describe_machine(device: str) -> dict[str, Any]:
    """Return what the figures were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "has_native_bfloat16": any(
            torch.cpu.get_capabilities().get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16")
        ),
        "versions": {
            name: version(name.replace("_", "-")) for name in LIBRARIES if find_spec(name)
        },
    }


def read_options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--arms", help="comma-separated; all that are installed by default")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print the board and the figures, and with --json one object last."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    options = read_options()
    if options.serve:
        serve_rounds(options.serve, options)
        return
    if options.memory:
        print_memory(options.memory, options)
        return
    torch.set_num_threads(options.threads)
    found, missing = find_arms()
    names = [name for name in found if not options.arms or name in options.arms.split(",")]
    machine = describe_machine(options.device)
    print(
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, {options.threads} threads, "
        f"load {machine['load_before']:.1f}, native bfloat16: {machine['has_native_bfloat16']}; "
        f"{', '.join(f'{n} {v}' for n, v in machine['versions'].items())}"
    )
    for name, module in missing.items():
        print(f"left out: {name} ({module} is not installed: pip install -e '.[bench]')")
    report: dict[str, Any] = {"machine": machine, "board": show_board(names), "figures": {}}
    for dtype in options.dtypes.split(","):
        figures = measure([PRODUCT, *names], options, dtype)
        verdict = compare_with_best(figures)
        title = (f"{options.tokens} tokens x {options.hidden} x {options.vocabulary:,}, "
                 f"K = {options.top_k}, {dtype}, {options.rounds} rounds")  # fmt: skip
        show_figures(figures, verdict, title)
        report["figures"][dtype] = {"arms": figures, "ratios": verdict}
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
