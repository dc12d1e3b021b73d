"""Catalogues of any number of files, made in parts that can be interrupted and run in parallel.

A part holds `PART_FILES` files in the order given. Any number of processes on any number of
machines may make parts in one folder; parts that exist are not made again unless their files have
changed. The catalogue does not depend on who made which part.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table, vstack

from stellarperceptron.evaluation.catalogue.files import read_all
from stellarperceptron.evaluation.catalogue.table import (
    catalogue_table,
    errors_of,
    predict_labels,
)
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.model import StellarPerceptron
from stellarperceptron.utils.data_utils import atomic_output, written_by

__all__ = ["PART_FILES", "Failure", "Plan", "make_parts", "merge_parts"]

PART_FILES = 256
"""Files in a part: 60 MB of spectra, read in seconds."""

Failure = tuple[str, str]
"""A file that could not be used, and why."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Which files to read, what to ask, and where the parts are.

    Attributes
    ----------
    files : list of Path
    pixels : slice
        Those that the model sees.
    labels : tuple of str
    shuffles : int
        See `predict_labels`.
    checkpoint : str
        Checksum of the model's weights.
    folder : Path
        Where the parts are.
    instrument : Instrument
        Whose spectra are read.
    template : (P,) or None
        Spectrum to measure velocities with; see `read_normalized`.
    errors : bool
        Hand the files' errors to the model.
    about : dict of str to str
        What the catalogue's header says of the model.
    """

    files: list[Path]
    pixels: slice
    labels: tuple[str, ...]
    shuffles: int
    checkpoint: str
    folder: Path
    instrument: Instrument = APOGEE
    template: np.ndarray | None = None
    errors: bool = True
    about: dict[str, str] = field(default_factory=dict)

    @property
    def n_parts(self) -> int:
        """Number of parts; one even if there are no files."""
        return max(1, -(-len(self.files) // PART_FILES))

    def path(self, number: int) -> Path:
        """File of a part."""
        return self.folder / f"part_{number:06d}.ecsv"

    def files_of(self, number: int) -> list[Path]:
        """Files that a part is made from."""
        return self.files[number * PART_FILES : (number + 1) * PART_FILES]

    def settings(self, number: int) -> str:
        """Digest of the files of a part and of what is asked."""
        asked = [self.pixels.start, self.pixels.stop, self.labels, self.shuffles, self.checkpoint]
        asked.append(self.errors)
        text = json.dumps([asked, [str(path) for path in self.files_of(number)]])
        return hashlib.sha256(text.encode()).hexdigest()

    def state(self, number: int) -> str:
        """Digest of sizes and times of the files of a part."""
        digest = hashlib.sha256()
        for path in self.files_of(number):
            try:
                status = path.stat()
            except OSError:
                digest.update(b"-")
            else:
                digest.update(f"{status.st_size}:{status.st_mtime_ns};".encode())
        return digest.hexdigest()

    def read(self, number: int) -> Table | None:
        """A part that was made with these files and settings; None where there is none."""
        try:
            part = Table.read(self.path(number), format="ascii.ecsv")
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file may raise anything
            path = self.path(number)
            raise ValueError(f"{path} is damaged ({error}): remove it and run again") from error
        return part if part.meta.get("settings") == self.settings(number) else None

    def is_made(self, number: int) -> bool:
        """Whether a part is there and its files have not changed since."""
        part = self.read(number)
        return part is not None and part.meta.get("state") == self.state(number)


def make_parts(
    plan: Plan,
    numbers: Iterable[int],
    model: StellarPerceptron,
    workers: int = 1,
    progress: Callable[[int], Any] = lambda files: None,
) -> None:
    """Make those parts that are missing.

    The next part is read while the model answers for one. Several workers are processes where
    there are many files, since most of the time of a file goes into Python code.

    Parameters
    ----------
    plan, numbers
        The parts.
    model
        The model.
    workers
        Files read at a time.
    progress
        Called with the number of files that are done.
    """
    waiting = []
    for number in numbers:
        if plan.is_made(number):
            progress(len(plan.files_of(number)))
        else:
            waiting.append(number)
    with _pool(workers, len(waiting)) as pool:
        try:
            upcoming = None
            for number in [*waiting, None]:
                previous, upcoming = upcoming, None
                if number is not None:
                    files = plan.files_of(number)
                    state = plan.state(number)  # before reading: what changes meanwhile is seen
                    readings = read_all(files, plan.pixels, pool, plan.instrument, plan.template)
                    upcoming = number, state, readings
                if previous:
                    _make_part(plan, model, *previous)
                    progress(len(plan.files_of(previous[0])))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _pool(workers: int, parts: int) -> Executor:
    if workers == 1 or parts < 2:
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _make_part(plan: Plan, model: StellarPerceptron, number: int, state: str, readings) -> None:
    """Ask the model for the labels of a part's files, and write them."""
    done, failures = [], []
    for path, reading in readings:
        if isinstance(reading, str):
            failures.append([str(path), reading])
        else:
            done.append((path, reading))
    files, spectra = [path for path, _ in done], [reading for _, reading in done]
    flux = [flux for _, flux in spectra]
    errors = errors_of(spectra) if plan.errors else None
    predicted = predict_labels(model, flux, plan.pixels, plan.labels, plan.shuffles, errors)
    part = catalogue_table(files, spectra, predicted, plan.pixels, plan.checkpoint, errors)
    part.meta = {"settings": plan.settings(number), "state": state, "failures": failures}
    with atomic_output(plan.path(number)) as temporary:
        part.write(temporary, format="ascii.ecsv")


def merge_parts(plan: Plan) -> tuple[Table, list[Failure]]:
    """Join all parts: the catalogue, and the files that could not be used.

    Raises
    ------
    FileNotFoundError
        Parts are missing, or were made with other files or settings; the message says which.
    ValueError
        A part is damaged.
    """
    parts = [plan.read(number) for number in range(plan.n_parts)]
    missing = [number for number, part in enumerate(parts) if part is None]
    if missing:
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise FileNotFoundError(
            f"{len(missing)} of {plan.n_parts} parts for these files and options are not in "
            f"{plan.folder} ({some}): run the array tasks that make them, with the same arguments"
        )
    failures = [tuple(failure) for part in parts for failure in part.meta["failures"]]
    # An empty part does not know how long texts are, or would make numbers of them.
    filled = [part for part in parts if len(part)] or parts[:1]
    catalogue = vstack(filled, metadata_conflicts="silent")
    origin = {key.upper(): value for key, value in written_by().items()}
    catalogue.meta = {"WEIGHTS": plan.checkpoint, **origin, **plan.about}
    return catalogue, failures
