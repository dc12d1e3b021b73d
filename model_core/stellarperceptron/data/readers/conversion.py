"""Shared steps of the readers: rest frame, smoothing, resampling to an instrument's pixels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stellarperceptron.data.apogee.spectra import Spectrum
from stellarperceptron.data.apogee.spectrum_files import BAD_PIXEL, PixelMask, resample
from stellarperceptron.data.mock.line_spread import FWHM
from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.utils.arrays import as_array, sentinels_to_nan

__all__ = ["Arm", "chosen_row", "error_of", "on_pixels"]

COARSEST = 2.0
"""Largest width of a spectrum's pixels, in pixels of the instrument, that resolves its lines."""


class Arm(NamedTuple):
    """One stretch of a spectrum, such as a detector's, as the file has it.

    Attributes
    ----------
    wavelength, flux, error : (n,)
        Wavelength [A, vacuum], flux and its standard deviation in one unit.
    bad : (n,) bool
        Pixels without a measurement, besides those that are not finite.
    """

    wavelength: np.ndarray
    flux: np.ndarray
    error: np.ndarray
    bad: np.ndarray


def chosen_row(row: int | None, stars: int) -> int:
    """Row of the star that is wanted from a file of several; None means its only star.

    Raises
    ------
    ValueError
        There is no such row, or the file has several stars and no row is given.
    """
    if row is None and stars == 1:
        return 0
    if row is None:
        raise ValueError(f"it has {stars} stars: say which one (row=..., 0 is the first)")
    if not 0 <= row < stars:
        raise ValueError(f"it has {stars} stars: there is no row {row}")
    return row


def error_of(inverse_variance: Any) -> np.ndarray:
    """Standard deviations of inverse variances (n,); NaN where these are zero or negative."""
    inverse_variance = as_array(inverse_variance, unit=None, name="inverse variance")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(inverse_variance > 0, 1 / np.sqrt(inverse_variance), np.nan)


def on_pixels(
    instrument: Instrument,
    arms: Sequence[Arm],
    *,
    velocity: float = 0.0,
    resolving_power: float | Sequence[np.ndarray] | None = None,
    **about: Any,
) -> Spectrum:
    """Bring the arms of a spectrum to rest and to the pixels of an instrument.

    Parameters
    ----------
    instrument
        The instrument.
    arms
        Stretches of the spectrum; where two overlap, the later one is used.
    velocity
        Radial velocity that is taken out of the wavelengths [km/s].
    resolving_power
        Resolving power of the spectrum, or an array (n,) of its pixels for each arm. Where it is
        above the instrument's, the flux is smoothed to the instrument's; the errors remain those
        of single pixels. None: the two are the same.
    **about
        Other entries of `Spectrum`: star_id, kind, snr, rv.

    Returns
    -------
    Spectrum
        Its `mask` has `PixelMask.BADPIX` in pixels without a measurement.

    Raises
    ------
    ValueError
        The wavelengths do not reach the instrument's or are too coarse for its lines.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    for number, arm in enumerate(arms):
        wavelength, flux, error = (
            np.asarray(part, dtype=np.float64) for part in (arm.wavelength, arm.flux, arm.error)
        )
        flux, error = (np.asarray(sentinels_to_nan(part)) for part in (flux, error))
        rest = wavelength / (1 + velocity / SPEED_OF_LIGHT)
        _check_sampling(instrument, rest)
        bad = arm.bad | ~np.isfinite(flux) | ~(error > 0) | (flux == 0)
        if resolving_power is not None and instrument.resolving_power is not None:
            own = resolving_power
            if not isinstance(own, int | float):
                own = own[number]
            flux = _smoothed(rest, flux, bad, own, instrument.resolving_power)
        parts.append((rest, flux, error, np.where(bad, int(PixelMask.BADPIX), 0)))
    flux, error, mask = resample(
        *([part[i] for part in parts] for i in range(4)), grid=instrument.wavelength
    )
    if not (mask & int(BAD_PIXEL) == 0).any():
        ends = [part[0][np.isfinite(part[0])] for part in parts]
        span = ", ".join(f"{w.min():.1f} to {w.max():.1f}" for w in ends if len(w)) or "none"
        raise ValueError(
            f"its good pixels, of wavelengths {span} Angstrom, are none of {instrument}: check the "
            "unit of its wavelengths"
        )
    return Spectrum(
        flux=flux,
        error=error,
        mask=mask,
        wavelength=instrument.wavelength,
        instrument=instrument,
        velocity=velocity,
        **about,
    )


def _check_sampling(instrument: Instrument, wavelength: np.ndarray) -> None:
    """Refuse an arm (n,) that is sampled too coarsely for the instrument's lines."""
    within = wavelength[
        (wavelength > instrument.wavelength[0]) & (wavelength < instrument.wavelength[-1])
    ]
    if len(within) < 2:
        return
    step = float(np.median(np.abs(np.diff(within))))
    width = float(np.median(instrument.pixel_width[instrument.nearest_pixels(within)]))
    if step > COARSEST * width:
        raise ValueError(
            f"its pixels, {step:.3f} Angstrom wide, are too coarse for the lines that "
            f"{instrument.name} resolves with pixels of {width:.3f}"
        )


def _smoothed(
    wavelength: np.ndarray,
    flux: np.ndarray,
    bad: np.ndarray,
    own: float | np.ndarray,
    wanted: float | np.ndarray,
) -> np.ndarray:
    """Flux (n,) at the resolving power that is wanted; unchanged where its own is no higher."""
    if np.ndim(wanted):
        wanted = float(np.mean(wanted))
    variance = np.clip(1 / wanted**2 - 1 / np.broadcast_to(own, wavelength.shape) ** 2, 0, None)
    width = np.abs(np.gradient(wavelength))
    sigma = wavelength * np.sqrt(variance) / FWHM / width  # in pixels
    if not np.isfinite(sigma).any() or np.nanmax(sigma) < 0.05:
        return flux
    half = int(np.ceil(4 * np.nanmax(sigma)))
    total, weight = np.zeros_like(flux), np.zeros_like(flux)
    values, valid = np.where(bad, 0.0, flux), (~bad).astype(np.float64)
    for offset in range(-half, half + 1):
        kernel = np.exp(-0.5 * (offset / np.maximum(sigma, 1e-3)) ** 2)
        here = slice(max(0, -offset), len(flux) - max(0, offset))
        there = slice(max(0, offset), len(flux) - max(0, -offset))
        total[here] += kernel[here] * values[there]
        weight[here] += kernel[here] * valid[there]
    return np.divide(total, weight, out=np.full_like(flux, np.nan), where=weight > 0)
