"""Spectra at other wavelengths: interpolation, shifts of lines, air and vacuum.

Wavelengths are in Angstrom.
"""

import math
from dataclasses import dataclass

import numpy as np

from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.utils.arrays import as_array

__all__ = [
    "SPEED_OF_LIGHT",
    "Resampling",
    "air_or_vacuum",
    "air_to_vacuum",
    "interpolate",
    "line_shift",
    "off_pixels",
    "resampling_onto",
    "vacuum_to_air",
]

SPEED_OF_LIGHT = 299_792.458
"""Speed of light [km/s], exact (SI)."""

_SMOOTHING = 150  # pixels of 1.8 km/s to 4.1 km/s: broader than any line, narrower than a chip
_ROWS_AT_ONCE = 128
LEAST_SIGNIFICANCE = 5.0
"""A cross-correlation peak of lower significance may be noise (Tonry & Davis 1979, section III)."""


def interpolate(x: np.ndarray, y: np.ndarray, target: np.ndarray, points: int = 6) -> np.ndarray:
    """Interpolate y(x) at `target` by Lagrange polynomials through neighbouring points.

    With six points, lines of four pixels and more are reproduced to a few thousandths of their
    depth; linear interpolation is wrong by a tenth.

    Parameters
    ----------
    x : (n,)
        At least `points` ascending numbers with any spacing.
    y : (n,)
        Values at x.
    target : (m,)
        Positions at which to interpolate, within the range of x.
    points
        Number of neighbours through which each polynomial passes.

    Returns
    -------
    (m,) float64
    """
    right = np.clip(np.searchsorted(x, target), 1, len(x) - 1)
    first = np.clip(right - points // 2, 0, len(x) - points)
    nodes = first[:, None] + np.arange(points)
    offset = target[:, None] - x[nodes]
    value = np.zeros(len(target))
    for i in range(points):
        others = [j for j in range(points) if j != i]
        spacing = x[nodes[:, [i]]] - x[nodes[:, others]]
        value += y[nodes[:, i]] * np.prod(offset[:, others] / spacing, axis=1)
    return value


# --- air and vacuum -------------------------------------------------------------------------------


def _refractive_index(vacuum: np.ndarray) -> np.ndarray:
    """Refractive index of standard air at vacuum wavelengths (Ciddor 1996, Appl. Opt. 35, 1566)."""
    square = (1e4 / vacuum) ** 2
    return 1 + 0.05792105 / (238.0185 - square) + 0.00167917 / (57.362 - square)


def vacuum_to_air(wavelength: np.ndarray) -> np.ndarray:
    """Convert vacuum wavelengths to standard air [A]; in the H band they are 4.4 A shorter."""
    return wavelength / _refractive_index(wavelength)


def air_to_vacuum(wavelength: np.ndarray) -> np.ndarray:
    """Convert wavelengths in standard air to vacuum [A]; inverts `vacuum_to_air` to 1e-9 A."""
    vacuum = wavelength * _refractive_index(wavelength)
    return wavelength * _refractive_index(vacuum)


# --- shifts ---------------------------------------------------------------------------------------


def line_shift(
    flux: np.ndarray,
    template: np.ndarray,
    wavelength: np.ndarray = APOGEE.wavelength,
    *,
    max_velocity: float = 600.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Measure by how much the lines of spectra are shifted, by cross-correlation.

    Parameters
    ----------
    flux : (N, P) or (P,)
        Normalized flux, NaN in pixels to ignore.
    template : (P,), (1, P) or (N, P)
        Spectra with the same lines at rest; a mean of many stars is sufficient.
    wavelength : (P,)
        Ascending, in equal steps of the logarithm, with or without gaps.
    max_velocity
        Largest shift considered, in either direction [km/s].

    Returns
    -------
    velocity : (N,)
        Shift [km/s]; positive if lines are at longer wavelengths than in `template`.
    significance : (N,)
        Height of the correlation peak divided by the noise, which is estimated from the part of the
        correlation that is antisymmetric about the peak (R of Tonry & Davis 1979, AJ 84, 1511).
        Shifts below `LEAST_SIGNIFICANCE` are not significant.

    Both are NaN for a spectrum without valid pixels.

    Raises
    ------
    ValueError
        The numbers of pixels differ, or wavelengths are not in equal steps of the logarithm.
    """
    flux, template = (np.atleast_2d(as_array(part, unit=None)) for part in (flux, template))
    if not flux.shape[1] == template.shape[1] == len(wavelength):
        raise ValueError(
            f"flux, template and wavelength have {flux.shape[1]}, {template.shape[1]} and "
            f"{len(wavelength)} pixels"
        )
    position, step = _log_pixels(wavelength)
    pixel_velocity = SPEED_OF_LIGHT * math.expm1(step)
    reach = max(int(max_velocity / pixel_velocity), 2)
    size = 1 << int(position[-1] + 2 * reach + 1).bit_length()
    lags = np.arange(-2 * reach, 2 * reach + 1)
    velocity, significance = np.full((2, len(flux)), np.nan)
    transform = np.conj(np.fft.rfft(_lines(template[:1], position), size))
    for first in range(0, len(flux), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        if len(template) > 1:
            transform = np.conj(np.fft.rfft(_lines(template[rows], position), size))
        spectrum = np.fft.rfft(_lines(flux[rows], position), size)
        correlation = np.fft.irfft(spectrum * transform, size)[:, lags]
        velocity[rows], significance[rows] = _peaks(correlation, reach)
    return SPEED_OF_LIGHT * np.expm1(velocity * step), significance


def air_or_vacuum(
    wavelength: np.ndarray,
    flux: np.ndarray,
    template_wavelength: np.ndarray,
    template_flux: np.ndarray,
    *,
    tolerance: float = 12.0,
) -> np.ndarray:
    """Decide from the lines whether wavelengths are in air or in vacuum.

    In air all lines are at shorter wavelengths, by 4.4 Angstrom or 82 km/s in the H band, and by
    nearly the same velocity in the visible. A single star may have this velocity, but not many
    stars: use the majority of their answers.

    Parameters
    ----------
    wavelength : (P,)
        Any ascending or descending wavelengths [A].
    flux : (N, P) or (P,)
        Flux over continuum at rest, NaN where missing.
    template_wavelength : (Q,)
        Vacuum wavelengths [A], ascending.
    template_flux : (Q,)
        A spectrum with the same lines, such as the mean of many stars, over its continuum.
    tolerance
        Largest difference of a shift from that of air or vacuum [km/s].

    Returns
    -------
    (N,) str
        ``"air"``, ``"vacuum"``, or an empty text if the lines indicate neither.
    """
    wavelength = as_array(wavelength, unit="Angstrom", name="wavelength")
    order = np.argsort(wavelength)
    wavelength, flux = wavelength[order], np.atleast_2d(as_array(flux, unit=None))[:, order]
    low = max(wavelength[0], template_wavelength[0])
    high = min(wavelength[-1], template_wavelength[-1])
    steps = [np.median(np.diff(np.log(w))) for w in (wavelength, template_wavelength)]
    n_pixels = int(math.log(high / low) / max(steps)) if high > low else 0
    if n_pixels < 2 * _SMOOTHING // 3:  # too little overlap to find lines in
        return np.full(len(flux), "", dtype="<U6")
    grid = low * np.exp(max(steps) * np.arange(n_pixels))
    template = _onto(grid, template_wavelength, template_flux)
    spectra = np.stack([_onto(grid, wavelength, row) for row in flux])
    velocity, significance = line_shift(spectra, template, grid)
    air = SPEED_OF_LIGHT * float(np.median(vacuum_to_air(grid) / grid) - 1)
    found = significance >= LEAST_SIGNIFICANCE
    kinds = np.full(len(flux), "", dtype="<U6")
    kinds[found & (np.abs(velocity) < tolerance)] = "vacuum"
    kinds[found & (np.abs(velocity - air) < tolerance)] = "air"
    return kinds


def _onto(grid: np.ndarray, wavelength: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Flux at other wavelengths; NaN near missing pixels and in gaps of the wavelengths."""
    valid = np.isfinite(flux)
    if not valid.any():
        return np.full(grid.shape, np.nan)
    x = wavelength[valid]
    widest = 4 * max(np.median(np.diff(wavelength)), grid[1] - grid[0])
    right = np.clip(np.searchsorted(x, grid), 1, max(len(x) - 1, 1))
    near = (x[right.clip(max=len(x) - 1)] - x[right - 1]) <= widest
    values = np.interp(grid, x, flux[valid], left=np.nan, right=np.nan)
    return np.where(near, values, np.nan)


def _log_pixels(wavelength: np.ndarray) -> tuple[np.ndarray, float]:
    """Positions (P,) of wavelengths on their logarithmic grid, and its step (natural logarithm)."""
    logarithm = np.log(np.asarray(wavelength, dtype=np.float64))
    step = float(np.median(np.diff(logarithm)))
    offset = (logarithm - logarithm[0]) / step if step > 0 else np.zeros(len(logarithm))
    position = np.rint(offset).astype(np.int64)
    if not step > 0 or np.abs(offset - position).max() > 0.1 or (np.diff(position) < 1).any():
        raise ValueError("wavelengths are not ascending in equal steps of their logarithm")
    return position, step


def _lines(flux: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Flux (N, P) minus its running mean, on the grid (N, L), of norm 1; zero where missing."""
    on_grid = np.zeros((len(flux), position[-1] + 1))
    weight = np.zeros_like(on_grid)
    valid = np.isfinite(flux)
    on_grid[:, position], weight[:, position] = np.where(valid, flux, 0.0), valid

    def running_sum(values: np.ndarray) -> np.ndarray:
        total = np.pad(np.cumsum(values, axis=1), ((0, 0), (1, 0)))
        places = np.arange(values.shape[1])
        half = _SMOOTHING // 2
        return (
            total[:, np.minimum(places + half + 1, values.shape[1])]
            - total[:, np.maximum(places - half, 0)]
        )

    mean = running_sum(on_grid) / np.maximum(running_sum(weight), 1.0)
    lines = (on_grid - mean) * weight
    # Limit the influence of single spikes.
    scatter = np.sqrt((lines**2).sum(1) / np.maximum(weight.sum(1), 1.0))[:, None]
    lines = np.clip(lines, -5 * scatter, 5 * scatter)
    norm = np.sqrt((lines**2).sum(1, keepdims=True))
    return np.divide(lines, norm, out=np.zeros_like(lines), where=norm > 0)


def _peaks(correlation: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions [pixels] and significance of the peaks of correlations (N, 4 reach + 1)."""
    rows = np.arange(len(correlation))
    middle = 2 * reach
    inner = correlation[:, reach : 3 * reach + 1]
    peak = reach + inner.argmax(1)
    height = correlation[rows, peak]
    before, after = correlation[rows, peak - 1], correlation[rows, peak + 1]
    curvature = before - 2 * height + after
    fraction = np.divide(
        0.5 * (before - after), curvature, out=np.zeros(len(rows)), where=curvature < 0
    )
    distance = np.arange(1, reach + 1)
    odd = (
        correlation[rows[:, None], peak[:, None] + distance]
        - correlation[rows[:, None], peak[:, None] - distance]
    )
    noise = np.sqrt((odd**2).mean(1))  # sqrt(2) times the noise of the correlation
    empty = ~(height > 0)
    significance = np.where(empty, np.nan, height / np.where(noise > 0, noise, np.inf))
    return np.where(empty, np.nan, peak - middle + np.clip(fraction, -0.5, 0.5)), significance


# --- another grid of pixels -----------------------------------------------------------------------

ON_GRID = 0.1
"""Wavelengths within this share of a pixel's width are those of the pixel."""

COARSEST = 1.5
"""Coarser steps, in pixels of the instrument, do not resolve its lines."""


@dataclass(frozen=True)
class Resampling:
    """Linear interpolation of spectra (N, n) onto m pixels of an instrument.

    Attributes
    ----------
    pixels : (m,) int
        The instrument's pixels that the spectra cover.
    left, right : (m,) int
        Columns of the spectra on either side of each pixel.
    weight : (m,) float32
        Weight of the right column.
    """

    pixels: np.ndarray
    left: np.ndarray
    right: np.ndarray
    weight: np.ndarray

    def __call__(self, flux: np.ndarray) -> np.ndarray:
        """Flux (N, n) on the pixels (N, m); NaN beside a bad pixel."""
        left, right = flux[:, self.left], flux[:, self.right]
        return (1 - self.weight) * left + self.weight * right

    def of_errors(self, errors: np.ndarray) -> np.ndarray:
        """Errors (N, m) of the interpolated flux, from independent errors (N, n) of the flux."""
        left, right = errors[:, self.left], errors[:, self.right]
        return np.hypot((1 - self.weight) * left, self.weight * right)


def off_pixels(instrument: Instrument, wavelengths: np.ndarray) -> np.ndarray:
    """Which wavelengths (n,) are not those of an instrument's pixels."""
    nearest = instrument.nearest_pixels(wavelengths)
    off = np.abs(wavelengths - instrument.wavelength[nearest])
    return off > ON_GRID * instrument.pixel_width[nearest]


def resampling_onto(instrument: Instrument, wavelengths: np.ndarray) -> Resampling | None:
    """Interpolation of spectra at some wavelengths onto an instrument's pixels.

    Parameters
    ----------
    instrument
        Instrument with the pixels.
    wavelengths
        (n,) vacuum [Angstrom], in any order.

    Returns
    -------
    Resampling or None
        None if the wavelengths are already those of the instrument's pixels.

    Raises
    ------
    ValueError
        The wavelengths cover no pixel, or are sampled too coarsely to resolve the same lines.
    """
    grid = instrument.wavelength
    off = off_pixels(instrument, wavelengths)
    if not off.any():
        return None
    order = np.argsort(wavelengths, kind="stable")
    order = order[np.diff(wavelengths[order], prepend=-np.inf) > 0]  # each wavelength once
    x = wavelengths[order]
    pixels = np.flatnonzero((grid >= x[0]) & (grid <= x[-1]))
    if len(x) < 2 or not len(pixels):
        raise ValueError(
            f"{off.sum()} wavelengths, {wavelengths[off][0]:.3f} Angstrom the first, are on no "
            f"{instrument.name} pixel, and cover none ({grid[0]:.0f} to {grid[-1]:.0f} Angstrom)"
        )
    right = np.searchsorted(x, grid[pixels]).clip(1, len(x) - 1)
    step, width = x[right] - x[right - 1], instrument.pixel_width[pixels]
    if np.median(step / width) > COARSEST:
        raise ValueError(
            f"wavelengths in steps of {np.median(step):.2f} Angstrom do not resolve what "
            f"{instrument.name} does, whose pixels are {np.median(width):.2f} Angstrom wide"
        )
    inside = step <= 2 * COARSEST * width  # not across a gap of the wavelengths
    pixels, right = pixels[inside], right[inside]
    weight = (grid[pixels] - x[right - 1]) / (x[right] - x[right - 1])
    return Resampling(pixels, order[right - 1], order[right], weight.astype(np.float32))
