"""Pseudo-continua: polynomials through the chips of many spectra at once."""

import math
from collections.abc import Iterable

import numpy as np
import torch

__all__ = ["fit_polynomials"]

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
    ridge = 1e-10 * torch.eye(n_terms, dtype=torch.float64, device=flux.device)
    clips = not (math.isinf(clip_low) and math.isinf(clip_high))
    weight = valid_weight
    for remaining in range(iterations if clips else 0, -1, -1):
        matrix = (weight @ products).reshape(-1, n_terms, n_terms).double()
        matrix += ridge * matrix[:, :1, :1].clamp(min=1)  # keeps empty chips solvable
        vector = ((weight * flux) @ basis).double()
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
