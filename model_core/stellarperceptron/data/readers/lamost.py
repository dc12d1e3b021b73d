"""Low-resolution spectra of LAMOST."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stellarperceptron.data.apogee.spectra import RVFit, Spectrum
from stellarperceptron.data.apogee.spectrum_files import Part, header_number, rest_velocity
from stellarperceptron.data.readers.conversion import Arm, error_of, on_pixels
from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT
from stellarperceptron.instruments import LOW_RESOLUTION
from stellarperceptron.utils.arrays import as_array

__all__ = ["is_lamost", "read_lamost"]

START, STEP = 3.5682, 1e-4  # log10 of the wavelengths: COEFF0 and COEFF1 of every file
COLUMNS = {"FLUX", "IVAR", "WAVELENGTH", "ANDMASK"}
MEDIUM = re.compile(r"(COADD_)?[BR](-\d+)?")  # names of a medium-resolution file's parts


def is_lamost(parts: Sequence[Part]) -> bool:
    """Whether a file has LAMOST's rows in the first part, or its columns in the second."""
    first = parts[0].data
    if np.ndim(first) == 2 and len(first) >= 3:
        # Spectra of SDSS have COEFF0, too, and other rows.
        telescope = str(parts[0].header.get("TELESCOP", "LAMOST")).strip().upper()
        return telescope == "LAMOST" and (
            "TELESCOP" in parts[0].header or header_number(parts[0].header, "COEFF0") is not None
        )
    return len(parts) > 1 and (_columns(parts[1]) >= COLUMNS or _is_medium(parts))


def _is_medium(parts: Sequence[Part]) -> bool:
    """Whether a file is that of LAMOST's medium-resolution survey."""
    return all(
        MEDIUM.fullmatch(part.name) and _columns(part) >= {"FLUX", "IVAR"} for part in parts[1:]
    )


def _columns(part: Part) -> set[str]:
    names = getattr(getattr(part.data, "dtype", None), "names", None) or ()
    return {name.upper() for name in names}


def read_lamost(path: Path, parts: Sequence[Part], radial_velocity: Any = None) -> Spectrum:
    """Read a spectrum of LAMOST's low-resolution survey.

    The first part has five rows: flux, inverse variance, wavelength, and-mask, or-mask. Since data
    release 8 the second part has columns with these names instead
    (https://www.lamost.org/dr8/v1.0/doc/lr-data-production-description). Wavelengths are
    heliocentric and in vacuum. A pixel is bad if any bit of its and-mask is set. Some files of data
    release 1 have 1.0 in place of all wavelengths, which are then 10^(COEFF0 + COEFF1 i) Angstrom.

    Parameters
    ----------
    path, parts
        The file, and what was read of it.
    radial_velocity
        Heliocentric velocity [km/s], in place of the redshift (Z) of the header.

    Raises
    ------
    NoVelocityError
        There is no velocity.
    ValueError
        The file does not fit the format, or is one of the medium-resolution survey.
    """
    if len(parts) > 1 and _is_medium(parts):
        raise ValueError(
            "it is a spectrum of LAMOST's medium-resolution survey: only the low-resolution one's "
            "are read"
        )
    header = parts[0].header
    if np.ndim(parts[0].data) == 2:
        rows = np.asarray(parts[0].data, dtype=np.float64)
        flux, variance, wavelength = rows[:3]
        masks = rows[3:4]
    else:
        table = {name.upper(): parts[1].data[name] for name in parts[1].data.dtype.names}
        flux, variance, wavelength, mask = (
            np.asarray(as_array(table[name], unit=None, name=name)).reshape(-1)
            for name in ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK")
        )
        masks = mask[None]
    if not (np.diff(wavelength) > 0).all() or wavelength[0] < 1000:
        start = header_number(header, "COEFF0", kind="flux") or START
        step = header_number(header, "COEFF1", kind="flux") or STEP
        wavelength = 10.0 ** (start + step * np.arange(len(flux)))
    redshift = header_number(header, "Z", kind="flux")
    known = None if redshift is None else SPEED_OF_LIGHT * redshift
    return on_pixels(
        LOW_RESOLUTION,
        [Arm(wavelength, flux, error_of(variance), (masks != 0).any(axis=0))],
        velocity=rest_velocity(radial_velocity, known, "Z in its header"),
        star_id=_name(header, path),
        kind="LAMOST",
        snr=header_number(header, "SNRG", kind="flux"),
        rv=RVFit(vrad=known, vhelio=known),
    )


def _name(header: Any, path: Path) -> str:
    """Designation of the star, or the file's name."""
    return str(header.get("DESIG", "")).strip() or path.name.split(".fits")[0]
