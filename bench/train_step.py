"""One LoRA step, ours against TRL's SFTTrainer: equal losses first, then time, memory and MFU.

Run: `python bench/train_step.py [--json] [--steps 5] [--prompt 1024] [--answer 128] [--question 32]
[--batch 1] [--uneven] [--dtype float32] [--models .understudy/models] [--threads N]
[--arms 'lora;trl']`, after `pip install -e '.[bench]'` for TRL. On a GPU machine:
`--model-shape 1b|7b --device cuda --dtype bfloat16 --sequence 2048`, with random weights.

One process per arm; their steps are interleaved, each arm's first step (caches, first memory) is
left out of the times. All arms have the same ids, LoRA initialisation, optimizer, learning rates
and clipping, and alpha = 1, so the losses of `lora` and of TRL must agree step by step to 1e-4;
`alora` is another model from the second step on, and agrees on the first. With `--uneven`, prompts
are in turn of the length asked for, a half, three quarters and a quarter of it: what is padded.

- `lora`: adapter on every token. `alora`: on the question and the answer, prompts read before.
- `lora, packed`: the batch in one row without padding. `lora, checkpointing`: layers run again in
  the backward pass, which its floor counts; MiB is what it is for.
- `alora, prompts anew`: the frozen base reads every prompt again in every step.
- `trl`: `SFTTrainer` with `loss_type="nll"`, of which `chunked_nll` is a deprecated alias since TRL
  1.16: its fused head builds no whole logits. Without Triton (on a CPU) it scores every position.
- `trl, answers only`: the same, made to score the answers' positions alone, as it does on a GPU.
- `whole logits`: transformers' own `Trainer`, which is what `nll` was before.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - run as a script from anywhere

from assets.students.flops import compute_mfu_ratio  # noqa: E402
from bench.kd_loss import describe_machine, read_status_mib  # noqa: E402
from bench.peers.step_arms import (  # noqa: E402
    ALORA,
    ANEW,
    ARMS,
    LORA,
    MODEL,
    SHAPES,
    TRL,
    TRL_ANSWERS,
    WHOLE,
    plan_lengths,
    run_ours,
    run_trainer,
    wait_for_gpu,
)

LOSS_TOLERANCE = 1e-4
GOALS = {"lora": 1.25, "alora": 3.0}  # times as fast as TRL
MIB = 1024**2


def serve_steps(name: str, options: argparse.Namespace) -> None:
    """Be the process of one arm: a step for each line read, and its report written."""
    torch.set_num_threads(options.threads)
    held = [0.0]

    def tell(step: dict[str, float]) -> None:
        if not step:
            held[0] = reset_peak(options.device)
        print(json.dumps(step | {"held_mib": read_peak(options.device) - held[0]}), flush=True)
        if sys.stdin.readline() == "":
            raise SystemExit

    (run_trainer if name in (TRL, TRL_ANSWERS, WHOLE) else run_ours)(name, options, tell)


def reset_peak(device: str) -> float:
    """Let the peak start again from what is held now; return that in MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB
    Path("/proc/self/clear_refs").write_text("5")
    return read_status_mib("VmRSS")


def read_peak(device: str) -> float:
    """Return the most that was held since the last reset in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    return read_status_mib("VmHWM")


def start(name: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """Start the process of an arm."""
    keys = ("steps", "prompt", "answer", "question", "batch", "dtype", "models", "threads",
            "model_shape", "device")  # fmt: skip
    sizes = ["--uneven"] if options.uneven else []
    sizes += [f"--{key.replace('_', '-')}={getattr(options, key)}" for key in keys]
    command = [sys.executable, "-W", "ignore", __file__, "--serve", name, *sizes]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    return subprocess.Popen(  # noqa: S603 - this very script
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def read_report(name: str, process: subprocess.Popen[str]) -> dict[str, float]:
    """Return an arm's next report; what libraries print is passed over."""
    assert process.stdout is not None  # noqa: S101
    for line in process.stdout:
        if line.startswith("{"):
            report: dict[str, float] = json.loads(line)
            return report
    raise SystemExit(f"{name}: its process ended with {process.wait()}: see above")


def measure(names: Sequence[str], options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Return the reports of every arm, step by step, the arms taking turns."""
    reports: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    processes = {}
    for name in names:
        processes[name] = start(name, options)
        read_report(name, processes[name])  # ready
    for turn in range(options.steps + 1):
        shift = turn % len(names)
        for name in (*names[shift:], *names[:shift]):
            stdin = processes[name].stdin
            assert stdin is not None  # noqa: S101
            stdin.write("\n")
            stdin.flush()
            reports[name].append(read_report(name, processes[name]))
    for process in processes.values():
        process.communicate()
    return reports


def measure_peak_flops(options: argparse.Namespace) -> float:
    """Return the best speed of one large matrix product here: what the floor is divided by."""
    size = 8192 if options.device == "cuda" else 2048
    kind = getattr(torch, options.dtype)
    one = torch.randn(size, size, device=options.device).to(kind)
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        one @ one
        wait_for_gpu(options.device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def sum_up(
    reports: dict[str, list[dict[str, float]]], peak: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Return figures by arm; the first step is the warm-up."""
    found = {}
    tokens = sum(plan_lengths(options)) + options.batch * options.answer
    for name, steps in reports.items():
        timed = [step["seconds"] for step in steps[1:]]
        median = statistics.median(timed)
        floor = steps[-1]["floor_flops"]
        found[name] = {
            "min_seconds": min(timed),
            "median_seconds": median,
            "max_seconds": max(timed),
            "first_seconds": steps[0]["seconds"],
            "tokens_per_second": tokens / median,
            "floor_seconds": floor / peak,
            "mfu_ratio": compute_mfu_ratio(floor, seconds=median, peak_flops_per_second=peak),
            "held_mib": max(step["held_mib"] for step in steps),
            "losses": [step["loss"] for step in steps],
        }
    return found


def compare_losses(figures: dict[str, Any]) -> dict[str, float]:
    """Return how far each arm's losses are from those of `lora`, at the first step and at most."""
    if LORA not in figures:
        return {}
    ours = figures[LORA]["losses"]
    return {
        name: max(abs(a - b) for a, b in zip(arm["losses"], ours, strict=True))
        if name not in (ALORA, ANEW)
        else abs(arm["losses"][0] - ours[0])
        for name, arm in figures.items()
    }


def show(figures: dict[str, Any], peak: float) -> dict[str, float]:
    """Print the losses, the table and the goals; return the ratios."""
    print(f"measured peak: {peak / 1e9:,.0f} GFLOP/s in one product")
    print("\nlosses by step, and the largest distance from lora's (alora: at the first step)")
    for name, distance in compare_losses(figures).items():
        losses = " ".join(f"{loss:.5f}" for loss in figures[name]["losses"])
        print(f"{name:<20}{distance:.1e} {'agrees' if distance <= LOSS_TOLERANCE else 'DIFFERS'}  "
              f"{losses}")  # fmt: skip
    print(f"\n{'arm':<20}{'s min':>8}{'median':>8}{'max':>8}{'first':>8}{'tokens/s':>10}"
          f"{'floor s':>9}{'MFU':>7}{'MiB':>8}")  # fmt: skip
    for name, arm in figures.items():
        times = "".join(f"{arm[f'{k}_seconds']:>8.2f}" for k in ("min", "median", "max", "first"))
        print(f"{name:<20}{times}{arm['tokens_per_second']:>10,.0f}{arm['floor_seconds']:>9.2f}"
              f"{arm['mfu_ratio']:>7.1%}{arm['held_mib']:>8,.0f}")  # fmt: skip
    ratios = {}
    for peer in (TRL, TRL_ANSWERS, WHOLE):
        for name, goal in GOALS.items():
            if name in figures and peer in figures:
                ratio = figures[peer]["median_seconds"] / figures[name]["median_seconds"]
                ratios[f"{name} / {peer}"] = ratio
                print(f"{name}: {ratio:.2f} x as fast as {peer}, goal {goal}: "
                      f"{'met' if ratio >= goal else 'MISSED'}")  # fmt: skip
    return ratios


def read_options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one that is not")
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--question", type=int, default=32, help="of the prompt, for alora")
    parser.add_argument("--sequence", type=int, help="prompt and answer together")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--uneven", action="store_true", help="prompts of unequal length")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--models", type=Path, default=ROOT / ".understudy/models")
    shape = "real: the prepared 135m, and the default where it is; else random weights"
    parser.add_argument("--model-shape", choices=("real", *SHAPES), help=shape)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--arms", default=";".join(ARMS), help="separated by semicolons")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sequence:
        options.prompt = options.sequence - options.answer
    if options.model_shape is None:
        is_prepared = any(options.models.glob(f"{MODEL.split('/')[-1]}@*"))
        options.model_shape = "real" if is_prepared else "135m"
    return options


def main() -> None:
    """Print the figures, and with --json one object last."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    options = read_options()
    if options.serve:
        serve_steps(options.serve, options)
        return
    torch.set_num_threads(options.threads)
    names = [name for name in ARMS if name in options.arms.split(";")]
    if find_spec("trl") is None:
        print("left out: the arms of TRL (not installed: pip install -e '.[bench]')")
        names = [name for name in names if name not in (TRL, TRL_ANSWERS, WHOLE)]
    machine = describe_machine(options.device)
    print(
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, {options.threads} threads, "
        f"load {machine['load_before']:.1f}; "
        f"{', '.join(f'{n} {v}' for n, v in machine['versions'].items())}"
    )
    print(
        f"{options.model_shape}, {options.dtype}, batch {options.batch} x ({options.prompt} prompt "
        f"+ {options.answer} answer tokens{', uneven' if options.uneven else ''}), "
        f"{options.steps} steps after one"
    )
    peak = measure_peak_flops(options)
    reports = measure(names, options)
    figures = sum_up(reports, peak, options)
    ratios = show(figures, peak)
    if options.json:
        report = {"machine": machine, "peak_flops_per_second": peak, "arms": figures}
        sys.stdout.write(json.dumps(report | {"ratios": ratios}) + "\n")


if __name__ == "__main__":
    main()
