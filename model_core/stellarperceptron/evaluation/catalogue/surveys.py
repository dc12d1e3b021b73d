"""The parts of the command that make mock surveys and describe surveys."""

import argparse
from pathlib import Path

from stellarperceptron.labels import ALL_LABELS, PUBLISHED_LABELS, label, resolve_label_names
from stellarperceptron.utils.arguments import cores, number, positive

__all__ = ["SURVEY_SUFFIXES", "describe_survey_file", "make_survey", "survey_arguments"]

SURVEY_SUFFIXES = (".h5", ".hdf5")
"""Endings of a survey file's name."""

SEEDS = 10**13  # a name, mock-SEED-train-0000000, has room for 32 letters


def _seed(text: str) -> int:
    """A seed: a whole number that is not negative and leaves a star's name short enough."""
    value = number(text, int)
    if not 0 <= value < SEEDS:
        raise argparse.ArgumentTypeError(f"{value} is not within 0 and {SEEDS - 1}")
    return value


def survey_arguments(parser: argparse.ArgumentParser, output: Path | None = None) -> None:
    """Add the options of a mock survey; `output` is the default of that option."""
    for name, kind, default, what in (
        ("--stars", positive, 102_747, "training stars"),
        ("--test-stars", positive, 25_681, "test stars"),
        ("--seed", _seed, 1, "of everything, 0 or more"),
        ("--workers", positive, min(4, cores()), "threads"),
    ):
        parser.add_argument(name, type=kind, default=default, help=what)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=output,
        required=output is None,
        help="HDF5 file to write, 90 kB a star of APOGEE's",
    )
    parser.add_argument(
        "--instrument",
        default="APOGEE",
        help="who observes the stars: APOGEE, GALAH, GAIA_RVS, LOW_RESOLUTION, MOONS_H, IGRINS_H; "
        "the same seed and number give the same star",
    )
    parser.add_argument(
        "--emulators",
        type=Path,
        metavar="FILE",
        help="emulators of the instrument's wavelengths, if not those that are known",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        default=PUBLISHED_LABELS,
        help=f"labels of the catalogue, of {', '.join(ALL_LABELS)}, or all",
    )


def make_survey(options: argparse.Namespace) -> None:
    """Make a mock survey and say how long it took."""
    import time

    import torch

    from stellarperceptron.data.mock.survey import create_survey
    from stellarperceptron.data.survey_file import FORMAT_VERSION
    from stellarperceptron.instruments import instrument
    from stellarperceptron.utils.data_utils import check_output_file

    observer = instrument(options.instrument)
    torch.set_num_threads(1)  # blocks of stars share the cores
    begin = time.time()
    options.output = options.output.expanduser()
    check_output_file(options.output)
    if options.output.suffix not in SURVEY_SUFFIXES:
        raise ValueError(f"--output {options.output} must end in .h5 or .hdf5")
    counts = create_survey(
        options.output,
        options.stars,
        options.test_stars,
        options.seed,
        resolve_label_names(options.labels, ALL_LABELS),
        options.workers,
        getattr(options, "format_version", FORMAT_VERSION),
        observer,
        options.emulators,
    )
    size = options.output.stat().st_size / 1e9
    asked, stars = options.stars + options.test_stars, sum(counts.values())
    part = "" if stars == asked else f" of {asked}, those within {observer.name}'s emulators"
    print(f"{options.output}: {stars} stars{part}, {size:.2f} GB, {time.time() - begin:.0f} s")


def describe_survey_file(path: Path) -> None:
    """Print what a survey file holds."""
    from stellarperceptron.data.dataset import SpectraDataset

    with SpectraDataset.open(path) as dataset:
        made = dataset.provenance
        seed = f", seed {made['seed']}" if "seed" in made else ""
        print(f"{path}: {dataset.instrument}")
        print(f"    stars: {len(dataset.train):,} for training, {len(dataset.test):,} for tests")
        errors = " with errors" if dataset.train.has_errors else ""
        print(f"    spectra: {', '.join(dataset.train.kinds)}{errors}")
        print(f"    labels: {', '.join(label(name).heading for name in dataset.label_names)}")
        program = made.get("generator", "an unknown program")
        print(f"    made by: {program} {made.get('version', '')}{seed}")
