"""Processes that train together, and what ends them early."""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Process", "Termination", "precise", "process_group", "usable_device"]

_DEVICES = "auto, cpu, cuda, cuda:1, mps, ..."


@dataclass(frozen=True)
class Process:
    """Rank and device of this process among those that train together.

    Attributes
    ----------
    rank, world_size : int
    device : torch.device
    """

    rank: int
    world_size: int
    device: torch.device

    def sum(self, *values: Tensor) -> list[Tensor]:
        """Sum scalars over all processes, in double precision where the device has it."""
        total = torch.stack([value.to(precise(value.device)) for value in values])
        if self.world_size > 1:
            dist.all_reduce(total)
        return list(total.unbind())

    def first(self, value: Any) -> Any:
        """Send a plain value of the first process to all processes."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.world_size > 1:
            dist.barrier()


class Termination:
    """Whether SIGTERM, SIGUSR1 (SLURM's notice of pre-emption) or Ctrl-C has come.

    Parameters
    ----------
    at_once
        End the process on the first one, with code 0, by `SystemExit`, which leaves files whole.
    interrupts
        Whether Ctrl-C (SIGINT) counts; a second one ends the process as usual.

    Attributes
    ----------
    received : bool
    interrupted : bool
        Whether it was Ctrl-C.
    """

    def __init__(self, at_once: bool = False, interrupts: bool = False):
        self.at_once, self.received, self.interrupted = at_once, False, False
        self._numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGUSR1")]
        self._numbers += [signal.SIGINT] if interrupts else []

    def __enter__(self):
        self._previous = {}
        # Only the main thread may set handlers; elsewhere (some notebooks) there is no notice.
        with contextlib.suppress(ValueError):
            for number in filter(None, self._numbers):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _: Any) -> None:
        first, self.received = not self.received, True
        if number == signal.SIGINT:
            if not first:
                raise KeyboardInterrupt
            self.interrupted = True
        if self.at_once and first:  # another one must not cut the cleaning up short
            raise SystemExit(0)

    def end(self) -> None:
        """End what was asked to end: `KeyboardInterrupt` after Ctrl-C, otherwise code 0."""
        if self.interrupted:
            raise KeyboardInterrupt
        raise SystemExit(0)

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _launched(environment: Mapping[str, str]) -> tuple[int, int, int, str]:
    """Rank, processes, place on this machine, and where they meet, from a launcher."""
    if "RANK" in environment:  # torchrun
        rank, world_size = int(environment["RANK"]), int(environment.get("WORLD_SIZE", 1))
        local_rank, launcher, port = int(environment.get("LOCAL_RANK", 0)), "RANK", None
    elif "SLURM_STEP_NUM_TASKS" in environment:  # srun; a batch script itself has none of them
        rank, world_size = (
            int(environment[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS")
        )
        local_rank, launcher = int(environment["SLURM_LOCALID"]), "SLURM_PROCID"
        # As in slurm_nodes.sh: jobs that share a machine have different ports.
        port = str(20000 + int(environment["SLURM_JOB_ID"]) % 20000)
    else:
        return 0, 1, 0, ""
    if world_size == 1:
        return 0, 1, local_rank, ""
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", port)
    if address is None and environment.get("SLURM_STEP_NUM_NODES") == "1":
        address = "127.0.0.1"
    missing = [k for k, v in {"MASTER_ADDR": address, "MASTER_PORT": port}.items() if v is None]
    if missing:
        raise ValueError(
            f"{launcher} says that this is process {rank} of {world_size}, but "
            f"{' and '.join(missing)} of the first one are not set: start with torchrun, or with "
            "srun as training/slurm_nodes.sh does"
        )
    # torchrun keeps a meeting place of its own, which PyTorch finds by the environment.
    meeting = "env://" if launcher == "RANK" else f"tcp://{address}:{port}"
    return rank, world_size, local_rank, meeting


def usable_device(device: str | torch.device) -> torch.device:
    """A device by name: "auto" (the GPU where there is one), "cpu", "cuda", "cuda:1", "mps".

    Raises
    ------
    ValueError
        PyTorch knows no such device, or finds none here.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is none of {_DEVICES}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: PyTorch finds no GPU here; 'cpu' always works")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device}: PyTorch finds {torch.cuda.device_count()} GPUs here")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "device mps: PyTorch finds no Metal (Apple's graphics) here; 'cpu' always works"
        )
    if found.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {device!r} is none of {_DEVICES}")
    return found


def precise(device: torch.device) -> torch.dtype:
    """Double precision; single on Apple's graphics ("mps"), which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextlib.contextmanager
def process_group(device: str | torch.device = "auto") -> Iterator[Process]:
    """Join the processes that `torchrun` or `srun` started; alone otherwise.

    Meanwhile SIGTERM and SIGUSR1 end this process with code 0, as long as nothing else, such as
    the training loop, listens to them.

    Parameters
    ----------
    device
        "auto": the GPU of this process where there is one; "cpu"; ...

    Raises
    ------
    ValueError
        There are several processes, but not the address of the first one; or no such device.
    """
    rank, world_size, local_rank, meeting = _launched(os.environ)
    if str(device) == "auto":
        # srun may show each of its tasks nothing but the task's own GPU, as number 0.
        gpus = torch.cuda.device_count()
        device = f"cuda:{local_rank % gpus}" if gpus else "cpu"
    device = usable_device(device)
    with Termination(at_once=True):
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if world_size > 1:
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                init_method=meeting,
                rank=rank,
                world_size=world_size,
            )
        try:
            yield Process(rank, world_size, device)
        finally:
            if world_size > 1:
                dist.destroy_process_group()
