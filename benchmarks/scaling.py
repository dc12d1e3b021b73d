"""Growth of time and memory with context, batch, labels and processes.

A small model (dimension 64, 4 heads) is trained on one-pixel tokens, on one thread. Memory is the
peak of what a step allocates, counted by PyTorch's profiler. "Plain" attention keeps its weights;
the package's never holds those of more than one head of one star. Each time is compared with the
one expected from the number of operations and the rate at a context of 512 and a batch of 8.
"""

import argparse
import functools
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.common import allocations, record
from benchmarks.inference import paper_model
from benchmarks.training import prepare, random_survey, step_of
from stellarperceptron.network.block import TransformerBlock
from stellarperceptron.network.kernels.linear import linear
from stellarperceptron.network.kernels.memory import freed_memory_kept
from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.tasks import train
from stellarperceptron.utils.arguments import output_file
from stellarperceptron.utils.distributed import process_group

MODEL = {
    "embedding_dim": 64,
    "encoder_head_num": 4,
    "encoder_dense_num": 256,
    "decoder_head_num": 4,
    "decoder_dense_num": 256,
}
PATIENCE = 120  # seconds for a training of several processes, which may wait for one that failed
REFERENCE = 512, 8, 5  # context, batch and labels whose rate the expected times follow


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Parameters
    ----------
    contexts
        Tokens of a star, the batch being `tokens` over them, at most 8 stars.
    tokens
        Of a batch.
    batches
        Stars of a batch, at a context of 512.
    processes
        gloo ranks, each with a thread and batches of 32 stars of 64 tokens.
    stars
        Of their survey.
    repeats
        Counted repeats, of which the fastest counts; 1 from a context of 4,096 on.
    """

    contexts: tuple[int, ...] = (64, 256, 512, 1024, 2048, 4096, 7514)
    tokens: int = 8192
    batches: tuple[int, ...] = (8, 16, 32, 64)
    processes: tuple[int, ...] = (1, 2)
    stars: int = 1024
    repeats: int = 3


SMALL = Sizes(
    contexts=(64, 512), tokens=1024, batches=(2,), processes=(1, 2), stars=64, repeats=1
)  # to try everything, not to measure


def plain_self_attention(block, x, attend, need_weights):
    """Self-attention that keeps all its weights, in place of `TransformerBlock`'s."""
    a = block.attention
    q, k, v = linear(x, a.in_proj_weight, a.in_proj_bias).chunk(3, dim=-1)
    output, _ = block._attend(q, k, v, attend, True)
    return output, None


@functools.cache  # what is varied in two ways is measured once
def measure_step(context: int, stars: int, labels: int, repeats: int) -> dict[str, Any]:
    """CPU time and memory of a training step with either attention, labels being 1 or 5."""
    model = paper_model(context_length=context, **MODEL)
    flux, values = random_survey(stars)
    data = prepare(model, np.nan_to_num(flux, nan=0.95), values)
    per_star = "one" if labels == 1 else "all"
    generator = TrainingGenerator(data, np.arange(stars), stars, context, labels_per_star=per_star)
    batch = next(iter(generator))
    optimizer = torch.optim.AdamW(model.torch_model.parameters(), lr=1e-4, fused=True)
    step = step_of(model, data, batch, optimizer)
    result: dict[str, Any] = {
        "context": context,
        "stars": stars,
        "labels": labels,
        "heads": model.config.encoder_head_num,
        "parameter_bytes": sum(p.nbytes for p in model.torch_model.parameters()),
        "flop_per_star": model.flops_per_star(context, labels, training=True),
    }
    attentions: dict[str, Callable] = {
        "efficient": TransformerBlock._self_attention,
        "plain": plain_self_attention,
    }
    for name, attention in attentions.items():
        with patch.object(TransformerBlock, "_self_attention", attention):
            with freed_memory_kept():
                step()
                times = []
                for _ in range(1 if context >= 4096 else repeats):
                    begin = time.process_time()
                    step()
                    times.append(time.process_time() - begin)
            memory = allocations(step)
        result[name] = {
            "s_per_star": min(times) / stars,
            "peak_bytes": memory.peak,
            "allocated_bytes": memory.total,
        }
    print(
        f"  context {context}, {stars} stars, {labels} labels: "
        + "; ".join(
            f"{name} {1e3 * result[name]['s_per_star']:.1f} ms a star, "
            f"{result[name]['peak_bytes'] / 1e6:.1f} MB"
            for name in attentions
        ),
        flush=True,
    )
    return result


def train_as(rank: int, world_size: int, port: int, stars: int, pipe) -> None:
    """Train two epochs as one of the processes; send the second one's stars a second."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with process_group("cpu") as process:
        model = paper_model(context_length=64, **MODEL)
        data = prepare(model, *random_survey(stars))
        rows = np.arange(stars)[~data.labels.isnan().all(dim=1).numpy()]
        options = TrainingOptions(epochs=2, batch_size=32, labels_per_star="all")
        history = train(model, data, rows, rows[:0], options, process, progress=False)
        parameters = sum(p.numel() for p in model.torch_model.parameters())
    if rank == 0:
        pipe.send((history[-1]["stars_per_s"], parameters))


def measure_processes(world_size: int, stars: int) -> dict[str, Any]:
    """Stars a second of all processes together, with gloo."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    processes = [
        context.Process(target=train_as, args=(rank, world_size, port, stars, sender))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    answered = receiver.poll(PATIENCE)
    for process in processes:
        process.join(PATIENCE if answered else 0)
        if process.is_alive():
            process.terminate()
            process.join()
    if not answered or any(process.exitcode for process in processes):
        raise RuntimeError(f"training with {world_size} processes failed")
    rate, parameters = receiver.recv()
    print(f"  {world_size} processes: {rate:.0f} stars/s", flush=True)
    return {"processes": world_size, "stars_per_s": rate, "parameters": parameters}


def measure(sizes: Sizes) -> dict[str, Any]:
    """Everything that is measured here, by what is varied."""
    context, stars, labels = REFERENCE
    return {
        "reference": measure_step(*REFERENCE, sizes.repeats),
        "context": [
            measure_step(n, max(1, min(stars, sizes.tokens // n)), labels, sizes.repeats)
            for n in sizes.contexts
        ],
        "batch": [measure_step(context, n, labels, sizes.repeats) for n in sizes.batches],
        "labels": [measure_step(context, stars, n, sizes.repeats) for n in (1, 5)],
        "processes": [measure_processes(n, sizes.stars) for n in sizes.processes],
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="few and small sizes, to try it")
    parser.add_argument(
        "--output", type=output_file, help="JSON file; default: benchmarks/results/"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(SMALL if arguments.small else Sizes())
    print("recorded in", record("scaling", results, arguments.output))


if __name__ == "__main__":
    main()
