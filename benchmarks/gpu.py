"""The benchmarks of one GPU: the paper's model in bfloat16, beside the published manner and floors.

The floor is the published arithmetic over the rate of a large bfloat16 product, or the bytes that
have to be moved at least over the rate of a large copy in the GPU's memory. The published manner is
measured in float32 with the published batch of 64.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ceilings, measure_in_turn, row, synchronized
from benchmarks.cpu import SPECTRUM_BYTES
from benchmarks.inference import LABELS, paper_model
from benchmarks.scaling import MODEL
from benchmarks.training import (
    EPOCHS,
    STARS,
    prepare,
    published_step_of,
    random_survey,
    step_of,
)
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.mock.survey import MockSurvey
from stellarperceptron.evaluation.attention import decoder_attention
from stellarperceptron.instruments import APOGEE
from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.loop import PEAK_FLOPS
from stellarperceptron.training.prepare import TrainingData, prepare_training_data, usable_stars
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.stars.labelled import Stars
from stellarperceptron.training.tasks import train
from stellarperceptron.utils.distributed import Process


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Parameters
    ----------
    device, precision, compile
        Where and how the network runs.
    network
        Its sizes, where they are not the published ones.
    batches
        Stars of a training step, and of one in an epoch.
    published_batch
        Stars of a step in the published manner.
    epoch_stars, mock_stars
        Stars of the epoch, and how many different mock stars they repeat.
    predicted
        Stars of inference; a tenth of them for attention.
    repeats
        Counted repeats.
    ceilings
        Sizes of what is measured for the floors; see `ceilings`.
    """

    device: str = "cuda"
    precision: str = "bfloat16"
    compile: bool = True
    network: Mapping[str, int] = field(default_factory=dict)
    batches: tuple[int, ...] = (256, 1024)
    published_batch: int = 64
    epoch_stars: int = STARS
    mock_stars: int = 4096
    predicted: int = 10_000
    repeats: int = 3
    ceilings: Mapping[str, int] = field(default_factory=dict)


# Ways to take a step: options of the training. Those that need no compiler come first.
WAYS = {
    "eager": {"compile": False, "cuda_graphs": False},
    "graphs": {"compile": False, "cuda_graphs": True},
    "compiled": {"compile": True, "cuda_graphs": False},
    "compiled graphs": {"compile": True, "cuda_graphs": True},
}


# To try everything, also where there is no GPU.
SMALL = Sizes(
    device="cuda" if torch.cuda.is_available() else "cpu",
    precision="bfloat16" if torch.cuda.is_available() else "float32",
    compile=False,
    network={"context_length": 64, **MODEL},
    batches=(2,),
    published_batch=2,
    epoch_stars=6,
    mock_stars=6,
    predicted=1,
    repeats=1,
    ceilings={"repeats": 1, "size": 2**20, "rows": 256},
)


def peak() -> float | None:
    """Dense bfloat16 peak of the data sheet [FLOP/s]; None where it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((rate for key, rate in PEAK_FLOPS.items() if key in name), None)


def used(flop_per_star: float, seconds_per_star: float) -> float | None:
    """Model FLOP utilization."""
    return flop_per_star / seconds_per_star / peak() if peak() else None


def step_rows(sizes: Sizes, way: str) -> dict[str, Any]:
    """A training step on a batch that lies ready, at several batch sizes, in one of `WAYS`."""
    limits = ceilings(sizes.device, **sizes.ceilings)
    device, precision = torch.device(sizes.device), getattr(torch, sizes.precision)
    flux, labels = random_survey(max(sizes.batches))

    def step(batch_size: int, ours: bool = True):
        model = paper_model(device, **sizes.network)
        data = prepare(model, flux, labels)
        context = model.config.context_length
        generator = TrainingGenerator(data, np.arange(batch_size), batch_size, context)
        optimizer = torch.optim.AdamW(model.torch_model.parameters(), lr=1e-4, fused=ours or None)
        batch = next(iter(generator))
        if not ours:
            return synchronized(published_step_of(model, data, batch, optimizer))
        if WAYS[way]["compile"] and sizes.compile:
            model.torch_model.compile(dynamic=False)
        graphs = WAYS[way]["cuda_graphs"]
        return synchronized(step_of(model, data, batch, optimizer, precision, graphs))

    flop = paper_model(**sizes.network).flops_per_star(training=True)
    first, published = sizes.published_batch, None
    if way == "eager":
        times = measure_in_turn({"published": step(first, ours=False)}, sizes.repeats)
        published = times["published"]["wall_s"] / first
    rows = {}
    for batch_size in sizes.batches:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        function = step(batch_size)
        for _ in range(4):  # of which the last records the graph
            function()
        times = measure_in_turn({"ours": function}, 5 * sizes.repeats)
        ours = times["ours"]["wall_s"] / batch_size
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        rows[f"training step, paper's model, batch {batch_size}, {way}"] = row(
            ours,
            flop / limits["flop_per_s"],
            "9.3 GFLOP a star: three forward passes' products at context 512",
            published=published,
            published_manner=f"PyTorch's attention module with all weights, float32, batch {first}",
            clock="wall clock",
            mfu=used(flop, ours),
            memory_bytes=memory,
            batch=batch_size,
            way=way,
            ceilings=limits,
        )
    return rows


def batch_rows(sizes: Sizes) -> dict[str, Any]:
    """The making of batches."""
    limits, device = ceilings(sizes.device, **sizes.ceilings), torch.device(sizes.device)
    flux, labels = random_survey(max(sizes.batches))
    model = paper_model(device, **sizes.network)
    data, context = prepare(model, flux, labels), model.config.context_length
    generator = TrainingGenerator(data, np.arange(len(flux)), sizes.batches[-1], context)
    times = measure_in_turn({"ours": synchronized(lambda: list(generator))}, sizes.repeats)
    ours = times["ours"]["wall_s"] / len(flux)
    return {
        "batch making, 512 of 7,514 pixels": row(
            ours,
            SPECTRUM_BYTES / limits["bytes_per_s"],
            "copying a spectrum (30 kB)",
            published_manner="made on the CPU: see there",
            clock="wall clock",
            ceilings=limits,
        )
    }


def fastest_step(record: Path | None, sizes: Sizes) -> tuple[int, str]:
    """Batch and way of the fastest step in a record; the last ones without a record."""
    rows = {}
    if record is not None and record.exists():
        rows = json.loads(record.read_text(encoding="utf-8"))["results"]["rows"]
    steps = [line for line in rows.values() if "way" in line]
    if not steps:
        return sizes.batches[-1], list(WAYS)[-1]
    best = min(steps, key=lambda line: line["ours_s_per_star"])
    return best["batch"], best["way"]


def mock_data(model, sizes: Sizes) -> TrainingData:
    """The epoch's stars on the device in half precision: mock stars, repeated."""
    survey = MockSurvey(1)
    blocks = list(survey.blocks("train", sizes.mock_stars, workers=4))
    flux, labels, errors = (
        np.concatenate([block[name] for block in blocks])
        for name in ("synthetic", "labels", "label_errors")
    )
    names = APOGEE.pixel_names(APOGEE_WAVELENGTH)
    model.fit_standardization(flux, names)
    model.fit_standardization(labels, LABELS)
    which = np.arange(sizes.epoch_stars) % sizes.mock_stars
    stars = Stars(
        lambda block: flux[which[block]],
        names,
        APOGEE_WAVELENGTH,
        labels[which],
        errors[which],
        LABELS,
    )
    return prepare_training_data(model, stars, dtype=torch.float16)


def epoch_rows(sizes: Sizes, batch_size: int, way: str) -> dict[str, Any]:
    """Whole epochs as `tasks.train` takes them, batches and losses included."""
    limits = ceilings(sizes.device, **sizes.ceilings)
    model = paper_model(sizes.device, **sizes.network)
    data = mock_data(model, sizes)
    settings = {**WAYS[way], "compile": WAYS[way]["compile"] and sizes.compile}
    options = TrainingOptions(
        epochs=2, batch_size=batch_size, precision=sizes.precision, **settings
    )
    stars = usable_stars(data)
    process = Process(0, 1, torch.device(model.device))
    history = train(model, data, stars, stars[:0], options, process, progress=False)
    rate = history[-1]["stars_per_s"]  # the first one compiles
    flop = model.flops_per_star(training=True)
    return {
        f"epoch, paper's model, batch {batch_size}, {way}": row(
            1 / rate,
            flop / limits["flop_per_s"],
            "9.3 GFLOP a star: three forward passes' products at context 512",
            published_manner="not run here; 98 stars/s on an A100 were published",
            clock="wall clock",
            mfu=used(flop, 1 / rate),
            epoch_s=len(stars) / rate,
            minutes_for_325_epochs_of_92472_stars=EPOCHS * STARS / rate / 60,
            ceilings=limits,
        )
    }


def inference_rows(sizes: Sizes) -> dict[str, Any]:
    """Labels and attention of spectra of 3,757 pixels that lie in the host's memory."""
    limits = ceilings(sizes.device, **sizes.ceilings)
    model, wavelengths = paper_model(sizes.device, **sizes.network), APOGEE_WAVELENGTH[:3757]
    flux = random_survey(min(sizes.predicted, 1000))[0][:, :3757]
    spectra = np.resize(flux, (sizes.predicted, 3757))
    few = spectra[: max(1, sizes.predicted // 10)]
    flop = 8 * model.flops_per_star(labels=len(LABELS))
    times = measure_in_turn(
        {
            "inference": lambda: model.predict(
                spectra, wavelengths, LABELS, precision=sizes.precision, progress=False
            ),
            "compiled": lambda: model.predict(
                spectra,
                wavelengths,
                LABELS,
                precision=sizes.precision,
                compile=sizes.compile,
                progress=False,
            ),
            "attention": lambda: list(
                decoder_attention(model, few, wavelengths, LABELS, permutations=1)
            ),
        },
        sizes.repeats,
    )
    rest = {
        "published_manner": "measured on the CPU: see there",
        "clock": "wall clock",
        "ceilings": limits,
    }
    plain, compiled = (times[k]["wall_s"] / len(spectra) for k in ("inference", "compiled"))
    floor, about = flop / limits["flop_per_s"], "25.2 GFLOP a star: 8 contexts of 512"
    return {
        "inference, 3,757 pixels, 5 labels": row(
            plain, floor, about, mfu=used(flop, plain), **rest
        ),
        "inference, compiled": row(compiled, floor, about, mfu=used(flop, compiled), **rest),
        "attention extraction, 3,757 pixels, 5 labels (float32)": row(
            times["attention"]["wall_s"] / len(few), floor, about, **rest
        ),
    }


def suite(
    small: bool, fastest_of: Path | None = None
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names and functions of all benchmarks, in the order in which they run.

    The epoch is trained as the fastest step in the record `fastest_of` was, if there is one.
    """
    sizes = SMALL if small else Sizes()
    for way in WAYS:
        name = "step" if way == "eager" else "step-" + way.replace(" ", "-")
        yield name, partial(step_rows, sizes, way)
    yield "batches", lambda: batch_rows(sizes)
    yield "epoch", lambda: epoch_rows(sizes, *fastest_step(fastest_of, sizes))
    yield "inference", lambda: inference_rows(sizes)
