"""Which files are meant, and what a model reads of each."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np

from stellarperceptron.data.apogee.spectra import Spectrum
from stellarperceptron.data.apogee.spectrum_files import BAD_PIXEL, NoVelocityError, PixelMask
from stellarperceptron.data.readers.files import read_spectrum_file
from stellarperceptron.data.readers.galah import CAMERA_FILE
from stellarperceptron.data.wavelengths import LEAST_SIGNIFICANCE, line_shift
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument

__all__ = ["Reading", "distinct_paths", "find_files", "read_all", "read_normalized"]

Reading = tuple[Spectrum, np.ndarray]
"""A spectrum, and its flux (P,) over the pseudo-continuum, NaN in bad pixels."""


# On strong sky lines lies what their subtraction leaves: up to half of the flux in single visits.
NOT_READ = BAD_PIXEL | PixelMask.SIG_SKYLINE
LEAST_PIXELS = 256  # good pixels, below which a spectrum says too little to be asked


def find_files(paths: Iterable[Path]) -> list[Path]:
    """All files that paths mean: files themselves, or the spectra that folders hold.

    These are FITS files (.fits, .fits.gz), and tables of Gaia's archive by their names
    (RVS_MEAN_SPECTRUM...). Each file is there once; of the files of a star's cameras (GALAH) there
    is the first. What macOS writes beside files on other systems' disks ("._x.fits")
    is left out. A folder that may not be listed stands for itself, so that reading it says so.
    A pattern such as "*.fits" that the shell has left as it is stands for what it matches.

    Raises
    ------
    FileNotFoundError
        For a path that is not there, a folder without such files, and a pattern without a match.
    """
    files: dict[str, Path] = {}
    for path in paths:
        found = [path]
        if not os.path.lexists(path):
            found = sorted(map(Path, glob.glob(str(path)))) if glob.has_magic(str(path)) else []
            if not found:
                raise FileNotFoundError(f"there is no {path}")
        elif path.is_dir():
            try:
                found = sorted(path.iterdir())
            except PermissionError:
                files.setdefault(os.path.realpath(path), path)
                continue
            found = [p for p in found if _is_spectrum_name(p.name) and not p.is_dir()]
            if not found:
                raise FileNotFoundError(f"there is no FITS file in the folder {path}")
        for file in found:
            files.setdefault(_identity(file), file)
    return list(files.values())


def _identity(file: Path) -> str:
    """What two paths to files of one star have in common."""
    path = os.path.realpath(file)
    camera = CAMERA_FILE.fullmatch(os.path.basename(path))
    return path if camera is None else os.path.join(os.path.dirname(path), camera[1])


def _is_spectrum_name(name: str) -> bool:
    """Whether a file's name is that of a spectrum, and not of macOS's notes about one."""
    return not name.startswith("._") and (
        name.lower().endswith((".fits", ".fits.gz")) or "RVS_MEAN_SPECTRUM" in name.upper()
    )


def read_normalized(
    path: Path,
    pixels: slice,
    instrument: Instrument = APOGEE,
    template: np.ndarray | None = None,
    row: int | None = None,
) -> Reading:
    """Read a file: the spectrum at rest, and its flux (P,) over the pseudo-continuum.

    NaN in pixels that hold no measurement or lie on strong sky lines.

    Parameters
    ----------
    path
        The file.
    pixels
        Those that are needed.
    instrument
        Whose spectrum it must be.
    template : (P,), optional
        Normalized spectrum at rest, such as the median of many stars, relative to whose lines the
        velocity is measured where the file has none.
    row
        Which spectrum of a file that has several (`read_spectrum_file`).

    Raises
    ------
    OSError, ValueError
        It cannot be read, is of an unknown kind or another instrument (`read_spectrum_file`), has
        no velocity and no lines to measure one, or has hardly a good pixel among `pixels`.
    """
    try:
        spectrum = read_spectrum_file(path, row=row, instrument=instrument)
    except NoVelocityError:
        if template is None:
            raise
        spectrum = _read_shifted(path, instrument, template, row)
    if spectrum.instrument != instrument:
        raise ValueError(f"{path} is a spectrum of {spectrum.instrument}, not of {instrument}")
    flux = spectrum.normalized(NOT_READ)
    good, size = int(np.isfinite(flux[pixels]).sum()), pixels.stop - pixels.start
    if good < min(LEAST_PIXELS, size):
        whole = int(np.isfinite(flux).sum())
        remedy = f"; {whole} of all {len(flux)} are, try --pixels full" if whole > good else ""
        raise ValueError(
            f"{path}: only {good} of the {size} pixels that are read are good (the others are "
            f"flagged, constant, or not above zero){remedy}"
        )
    return spectrum, flux


def _read_shifted(
    path: Path, instrument: Instrument, template: np.ndarray, row: int | None
) -> Spectrum:
    """Read a spectrum that is not at rest, and whose velocity its lines must tell."""
    seen = read_spectrum_file(path, row=row, radial_velocity=0.0, instrument=instrument)
    if seen.instrument != instrument:  # said by the caller
        return seen
    velocity, significance = line_shift(seen.normalized(NOT_READ), template, instrument.wavelength)
    if not significance[0] >= LEAST_SIGNIFICANCE:
        raise NoVelocityError(f"{path} has no radial velocity, and its lines do not tell one")
    return read_spectrum_file(
        path, row=row, radial_velocity=float(velocity[0]), instrument=instrument
    )


def read_all(
    files: Iterable[Path],
    pixels: slice,
    pool: Executor | None = None,
    instrument: Instrument = APOGEE,
    template: np.ndarray | None = None,
) -> Iterator[tuple[Path, Reading | str]]:
    """Read files one after the other, or by the workers of a pool, which start at once.

    Yields
    ------
    Path
        The file, in the order given.
    Reading or str
        What `read_normalized` gives, or why it could not be read.
    """
    files = list(files)
    read = partial(_read_or_reason, pixels=pixels, instrument=instrument, template=template)
    readings = map(read, files) if pool is None else pool.map(read, files, chunksize=8)
    return zip(files, readings, strict=True)


def _read_or_reason(
    path: Path, pixels: slice, instrument: Instrument, template: np.ndarray | None
) -> Reading | str:
    try:
        return read_normalized(path, pixels, instrument, template)
    except (OSError, ValueError, UserWarning) as error:  # warnings may be made errors
        return str(error)


def distinct_paths(paths: Iterable[Path]) -> list[str]:
    """Short texts of paths that tell them apart: names, with folders only where names repeat.

    Examples
    --------
    >>> distinct_paths([Path("dr16/a.fits"), Path("dr17/a.fits"), Path("dr17/b.fits")])
    ['dr16/a.fits', 'dr17/a.fits', 'b.fits']
    """
    paths = [Path(path) for path in paths]
    depth = [1] * len(paths)
    texts = [path.name for path in paths]
    while True:
        count = Counter(texts)
        repeated = [
            i for i, path in enumerate(paths) if count[texts[i]] > 1 and depth[i] < len(path.parts)
        ]
        if not repeated:
            return texts
        for i in repeated:
            depth[i] += 1
            texts[i] = Path(*paths[i].parts[-depth[i] :]).as_posix()
