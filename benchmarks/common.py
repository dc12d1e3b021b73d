"""Shared parts of all benchmarks: clocks, the floor, the hardware's name, the record."""

import contextlib
import datetime
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from stellarperceptron.network.kernels.linear import linear
from stellarperceptron.utils.data_utils import atomic_output

RESULTS = Path(__file__).resolve().parent / "results"


def hardware() -> dict[str, Any]:
    """Processor, GPU and versions, as every record names them."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


class OwnProcess:
    """A function in a process of its own, whose memory and allocator nobody else uses.

    Parameters
    ----------
    prepare
        Gives the function; of a module's top level. Its first argument is a `contextlib.ExitStack`
        for what the function needs as long as the process lives.
    arguments
        The others.
    """

    def __init__(self, prepare: Callable[..., Callable[[], Any]], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        threads = torch.get_num_threads()
        self._process = context.Process(
            target=_serve, args=(other, threads, prepare, arguments), daemon=True
        )
        self._process.start()
        other.close()

    def __call__(self) -> tuple[float, float]:
        """Call the function; CPU and wall-clock time that it took [s]."""
        self._pipe.send(None)
        return self._pipe.recv()


def _serve(pipe, threads: int, prepare, arguments) -> None:
    torch.set_num_threads(threads)
    with contextlib.ExitStack() as stack:
        function = prepare(stack, *arguments)
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            pipe.send(_timed(function))


def _timed(function: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall-clock time of a call [s]."""
    if isinstance(function, OwnProcess):
        return function()
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure_in_turn(
    functions: dict[Any, Callable[[], Any]], repeats: int
) -> dict[Any, dict[str, float]]:
    """Time functions in turn, A B A B ..., so that a drift of the machine meets all alike.

    Parameters
    ----------
    functions
        By name; each is called once beforehand to warm up.
    repeats
        Counted calls of each.

    Returns
    -------
    dict
        For each name: medians `cpu_s` and `wall_s` [s], and the fastest and slowest `cpu_s`.
    """
    times: dict[Any, list[tuple[float, float]]] = {name: [] for name in functions}
    for counted in range(repeats + 1):
        for name, function in functions.items():
            elapsed = _timed(function)
            if counted:
                times[name].append(elapsed)
    return {
        name: {
            "cpu_s": statistics.median(cpu for cpu, _ in pairs),
            "wall_s": statistics.median(wall for _, wall in pairs),
            "cpu_s_min": min(cpu for cpu, _ in pairs),
            "cpu_s_max": max(cpu for cpu, _ in pairs),
        }
        for name, pairs in times.items()
    }


def large_products(rows: int = 4096, inner: int = 1024, columns: int = 2048):
    """Large float32 matrix products, by PyTorch and by the package, whose rates are the ceilings.

    Returns
    -------
    dict
        Functions by name, for `measure_in_turn`.
    int
        FLOP of each.
    """
    x, weight = torch.randn(rows, inner), torch.randn(columns, inner)
    functions = {
        "matrix product": lambda: x @ weight.T,
        "package's matrix product": lambda: linear(x, weight),
    }
    return functions, 2 * rows * inner * columns


def ceilings(
    device: str = "cpu", repeats: int = 3, size: int = 2**26, rows: int = 4096
) -> dict[str, float]:
    """Rates that nothing on this machine exceeds, measured now.

    Parameters
    ----------
    device
        "cpu": one thread's best float32 product (see `large_products`) by its CPU time; "cuda":
        a bfloat16 product of 8192 x 8192 matrices by the clock.
    repeats
        Counted repeats.
    size
        Numbers (float32) that are copied.
    rows
        Rows of the CPU's products.

    Returns
    -------
    dict
        `flop_per_s`, and `bytes_per_s` copied (each is read once and written once).
    """
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    if device == "cpu":
        products, flop = large_products(rows)
    else:
        square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
        products, flop = {"matrix product": synchronized(lambda: square @ square)}, 2 * 8192**3
    clock = "cpu_s" if device == "cpu" else "wall_s"
    times = measure_in_turn(
        {**products, "copy": synchronized(lambda: target.copy_(source))}, repeats
    )
    return {
        "flop_per_s": flop / min(times[name][clock] for name in products),
        "bytes_per_s": source.nbytes / times["copy"][clock],
    }


def synchronized(function: Callable[[], Any]) -> Callable[[], None]:
    """A function that ends when the GPU, where there is one, has done its work."""

    def call():
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return call


class Allocations(NamedTuple):
    """Bytes that a call allocates: all in all, the most held at once, and those it leaves behind.

    The last two count from what was held before.
    """

    total: int
    peak: int
    kept: int


def allocations(function: Callable[[], Any]) -> Allocations:
    """Memory that a call allocates on the CPU, counted by PyTorch's profiler; it does not vary."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    sizes = [size for _, size in changes]
    return Allocations(
        total=sum(size for size in sizes if size > 0),
        peak=max(itertools.accumulate(sizes), default=0),
        kept=sum(sizes),
    )


def row(
    ours: float,
    floor: float,
    floor_of: str,
    *,
    published: float | None = None,
    published_manner: str = "none",
    clock: str = "CPU time",
    **details: Any,
) -> dict[str, Any]:
    """One line of the table.

    Parameters
    ----------
    ours, published, floor
        Seconds a star; `published` is None where no such manner exists or none was measured.
    floor_of
        What the hardware at least has to do.
    published_manner
        What it is, or why there is none.
    clock
        What the seconds are.
    **details
        Kept beside them.
    """
    return {
        "ours_s_per_star": ours,
        "published_s_per_star": published,
        "published_manner": published_manner,
        "ratio": None if published is None else published / ours,
        "floor_s_per_star": floor,
        "floor_of": floor_of,
        "share_of_floor": floor / ours,
        "clock": clock,
        **details,
    }


def record(
    name: str, results: dict[str, Any], output: Path | None, module: str | None = None
) -> Path:
    """Write results with date, hardware and command to a JSON file.

    Parameters
    ----------
    name
        Of the benchmark.
    results
        Anything that JSON can hold.
    output
        None: `benchmarks/results/<date>-<processor or GPU>-<name>.json`.
    module
        What was run; None: `benchmarks.<name>`.
    """
    machine = hardware()
    today = datetime.date.today().isoformat()
    short = "-".join((machine["gpu"] or machine["processor"]).lower().split())
    path = output or RESULTS / f"{today}-{short}-{name}.json"
    command = ["python", "-m", module or f"benchmarks.{name}", *sys.argv[1:]]
    content = {
        "benchmark": name,
        "date": today,
        "command": " ".join(command),
        "hardware": machine,
        "threads": torch.get_num_threads(),
        "results": results,
    }
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
