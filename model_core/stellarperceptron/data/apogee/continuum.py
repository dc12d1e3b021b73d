"""Pseudo-continua: polynomials through the chips of many spectra at once."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from stellarperceptron.data.apogee.grid import CHIP_PIXELS, CHIPS, FULL_WAVELENGTH, VALID_PIXELS
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.utils.arrays import as_array, is_constant, sentinels_to_nan
from stellarperceptron.utils.distributed import precise

__all__ = [
    "VALID_FLUX",
    "cut_flux",
    "fit_polynomials",
    "normalize",
    "normalize_as",
    "pseudo_continuum",
]

VALID_FLUX = APOGEE.valid_flux
"""Normalized flux outside this interval is no measurement; it becomes NaN (SpectraFM paper)."""


def pseudo_continuum(
    flux: Any,
    *,
    chips: Mapping[str, slice] | None = None,
    order: int = APOGEE.continuum.order,
    clip_low: float = math.inf,
    clip_high: float = APOGEE.continuum.clip_high,
    iterations: int = APOGEE.continuum.iterations,
    places: np.ndarray | None = None,
) -> np.ndarray | torch.Tensor:
    """Fit a low-order polynomial through every chip of every spectrum, as ASPCAP does.

    ASPCAP compares observed and synthetic spectra after dividing both by a polynomial of fourth
    order a chip (Garcia Perez et al. 2016, AJ 151, 144, section 4). With these defaults the
    result has the scale of data release 17: each chip has mean 1, so that the median pixel lies
    near 1.016, and the ends of the chips, where a polynomial bends up, follow the medians of the
    real survey. A lower clip would draw the polynomial up to the line-free pixels and the median
    below 1; it is meant for other purposes. Without clipping the result is linear in `flux`, so
    that the continuum of a derivative is the derivative of the continuum.

    Parameters
    ----------
    flux : (..., P)
        Flux in any unit and any container of `as_array`. Pixels that are NaN, masked, or marked as
        missing (`sentinels_to_nan`) are ignored.
    chips
        Slices of the P pixels, each fitted separately. None: the chips of the survey, for 7,514
        pixels or the full grid of 8,575.
    order
        Order of the polynomial.
    clip_low, clip_high
        Pixels this many standard deviations below or above the polynomial are left out.
    iterations
        How many times the fit is repeated without the clipped pixels.
    places
        See `fit_polynomials`.

    Returns
    -------
    (..., P)
        The continuum; a tensor on its device where `flux` is one, else an array, of single
        precision where `flux` is. NaN in pixels of no chip, and in a chip with fewer valid
        pixels than twice the number of coefficients.

    Raises
    ------
    ValueError
        For another number of pixels without `chips`, and for `chips` beyond the spectrum.
    """
    spectra = sentinels_to_nan(_as_tensor(flux))
    continuum = fit_polynomials(
        spectra.reshape(-1, spectra.shape[-1]),
        _chips_of(spectra, chips).values(),
        order=order,
        clip_low=clip_low,
        clip_high=clip_high,
        iterations=iterations,
        places=places,
    ).reshape(spectra.shape)
    return continuum if isinstance(flux, torch.Tensor) else continuum.numpy()


def normalize(
    flux: Any,
    bad: Any = None,
    *,
    valid_flux: tuple[float, float] | None = VALID_FLUX,
    chips: Mapping[str, slice] | None = None,
    **continuum_options,
) -> np.ndarray | torch.Tensor:
    """Divide spectra by their pseudo-continuum; what is not a measurement becomes NaN.

    These are chips of constant flux (zero, or filled with a number), pixels whose continuum is not
    above zero (over-subtracted sky), and marks of missing values (`sentinels_to_nan`).

    Parameters
    ----------
    flux : (..., P)
        Flux in any unit and any container of `as_array`, NaN or masked where there is none.
    bad : (..., P), optional
        True for pixels that are not fitted and become NaN.
    valid_flux
        Normalized flux outside this interval becomes NaN; None keeps everything.
    chips, **continuum_options
        Arguments of `pseudo_continuum`.

    Returns
    -------
    (..., P)
        Normalized flux; a tensor on its device where `flux` is one, else an array, of single
        precision where `flux` is.

    Raises
    ------
    ValueError
        As in `pseudo_continuum`.
    """
    spectra = sentinels_to_nan(_as_tensor(flux))
    if bad is not None:
        left_out = bad if isinstance(bad, torch.Tensor) else torch.from_numpy(_flags(bad))
        spectra = torch.where(left_out.to(spectra.device, torch.bool), math.nan, spectra)
    chips = _chips_of(spectra, chips)
    continuum = pseudo_continuum(spectra, chips=chips, **continuum_options)
    normalized = spectra / torch.where(continuum > 0, continuum, math.nan)
    for chip in chips.values():
        constant = is_constant(spectra[..., chip])
        if constant.any():
            normalized[..., chip].masked_fill_(constant[..., None], math.nan)
    normalized = cut_flux(normalized, valid_flux)
    return normalized if isinstance(flux, torch.Tensor) else normalized.numpy()


def normalize_as(
    instrument: Instrument, flux: Any, bad: Any = None, pixels: slice = slice(None), **options
) -> np.ndarray | torch.Tensor:
    """Normalize spectra as those of an instrument are normalized.

    Parameters
    ----------
    instrument
        The instrument, whose `continuum` and `valid_flux` say how.
    flux, bad : (..., P)
        See `normalize`.
    pixels
        Which of the instrument's pixels the P are (a slice of step 1).
    **options
        Arguments of `normalize`, in place of the instrument's.

    Returns
    -------
    (..., P)
        As `normalize` does.

    Raises
    ------
    ValueError
        The instrument's spectra are not normalized by a polynomial.
    """
    if instrument.continuum is None:
        raise ValueError(f"{instrument} has no continuum: its spectra are normalized already")
    fit = dataclasses.asdict(instrument.continuum)
    fit |= {name: math.inf for name in ("clip_low", "clip_high") if fit[name] is None}
    chips, places = instrument.chips_of(pixels), instrument.grid_index[pixels]
    if not any((np.diff(places[chip]) > 1).any() for chip in chips.values()):
        places = None
    own = {"valid_flux": instrument.valid_flux, "chips": chips, "places": places}
    return normalize(flux, bad, **(own | fit | options))


def cut_flux(
    flux: torch.Tensor | np.ndarray, valid_flux: tuple[float, float] | None = VALID_FLUX
) -> torch.Tensor | np.ndarray:
    """Replace flux outside an interval by NaN; None keeps everything."""
    if valid_flux is None:
        return flux
    where = torch.where if isinstance(flux, torch.Tensor) else np.where
    return where((flux >= valid_flux[0]) & (flux <= valid_flux[1]), flux, math.nan)


def _as_tensor(flux: Any) -> torch.Tensor:
    """Flux as a tensor of floating-point numbers, in single precision where it comes so."""
    if isinstance(flux, torch.Tensor):
        return flux if flux.is_floating_point() else flux.double()
    single = getattr(getattr(flux, "dtype", None), "itemsize", 8) == 4
    array = as_array(flux, unit=None, dtype=np.float32 if single else np.float64)
    if not array.ndim:
        raise ValueError("flux is a single number, not a spectrum")
    return torch.from_numpy(array)


def _flags(bad: Any) -> np.ndarray:
    """Flags in any container as booleans; a masked one is set."""
    return as_array(bad, name="bad") != 0


def _chips_of(flux: torch.Tensor, chips: Mapping[str, slice] | None) -> Mapping[str, slice]:
    """Slices of the chips among the pixels of spectra (..., P)."""
    n_pixels = flux.shape[-1]
    if chips is None:
        known = {len(VALID_PIXELS): CHIP_PIXELS, len(FULL_WAVELENGTH): CHIPS}
        if n_pixels not in known:
            raise ValueError(
                f"the spectra have {n_pixels} pixels, not {' or '.join(map(str, known))}: say "
                "with `chips` which of them are fitted together"
            )
        return known[n_pixels]
    for name, chip in chips.items():
        if not 0 <= chip.start < chip.stop <= n_pixels:
            raise ValueError(f"chip {name} ({chip}) does not lie within {n_pixels} pixels")
    return chips


# --- fit ------------------------------------------------------------------------------------------

_ROWS_AT_ONCE = 128  # one chip of this many spectra fits into the processor's cache
_RAMP = 0.2  # width of the border between kept and clipped pixels [standard deviations]


def fit_polynomials(
    flux: torch.Tensor,
    chips: Iterable[slice],
    *,
    order: int,
    clip_low: float,
    clip_high: float,
    iterations: int,
    places: np.ndarray | None = None,
) -> torch.Tensor:
    """Fit a polynomial to every chip of every spectrum, with clipping of outliers.

    Parameters
    ----------
    flux : (N, P)
        Spectra in any unit; NaN marks bad pixels.
    chips
        Slices of the P pixels, each fitted with its own polynomial.
    order
        Order of the polynomials.
    clip_low, clip_high
        Pixels this many standard deviations below or above the polynomial are clipped. Their weight
        decreases gradually, over `_RAMP`, so that rounding errors are not amplified.
    iterations
        How many times the fit is repeated without the clipped pixels.
    places
        (P,) numbers of the pixels on a grid without gaps: a chip that lacks some, as in the core of
        a line, has a smooth continuum all the same. None: no chip lacks any.

    Returns
    -------
    (N, P)
        The polynomials' values; NaN outside the chips, and in a chip with fewer valid
        pixels than twice the number of coefficients.
    """
    fitted = torch.full_like(flux, math.nan)
    for chip in chips:
        # Legendre polynomials keep the normal equations well conditioned in single precision.
        pixels = np.linspace(-1, 1, chip.stop - chip.start)
        if places is not None:
            pixels = np.interp(places[chip], places[chip][[0, -1]], (-1, 1))
        basis = torch.from_numpy(np.polynomial.legendre.legvander(pixels, order)).to(flux)
        for first in range(0, len(flux), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            fitted[rows, chip] = _fit(flux[rows, chip], basis, clip_low, clip_high, iterations)
    return fitted


def _fit(
    flux: torch.Tensor, basis: torch.Tensor, clip_low: float, clip_high: float, iterations: int
) -> torch.Tensor:
    """Fit one chip (N, n) by masked normal equations, solved for all spectra together."""
    n_terms = basis.shape[1]
    products = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), -1)
    valid = torch.isfinite(flux)
    valid_weight = valid.to(flux.dtype)
    count = valid_weight.sum(-1, keepdim=True)
    flux = torch.where(valid, flux, 0.0)
    # Dividing by the mean makes fluxes of any unit small numbers. Rounding errors of the sums below
    # are then a tenth of single precision instead of ten times as much.
    mean = flux.sum(-1, keepdim=True) / count.clamp(min=1)
    mean = torch.where(mean > 0, mean, 1.0)
    flux = torch.where(valid, flux / mean - 1, 0.0)
    double = precise(flux.device)
    ridge = 1e-10 * torch.eye(n_terms, dtype=double, device=flux.device)
    clips = not (math.isinf(clip_low) and math.isinf(clip_high))
    weight = valid_weight
    for remaining in range(iterations if clips else 0, -1, -1):
        matrix = (weight @ products).reshape(-1, n_terms, n_terms).to(double)
        matrix += ridge * matrix[:, :1, :1].clamp(min=1)  # keeps empty chips solvable
        vector = ((weight * flux) @ basis).to(double)
        fitted = torch.linalg.solve(matrix, vector).to(flux.dtype) @ basis.T
        if not remaining:
            break
        deviation = flux - fitted
        squares = torch.einsum("np,np,np->n", weight, deviation, deviation)[:, None]
        sigma = (squares / weight.sum(-1, keepdim=True).clamp(min=1)).sqrt()
        deviation /= sigma.clamp(min=1e-12)
        weight = valid_weight
        if not math.isinf(clip_high):
            weight = weight * ((clip_high - deviation) / _RAMP + 0.5).clamp(0, 1)
        if not math.isinf(clip_low):
            weight = weight * ((clip_low + deviation) / _RAMP + 0.5).clamp(0, 1)
    return torch.where(count >= 2 * n_terms, (fitted + 1) * mean, math.nan)
