"""Where spectra are kept, on the device or the host, and prefetching of batches."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from stellarperceptron.network.kernels.graphs import tensors_of

__all__ = [
    "MEMORIES",
    "batches_of_values",
    "made_ahead",
    "made_beside",
    "memory_for",
    "spare_cores",
]

MEMORIES = ("auto", "device", "host")
# The rest of the free memory is left for network, optimizer and activations.
_SHARE_OF_FREE_MEMORY = 0.5


Item = TypeVar("Item")


def spare_cores(processes: int = 1) -> int:
    """Number of idle cores beside this many processes with PyTorch's threads each."""
    own = getattr(os, "sched_getaffinity", None)
    cores = len(own(0)) if own else os.cpu_count() or 1
    return cores - processes * torch.get_num_threads()


def made_ahead(items: Iterable[Item], ahead: int = 2) -> Iterator[Item]:
    """Iterate over items that a thread prepares in advance.

    Parameters
    ----------
    items
        Items to prepare; only the thread iterates over them, in order.
    ahead
        Number of items prepared in advance.
    """
    source = iter(items)
    end: Any = object()
    with ThreadPoolExecutor(1, "ahead") as pool:
        coming = deque(pool.submit(next, source, end) for _ in range(ahead))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, source, end))
            yield item


def made_beside(items: Iterable[Item], device: torch.device, ahead: int = 2) -> Iterator[Item]:
    """Iterate over items that a thread prepares in advance on another stream of a GPU.

    Parameters
    ----------
    items
        See `made_ahead`; items are batches in the sense of `tensors_of`.
    device
        The GPU.
    ahead
        Number of items prepared in advance.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))

    def on_side() -> Iterator[tuple[Item, torch.cuda.Event]]:
        source = iter(items)
        end: Any = object()
        while True:
            with torch.cuda.device(device), torch.cuda.stream(side):
                item = next(source, end)
                made = side.record_event()
            if item is end:
                return
            yield item, made

    for item, made in made_ahead(on_side(), ahead):
        now = torch.cuda.current_stream(device)
        now.wait_event(made)
        for tensor in tensors_of(item):
            tensor.record_stream(now)
        yield item


def _free_memory(device: torch.device) -> int:
    """Free memory of a GPU [bytes]."""
    return torch.cuda.mem_get_info(device)[0]


def memory_for(size: int, device: torch.device | str, memory: str = "auto") -> torch.device:
    """Device in whose memory the spectra are kept.

    Parameters
    ----------
    size
        Size of the spectra [bytes].
    device
        Device on which batches are made.
    memory
        "device"; "host", from where batches are streamed to the device; "auto": the device if the
        spectra take at most half of its free memory. For a CPU, device and host are the same.

    Raises
    ------
    ValueError
        `memory` is none of these.
    """
    if memory not in MEMORIES:
        raise ValueError(f"memory = {memory!r} is not one of {', '.join(MEMORIES)}")
    device = torch.device(device)
    if device.type == "cuda" and memory == "auto":
        memory = "device" if size <= _SHARE_OF_FREE_MEMORY * _free_memory(device) else "host"
    return torch.device("cpu") if memory == "host" else device


def batches_of_values(
    values: Tensor, batches: Iterable[Tensor], device: torch.device, ahead: int = 2
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of `values` on the device, batch by batch.

    If the values are in the host's memory, a thread prefetches batches: it gathers them in pinned
    buffers and copies them on its own stream while the device computes.

    Parameters
    ----------
    values
        (N, ...), on `device` or on the host.
    batches
        (B,) rows of each batch, on the device of `values`.
    device
        Device of the result.
    ahead
        Number of batches to prefetch.

    Yields
    ------
    Tensor, Tensor
        (B,) rows and (B, ...) values, on `device`.
    """
    if values.device.type != "cpu" or device.type == "cpu":
        for rows in batches:
            yield rows, values.index_select(0, rows)
    else:
        yield from _streamed(values, batches, device, ahead)


def _streamed(
    values: Tensor, batches: Iterable[Tensor], device: torch.device, ahead: int
) -> Iterator[tuple[Tensor, Tensor]]:
    gpu = device.type == "cuda"
    side = torch.cuda.Stream(device) if gpu else None

    def fetch(rows: Tensor) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
        shape = (len(rows), *values.shape[1:])
        buffer = torch.empty(shape, dtype=values.dtype, pin_memory=gpu)
        torch.index_select(values, 0, rows, out=buffer)
        if side is None:
            return rows.to(device), buffer.to(device), None
        with torch.cuda.device(device), torch.cuda.stream(side):
            # PyTorch keeps a pinned buffer until the copy out of it is done.
            here = rows.pin_memory().to(device, non_blocking=True)
            there = buffer.to(device, non_blocking=True)
            return here, there, side.record_event()

    coming = iter(batches)
    with ThreadPoolExecutor(1, "batches") as thread:
        under_way = deque(thread.submit(fetch, rows) for rows in islice(coming, ahead))
        while under_way:
            rows, part, copied = under_way.popleft().result()
            under_way.extend(thread.submit(fetch, rows) for rows in islice(coming, 1))
            if copied is not None:
                now = torch.cuda.current_stream(device)
                now.wait_event(copied)
                rows.record_stream(now)
                part.record_stream(now)
            yield rows, part
