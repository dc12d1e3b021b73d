"""APOGEE spectra: their files, their pseudo-continuum, their wavelengths (`apogee_grid`).

Wavelengths are vacuum wavelengths in Angstrom everywhere.
"""

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntFlag
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from astropy.io.fits import VerifyError
from astropy.utils.exceptions import AstropyUserWarning

from stellarperceptron.data.apogee.continuum import fit_polynomials
from stellarperceptron.data.apogee.grid import (
    APOGEE_WAVELENGTH,
    CHIP_PIXELS,
    CHIPS,
    FULL_WAVELENGTH,
    PIXEL_RANGES,
    VALID_PIXELS,
    pixel_range,
    write_wavelength,
)
from stellarperceptron.instruments import APOGEE
from stellarperceptron.utils.interpolation import interpolate

__all__ = [
    "APOGEE_WAVELENGTH",
    "BAD_PIXEL",
    "CHIPS",
    "CHIP_PIXELS",
    "FULL_WAVELENGTH",
    "PIXEL_RANGES",
    "SPEED_OF_LIGHT",
    "VALID_FLUX",
    "VALID_PIXELS",
    "PixelMask",
    "RVFit",
    "Spectrum",
    "normalize",
    "pixel_range",
    "pseudo_continuum",
    "read_spectrum",
    "resample",
    "write_wavelength",
]

READ_ERRORS = (
    *(OSError, TypeError, ValueError, LookupError, AttributeError),
    *(VerifyError, AstropyUserWarning),
)
"""What reading a damaged file ends in."""

SPEED_OF_LIGHT = 299_792.458
"""Speed of light [km/s], exact (SI)."""

# --- pseudo-continuum -----------------------------------------------------------------------------

VALID_FLUX = APOGEE.valid_flux
"""Normalized flux outside this interval is no measurement; it becomes NaN (SpectraFM paper)."""


def pseudo_continuum(
    flux: np.ndarray | torch.Tensor,
    *,
    chips: Mapping[str, slice] = CHIP_PIXELS,
    order: int = APOGEE.continuum.order,
    clip_low: float = math.inf,
    clip_high: float = APOGEE.continuum.clip_high,
    iterations: int = APOGEE.continuum.iterations,
) -> np.ndarray | torch.Tensor:
    """Fit a low-order polynomial through every chip of every spectrum, as ASPCAP does.

    ASPCAP compares observed and synthetic spectra after dividing both by a polynomial of fourth
    order a chip (Garcia Perez et al. 2016, AJ 151, 144, section 4). With these defaults the
    result has the scale of data release 17: each chip has mean 1, so that the median pixel lies
    near 1.016, and the ends of the chips, where a polynomial bends up, follow the medians of the
    real survey. A lower clip would draw the polynomial up to the line-free pixels and the median
    below 1; it is there for other purposes.

    Parameters
    ----------
    flux : (..., P)
        Flux in any unit; NaN marks pixels that take no part.
    chips
        Slices of the P pixels that are fitted each for itself.
    order
        Order of the polynomial.
    clip_low, clip_high
        Pixels so many standard deviations below or above the polynomial leave the fit.
    iterations
        How many times the fit is repeated without the clipped pixels.

    Returns
    -------
    (..., P)
        The continuum, of the kind (array or tensor), type and device of `flux`; NaN in pixels of
        no chip, and in a chip with fewer valid pixels than twice the number of coefficients.
    """
    if isinstance(flux, torch.Tensor):
        tensor = flux
    else:  # a copy: FITS arrays are big-endian and memory maps read-only, torch wants neither
        single = np.asarray(flux).dtype.itemsize == 4
        tensor = torch.from_numpy(np.array(flux, dtype=np.float32 if single else np.float64))
    continuum = fit_polynomials(
        tensor.reshape(-1, tensor.shape[-1]),
        chips.values(),
        order=order,
        clip_low=clip_low,
        clip_high=clip_high,
        iterations=iterations,
    ).reshape(tensor.shape)
    return continuum if isinstance(flux, torch.Tensor) else continuum.numpy()


def normalize(
    flux: np.ndarray | torch.Tensor,
    bad: np.ndarray | torch.Tensor | None = None,
    *,
    valid_flux: tuple[float, float] | None = VALID_FLUX,
    **continuum_options,
) -> np.ndarray | torch.Tensor:
    """Divide spectra by their pseudo-continuum and mark what is no measurement as NaN.

    Parameters
    ----------
    flux : (..., P)
        Flux in any unit, NaN where there is none.
    bad : (..., P), optional
        True in pixels that are neither fitted nor returned.
    valid_flux
        Normalized flux outside this interval becomes NaN; None keeps everything.
    **continuum_options
        Arguments of `pseudo_continuum`.

    Returns
    -------
    (..., P)
        Normalized flux, of the kind and type of `flux`.
    """
    where = torch.where if isinstance(flux, torch.Tensor) else np.where
    if bad is not None:
        flux = where(bad, math.nan, flux)
    with np.errstate(invalid="ignore", divide="ignore"):
        normalized = flux / pseudo_continuum(flux, **continuum_options)
    return _cut(normalized, valid_flux)


def _cut(flux, valid_flux: tuple[float, float] | None):
    """Put NaN where flux lies outside an interval."""
    if valid_flux is None:
        return flux
    where = torch.where if isinstance(flux, torch.Tensor) else np.where
    return where((flux >= valid_flux[0]) & (flux <= valid_flux[1]), flux, math.nan)


# --- files ----------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class RVFit:
    """What the survey's radial-velocity pipeline wrote into the header; None where it did not.

    Attributes
    ----------
    teff : float or None
        Effective temperature of the best template [K].
    logg : float or None
        Surface gravity of the best template [log10 cm/s2].
    fe_h : float or None
        Metallicity of the best template [dex].
    vrad : float or None
        Velocity by which the lines are shifted in the observatory's frame [km/s]. The spectra of
        apStar and aspcapStar files are at rest already, whatever it says.
    vhelio : float or None
        Barycentric radial velocity [km/s].
    vscatter : float or None
        Standard deviation of the velocities of the visits [km/s].
    """

    teff: float | None = None
    logg: float | None = None
    fe_h: float | None = None
    vrad: float | None = None
    vhelio: float | None = None
    vscatter: float | None = None


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One spectrum on the 7,514 pixels of the APOGEE grid, in the star's rest frame.

    Attributes
    ----------
    star_id : str
        Name of the star in the survey, such as "2M17335483-2753043".
    kind : str
        Kind of file: "apStar", "aspcapStar" or "apVisit".
    flux, error : (7514,) float64
        Flux and its standard deviation: 1e-17 erg/s/cm2/A, in an aspcapStar file over the
        pseudo-continuum. NaN where there is no datum.
    mask : (7514,) int64
        Bits of `PixelMask`; none are set in an aspcapStar file, which has no mask.
    wavelength : (7514,) float64
        `APOGEE_WAVELENGTH` [A, vacuum].
    model : (7514,) float64 or None
        Best-fit synthetic spectrum of an aspcapStar file, over the pseudo-continuum.
    snr : float or None
        Median signal-to-noise ratio a pixel, from the header: that of the combined spectrum, or
        that of the visit which `row` of `read_spectrum` asked for.
    rv : RVFit
        Result of the radial-velocity pipeline.
    """

    star_id: str
    kind: str
    flux: np.ndarray
    error: np.ndarray
    mask: np.ndarray
    wavelength: np.ndarray = field(default_factory=lambda: APOGEE_WAVELENGTH)
    model: np.ndarray | None = None
    snr: float | None = None
    rv: RVFit = RVFit()

    def bad(self, bits: PixelMask = BAD_PIXEL) -> np.ndarray:
        """Pixels (7514,) that hold no measurement: flagged, not finite, or without an error."""
        flagged = (self.mask & int(bits)) != 0
        finite = np.isfinite(self.flux) & np.isfinite(self.error)
        # The pipeline gives pixels that it distrusts errors of 1e6 times the flux and more.
        limit = 1e3 * np.median(np.abs(self.flux[finite])) if finite.any() else 0.0
        return flagged | ~finite | ~((self.error > 0) & (self.error < limit))

    def normalized(self, **options) -> np.ndarray:
        """Flux (7514,) over its pseudo-continuum, NaN in bad pixels.

        Parameters are those of `normalize`. An aspcapStar spectrum is normalized already.
        """
        if self.kind == "aspcapStar":
            return _cut(
                np.where(self.bad(), np.nan, self.flux), options.get("valid_flux", VALID_FLUX)
            )
        return normalize(self.flux, self.bad(), **options)


def read_spectrum(
    path: str | os.PathLike, *, row: int = 0, radial_velocity: float | None = None
) -> Spectrum:
    """Read an apStar, aspcapStar or apVisit file of the APOGEE survey.

    The kind is recognised by what the file holds (data models at
    https://data.sdss.org/datamodel/files/APOGEE_REDUX and APOGEE_ASPCAP): apStar has flux, error
    and an integer mask of 8,575 pixels in HDUs 1 to 3, one row a spectrum; aspcapStar has flux,
    error and the best-fit model there; apVisit has three chips with wavelengths of their own in
    HDU 4, falling from red to blue, in the observatory's frame. Those are sorted, shifted to rest
    and resampled to the grid.

    Parameters
    ----------
    path
        The FITS file.
    row
        Which spectrum of an apStar file: 0 is the combined one (weighted pixel by pixel); the
        visits come after the combined ones.
    radial_velocity
        Velocity of an apVisit spectrum in the observatory's frame [km/s], in place of the
        header's.

    Returns
    -------
    Spectrum

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        For a file that is damaged or of another kind, for a row that it lacks, and for an apVisit
        file without a radial velocity.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with _truncation_is_an_error(), fits.open(path, memmap=False) as hdus:
            arrays = [None if hdu.data is None else np.asarray(hdu.data) for hdu in hdus[1:5]]
            common = _read_header(hdus[0].header)
            row_snr = _row_snr(hdus[0].header, row, arrays[0] if arrays else None)
    except READ_ERRORS as error:
        raise ValueError(
            f"{path} is no FITS file or is damaged ({error}): fetch it anew"
        ) from error
    shapes = [a.shape if a is not None and a.dtype.names is None else () for a in arrays]
    if len(shapes) >= 3 and shapes[0][-1:] == FULL_WAVELENGTH.shape and len(set(shapes[:3])) == 1:
        rows = [np.atleast_2d(array) for array in arrays[:3]]
        if not 0 <= row < len(rows[0]):
            raise ValueError(f"{path} has {len(rows[0])} spectra: there is no row {row}")
        common["snr"] = row_snr
        flux, error = (part[row, VALID_PIXELS].astype(np.float64) for part in rows[:2])
        third = rows[2][row, VALID_PIXELS]
        if third.dtype.kind in "iu":
            return Spectrum(
                kind="apStar", flux=flux, error=error, mask=third.astype(np.int64), **common
            )
        no_mask = np.zeros(flux.shape, dtype=np.int64)
        model = third.astype(np.float64)
        return Spectrum(
            kind="aspcapStar", flux=flux, error=error, mask=no_mask, model=model, **common
        )
    if len(shapes) >= 4 and len(shapes[0]) == 2 and shapes[0][0] == 3 and len(set(shapes)) == 1:
        velocity = common["rv"].vrad if radial_velocity is None else radial_velocity
        if velocity is None:
            raise ValueError(
                f"{path} has no radial velocity (VRAD) in its header: pass radial_velocity"
            )
        flux, error, mask, wavelength = arrays
        rest = wavelength.astype(np.float64) / (1 + velocity / SPEED_OF_LIGHT)
        bits = mask.astype(np.int64) & 0xFFFF  # HDU 3 is a signed 16-bit image
        flux, error, bits = resample(rest, flux, error, bits)
        return Spectrum(kind="apVisit", flux=flux, error=error, mask=bits, **common)
    raise ValueError(
        f"{path} holds arrays of shapes {shapes}: neither apStar or aspcapStar (8575 pixels in "
        "HDUs 1 to 3) nor apVisit (three chips in HDUs 1 to 4)"
    )


@contextmanager
def _truncation_is_an_error() -> Iterator[None]:
    """Let astropy refuse files that are shorter than their headers say."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "File may have been truncated", AstropyUserWarning)
        yield


def _number(header: fits.Header, *names: str) -> float | None:
    """First of the header's entries that holds a number; the survey writes -9999 for none."""
    for name in names:
        value = header.get(name)
        if isinstance(value, int | float) and math.isfinite(value) and value > -9000:
            return float(value)
    return None


def _row_snr(header: fits.Header, row: int, flux: np.ndarray | None) -> float | None:
    """Signal-to-noise ratio of a row of an apStar file's flux (rows, 8575).

    NVISITS visits come after one or two combined spectra, their ratios in SNRVIS1, SNRVIS2, ...;
    the survey writes 0 for none.
    """
    visits = _number(header, "NVISITS")
    rows = 1 if flux is None or flux.ndim < 2 else len(flux)
    combined = 2 if visits is None else min(max(rows - int(visits), 1), 2)
    if row < combined:
        return _number(header, "SNR")
    return _number(header, f"SNRVIS{row - combined + 1}") or None


def _read_header(header: fits.Header) -> dict:
    """Name, signal-to-noise ratio and radial-velocity fit (RV_TEFF since data release 17)."""
    rv = RVFit(
        teff=_number(header, "RV_TEFF", "RVTEFF"),
        logg=_number(header, "RV_LOGG", "RVLOGG"),
        fe_h=_number(header, "RV_FEH", "RVFEH"),
        vrad=_number(header, "VRAD", "VREL"),
        vhelio=_number(header, "VHELIO"),
        vscatter=_number(header, "VSCATTER"),
    )
    return {
        "star_id": str(header.get("OBJID", "")).strip(),
        "snr": _number(header, "SNR"),
        "rv": rv,
    }


def resample(
    wavelength: np.ndarray, flux: np.ndarray, error: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring spectra of single chips, pixels in any order, to the 7,514 pixels of the grid.

    Flux is interpolated between the good pixels, across bad ones by a straight line; the error
    comes from the nearer pixel, the mask from both neighbours.

    Parameters
    ----------
    wavelength, flux, error, mask : (C, n)
        A row a chip: wavelength [A, vacuum, rest frame], flux, error in the same unit, bits.

    Returns
    -------
    flux, error, mask : (7514,)
        NaN, NaN and BADPIX where no chip reaches.
    """
    out_flux = np.full(APOGEE_WAVELENGTH.shape, np.nan)
    out_error = np.full(APOGEE_WAVELENGTH.shape, np.nan)
    out_mask = np.full(APOGEE_WAVELENGTH.shape, int(PixelMask.BADPIX), dtype=np.int64)
    for chip in range(len(wavelength)):
        order = np.argsort(wavelength[chip])
        x, y, e, bits = (part[chip][order] for part in (wavelength, flux, error, mask))
        x, y, e = (part.astype(np.float64) for part in (x, y, e))
        good = (bits & int(BAD_PIXEL) == 0) & np.isfinite(y) & np.isfinite(e)
        target = APOGEE_WAVELENGTH
        covered = (target >= x[0]) & (target <= x[-1])
        if not covered.any() or good.sum() < 6:
            continue
        target = target[covered]
        out_flux[covered] = interpolate(x, np.interp(x, x[good], y[good]), target)
        right = np.clip(np.searchsorted(x, target), 1, len(x) - 1)
        nearer = np.where(target - x[right - 1] < x[right] - target, right - 1, right)
        out_error[covered] = e[nearer]
        out_mask[covered] = bits[right - 1] | bits[right]
    return out_flux, out_error, out_mask
