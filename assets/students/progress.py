"""How far a training is: the report of one step, the work that is left, the memory taken.

Belongs here: numbers about a running training. Does not belong here: the loop (`training`), where
the numbers are shown (`train`).
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from assets.students.batches import Example

TRAINED_TOKEN_WORK = 3  # forward passes that a forward and a backward pass cost together


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Where the training is after a step."""

    step: int
    total_steps: int
    loss: float
    hard_loss: float
    soft_loss: float | None
    grad_norm: float
    tokens_per_second: float
    step_seconds: float
    floor_flops: float
    peak_memory_mb: float
    eta_seconds: float
    validation_loss: float | None = None

    def to_line(self) -> str:
        """Return the report as one log line."""
        parts = [f"step {self.step}/{self.total_steps}", f"loss {self.loss:.3f}"]
        parts.append(f"hard {self.hard_loss:.3f}")
        if self.soft_loss is not None:
            parts.append(f"soft {self.soft_loss:.3f}")
        if self.validation_loss is not None:
            parts.append(f"validation {self.validation_loss:.3f}")
        parts.append(f"{self.tokens_per_second:.0f} tokens/s")
        parts.append(f"{self.eta_seconds:.0f} s left")
        parts.append(f"{self.peak_memory_mb:.0f} MB")
        return " · ".join(parts)


OnStep = Callable[[StepReport], None]


class WorkMeter:
    """Work planned and done in forward tokens, over all the processes a training ran in."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started_at = time.perf_counter()
        self._planned = 0
        self.done = 0

    def plan(
        self, train: Sequence[Example], validation: Sequence[Example], *, epochs: float
    ) -> None:
        """Count the work ahead: every epoch's tokens, and every prefix once."""
        trained = sum(example.trained_tokens for example in train)
        validated = sum(example.trained_tokens for example in validation)
        prefixes = {example.prefix_ids for example in (*train, *validation)}
        self._planned = round(epochs * (TRAINED_TOKEN_WORK * trained + validated))
        self._planned += sum(map(len, prefixes))

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption too."""
        return time.perf_counter() - self._started_at

    @property
    def seconds_left(self) -> float:
        """Seconds that the planned work will still take at the speed so far."""
        return self.seconds / max(1, self.done) * max(0, self._planned - self.done)

    def resume(self, *, seconds: float, done: int) -> None:
        """Go on from what an interrupted process had done."""
        self._started_at = time.perf_counter() - seconds
        self.done = done


def measure_peak_memory_mb() -> float:
    """Return the peak memory of this process (of its GPU where there is one) in MB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1024**2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
