"""
Make a mock APOGEE survey: synthetic and observed spectra, labels and their errors, in one file.

Two emulators in the package make the spectra: "nominal", with a line list from the literature,
makes the synthetic ones, and "nature", with a line list calibrated to the survey, makes the
observed ones (dataset/mock_survey/README.md). The file gets its final name when it is complete. A
seed gives the same stars whatever their number, and with the same arguments the same bytes.

    python dataset/create_mock_survey.py --stars 102747 --test-stars 25681 --output runs/mock.h5

The catalogue holds the five labels of the published models, or those that --labels names, in that
order. Labels and observed spectra of a star do not depend on what else the catalogue holds.

    python dataset/create_mock_survey.py --labels TEFF LOGG FE_H C_FE --output runs/carbon.h5
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from stellarperceptron.data.dataset import SurveyWriter
from stellarperceptron.data.mock.survey import MockSurvey
from stellarperceptron.data.survey_file import FORMAT_VERSION
from stellarperceptron.labels import ALL_LABELS, PUBLISHED_LABELS, resolve_label_names
from stellarperceptron.utils.data_utils import check_output_file

SEEDS = 10**13  # a name, mock-SEED-train-0000000, has room for 32 letters


def positive(text: str) -> int:
    """A whole number of stars above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def seed(text: str) -> int:
    """A seed: a whole number that is not negative and leaves a star's name short enough."""
    value = int(text)
    if not 0 <= value < SEEDS:
        raise argparse.ArgumentTypeError(f"{value} is not within 0 and {SEEDS - 1}")
    return value


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    default = min(cores or 1, 4)
    parser.add_argument(
        "--stars", type=positive, default=102_747, help="training stars (default %(default)s)"
    )
    parser.add_argument(
        "--test-stars", type=positive, default=25_681, help="test stars (default %(default)s)"
    )
    parser.add_argument(
        "--seed", type=seed, default=1, help="of everything, 0 or more (default %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/mock_survey.h5"),
        help="HDF5 file to write, 60 kB a star (default %(default)s)",
    )
    parser.add_argument(
        "--workers", type=positive, default=default, help="threads (default here %(default)s)"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        default=PUBLISHED_LABELS,
        help=f"labels of the catalogue, of {', '.join(ALL_LABELS)}, or all (default "
        f"{' '.join(PUBLISHED_LABELS)})",
    )
    parser.add_argument(
        "--format-version",
        type=int,
        choices=(1, FORMAT_VERSION),
        default=FORMAT_VERSION,
        help="of the file's layout: 1 as written by version 0.1 (default %(default)s)",
    )
    options = parser.parse_args()
    try:
        options.labels = resolve_label_names(options.labels, ALL_LABELS)
    except ValueError as error:
        parser.error(f"--labels: {error}")
    return options


def main() -> None:
    """Make the survey."""
    args = arguments()
    torch.set_num_threads(1)  # blocks of stars share the cores
    begin = time.perf_counter()
    counts = {"train": args.stars, "test": args.test_stars}
    try:
        check_output_file(args.output)
        survey = MockSurvey(args.seed, label_names=args.labels)
        chosen = {} if args.labels == PUBLISHED_LABELS else {"labels": args.labels}
        provenance = {
            "generator": "create_mock_survey.py",
            "arguments": {"stars": args.stars, "test_stars": args.test_stars, **chosen},
            "seed": args.seed,
            **survey.provenance(),
        }
        with (
            SurveyWriter(
                args.output,
                counts=counts,
                provenance=provenance,
                label_names=args.labels,
                true_labels=True,
                format_version=args.format_version,
            ) as writer,
            tqdm(total=sum(counts.values()), unit=" stars", disable=None) as bar,
        ):
            for split, stars in counts.items():
                for block in survey.blocks(split, stars, args.workers):
                    writer.append(split, **block)
                    bar.update(len(block["ids"]))
    except (OSError, ValueError) as error:
        sys.exit(f"create_mock_survey.py: {error}")
    seconds = time.perf_counter() - begin
    size = args.output.stat().st_size / 1e9
    print(f"{args.output}: {sum(counts.values())} stars, {size:.2f} GB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
