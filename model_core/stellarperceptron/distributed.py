"""Processes that train together, and what ends them early."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Process", "Termination", "process_group"]


@dataclass(frozen=True)
class Process:
    """Which of the processes that train together we are.

    Attributes
    ----------
    rank, world_size : int
    device : torch.device
    """

    rank: int
    world_size: int
    device: torch.device

    def sum(self, *values: Tensor) -> list[Tensor]:
        """Sum scalars over all processes, in double precision."""
        total = torch.stack([value.double() for value in values])
        if self.world_size > 1:
            dist.all_reduce(total)
        return list(total.unbind())

    def first(self, value: Any) -> Any:
        """What the first process has, a plain value, in all of them."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait for the others."""
        if self.world_size > 1:
            dist.barrier()


@contextlib.contextmanager
def process_group(device: str | torch.device = "auto") -> Iterator[Process]:
    """Join the processes that `torchrun` or SLURM started; alone otherwise.

    Parameters
    ----------
    device
        "auto": the GPU of this process where there is one; "cpu"; ...
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if str(device) == "auto":
        gpu = int(os.environ.get("LOCAL_RANK", 0))
        device = f"cuda:{gpu}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Process(rank, world_size, device)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


class Termination:
    """Whether SIGTERM or SIGUSR1 (SLURM's notice of pre-emption) has come."""

    def __init__(self):
        self.received = False

    def __enter__(self):
        self._previous = {}
        # Only the main thread may set handlers; elsewhere (some notebooks) there is no notice.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, *_):
        self.received = True

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
