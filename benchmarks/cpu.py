"""The benchmarks of one CPU core: rows of seconds a star, beside the published manner and floors.

The floor is the published arithmetic over the best rate of a large matrix product, or the bytes
that have to be moved at least over the rate of a large copy, both measured on the same machine just
before.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tests.dr17_files import write_archive

from benchmarks import inference, reading, scaling, training
from benchmarks.common import ceilings, measure_in_turn, row
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock.survey import MockSurvey
from stellarperceptron.data.survey_file import SurveyWriter
from stellarperceptron.evaluation.attention import decoder_attention
from stellarperceptron.network.config import PRECISIONS
from stellarperceptron.network.kernels.memory import freed_memory_kept
from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.prepare import fit_standardization, usable_stars
from stellarperceptron.training.profiles import read_profile
from stellarperceptron.training.stages import new_model, place_stars, read_stars, split_rows
from stellarperceptron.training.tasks import train
from stellarperceptron.utils.distributed import Process

PROFILES = Path(__file__).resolve().parents[1] / "training" / "profiles"
SPECTRUM_BYTES = 4 * len(APOGEE_WAVELENGTH)  # in float32


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Parameters
    ----------
    stars
        Of the surveys for batches, preparation, the epoch and reading.
    batch
        Of a training step with the paper's model.
    predicted
        Stars of inference and attention.
    files
        Of the archive that is read.
    repeats
        Counted repeats.
    grown
        Sizes of `scaling.measure`.
    """

    stars: int = 2000
    batch: int = 64
    predicted: int = 8
    files: int = 1000
    repeats: int = 3
    grown: scaling.Sizes = field(default_factory=scaling.Sizes)


SMALL = Sizes(
    stars=100, batch=2, predicted=1, files=300, repeats=1, grown=scaling.SMALL
)  # to try everything, not to measure


def training_rows(sizes: Sizes) -> dict[str, Any]:
    """A step, its batches, and preparation: `benchmarks.training`."""
    limits = ceilings()
    result = training.measure_cpu(
        Namespace(stars=sizes.stars, repeats=sizes.repeats, batch_size=sizes.batch)
    )
    seconds = {name: times["cpu_s"] for name, times in result["seconds"].items()}
    # Whole rows have to be read, since any pixel may be bad or chosen.
    moved = SPECTRUM_BYTES / limits["bytes_per_s"]
    return {
        "training step, paper's model": row(
            seconds["our step"] / sizes.batch,
            result["gflop_per_step"] * 1e9 / sizes.batch / limits["flop_per_s"],
            "9.3 GFLOP a star: three forward passes' products at context 512",
            published=seconds["published step"] / sizes.batch,
            published_manner="PyTorch's attention module with all weights, one label a star",
            batch_size=sizes.batch,
            ceilings=limits,
            measured=result,
        ),
        "batch making, 512 of 7,514 pixels": row(
            seconds["our batches"] / sizes.stars,
            moved,
            "copying a spectrum (30 kB)",
            published=seconds["published batches"] / sizes.stars,
            published_manner="deep copies, a shuffle a star, argsorts of whole rows",
            ceilings=limits,
        ),
        "preparation, medians fitted": row(
            result["preparation_with_fitted_standardization_s"] / sizes.stars,
            moved,
            "copying a spectrum (30 kB)",
            published_manner="not written again; 155 s for 2,000 stars were reported of it",
            ceilings=limits,
        ),
    }


def inference_rows(sizes: Sizes) -> dict[str, Any]:
    """Labels of spectra of 3,757 pixels: `benchmarks.inference`."""
    limits = ceilings()
    result = inference.measure(Namespace(stars=sizes.predicted, pixels=3757, repeats=sizes.repeats))
    seconds = {name: times["cpu_s"] for name, times in result["seconds_per_star"].items()}
    return {
        "inference, 3,757 pixels, 5 labels": row(
            seconds["ours"],
            result["gflop_per_star"] * 1e9 / limits["flop_per_s"],
            "25.2 GFLOP a star: 8 contexts of 512",
            published=seconds["published manner"],
            published_manner="one star, one patch and one label at a time, all attention weights",
            ceilings=limits,
            measured=result,
        )
    }


def attention_rows(sizes: Sizes) -> dict[str, Any]:
    """Attention of five labels on all tokens, one permutation of the pixels."""
    limits = ceilings()
    model, wavelengths = inference.paper_model(), APOGEE_WAVELENGTH[:3757]
    spectra = training.random_survey(sizes.predicted)[0][:, :3757]
    filled = np.nan_to_num(spectra, nan=0.95)
    labels = inference.LABELS
    times = measure_in_turn(
        {
            "ours": lambda: list(
                decoder_attention(model, spectra, wavelengths, labels, permutations=1)
            ),
            # Its blocks give their weights whether asked or not.
            "published": lambda: inference.published_manner(model, filled, wavelengths),
        },
        sizes.repeats,
    )
    flop = 8 * model.flops_per_star(labels=len(labels))
    return {
        "attention extraction, 3,757 pixels, 5 labels": row(
            times["ours"]["cpu_s"] / sizes.predicted,
            flop / limits["flop_per_s"],
            "25.2 GFLOP a star, as inference",
            published=times["published"]["cpu_s"] / sizes.predicted,
            published_manner="one star at a time; ours gives two more measures along",
            ceilings=limits,
        )
    }


def epoch_from(survey: Path, sizes: Sizes, limits: dict[str, float]) -> dict[str, Any]:
    """Epochs of the laptop profile's stage 1 as it trains, without checkpoints."""
    profile = read_profile(
        PROFILES / "laptop.toml",
        "stage_1",
        [f"training.epochs={sizes.repeats + 1}", "data.validation_split=0"],
    )
    with SpectraDataset.open(survey) as dataset:
        model = new_model(dataset, profile, "cpu")
        stars = read_stars(dataset, profile)
        fit_standardization(model, stars)
        data = place_stars(model, dataset, stars, profile)
        rows, _ = split_rows(dataset, profile)
    rows = rows[np.isin(rows, usable_stars(data))]
    history = train(
        model,
        data,
        rows,
        rows[:0],
        profile.training,
        Process(0, 1, model.device),
        scheduler=lambda optimizer, steps: profile.schedule.make(
            optimizer, steps, profile.training.epochs
        ),
        progress=False,
    )
    rate = median(epoch["stars_per_s"] for epoch in history[1:])  # the first one warms up
    flop = model.flops_per_star(labels=len(profile.data.labels), training=True)
    return row(
        1 / rate,
        flop / limits["flop_per_s"],
        f"{flop / 1e9:.2g} GFLOP a star of the network; fresh noise on every draw comes on top",
        published_manner="none: bins of 128 pixels, all in one context",
        clock="wall clock",
        stars=len(rows),
        ceilings=limits,
    )


def survey_rows(sizes: Sizes) -> dict[str, Any]:
    """A mock survey is written, read, and trained on for a few epochs."""
    limits = ceilings()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "survey.h5"

        def create():
            survey = MockSurvey(1)
            counts = {"train": sizes.stars, "test": 1}
            with SurveyWriter(
                path,
                counts=counts,
                provenance=survey.provenance(),
                true_labels=True,
                errors=True,
            ) as writer:
                for split, stars in counts.items():
                    for block in survey.blocks(split, stars):
                        writer.append(split, **block)

        def read():
            with SpectraDataset.open(path) as dataset:
                dataset.train.read("synthetic")
                dataset.train.read("observed")

        times = measure_in_turn({"create": create, "read": read}, sizes.repeats)
        blocks = 1024 * (-(-sizes.stars // 1024) + 1)  # blocks of stars are always made whole
        moved = 2 * SPECTRUM_BYTES / limits["bytes_per_s"]
        return {
            "survey creation": row(
                times["create"]["wall_s"] / blocks,
                1.5 * moved,
                "copying spectra and errors (90 kB)",
                published_manner="none: the published work had no mock survey",
                clock="wall clock",
                ceilings=limits,
            ),
            "dataset reading, survey file": row(
                times["read"]["wall_s"] / sizes.stars,
                moved,
                "copying both spectra (60 kB)",
                published_manner="none: arrays were loaded whole",
                clock="wall clock, file in the system's cache",
                ceilings=limits,
            ),
            "epoch, laptop profile": epoch_from(path, sizes, limits),
        }


def archive_rows(sizes: Sizes) -> dict[str, Any]:
    """Spectra read from an archive's files: `benchmarks.reading` has more of it."""
    limits = ceilings()
    with tempfile.TemporaryDirectory() as folder:
        made = write_archive(Path(folder), sizes.files, keep_spectra=False)
        good = [path for path, fate in zip(made.paths, made.fate, strict=True) if fate == "good"]
        paths = [Path(folder) / path for path in good]
        times = measure_in_turn(
            {
                "ours": lambda: reading.ours(paths, 8),
                "published": lambda: reading.published_loop(paths),
            },
            sizes.repeats,
        )
        size = sum(path.stat().st_size for path in paths) / len(paths)
    return {
        "dataset reading, archive's files": row(
            times["ours"]["wall_s"] / len(paths),
            size / limits["bytes_per_s"],
            f"copying a file ({size / 1e3:.0f} kB)",
            published=times["published"]["wall_s"] / len(paths),
            published_manner="astropy, one file after the other",
            clock="wall clock, 8 threads, files in the system's cache",
            ceilings=limits,
        )
    }


def option_rows(sizes: Sizes) -> dict[str, Any]:
    """The same work with one and two threads, in float32 and bfloat16."""
    stars, few = max(2, sizes.batch // 8), max(2, sizes.predicted // 4)
    flux, labels = training.random_survey(stars)
    model, other = inference.paper_model(), inference.paper_model()
    data = training.prepare(model, flux, labels)
    batch = next(iter(TrainingGenerator(data, np.arange(stars), stars, 512)))
    optimizer = torch.optim.AdamW(model.torch_model.parameters(), lr=1e-4, fused=True)
    wavelengths = APOGEE_WAVELENGTH[:3757]

    def work(threads: int, precision: str) -> dict[str, Callable[[], Any]]:
        step = training.step_of(model, data, batch, optimizer, PRECISIONS[precision])

        def with_threads(function: Callable[[], Any]) -> Callable[[], None]:
            def call():
                torch.set_num_threads(threads)
                function()

            return call

        return {
            "training step": with_threads(step),
            "inference": with_threads(
                lambda: other.predict(
                    flux[:few, :3757],
                    wavelengths,
                    inference.LABELS,
                    precision=precision,
                    progress=False,
                )
            ),
        }

    options = [(n, kind) for n in (1, 2) for kind in ("float32", "bfloat16")]
    before = torch.get_num_threads()
    try:
        with freed_memory_kept():
            times = measure_in_turn(
                {
                    (*option, name): function
                    for option in options
                    for name, function in work(*option).items()
                },
                sizes.repeats,
            )
    finally:
        torch.set_num_threads(before)
    per_star = {"training step": stars, "inference": few}
    return {
        "options": [
            {
                "threads": threads,
                "precision": precision,
                "work": f"{name}, {per_star[name]} stars",
                "s_per_star": seconds["wall_s"] / per_star[name],
            }
            for (threads, precision, name), seconds in times.items()
        ]
    }


def suite(small: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names and functions of all benchmarks, in the order in which they run."""
    sizes = SMALL if small else Sizes()
    yield "training", lambda: training_rows(sizes)
    yield "inference", lambda: inference_rows(sizes)
    yield "attention", lambda: attention_rows(sizes)
    yield "survey", lambda: survey_rows(sizes)
    yield "archive", lambda: archive_rows(sizes)
    yield "options", lambda: option_rows(sizes)
    yield "scaling", lambda: {"scaling": scaling.measure(sizes.grown)}
