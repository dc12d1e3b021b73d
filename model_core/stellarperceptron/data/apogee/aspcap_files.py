"""A fast and strict reader of aspcapStar files.

A FITS file consists of headers of 80-character cards and of data, both in blocks of 2,880 bytes
(FITS standard 4.0, sections 3 and 4). Astropy builds an object for every card. Here, a file is read
in one piece, only the cards that locate the data are parsed, and the images are taken from the
bytes. Legal but unusual files are read with astropy (`spectra.read_spectrum`).
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stellarperceptron.data.apogee.continuum import VALID_FLUX
from stellarperceptron.data.apogee.grid import CHIP_PIXELS, CHIPS, FULL_WAVELENGTH
from stellarperceptron.data.apogee.spectra import read_spectrum
from stellarperceptron.utils.arrays import sentinels_to_nan

__all__ = ["ASPCAP_KINDS", "HDU", "check_fits", "clean_flux", "read_aspcap"]

ASPCAP_KINDS = ("observed", "observed_errors", "synthetic")
"""What HDUs 1, 2 and 3 of an aspcapStar file hold (data model at
https://data.sdss.org/datamodel/files/APOGEE_ASPCAP): flux over pseudo-continuum, its standard
deviation, best-fit synthetic spectrum."""

_BLOCK = 2880
_CARD = 80
_END = b"END".ljust(_CARD)
_FLOATS = {-32: np.dtype(">f4"), -64: np.dtype(">f8")}


class HDU(NamedTuple):
    """Location of the data of one HDU of a FITS file.

    Attributes
    ----------
    bits : int
        BITPIX: bits of a number, negative for floating point.
    shape : tuple of int
        Lengths of the axes, the last one varying fastest (as in NumPy).
    header : slice
        Position of its header [bytes].
    start, size : int
        Position and size of the data [bytes].
    scaled : bool
        Whether the numbers have to be scaled (BSCALE, BZERO).
    """

    bits: int
    shape: tuple[int, ...]
    header: slice
    start: int
    size: int
    scaled: bool


def _integer(header: bytes, card: int, key: bytes, default: int | None = None) -> int:
    """Value of an integer keyword: in the card where the standard demands it, or else anywhere."""
    start = key.ljust(8) + b"= "
    text = header[_CARD * card : _CARD * (card + 1)]
    if not text.startswith(start):
        place = header.find(start)
        while place >= 0 and place % _CARD:
            place = header.find(start, place + 1)
        if place < 0:
            if default is not None:
                return default
            raise ValueError(f"its header lacks {key.decode()}")
        text = header[place : place + _CARD]
    try:
        return int(text[10:].split(b"/", 1)[0])
    except ValueError:
        raise ValueError(f"its header's {key.decode()} is no number") from None


def _hdus(data: bytes | mmap.mmap) -> Iterator[HDU]:
    """All parts of a FITS file, until its end.

    Raises
    ------
    ValueError
        When the bytes are no FITS file, or end before the headers say.
    """
    position, length, number = 0, len(data), 0
    while position < length:
        primary = position == 0
        if data[position : position + 9] != (b"SIMPLE  =" if primary else b"XTENSION="):
            raise ValueError("is no FITS file" if primary else f"has no header in HDU {number}")
        end = data.find(_END, position)
        while end >= 0 and (end - position) % _CARD:
            end = data.find(_END, end + 1)
        if end < 0:
            raise ValueError(f"is truncated in the header of HDU {number}")
        header = data[position:end]
        n_axes = _integer(header, 2, b"NAXIS")
        if not 0 <= n_axes <= 999:
            raise ValueError(f"has {n_axes} axes in HDU {number}")
        axes = [_integer(header, 3 + i, f"NAXIS{i + 1}".encode()) for i in range(n_axes)]
        bits = _integer(header, 1, b"BITPIX")
        elements = 1 if axes else 0
        for axis in axes:
            elements *= axis
        if not primary:
            elements += _integer(header, 3 + n_axes, b"PCOUNT", 0)
            elements *= _integer(header, 4 + n_axes, b"GCOUNT", 1)
        size = abs(bits) // 8 * elements
        start = end + _CARD + -(end + _CARD) % _BLOCK
        if elements < 0:
            raise ValueError(f"has a negative length in HDU {number}")
        if start + size > length:
            raise ValueError(
                f"is truncated: HDU {number} ends at byte {start + size}, the file at {length}"
            )
        scaled = b"BSCALE  =" in header or b"BZERO   =" in header
        yield HDU(bits, tuple(reversed(axes)), slice(position, end), start, size, scaled)
        position = start + size + -size % _BLOCK
        number += 1


def check_fits(path: str | os.PathLike) -> int:
    """Check that a FITS file is as long as its headers say.

    Returns
    -------
    int
        Number of its HDUs.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        For a file that is empty, truncated or no FITS file; the message says which.
    """
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError("is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return sum(1 for _ in _hdus(data))


def read_aspcap(path: str | os.PathLike) -> np.ndarray:
    """Read flux, error and model of an aspcapStar file.

    Returns
    -------
    (3, 7514) float32
        In the order of `ASPCAP_KINDS`, as in the file, except that marks of missing errors are
        NaN. A file with other wavelengths than the survey's is resampled.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        For a damaged file or one of another kind; the message, without the path, says why.
    OSError
        When the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        data = file.read()
    if not data:
        raise ValueError("is empty")
    images = list(_hdus(data))[1:4]
    if len(images) < 3:
        raise ValueError(f"has {len(images)} HDUs after the first, an aspcapStar file 3 or more")
    usual = all(image.bits in _FLOATS and not image.scaled for image in images)
    primary = data[: data.find(_END)]
    if not usual or not _is_survey_grid(data[images[0].header], primary):
        return _read_unusual(path)
    out = np.empty((3, CHIP_PIXELS["red"].stop), dtype=np.float32)
    for number, image in enumerate(images, start=1):
        n_pixels = image.shape[-1] if image.shape else 0
        if n_pixels != len(FULL_WAVELENGTH) or image.size * 8 != n_pixels * abs(image.bits):
            raise ValueError(
                f"has the wrong length: {image.shape} in HDU {number}, not {len(FULL_WAVELENGTH)}"
            )
        row = np.frombuffer(data, _FLOATS[image.bits], n_pixels, image.start)
        for name, chip in CHIPS.items():
            out[number - 1, CHIP_PIXELS[name]] = row[chip]
    out[1] = sentinels_to_nan(out[1])
    return out


_SURVEY_GRID = {b"CRVAL1": 4.179, b"CDELT1": 6e-6, b"CRPIX1": 1.0}
_OTHER_GRIDS = (b"CD1_1", b"CUNIT1", b"COEFF0", b"COEFF1", b"AIRORVAC", b"VACUUM")


def _is_survey_grid(*headers: bytes) -> bool:
    """Whether headers give the wavelengths of the survey in the usual way, or none."""
    for header in headers:
        if any(key.ljust(8) + b"= " in header for key in _OTHER_GRIDS):
            return False
        for key, expected in _SURVEY_GRID.items():
            place = header.find(key.ljust(8) + b"= ")
            if place < 0:
                continue
            try:
                value = float(header[place + 10 : place + _CARD].split(b"/", 1)[0])
            except ValueError:
                return False
            if abs(value - expected) > 1e-6 * expected:
                return False
    return True


def _read_unusual(path: str | os.PathLike) -> np.ndarray:
    """Read scaled or integer images with astropy."""
    try:
        spectrum = read_spectrum(Path(path))
    except ValueError as error:
        raise ValueError(str(error).removeprefix(str(path)).strip(" :")) from error
    if spectrum.kind != "aspcapStar":
        raise ValueError(f"is an {spectrum.kind} file, not an aspcapStar file")
    return np.stack([spectrum.flux, spectrum.error, spectrum.model]).astype(np.float32)


def clean_flux(flux: np.ndarray) -> np.ndarray:
    """Replace invalid normalized flux, missing pixels (0) and spikes, by NaN, in place."""
    flux[(flux < VALID_FLUX[0]) | (flux > VALID_FLUX[1])] = np.nan
    return flux
