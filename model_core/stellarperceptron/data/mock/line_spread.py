"""Convolution of finely sampled spectra with line-spread functions and broadening profiles."""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["FWHM", "convolve", "lsf_matrix", "rotation_profile"]

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
    keep = weight > 1e-9
    rows = torch.arange(len(source), device=source.device)[:, None].expand_as(columns)
    index = torch.stack([rows[keep], columns[keep]])
    return torch.sparse_coo_tensor(
        index, weight[keep], (len(source), size), check_invariants=False, is_coalesced=True
    )


def convolve(spectra: Tensor, profile: Tensor) -> Tensor:
    """
    Spectra (H, N), one a column, convolved with a symmetric profile (2 n + 1,) of sum 1.

    Beyond its ends a spectrum goes on with its last value.
    """
    half = len(profile) // 2
    ends = spectra[:1].expand(half, -1), spectra[-1:].expand(half, -1)
    padded = torch.cat([ends[0], spectra, ends[1]]).T
    length = 1 << (padded.shape[1] + len(profile) - 1).bit_length()
    transform = torch.fft.rfft(padded, length) * torch.fft.rfft(profile.to(spectra), length)
    full = torch.fft.irfft(transform, length)
    return full[:, 2 * half : 2 * half + len(spectra)].T.contiguous()


def rotation_profile(velocity: float, step: float, limb_darkening: float = 0.6) -> Tensor:
    """
    Broadening profile of a rotating star, integrated over pixels (2 n + 1,), of sum 1.

    A linear limb-darkening law (Gray 2008, "The Observation and Analysis of Stellar Photospheres",
    equation 18.14).

    Parameters
    ----------
    velocity
        Projected rotation at the equator [km/s].
    step
        Width of a pixel [km/s].
    limb_darkening
        Coefficient of the linear law.
    """
    half = math.ceil(velocity / step + 0.5)
    edges = (np.arange(-half, half + 2) - 0.5) * (step / velocity)
    x = np.clip(edges, -1.0, 1.0)
    # Integrals of sqrt(1 - x^2) and of 1 - x^2.
    disc = 0.5 * (x * np.sqrt(1.0 - x**2) + np.arcsin(x))
    darkened = x - x**3 / 3.0
    total = 2.0 * (1.0 - limb_darkening) * disc + 0.5 * math.pi * limb_darkening * darkened
    profile = np.diff(total)
    return torch.from_numpy(profile / profile.sum())
