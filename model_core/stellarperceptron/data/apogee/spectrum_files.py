"""FITS files of spectra: images, and wavelengths and names in headers, checked for damage."""

import gzip
import io
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntFlag
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.io.fits import VerifyError
from astropy.utils.exceptions import AstropyUserWarning

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, FULL_WAVELENGTH
from stellarperceptron.data.wavelengths import air_to_vacuum, interpolate
from stellarperceptron.utils.arrays import as_array, sentinels_to_nan

__all__ = [
    "BAD_PIXEL",
    "READ_ERRORS",
    "Images",
    "NoVelocityError",
    "Part",
    "PixelMask",
    "file_content",
    "header_number",
    "header_wavelength",
    "read_images",
    "read_parts",
    "readable",
    "resample",
    "rest_velocity",
    "star_name",
    "wavelength_factor",
]

READ_ERRORS = (
    *(OSError, TypeError, ValueError, LookupError, AttributeError, EOFError),
    *(zlib.error, struct.error, VerifyError, AstropyUserWarning),
    *(ArithmeticError, MemoryError, RecursionError, AssertionError),
)
"""Exceptions that reading a damaged file may raise."""


class PixelMask(IntFlag):
    """Bits of a pixel's mask: APOGEE_PIXMASK at https://www.sdss4.org/dr17/irspec/apogee-bitmasks."""

    BADPIX = 1 << 0
    CRPIX = 1 << 1
    SATPIX = 1 << 2
    UNFIXABLE = 1 << 3
    BADDARK = 1 << 4
    BADFLAT = 1 << 5
    BADERR = 1 << 6
    NOSKY = 1 << 7
    LITTROW_GHOST = 1 << 8
    PERSIST_HIGH = 1 << 9
    PERSIST_MED = 1 << 10
    PERSIST_LOW = 1 << 11
    SIG_SKYLINE = 1 << 12
    SIG_TELLURIC = 1 << 13
    NOT_ENOUGH_PSF = 1 << 14


BAD_PIXEL = (
    PixelMask.BADPIX
    | PixelMask.CRPIX
    | PixelMask.SATPIX
    | PixelMask.UNFIXABLE
    | PixelMask.BADDARK
    | PixelMask.BADFLAT
    | PixelMask.BADERR
    | PixelMask.NOSKY
    | PixelMask.NOT_ENOUGH_PSF
)
"""Bits after which a pixel holds no measurement; the others say that it is less certain."""


class NoVelocityError(ValueError):
    """A spectrum that is not at rest, and whose file does not say how fast the star is."""


WIDEST_STEP = 3.0
"""Wider steps between neighbouring wavelengths, in units of the median step, are gaps."""

LARGEST_FILE = 1 << 28
"""Larger files, or files that unpack to more, are no spectra [bytes]."""

_STAR = re.compile(r"2M\d{8}[+-]\d{7}")
_SUFFIX = re.compile(r"(\.fits?)?(\.gz)?$", re.IGNORECASE)


class Part(NamedTuple):
    """A part (HDU) of a FITS file: its name in capitals, its header, an image or a table."""

    name: str
    header: fits.Header
    data: Any


class Images(NamedTuple):
    """The first parts of a FITS file.

    Attributes
    ----------
    primary : Header
        The header of HDU 0.
    headers : list of Header
        The headers of the following HDUs.
    arrays : list of np.ndarray or None
        Their images, without axes of length 1 in front of the last two; None for a table or an
        HDU without data.
    """

    primary: fits.Header
    headers: list[fits.Header]
    arrays: list[np.ndarray | None]


def read_images(path: str | os.PathLike, count: int = 4) -> Images:
    """Read the images of HDUs 1 to `count` of a FITS file, gzipped or not.

    A gzipped file is unpacked to its end, since only there does its checksum tell whether the
    bytes before it are right.

    Raises
    ------
    FileNotFoundError, PermissionError, IsADirectoryError
        When there is no such file, or it cannot be read; the message names the remedy.
    ValueError
        When the file is damaged, truncated, no FITS file, or far too large for spectra.
    """
    with _opened(path) as hdus:
        parts = hdus[1 : 1 + count]
        arrays = [_image(hdu) for hdu in parts]
        return Images(hdus[0].header, [hdu.header for hdu in parts], arrays)


def read_parts(path: str | os.PathLike) -> list[Part]:
    """Read all parts of a FITS file, images and tables, gzipped or not.

    Raises
    ------
    OSError, ValueError
        As `read_images`.
    """
    with _opened(path) as hdus:
        return [Part(hdu.name.upper(), hdu.header, hdu.data) for hdu in hdus]


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[fits.HDUList]:
    """A FITS file in memory; astropy refuses those that are shorter than their headers say."""
    with readable(path), warnings.catch_warnings():
        warnings.filterwarnings("error", "File may have been truncated", AstropyUserWarning)
        with fits.open(file_content(path), memmap=False) as hdus:
            yield hdus


@contextmanager
def readable(path: str | os.PathLike, what: str = "FITS file") -> Iterator[None]:
    """Let errors name the file that could not be read, and the remedy."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, not a {what}")
        if path.exists() and not path.is_file():  # reading a pipe might never end
            raise ValueError("it is a pipe or a device")
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file") from error
    except PermissionError as error:
        raise PermissionError(
            f"{path} cannot be read, permission is denied: make it readable with chmod, or ask "
            "its owner"
        ) from error
    except IsADirectoryError:
        raise
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, f"{path} cannot be read ({error.strerror})") from error
        raise ValueError(f"{path} is no {what} or is damaged ({error}): fetch it anew") from error


def file_content(path: str | os.PathLike) -> io.BytesIO:
    """Bytes of a file, unpacked when it is gzipped.

    Raises
    ------
    ValueError
        It is far too large for spectra.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.open(file) if packed else file as stream:
            data = stream.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE:,} bytes, no spectrum has")
    return io.BytesIO(data)


def _image(hdu: Any) -> np.ndarray | None:
    """Numbers of an image, None for a table."""
    if hdu.data is None or hdu.data.dtype.names is not None:
        return None
    array = np.asarray(hdu.data)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    return array


# --- headers --------------------------------------------------------------------------------------


def header_number(header: fits.Header, *names: str, kind: str = "labels") -> float | None:
    """First of some entries of the header that holds a number; None if all are missing.

    Parameters
    ----------
    kind
        Kind of number, which sets the marks of missing values; see `sentinels_to_nan`.
    """
    for name in names:
        value = header.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(sentinels_to_nan(np.array(float(value)), kind))
            if math.isfinite(number):
                return number
    return None


def rest_velocity(given: Any, of_file: float | None, where: str) -> float:
    """Velocity to take out of the wavelengths of a spectrum that is not at rest [km/s].

    Parameters
    ----------
    given
        What the caller says: a number or a Quantity; None: the file's is used.
    of_file
        What the file says; None or NaN: nothing.
    where
        Where the file would say so, for the message.

    Raises
    ------
    NoVelocityError
        Neither says anything.
    ValueError
        `given` is no velocity of a star.
    """
    if given is not None:
        array = as_array(given, unit="km/s", name="radial_velocity")
        if array.size != 1 or not np.isfinite(sentinels_to_nan(array, "velocity")).all():
            raise ValueError(f"radial_velocity = {given} is no velocity of a star")
        return float(array.item())
    known = np.array(np.nan if of_file is None else of_file)
    velocity = float(sentinels_to_nan(known, "velocity"))
    if not math.isfinite(velocity):
        raise NoVelocityError(f"it has no radial velocity ({where}): pass radial_velocity")
    return velocity


def star_name(header: fits.Header, path: str | os.PathLike) -> str:
    """Name of the star: OBJID of the header, or OBJ (data release 13), or from the file's name."""
    for name in ("OBJID", "OBJ"):
        text = str(header.get(name, "")).strip()
        if text:
            return text
    stem = _SUFFIX.sub("", Path(path).name)
    found = _STAR.search(stem)
    return found[0] if found else stem


def wavelength_factor(header: fits.Header, *keys: str, default: u.UnitBase = u.AA) -> float:
    """Unit of a header's wavelengths [Angstrom], from the first of the keys that names a unit.

    Texts such as "Wavelength (Ang)" are understood.

    Raises
    ------
    ValueError
        The unit is not a length.
    """
    for key in keys:
        text = str(header.get(key, "")).strip()
        for part in (text, *re.findall(r"[\(\[]([^)\]]*)[\)\]]", text)):
            part = {"ang": "Angstrom", "angstroms": "Angstrom", "a": "Angstrom"}.get(
                part.strip().lower(), part.strip()
            )
            unit = u.Unit(part, parse_strict="silent") if part else None
            if unit is None or isinstance(unit, u.UnrecognizedUnit):
                continue
            if not unit.is_equivalent(u.AA):
                raise ValueError(f"the unit of its wavelengths ({key}) is '{text}', no length")
            return float(unit.to(u.AA))
    return float(default.to(u.AA))


def header_wavelength(images: Images, n_pixels: int) -> np.ndarray | None:
    """Vacuum wavelengths (n_pixels,) [A] of the last axis by the headers; None if not given.

    They are read from CRVAL1, CDELT1 (or CD1_1), CRPIX1, CTYPE1 and CUNIT1 of the first image's
    header, or of the primary one: decadic logarithms (CTYPE1 "LOG-LINEAR", DC-FLAG 1, a CRVAL1
    below 10, or COEFF0 and COEFF1 instead), FITS's own logarithmic axis (WAVE-LOG; Greisen et al.
    2006, A&A 446, 747), or wavelengths themselves. They are in air if the type is AWAV, AIRORVAC
    is "air" or VACUUM is false.

    Raises
    ------
    ValueError
        When NWAVE contradicts the image, or the entries give no wavelengths, or only half of them
        for as many pixels as the survey's.
    """
    starts, steps = ("CRVAL1", "COEFF0"), ("CDELT1", "CD1_1", "COEFF1")
    for header in (*images.headers[:1], images.primary):
        there = [name for name in (*starts, *steps) if name in header]
        start = header_number(header, *starts, kind="flux")
        step = header_number(header, *steps, kind="flux")
        if start is None or step is None:
            if there and n_pixels == len(FULL_WAVELENGTH):  # never take the survey's instead
                values = ", ".join(f"{name} = {header[name]!r}" for name in there)
                raise ValueError(f"its header has {values}: not both a first wavelength and a step")
            continue
        count = header_number(images.primary, "NWAVE", kind="flux")
        if count is not None and count != n_pixels:
            raise ValueError(f"its header has NWAVE = {count:g}, its images {n_pixels} pixels")
        reference = header_number(header, "CRPIX1", kind="flux")
        offset = np.arange(n_pixels) + 1 - (1.0 if reference is None else reference)
        kind = str(header.get("CTYPE1", "")).upper()
        factor = wavelength_factor(header, "CUNIT1")
        with np.errstate(over="ignore"):
            if "-LOG" in kind and kind.startswith(("WAVE", "AWAV")):
                wavelength = factor * start * np.exp(offset * step / start)
            elif (
                "LOG" in kind
                or header.get("DC-FLAG") == 1
                or "CRVAL1" not in header
                or abs(start) < 10
            ):
                wavelength = factor * 10.0 ** (start + step * offset)
            else:
                wavelength = factor * (start + step * offset)
        if step == 0 or not np.isfinite(wavelength).all() or (wavelength <= 0).any():
            raise ValueError(
                f"its header has CRVAL1 = {start:g}, CDELT1 = {step:g}: no wavelengths"
            )
        return air_to_vacuum(wavelength) if _is_in_air(header, kind) else wavelength
    return None


def _is_in_air(header: fits.Header, kind: str) -> bool:
    """Whether a header says that its wavelengths are those in air."""
    said = str(header.get("AIRORVAC", "")).strip().lower()
    vacuum = header.get("VACUUM", True)
    return kind.startswith("AWAV") or said == "air" or vacuum in (False, 0, "F")


# --- wavelengths ----------------------------------------------------------------------------------


def resample(
    wavelength: Sequence[np.ndarray] | np.ndarray,
    flux: Sequence[np.ndarray] | np.ndarray,
    error: Sequence[np.ndarray] | np.ndarray,
    mask: Sequence[np.ndarray] | np.ndarray,
    grid: np.ndarray = APOGEE_WAVELENGTH,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring spectra of single chips, pixels in any order, to the pixels of an instrument.

    Flux is interpolated between good pixels, linearly across bad ones. The error is that of the
    nearer pixel, and the mask combines those of both neighbours. Within a gap of the wavelengths,
    wider than three steps, pixels are bad.

    Parameters
    ----------
    wavelength, flux, error, mask : (C, n)
        A row a chip: wavelength [A, vacuum, rest frame], flux, error in the same unit, bits. In
        lists of arrays (n,), chips may have different numbers of pixels.
    grid : (P,)
        Wavelengths of the pixels [A, vacuum], ascending.

    Returns
    -------
    flux, error, mask : (P,)
        NaN, NaN and BADPIX where no chip reaches.
    """
    out_flux = np.full(grid.shape, np.nan)
    out_error = np.full(grid.shape, np.nan)
    out_mask = np.full(grid.shape, int(PixelMask.BADPIX), dtype=np.int64)
    for chip in range(len(wavelength)):
        order = np.argsort(wavelength[chip])
        order = order[np.isfinite(wavelength[chip][order]) & (wavelength[chip][order] > 0)]
        order = order[np.diff(wavelength[chip][order], prepend=0) > 0]  # each once
        x, y, e, bits = (part[chip][order] for part in (wavelength, flux, error, mask))
        x, y, e = (part.astype(np.float64) for part in (x, y, e))
        if len(x) < 6:
            continue
        good = (bits & int(BAD_PIXEL) == 0) & np.isfinite(y) & np.isfinite(e)
        # Wavelengths in another unit are rounded differently.
        covered = (grid >= x[0] * (1 - 1e-9)) & (grid <= x[-1] * (1 + 1e-9))
        if not covered.any() or good.sum() < 6:
            continue
        target = grid[covered]
        out_flux[covered] = interpolate(x, np.interp(x, x[good], y[good]), target)
        right = np.clip(np.searchsorted(x, target), 1, len(x) - 1)
        nearer = np.where(target - x[right - 1] < x[right] - target, right - 1, right)
        out_error[covered] = e[nearer]
        # A pixel that coincides with one of the spectrum's has nothing of that one's neighbours.
        share = (target - x[right - 1]) / (x[right] - x[right - 1])
        left_bits, right_bits = np.where(share > 1 - 1e-6, 0, bits[right - 1]), bits[right]
        gap = (x[right] - x[right - 1] > WIDEST_STEP * np.median(np.diff(x))) & (
            np.abs(share - 0.5) < 0.5 - 1e-6
        )
        out_mask[covered] = (
            left_bits | np.where(share < 1e-6, 0, right_bits) | gap * int(PixelMask.BADPIX)
        )
    return out_flux, out_error, out_mask
