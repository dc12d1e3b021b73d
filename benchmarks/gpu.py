"""The benchmarks of one GPU: the paper's model in bfloat16, beside the published manner and floors.

The floor is the published arithmetic over the rate of a large bfloat16 product, or the bytes that
have to be moved at least over the rate of a large copy in the GPU's memory. The published manner is
measured in float32 with the published batch of 64.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.common import ceilings, measure_in_turn, row, synchronized
from benchmarks.cpu import SPECTRUM_BYTES
from benchmarks.inference import LABELS, paper_model
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
from stellarperceptron.training.prepare import (
    Stars,
    TrainingData,
    prepare_training_data,
    usable_stars,
)
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.tasks import train
from stellarperceptron.utils.distributed import Process


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Parameters
    ----------
    device, precision, compile
        Where and how the network runs.
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
    """

    device: str = "cuda"
    precision: str = "bfloat16"
    compile: bool = True
    batches: tuple[int, ...] = (256, 1024)
    published_batch: int = 64
    epoch_stars: int = STARS
    mock_stars: int = 4096
    predicted: int = 10_000
    repeats: int = 3


# To try everything, also where there is no GPU.
SMALL = Sizes(
    device="cuda" if torch.cuda.is_available() else "cpu",
    compile=False,
    batches=(2,),
    published_batch=2,
    epoch_stars=6,
    mock_stars=6,
    predicted=1,
    repeats=1,
)


def peak() -> float | None:
    """Dense bfloat16 peak of the data sheet [FLOP/s]; None where it is not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((rate for key, rate in PEAK_FLOPS.items() if key in name), None)


def used(flop_per_star: float, seconds_per_star: float) -> float | None:
    """Model FLOP utilization."""
    return flop_per_star / seconds_per_star / peak() if peak() else None


def step_rows(sizes: Sizes) -> dict[str, Any]:
    """A training step on a batch that lies ready, at several batch sizes, and the making of it."""
    limits = ceilings(sizes.device)
    device, precision = torch.device(sizes.device), getattr(torch, sizes.precision)
    flux, labels = random_survey(max(sizes.batches))

    def step(batch_size: int, ours: bool):
        model = paper_model(device)
        data = prepare(model, flux, labels)
        generator = TrainingGenerator(data, np.arange(batch_size), batch_size, 512)
        optimizer = torch.optim.AdamW(model.torch_model.parameters(), lr=1e-4, fused=ours or None)
        batch = next(iter(generator))
        if not ours:
            return synchronized(published_step_of(model, data, batch, optimizer))
        if sizes.compile:
            model.torch_model.compile(dynamic=False)
        return synchronized(step_of(model, data, batch, optimizer, precision))

    flop = paper_model().flops_per_star(training=True)
    first = sizes.published_batch
    times = measure_in_turn({"published": step(first, False)}, sizes.repeats)
    published = times["published"]["wall_s"] / first
    rows = {}
    for batch_size in sizes.batches:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        times = measure_in_turn({"ours": step(batch_size, True)}, 5 * sizes.repeats)
        ours = times["ours"]["wall_s"] / batch_size
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        rows[f"training step, paper's model, batch {batch_size}"] = row(
            ours,
            flop / limits["flop_per_s"],
            "9.3 GFLOP a star: three forward passes' products at context 512",
            published=published,
            published_manner=f"PyTorch's attention module with all weights, float32, batch {first}",
            clock="wall clock",
            mfu=used(flop, ours),
            memory_bytes=memory,
            ceilings=limits,
        )

    data = prepare(paper_model(device), flux, labels)
    generator = TrainingGenerator(data, np.arange(len(flux)), sizes.batches[-1], 512)
    times = measure_in_turn({"ours": synchronized(lambda: list(generator))}, sizes.repeats)
    rows["batch making, 512 of 7,514 pixels"] = row(
        times["ours"]["wall_s"] / len(flux),
        SPECTRUM_BYTES / limits["bytes_per_s"],
        "copying a spectrum (30 kB)",
        published_manner="made on the CPU: see there",
        clock="wall clock",
        ceilings=limits,
    )
    return rows


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


def epoch_rows(sizes: Sizes) -> dict[str, Any]:
    """Whole epochs as `tasks.train` takes them, batches and losses included."""
    limits = ceilings(sizes.device)
    rows = {}
    for batch_size in sizes.batches:
        model = paper_model(sizes.device)
        data = mock_data(model, sizes)
        options = TrainingOptions(
            epochs=3, batch_size=batch_size, precision=sizes.precision, compile=sizes.compile
        )
        stars = usable_stars(data)
        history = train(
            model,
            data,
            stars,
            stars[:0],
            options,
            Process(0, 1, torch.device(model.device)),
            progress=False,
        )
        rate = max(epoch["stars_per_s"] for epoch in history[1:])  # the first one compiles
        flop = model.flops_per_star(training=True)
        rows[f"epoch, paper's model, batch {batch_size}"] = row(
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
    return rows


def inference_rows(sizes: Sizes) -> dict[str, Any]:
    """Labels and attention of spectra of 3,757 pixels that lie in the host's memory."""
    limits = ceilings(sizes.device)
    model, wavelengths = paper_model(sizes.device), APOGEE_WAVELENGTH[:3757]
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


def suite(small: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names and functions of all benchmarks, in the order in which they run."""
    sizes = SMALL if small else Sizes()
    yield "step", lambda: step_rows(sizes)
    yield "epoch", lambda: epoch_rows(sizes)
    yield "inference", lambda: inference_rows(sizes)
