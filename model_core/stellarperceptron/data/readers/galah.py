"""Spectra of the GALAH survey: a FITS file a camera."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from stellarperceptron.data.apogee.spectra import RVFit, Spectrum
from stellarperceptron.data.apogee.spectrum_files import (
    Images,
    Part,
    header_number,
    header_wavelength,
    read_parts,
    rest_velocity,
)
from stellarperceptron.data.readers.conversion import Arm, on_pixels
from stellarperceptron.instruments import GALAH

__all__ = ["CAMERA_FILE", "is_galah", "read_galah"]

CAMERA_FILE = re.compile(r"(\d{15})([1-4])(\.fits?(?:\.gz)?)", re.IGNORECASE)
"""Name of a file: number of the observation (sobject_id), number of the camera."""

ERRORS = ("INPUT_SIGMA", "RELATIVE_ERROR")  # of data release 3, of data release 4
HIGH_RESOLUTION = 42_000.0  # with the slit mask (Sheinis et al. 2015), a nominal value


def is_galah(parts: Sequence[Part]) -> bool:
    """Whether a file is that of a camera: a spectrum first, and its relative error."""
    return np.ndim(parts[0].data) == 1 and any(part.name in ERRORS for part in parts)


def read_galah(path: Path, parts: Sequence[Part], radial_velocity: Any = None) -> Spectrum:
    """Read the spectrum of one star from the files of its cameras.

    The first part is the reduced spectrum, not normalized, at barycentric wavelengths in air. Its
    error is another part, relative to the flux (data release 3:
    https://docs.datacentral.org.au/galah/dr3/galah-dr3-spectra; data release 4:
    https://www.galah-survey.org/dr4/the_spectra). The files of the other cameras are read as well
    if they are in the same folder.

    Parameters
    ----------
    path, parts
        File of one camera, and what was read of it.
    radial_velocity
        Barycentric velocity [km/s], in place of the header's RVCOM, which counts if RVCOM_OK is 1
        or missing.

    Raises
    ------
    NoVelocityError
        There is no velocity.
    ValueError
        A file says that its wavelengths are wrong, or does not fit the format.
    """
    cameras, star = {path: parts}, path.name.split(".")[0]
    if name := CAMERA_FILE.fullmatch(path.name):
        star = name[1]
        files = (path.with_name(f"{star}{i}{name[3]}") for i in range(1, 5))
        cameras |= {file: read_parts(file) for file in files if file != path and file.exists()}
    header = parts[0].header
    known = header_number(header, "RVCOM", kind="velocity")
    if header.get("RVCOM_OK", 1) != 1:
        known = None
    power = HIGH_RESOLUTION if str(header.get("SLITMASK", "")).strip() == "IN" else None
    return on_pixels(
        GALAH,
        [_arm(file.name, camera) for file, camera in cameras.items()],
        velocity=rest_velocity(radial_velocity, known, "RVCOM in its header"),
        resolving_power=power,
        star_id=star,
        kind="GALAH",
        snr=header_number(header, "SNR", kind="flux"),
        rv=RVFit(
            teff=header_number(header, "TEFF_R"),
            logg=header_number(header, "LOGG_R", kind="LOGG"),
            fe_h=header_number(header, "FE_H_R", kind="FE_H"),
            vrad=known,
            vhelio=known,
        ),
    )


def _arm(name: str, camera: Sequence[Part]) -> Arm:
    """Spectrum of a camera, whose file has this name."""
    if not is_galah(camera):
        raise ValueError(f"{name} beside it is no GALAH spectrum: move it away")
    header = camera[0].header.copy()
    if header.get("WAV_OK", 1) == 0:
        raise ValueError(
            f"the header of {name} says that its wavelengths are wrong (WAV_OK = 0): move this "
            "camera's file away to read the others"
        )
    header["CTYPE1"] = "AWAV"  # in air, which the files do not say
    if header.get("CRPIX1") == 0:  # meant as 1
        header["CRPIX1"] = 1.0
    flux = np.asarray(camera[0].data, dtype=np.float64)
    wavelength = header_wavelength(Images(fits.Header(), [header], []), len(flux))
    relative = np.asarray(next(part.data for part in camera if part.name in ERRORS), np.float64)
    if wavelength is None or relative.shape != flux.shape:
        raise ValueError(
            f"{name} lacks CRVAL1 and CDELT1, or has another number of errors than of fluxes"
        )
    return Arm(wavelength, flux, relative * np.abs(flux), np.zeros(flux.shape, dtype=bool))
