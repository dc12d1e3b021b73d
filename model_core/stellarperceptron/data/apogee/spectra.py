"""APOGEE spectra: their masks, and what apStar, aspcapStar and apVisit files hold.

Wavelengths are vacuum wavelengths in Angstrom everywhere.
"""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.fits import VerifyError

from stellarperceptron.data.apogee.continuum import normalize_as
from stellarperceptron.data.apogee.grid import (
    APOGEE_WAVELENGTH,
    FULL_WAVELENGTH,
    VALID_PIXELS,
)
from stellarperceptron.data.apogee.spectrum_files import (
    BAD_PIXEL,
    Images,
    NoVelocityError,
    PixelMask,
    header_number,
    header_wavelength,
    read_images,
    resample,
    rest_velocity,
    star_name,
    wavelength_factor,
)
from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.utils.arrays import sentinels_to_nan

__all__ = ["RVFit", "Spectrum", "read_spectrum"]

LARGEST_STEP = 2.0
"""Wider pixels, in pixels of the grid, do not resolve the lines of an APOGEE spectrum."""


@dataclass(frozen=True)
class RVFit:
    """Results of the survey's radial-velocity pipeline in the header; None if missing.

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
        apStar and aspcapStar files are already at rest, whatever its value.
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
    """One spectrum on the pixels of its instrument, in the star's rest frame.

    Attributes
    ----------
    star_id : str
        Name of the star in the survey, such as "2M17335483-2753043"; the file's name where the
        header has none.
    kind : str
        Kind of file: "apStar", "aspcapStar", "apVisit", or one of `stellarperceptron.data.readers`.
    flux, error : (P,) float64
        Flux and its standard deviation in the file's unit (apStar: 1e-17 erg/s/cm2/A; aspcapStar:
        over the pseudo-continuum of its data release). NaN if missing.
    mask : (P,) int64
        Bits of `PixelMask`; none are set in an aspcapStar file, which has no mask.
    wavelength : (P,) float64
        Wavelengths of the instrument's pixels [A, vacuum].
    model : (P,) float64 or None
        Best-fit synthetic spectrum of an aspcapStar file, over the pseudo-continuum.
    snr : float or None
        Median signal-to-noise ratio a pixel, from the header: that of the combined spectrum, or
        that of the visit which `row` of `read_spectrum` asked for.
    rv : RVFit
        Result of the radial-velocity pipeline.
    instrument : Instrument
        The instrument, 7,514 pixels of APOGEE by default.
    velocity : float
        Velocity that was taken out of the wavelengths [km/s]; 0 where the file is at rest.
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
    instrument: Instrument = APOGEE
    velocity: float = 0.0

    def bad(self, bits: PixelMask = BAD_PIXEL) -> np.ndarray:
        """Bad pixels (P,): flagged, zero, not finite, or without an error."""
        flagged = (self.mask & int(bits)) != 0
        good = ~flagged & np.isfinite(self.flux) & np.isfinite(self.error) & (self.flux != 0)
        # The pipeline gives pixels that it distrusts errors of 1e6 times the flux and more.
        limit = 1e3 * np.median(np.abs(self.flux[good])) if good.any() else 0.0
        return ~(good & (self.error > 0) & (self.error < limit))

    def normalized(self, bits: PixelMask = BAD_PIXEL, **options) -> np.ndarray:
        """Flux (P,) over its pseudo-continuum, NaN in bad pixels.

        An aspcapStar spectrum is normalized again: data release 13 divided by a continuum through
        the line-free pixels, so that its flux lies 8 % below that of release 17. Spectra of
        release 17 change by less than their noise.

        Parameters
        ----------
        bits
            Bits of the mask that make a pixel bad.
        **options
            Options of `normalize`.
        """
        return normalize_as(self.instrument, self.flux, self.bad(bits), **options)


def read_spectrum(
    path: str | os.PathLike, *, row: int = 0, radial_velocity: Any = None
) -> Spectrum:
    """Read an apStar, aspcapStar or apVisit file of the APOGEE survey, gzipped or not.

    The kind is recognised by the content of the file (data models at
    https://data.sdss.org/datamodel/files/APOGEE_REDUX and APOGEE_ASPCAP): apStar has flux, error
    and a mask in HDUs 1 to 3, one row a spectrum; aspcapStar has flux, error and the best-fit
    model there; apVisit has three chips with wavelengths of their own in HDU 4, falling from red
    to blue, in the observatory's frame. Those are sorted, shifted to rest and resampled to the
    grid. So is an apStar or aspcapStar spectrum whose header gives other wavelengths than the
    survey's, with a warning.

    Parameters
    ----------
    path
        The FITS file.
    row
        Which spectrum of an apStar file: 0 is the combined one (weighted pixel by pixel); the
        visits come after the combined ones.
    radial_velocity
        Velocity of an apVisit spectrum in the observatory's frame [km/s, or a Quantity], in place
        of the header's.

    Returns
    -------
    Spectrum

    Raises
    ------
    FileNotFoundError, PermissionError, IsADirectoryError
        When there is no such file, or it cannot be read.
    ValueError
        For a file that is damaged or of another kind, for a row that it lacks, for an apVisit
        file without a radial velocity, and for wavelengths that do not reach the grid or are too
        coarse for it.
    """
    path = Path(path)
    images = read_images(path)
    shapes = [() if array is None else array.shape for array in images.arrays]
    try:
        if len(shapes) >= 3 and len(set(shapes[:3])) == 1 and len(shapes[0]) in (1, 2):
            n_pixels = shapes[0][-1]
            wavelength = header_wavelength(images, n_pixels)
            if wavelength is not None or n_pixels == len(FULL_WAVELENGTH):
                return _star_file(path, images, row, wavelength)
        if len(shapes) >= 4 and len(set(shapes[:4])) == 1 and shapes[0][:-1] == (3,):
            return _visit_file(path, images, radial_velocity)
    except NoVelocityError as error:
        raise NoVelocityError(f"{path}: {error}") from error
    except (ValueError, VerifyError) as error:
        raise ValueError(f"{path}: {error}") from error
    raise ValueError(
        f"{path} holds arrays of shapes {shapes}: neither apStar or aspcapStar (8575 pixels in "
        "HDUs 1 to 3) nor apVisit (three chips in HDUs 1 to 4)"
    )


def _star_file(path: Path, images: Images, row: int, wavelength: np.ndarray | None) -> Spectrum:
    """Spectrum of an apStar or aspcapStar file, at the wavelengths of its header."""
    rows = [np.atleast_2d(array) for array in images.arrays[:3]]
    if not 0 <= row < len(rows[0]):
        raise ValueError(f"it has {len(rows[0])} spectra: there is no row {row}")
    common = _common(path, images.primary)
    common["snr"] = _row_snr(images.primary, row, len(rows[0]))
    flux, error = (sentinels_to_nan(part[row].astype(np.float64)) for part in rows[:2])
    third, model = rows[2][row], None
    if _is_mask(third, path, flux):
        kind, mask = "apStar", _bits(third)
    else:
        kind, model = "aspcapStar", third.astype(np.float64)
        mask = np.zeros(flux.shape, dtype=np.int64)
    if wavelength is None or _is_survey_grid(wavelength):
        flux, error, mask = (part[VALID_PIXELS] for part in (flux, error, mask))
        model = None if model is None else model[VALID_PIXELS]
    else:
        dead = np.where(np.isfinite(flux) & (flux != 0), mask, mask | int(PixelMask.BADPIX))
        grid = wavelength[None]
        _check_coverage(grid)
        if model is not None:
            model = resample(grid, model[None], model[None] * 0, (mask * 0)[None])[0]
        flux, error, mask = resample(grid, flux[None], error[None], dead[None])
        warnings.warn(
            f"{path}: its {len(wavelength)} wavelengths, {wavelength.min():.1f} to "
            f"{wavelength.max():.1f} Angstrom, are not the survey's; it was resampled to "
            f"{np.isfinite(flux).sum()} of the {len(flux)} pixels",
            stacklevel=3,
        )
    return Spectrum(kind=kind, flux=flux, error=error, mask=mask, model=model, **common)


def _visit_file(path: Path, images: Images, radial_velocity: Any) -> Spectrum:
    """Spectrum of an apVisit file, shifted to rest and resampled to the grid."""
    common = _common(path, images.primary)
    velocity = rest_velocity(radial_velocity, common["rv"].vrad, "VRAD in its header")
    flux, error, mask, wavelength = images.arrays[:4]
    factor = wavelength_factor(images.headers[3], "BUNIT", "CUNIT1")
    rest = factor * wavelength.astype(np.float64) / (1 + velocity / SPEED_OF_LIGHT)
    _check_coverage(rest)
    flux, error = (sentinels_to_nan(part.astype(np.float64)) for part in (flux, error))
    flux, error, bits = resample(rest, flux, error, _bits(mask) & 0xFFFF)  # a signed 16-bit image
    common["velocity"] = velocity
    return Spectrum(kind="apVisit", flux=flux, error=error, mask=bits, **common)


def _bits(mask: np.ndarray) -> np.ndarray:
    """Bits of a mask that may be stored as floating-point numbers; NaN counts as bad."""
    known = np.isfinite(mask) & (np.abs(mask.astype(np.float64)) < 2**62)
    bits = np.where(known, mask, int(PixelMask.BADPIX)).astype(np.int64)
    return np.where(known, bits, int(PixelMask.BADPIX))


def _is_mask(third: np.ndarray, path: Path, flux: np.ndarray) -> bool:
    """Whether the third image (n,) is an apStar file's mask and not an aspcapStar file's model.

    A mask has integer values, whatever their type. If all values are equal, it may be a mask
    without any bit or the model of a failed fit. Then the file's name decides, or else the flux,
    which is near 1 if it is divided by its continuum.
    """
    if third.dtype.kind in "iu":
        return True
    values = third[np.isfinite(third)]
    if not np.array_equal(values, np.rint(values)) or (values < 0).any():
        return False
    if len(np.unique(values)) > 1:
        return True
    if path.name.lower().startswith(("aspcapstar", "apstar", "asstar")):
        return not path.name.lower().startswith("aspcap")
    some = flux[np.isfinite(flux) & (flux != 0)]
    return bool(len(some)) and not 0.5 < float(np.median(some)) < 1.5


def _is_survey_grid(wavelength: np.ndarray) -> bool:
    """Whether wavelengths are those of the survey's full grid, to a fiftieth of a pixel."""
    return len(wavelength) == len(FULL_WAVELENGTH) and bool(
        np.abs(wavelength / FULL_WAVELENGTH - 1).max() < 3e-7
    )


def _check_coverage(wavelength: np.ndarray) -> None:
    """Refuse wavelengths (C, n) that do not reach the grid or are too coarse for its lines."""
    positive = wavelength[np.isfinite(wavelength) & (wavelength > 0)]
    reach = (positive > APOGEE_WAVELENGTH[0]) & (positive < APOGEE_WAVELENGTH[-1])
    if not reach.any():
        span = f"{positive.min():.1f} to {positive.max():.1f}" if len(positive) else "none"
        raise ValueError(
            f"its wavelengths, {span} Angstrom, do not reach the survey's, "
            f"{APOGEE_WAVELENGTH[0]:.1f} to {APOGEE_WAVELENGTH[-1]:.1f}: check the unit and the "
            "grid in its header"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        step = float(np.nanmedian(np.abs(np.diff(np.log10(wavelength), axis=-1)))) / 6e-6
    if step > LARGEST_STEP:
        raise ValueError(
            f"its pixels are {step:.1f} times as wide as the survey's: too coarse for its lines"
        )


def _row_snr(header: fits.Header, row: int, n_rows: int) -> float | None:
    """Signal-to-noise ratio of a row of an apStar file.

    NVISITS visits come after one or two combined spectra, their ratios in SNRVIS1, SNRVIS2, ...;
    the survey writes 0 for none.
    """
    visits = header_number(header, "NVISITS", kind="flux")
    combined = 2 if visits is None else min(max(n_rows - int(visits), 1), 2)
    if row < combined:
        return header_number(header, "SNR", kind="flux")
    return header_number(header, f"SNRVIS{row - combined + 1}", kind="flux") or None


def _common(path: Path, header: fits.Header) -> dict:
    """Name, signal-to-noise ratio and radial-velocity fit (RV_TEFF since data release 17)."""
    rv = RVFit(
        teff=header_number(header, "RV_TEFF", "RVTEFF"),
        logg=header_number(header, "RV_LOGG", "RVLOGG", kind="LOGG"),
        fe_h=header_number(header, "RV_FEH", "RVFEH", kind="FE_H"),
        vrad=header_number(header, "VRAD", "VREL", kind="velocity"),
        vhelio=header_number(header, "VHELIO", kind="velocity"),
        vscatter=header_number(header, "VSCATTER", kind="velocity"),
    )
    snr = header_number(header, "SNR", kind="flux")
    return {"star_id": star_name(header, path), "snr": snr, "rv": rv}
