"""Read the spectra of many stars from a copy of the archive, in parts that can run in parallel.

A part holds `PART_STARS` candidates in the order of the catalogue. Any number of processes on any
number of machines may write parts to one folder; existing parts are not made again. `merge_parts`
turns them into a survey file. The parts do not depend on the number of processes.
"""

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from stellarperceptron.data.apogee.aspcap_files import ASPCAP_KINDS, clean_flux, read_aspcap
from stellarperceptron.data.apogee.continuum import VALID_FLUX
from stellarperceptron.data.apogee.dr17 import Catalogue, aspcap_path
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.apogee.selection import ALL_ZERO, MISSING, Selection, select
from stellarperceptron.data.sources import own_dataset
from stellarperceptron.data.survey_file import ERRORS, KINDS, SurveyWriter
from stellarperceptron.utils.data_utils import atomic_output, plain_text, room_to_close

__all__ = [
    "PART_STARS",
    "Plan",
    "Star",
    "merge_parts",
    "read_parts",
    "read_star",
    "write_rejected",
]

PART_STARS = 1024
"""Stars in a part: 61 MB with two spectra each, read in a second from a local disk."""

_MERGE_STARS = 4096  # stars in memory while parts are merged: 250 MB, 370 MB with errors


class Star(NamedTuple):
    """Spectra of a star, or the reason why it has none.

    Attributes
    ----------
    spectra : (3, 7514) float32 or None
        In the order of `ASPCAP_KINDS`; NaN where the normalized flux is not a measurement; None if
        the star has no spectrum.
    reason : str
        Why the star has no spectrum; empty if it has one.
    file_state : str
        Length and modification time of a bad file, which show whether to read it again.
    """

    spectra: np.ndarray | None
    reason: str = ""
    file_state: str = ""


def _file_state(path: Path) -> str:
    """Length and time of change of a file; empty when there is none."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


def read_star(path: Path | str) -> Star:
    """Read an aspcapStar file; errors are returned as the reason.

    Instead of a path, `path` may be a text with the reason why the star has no file.
    """
    if isinstance(path, str):
        return Star(None, path)
    try:
        spectra = read_aspcap(path)
    except FileNotFoundError:
        return Star(None, MISSING)
    except ValueError as error:
        return Star(None, f"the file {error}", _file_state(path))
    except OSError as error:
        return Star(None, f"the file cannot be read ({error.strerror})", _file_state(path))
    for number, kind in enumerate(ASPCAP_KINDS, start=1):
        if kind == ERRORS:
            continue
        flux = spectra[number - 1]
        if not flux.any():
            return Star(None, ALL_ZERO, _file_state(path))
        if np.isnan(clean_flux(flux)).all():
            low, high = VALID_FLUX
            reason = f"no pixel of HDU {number} has a flux within {low} and {high}"
            return Star(None, reason, _file_state(path))
    return Star(spectra)


@dataclass(frozen=True, eq=False)
class Plan:
    """Plan of which stars to read, from which files, into which parts.

    Attributes
    ----------
    stars : Catalogue
        The candidates.
    sas : pathlib.Path
        Folder with the copy of the archive.
    folder : pathlib.Path
        Where the parts are.
    errors : bool
        Whether to keep the error spectra.
    """

    stars: Catalogue
    sas: Path
    folder: Path
    errors: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of spectra to keep for each star."""
        return (*KINDS, ERRORS) if self.errors else KINDS

    @property
    def n_parts(self) -> int:
        """Number of parts."""
        return -(-len(self.stars) // PART_STARS)

    @property
    def n_bytes(self) -> int:
        """Size of the spectra of all candidates [bytes]."""
        return len(self.stars) * len(self.kinds) * 4 * len(APOGEE_WAVELENGTH)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the settings of the parts: candidates, kinds of spectra, valid flux."""
        digest = hashlib.sha256(repr((PART_STARS, self.kinds, VALID_FLUX)).encode())
        for name in ("row", "apogee_id", "telescope", "field"):
            digest.update(np.ascontiguousarray(getattr(self.stars, name)).tobytes())
        return digest.hexdigest()

    def rows(self, number: int) -> slice:
        """Candidates of a part."""
        return slice(number * PART_STARS, min((number + 1) * PART_STARS, len(self.stars)))

    def path(self, number: int) -> Path:
        """File of a part."""
        return self.folder / f"part_{number:05d}.h5"

    def files(self, candidates: slice | np.ndarray) -> list[Path | str]:
        """Files of candidates; a text with the reason if a star's name cannot be a file name."""
        stars = self.stars[candidates]
        files: list[Path | str] = []
        for names in zip(stars.telescope, stars.field, stars.apogee_id, strict=True):
            try:
                files.append(self.sas / aspcap_path(*names))
            except ValueError as error:
                files.append(str(error))
        return files

    def reasons(self, number: int) -> list[str]:
        """Reason why each star of a part has no spectrum; empty if it has one.

        Raises
        ------
        ValueError
            The part is damaged, or was made with other stars or options.
        """
        return [reason for reason, _ in self._report(number)]

    def _report(self, number: int) -> list[tuple[str, str]]:
        """Reason and state of the file of each star of a part."""
        path = self.path(number)
        with _open_part(path) as file:
            fingerprint = file.attrs["fingerprint"]
            reasons, states = (
                _texts(own_dataset(file, name, path)) for name in ("reason", "file_state")
            )
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"{path} belongs to another catalogue, --limit or --errors: remove {self.folder} "
                "or choose another --output"
            )
        return list(zip(reasons, states, strict=True))

    def is_made(self, number: int) -> bool:
        """Whether a part exists and none of its bad files has changed or appeared since.

        Raises
        ------
        ValueError
            The part is damaged, or was made with other stars or options.
        """
        if not self.path(number).exists():
            return False
        report = zip(self.files(self.rows(number)), self._report(number), strict=True)
        return all(
            isinstance(file, str) or _file_state(file) == state
            for file, (reason, state) in report
            if reason
        )


@contextmanager
def _open_part(path: Path) -> Iterator[h5py.File]:
    """Open a part for reading; damage raises a `ValueError` that names the file."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except PermissionError as error:
        raise PermissionError(error.errno, f"{path} may not be read: {error.strerror}") from error
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it and run the command again"
        ) from error


def _texts(dataset: h5py.Dataset) -> list[str]:
    """Texts of a data set."""
    return [value.decode("utf-8") for value in dataset[:].tolist()]


def read_parts(
    plan: Plan,
    numbers: Iterable[int],
    workers: int,
    progress: Callable[[int], object] = lambda stars: None,
) -> None:
    """Read the files of the missing parts with threads, and write these parts.

    Threads suffice, because most of the time goes into the file system and NumPy, which release
    the interpreter's lock. The next part is read while one is written.

    Parameters
    ----------
    numbers
        Numbers of the parts.
    workers
        Number of files to read at the same time.
    progress
        Called with the number of stars finished since the last call.

    Raises
    ------
    OSError
        When the disk is full.
    ValueError
        When the folder holds parts of other stars.
    """
    waiting = []
    for number in numbers:
        if plan.is_made(number):
            rows = plan.rows(number)
            progress(rows.stop - rows.start)
        else:
            waiting.append(number)
    with ThreadPoolExecutor(workers) as pool:
        previous: tuple[int, Iterator[Star]] | None = None
        try:
            for number in waiting:
                upcoming = number, pool.map(read_star, plan.files(plan.rows(number)))
                if previous:
                    _write_part(plan, *previous, progress)
                previous = upcoming
            if previous:
                _write_part(plan, *previous, progress)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_part(
    plan: Plan, number: int, stars: Iterable[Star], progress: Callable[[int], object]
) -> None:
    """Write a part; rows of stars without a spectrum are NaN."""
    rows = plan.rows(number)
    n_stars, n_pixels = rows.stop - rows.start, len(APOGEE_WAVELENGTH)
    spectra = {kind: np.full((n_stars, n_pixels), np.nan, np.float32) for kind in plan.kinds}
    reasons, states = [], []
    for i, star in enumerate(stars):
        if star.spectra is not None:
            for kind in plan.kinds:
                spectra[kind][i] = star.spectra[ASPCAP_KINDS.index(kind)]
        reasons.append(star.reason)
        states.append(star.file_state)
        progress(1)
    size = sum(array.nbytes for array in spectra.values()) + 1_000_000
    with (
        atomic_output(plan.path(number), expected_bytes=size) as temporary,
        h5py.File(temporary, "w", libver=("v110", "v110")) as file,
        room_to_close(temporary.parent),
    ):
        for (
            kind,
            array,
        ) in spectra.items():  # a chunk for each star, since stars are read one by one
            file.create_dataset(kind, data=array, chunks=(1, n_pixels), fletcher32=True)
        for name, texts in (("reason", reasons), ("file_state", states)):
            values = np.array([text.encode("utf-8") for text in texts])
            file.create_dataset(name, data=values, fletcher32=True)
        file.attrs["fingerprint"] = plan.fingerprint


def merge_parts(
    plan: Plan,
    output: Path,
    provenance: Mapping,
    absent: frozenset[str] = frozenset(),
    progress: Callable[[int], object] = lambda stars: None,
) -> Selection:
    """Write a survey file from all parts.

    Stars are written in the order of the published split, which is scattered over the parts. A few
    thousand at a time are gathered from all parts.

    Raises
    ------
    FileNotFoundError
        When parts are missing; the message says which.
    ValueError
        For parts that are damaged or of other stars, or when too few stars are left.
    """
    missing = [number for number in range(plan.n_parts) if not plan.path(number).exists()]
    if missing:
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise FileNotFoundError(
            f"{len(missing)} of {plan.n_parts} parts are missing in {plan.folder} ({some}): run "
            "the array tasks that make them again, or create_dataset.py without --merge"
        )
    reasons: list[str] = []
    for number in range(plan.n_parts):
        reasons += plan.reasons(number)
    selection = select(plan.stars, reasons, absent)
    cuts = [[cut.name, cut.removed, cut.left] for cut in selection.cuts]
    provenance = {**provenance, "cuts": [*provenance.get("cuts", []), *cuts]}
    stars = plan.stars
    writer = SurveyWriter(
        output,
        counts={"train": len(selection.train), "test": len(selection.test)},
        provenance=provenance,
        errors=plan.errors,
    )
    with writer:
        for split in writer.counts:
            rows = getattr(selection, split)
            for first in range(0, len(rows), _MERGE_STARS):
                some = rows[first : first + _MERGE_STARS]
                writer.append(
                    split,
                    ids=[name.decode("ascii") for name in stars.apogee_id[some]],
                    labels=stars.labels[some],
                    label_errors=stars.label_errors[some],
                    **_gather(plan, some),
                )
                progress(len(some))
    return selection


def _gather(plan: Plan, candidates: np.ndarray) -> dict[str, np.ndarray]:
    """Spectra (n, 7514) of candidates that are scattered over the parts."""
    shape = len(candidates), len(APOGEE_WAVELENGTH)
    spectra = {kind: np.empty(shape, np.float32) for kind in plan.kinds}
    part, row = np.divmod(candidates, PART_STARS)
    order = np.argsort(candidates)
    for number in np.unique(part):
        path = plan.path(int(number))
        with _open_part(path) as file:
            for kind, out in spectra.items():
                dataset = own_dataset(file, kind, path)
                for i in order[part[order] == number]:
                    dataset.read_direct(out, np.s_[row[i], :], np.s_[i, :])
    return spectra


def write_rejected(path: str | os.PathLike, plan: Plan, selection: Selection) -> None:
    """List the candidates that are not in the survey, with file and reason, as CSV."""
    stars = plan.stars
    with (
        atomic_output(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["catalogue_row", "apogee_id", "telescope", "field", "file", "reason"])
        for i, reason in sorted(selection.reasons.items()):
            names = [stars.telescope[i], stars.field[i], stars.apogee_id[i]]
            try:
                location = aspcap_path(*names)
            except ValueError:
                location = ""
            telescope, field, name = (part.decode("ascii", "replace") for part in names)
            texts = map(plain_text, (name, telescope, field, location, reason))
            table.writerow([stars.row[i], *texts])
