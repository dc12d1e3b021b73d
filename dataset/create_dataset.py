"""
Make a survey file from a copy of the DR17 archive: catalogue, cuts, split, spectra.

The copy, made by dataset/download_dr17.py, has the folders of the archive. The cuts on the
catalogue select candidates. Their aspcapStar files are read in parts of 1,024 stars, which are kept
beside the output until all are complete, so that an interrupted run can continue. Two more files
are written beside the survey file: rejected.csv lists the stars that were left out because of their
files, with reasons, and spectra_all_zeroes_flag.npy marks them. Each run overwrites both, so give
each survey its own folder.

    python dataset/create_dataset.py --local-sas ~/sas --output runs/dr17.h5

On a cluster, the tasks of a job array read the parts in parallel, and a last command merges them:

    python dataset/create_dataset.py --array-index $SLURM_ARRAY_TASK_ID --array-count 16
    python dataset/create_dataset.py --merge
"""

import argparse
import csv
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stellarperceptron.data.apogee.archive import Plan, merge_parts, read_parts, write_rejected
from stellarperceptron.data.apogee.continuum import VALID_FLUX
from stellarperceptron.data.apogee.dr17 import (
    CATALOGUE,
    FOLDER,
    PUBLISHED_STARS,
    SAS_VARIABLE,
    SPLIT_SEED,
    read_catalogue,
)
from stellarperceptron.data.apogee.selection import Cut, Selection, catalogue_cuts, cut_table
from stellarperceptron.utils.arguments import positive, run_script
from stellarperceptron.utils.data_utils import atomic_output, check_output_file
from stellarperceptron.utils.locks import FileLock


def arguments(command_line: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--local-sas",
        type=Path,
        default=os.environ.get(SAS_VARIABLE),
        help=f"folder of the copy, which holds dr17/ (default: ${SAS_VARIABLE})",
    )
    parser.add_argument(
        "--catalogue", type=Path, help=f"allStar file (default LOCAL_SAS/{CATALOGUE})"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/dr17.h5"),
        help="survey file to write (HDF5), 60 kB a star, 90 kB with --errors; while it is made "
        "twice that (default %(default)s)",
    )
    parser.add_argument(
        "--errors",
        action="store_true",
        help="keep the error spectra (HDU 2) as observed_errors",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        help="only so many candidates, the first in the catalogue (default: all)",
    )
    parser.add_argument(
        "--absent",
        type=Path,
        metavar="CSV",
        help="missing.csv of download_dr17.py: files that the archive itself does not have are cut "
        "before the split, as spectra of zeros are, instead of left out after it",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=4,
        help="files read at a time; more help on slow file systems, one is best where the files "
        "are in memory (default %(default)s)",
    )
    array = parser.add_argument_group("array of tasks")
    array.add_argument("--array-index", type=int, help="this task, 0 or more: reads its parts")
    array.add_argument("--array-count", type=positive, help="number of tasks")
    array.add_argument(
        "--merge", action="store_true", help="read no spectra, merge the parts that tasks made"
    )
    array.add_argument(
        "--keep-parts", action="store_true", help="do not remove the parts after merging"
    )
    options = parser.parse_args(command_line)
    if options.local_sas is None:
        parser.error(f"give --local-sas DIR, or set {SAS_VARIABLE}")
    options.local_sas = Path(options.local_sas).expanduser()
    try:
        check_output_file(options.output)
    except OSError as error:
        parser.error(f"--output: {error.strerror}")
    if (options.array_index is None) != (options.array_count is None):
        parser.error("--array-index and --array-count belong together")
    if options.array_index is not None:
        if options.merge:
            parser.error("--merge is a run of its own, after those with --array-index")
        if not 0 <= options.array_index < options.array_count:
            parser.error(
                f"--array-index {options.array_index} is not within 0 and "
                f"{options.array_count - 1}: number the tasks from 0"
            )
    if not options.merge and not (options.local_sas / FOLDER).is_dir():
        parser.error(
            f"{options.local_sas / FOLDER} is no folder: --local-sas must be the folder that holds "
            "dr17/; dataset/download_dr17.py fills it"
        )
    return options


def check_files(plan: Plan) -> None:
    """Check that files exist, for a hundred candidates spread over the catalogue."""
    some = np.unique(np.linspace(0, len(plan.stars) - 1, 100).astype(int))
    files = [file for file in plan.files(some) if isinstance(file, Path)]
    if not any(file.exists() for file in files):
        raise FileNotFoundError(
            f"of {len(some)} stars tried none has a file in {plan.sas / FOLDER}: fetch them with "
            "dataset/download_dr17.py"
        )


def check_room(plan: Plan, folder: Path) -> None:
    """Check that the disk has room for all parts and for the survey file."""
    there = sum(file.stat().st_size for file in plan.folder.glob("part_*.h5"))
    needed = 2 * plan.n_bytes - there
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed for parts "
            "and survey file: make room or choose another --output"
        )


def absent_files(path: Path | None) -> frozenset[str]:
    """Paths of files that the archive does not have, from the table of `download_dr17.py`."""
    if path is None:
        return frozenset()
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        if not {"file", "absent"} <= set(table.fieldnames or ()):
            raise ValueError(f"{path} lacks the columns file and absent of download_dr17.py")
        return frozenset(row["file"] for row in table if row["absent"] == "yes")


def write_zero_flags(path: Path, plan: Plan, selection: Selection, n_rows: int) -> None:
    """Write which rows of the catalogue (n_rows,) have no spectrum.

    Rows that the catalogue's cuts remove are not read and are False.
    """
    flags = np.zeros(n_rows, dtype=bool)
    flags[plan.stars.row[selection.no_spectrum]] = True
    with atomic_output(path) as temporary, open(temporary, "wb") as file:
        np.save(file, flags)


def report(n_rows: int, cuts: list[Cut], selection: Selection, folder: Path) -> None:
    """Print the table of cuts, the numbers of stars left, and a comparison with the paper."""
    print(cut_table(n_rows, [*cuts, *selection.cuts]))
    train, test = len(selection.train), len(selection.test)
    left_out = selection.selected - train - test
    print(f"left out after the split (no label, file missing or damaged): {left_out:,d}")
    print(f"training and test stars: {train:,d} + {test:,d}")
    if selection.reasons:
        print(f"{len(selection.reasons):,d} candidates are listed in {folder / 'rejected.csv'}")
    if n_rows == PUBLISHED_STARS["catalogue"] and selection.selected != PUBLISHED_STARS["selected"]:
        print(
            f"WARNING: the paper has {PUBLISHED_STARS['selected']:,d} stars before the split, here "
            f"are {selection.selected:,d}: the split is another one. Files that the archive does "
            "not have are told by --absent, and --limit changes the split."
        )


def create(options: argparse.Namespace) -> None:
    """Cut, read and merge, while no other run makes the same survey.

    The tasks of an array share the parts; a run that merges has them for itself.
    """
    output = options.output
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = output.with_name(f".{output.name}.parts.lock")
    with FileLock(lock, f"{output}, which is being made,", shared=options.array_index is not None):
        create_alone(options)


def create_alone(options: argparse.Namespace) -> None:
    """Cut, read, merge."""
    absent = absent_files(options.absent)
    catalogue = read_catalogue(options.catalogue or options.local_sas / CATALOGUE)
    candidates, cuts = catalogue_cuts(catalogue)
    n_rows = len(catalogue)
    del catalogue
    if not len(candidates):
        raise ValueError("no star is left after the cuts:\n" + cut_table(n_rows, cuts))
    if options.limit is not None and options.limit < len(candidates):
        cuts.append(Cut(f"--limit {options.limit}", len(candidates) - options.limit, options.limit))
        candidates = candidates[: options.limit]
    folder = options.output.with_name(options.output.name + ".parts")
    plan = Plan(candidates, options.local_sas, folder, options.errors)

    if not options.merge:
        check_files(plan)
        check_room(plan, options.output.parent)
        numbers = range(plan.n_parts)[options.array_index or 0 :: options.array_count or 1]
        stars = sum(plan.rows(number).stop - plan.rows(number).start for number in numbers)
        with tqdm(total=stars, unit=" stars", desc="reading", disable=None) as bar:
            read_parts(plan, numbers, options.workers, bar.update)
    if options.array_index is not None:
        print(f"{len(numbers)} of {plan.n_parts} parts are in {folder}; merge with --merge")
        return

    provenance = {
        "generator": "create_dataset.py",
        "version": version("stellarperceptron"),
        "arguments": {
            "limit": options.limit,
            "errors": options.errors,
            "absent_files": len(absent),
        },
        "catalogue": {"rows": n_rows, "candidates": plan.fingerprint},
        "cuts": [[cut.name, cut.removed, cut.left] for cut in cuts],
        "valid_flux": VALID_FLUX,
        "seed": SPLIT_SEED,
    }
    with tqdm(unit=" stars", desc="merging", disable=None) as bar:
        selection = merge_parts(plan, options.output, provenance, absent, bar.update)
    beside = options.output.parent
    write_rejected(beside / "rejected.csv", plan, selection)
    write_zero_flags(beside / "spectra_all_zeroes_flag.npy", plan, selection, n_rows)
    report(n_rows, cuts, selection, beside)
    print(f"{options.output}: {options.output.stat().st_size / 1e9:.2f} GB")
    if not options.keep_parts:
        shutil.rmtree(folder)


def main(command_line: list[str] | None = None) -> None:
    """Make the survey; print errors without a traceback."""
    options = arguments(command_line)
    try:
        create(options)
    except (OSError, ValueError) as error:
        sys.exit(f"create_dataset.py: {error}")


if __name__ == "__main__":
    run_script(main)
