"""The processes of one training: who does which part of a batch, and how parts are added up.

Started by torchrun, processes split every batch and hold equal weights: gradients and losses are
summed over all of them, so the sums are those of one process up to rounding. Belongs here: joining,
splitting, summing, telling. Does not belong here: what is computed (`steps`), launching (`train`).
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from serving.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

Item = TypeVar("Item")

# A process may wait as long as another training of the same adapter lasts, and torchrun ends all
# processes when one dies: a shorter limit would only end trainings that wait.
PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process among those that train together; one alone by default."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reads and writes files and reports."""
        return self.rank == 0

    def take_share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's part: every `count`-th, so lengths are alike in all parts."""
        return items if self.count == 1 else items[self.rank :: self.count]

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Return the numbers summed over all processes, place by place."""
        if self.count == 1:
            return list(numbers)
        import torch

        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def sum_gradients(self, parameters: Sequence["Parameter"]) -> None:
        """Sum gradients over all processes, in one message; a missing one counts as zero."""
        if self.count == 1:
            return
        import torch

        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([part.reshape(-1) for part in parts])
        torch.distributed.all_reduce(flat)
        start = 0
        for parameter in parameters:
            size = parameter.numel()
            parameter.grad = flat[start : start + size].view_as(parameter)
            start += size

    def share(self, make: Callable[[], bytes]) -> bytes:
        """Return what the first process makes, to all of them."""
        if self.count == 1:
            return make()
        import torch

        made = make() if self.is_first else b""
        size = torch.tensor(len(made), device=self.device)
        torch.distributed.broadcast(size, src=0)
        if not int(size):
            return b""
        content: Tensor = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.is_first:
            content.copy_(torch.frombuffer(bytearray(made), dtype=torch.uint8))
        torch.distributed.broadcast(content, src=0)
        return content.cpu().numpy().tobytes()


@contextlib.contextmanager
def join_workers() -> Iterator[Workers]:
    """Join the processes that torchrun started, NCCL between GPUs and gloo between CPUs; or alone.

    Raises:
        InvalidInputError: more processes on this machine than GPUs.
    """
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield Workers()
        return
    if torch.cuda.is_available():
        local = distributed.get_node_local_rank()
        _require_a_gpu_each(local, torch.cuda.device_count())
        torch.cuda.set_device(local)
        device, backend = f"cuda:{local}", "nccl"
    else:
        device, backend = "cpu", "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        count = distributed.get_world_size()
        if backend == "gloo":  # torchrun leaves one thread to each process
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
        yield Workers(rank=distributed.get_rank(), count=count, device=device)
    finally:
        distributed.destroy_process_group()


def _require_a_gpu_each(local_rank: int, gpu_count: int) -> None:
    if local_rank >= gpu_count:
        raise InvalidInputError(
            "training in several processes",
            expected="a GPU for each process",
            found=f"process {local_rank + 1} on a machine with {gpu_count}",
            next_step="lower `processes` in the recipe: it changes no adapter, only the time",
        )
