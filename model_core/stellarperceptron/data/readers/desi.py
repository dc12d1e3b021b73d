"""Coadded spectra of DESI."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stellarperceptron.data.apogee.spectra import Spectrum
from stellarperceptron.data.apogee.spectrum_files import Part, rest_velocity
from stellarperceptron.data.mock.line_spread import FWHM
from stellarperceptron.data.readers.conversion import Arm, chosen_row, error_of, on_pixels
from stellarperceptron.instruments import LOW_RESOLUTION
from stellarperceptron.utils.arrays import as_array

__all__ = ["is_desi", "read_desi"]

ARMS = ("B", "R", "Z")


def is_desi(parts: Sequence[Part]) -> bool:
    """Whether a file has wavelength, flux and inverse variance of an arm."""
    names = {part.name for part in parts}
    return any({f"{arm}_WAVELENGTH", f"{arm}_FLUX", f"{arm}_IVAR"} <= names for arm in ARMS)


def read_desi(
    parts: Sequence[Part], row: int | None = None, radial_velocity: Any = None
) -> Spectrum:
    """Read one spectrum of a coadd file, smoothed to R = 1,800.

    Each arm (B, R, Z) has wavelengths [A, barycentric, vacuum], flux, inverse variance, a mask, and
    a resolution matrix, whose diagonals give the line spread in pixels
    (https://desidatamodel.readthedocs.io, coadd files). A pixel with any bit of the mask set is
    bad.

    Parameters
    ----------
    parts
        What was read of the file.
    row
        Which star: row of FIBERMAP; None: the only one.
    radial_velocity
        Barycentric velocity [km/s]; the file has none.

    Raises
    ------
    NoVelocityError
        There is no velocity.
    ValueError
        There is no such row, or the file does not fit the format.
    """
    named = {part.name: part.data for part in parts}
    seen = [arm for arm in ARMS if f"{arm}_FLUX" in named]
    row = chosen_row(row, len(named[f"{seen[0]}_FLUX"]))
    arms, powers = [], []
    for arm in seen:
        wavelength, flux, variance = (
            as_array(named[f"{arm}_{name}"], unit=None, name=name)
            for name in ("WAVELENGTH", "FLUX", "IVAR")
        )
        fits = flux.ndim == 2 and flux.shape == variance.shape
        if not fits or flux.shape[1] != len(wavelength) or row >= len(flux):
            raise ValueError(f"arrays of its arm {arm} do not fit together")
        mask = named.get(f"{arm}_MASK")
        bad = np.zeros(len(wavelength), bool) if mask is None else np.asarray(mask[row]) != 0
        arms.append(Arm(wavelength, flux[row], error_of(variance[row]), bad))
        powers.append(_resolving_power(named.get(f"{arm}_RESOLUTION"), row, wavelength))
    star = f"row {row}"
    fibers = named.get("FIBERMAP")
    if fibers is not None and "TARGETID" in fibers.dtype.names and row < len(fibers):
        star = str(fibers["TARGETID"][row])
    return on_pixels(
        LOW_RESOLUTION,
        arms,
        velocity=rest_velocity(radial_velocity, None, "DESI's coadds have none"),
        resolving_power=powers,
        star_id=star,
        kind="DESI",
    )


def _resolving_power(matrices: Any, row: int, wavelength: np.ndarray) -> np.ndarray:
    """Resolving power (n,) from the widths of a resolution matrix (diagonals, n)."""
    if matrices is None:
        raise ValueError("it lacks the resolution matrix of an arm (..._RESOLUTION)")
    matrix = np.clip(np.asarray(matrices[row], dtype=np.float64), 0, None)
    offset = np.arange(len(matrix), dtype=float)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (offset * matrix).sum(0) / matrix.sum(0)
        variance = ((offset - mean) ** 2 * matrix).sum(0) / matrix.sum(0)
    width = np.sqrt(variance) * np.abs(np.gradient(wavelength)) * FWHM
    power = np.divide(wavelength, width, out=np.full(len(wavelength), np.nan), where=width > 0)
    return np.where(np.isfinite(power), power, np.nanmedian(power))
