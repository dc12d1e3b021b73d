"""Convolution of finely sampled spectra with line-spread functions and broadening profiles."""

import math

import torch
from torch import Tensor

__all__ = ["FWHM", "lsf_matrix"]

FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian over its standard deviation."""


def lsf_matrix(source: Tensor, start: float, step: float, size: int, sigma: Tensor) -> Tensor:
    """
    Matrix (P, size), sparse, that samples a spectrum through a Gaussian line-spread function.

    Parameters
    ----------
    source : (P,)
        log10 of the wavelengths to sample at [Angstrom].
    start, step, size
        The grid of the spectrum to be sampled: log10 wavelength = start + step * i, i < size.
    sigma : (P,)
        Width of the kernel in log10 wavelength. Widths below 0.3 steps are drawn as 0.3 steps
        (linear interpolation, in effect).
    """
    sigma = sigma.clamp(min=0.3 * step)
    centre = (source - start) / step
    half = math.ceil(5.0 * float(sigma.max()) / step) + 1
    offsets = torch.arange(-half, half + 1, device=source.device)
    columns = centre.round().long()[:, None] + offsets
    weight = torch.exp(-0.5 * ((columns - centre[:, None]) * (step / sigma)[:, None]) ** 2)
    weight = weight * ((columns >= 0) & (columns < size))
    weight = weight / weight.sum(1, keepdim=True)
    rows = torch.arange(len(source), device=source.device)[:, None].expand_as(columns)
    keep = weight > 1e-9
    index = torch.stack([rows[keep], columns[keep]])
    size = (len(source), size)
    return torch.sparse_coo_tensor(index, weight[keep], size, check_invariants=False).coalesce()
