"""Finely sampled spectra: their wavelengths, and convolution with line-spread functions."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.instruments.spectrograph import Instrument

__all__ = ["FWHM", "Bank", "FineGrid", "convolve", "lsf_matrix", "rotation_profile"]

FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian over its standard deviation."""

SAMPLES = 5
"""Samples a resolution element of smoothed components: cubic interpolation errs by 0.4 % of the
depth of a line at most."""


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


@dataclass(frozen=True)
class FineGrid:
    """
    Wavelengths of finely sampled spectra: one window or several, one after another.

    Attributes
    ----------
    starts, pixels
        log10 of the first wavelength of every window [Angstrom, vacuum], and its number of pixels.
    step
        Step in log10 wavelength, the same in all windows.
    resolution
        Wavelength over full width at half maximum of the spectra.
    """

    starts: tuple[float, ...]
    pixels: tuple[int, ...]
    step: float
    resolution: float

    @property
    def size(self) -> int:
        """Number of pixels."""
        return sum(self.pixels)

    @cached_property
    def wavelength(self) -> np.ndarray:
        """Wavelengths (H,) [Angstrom, vacuum]."""
        windows = zip(self.starts, self.pixels, strict=True)
        return np.concatenate([10.0 ** (a + self.step * np.arange(n)) for a, n in windows])

    @cached_property
    def windows(self) -> list[tuple[float, float, slice]]:
        """First and last log10 wavelength of every window, and its pixels."""
        out, first = [], 0
        for start, pixels in zip(self.starts, self.pixels, strict=True):
            last = start + self.step * (pixels - 1)
            out.append((start, last, slice(first, first + pixels)))
            first += pixels
        return out

    def sample(
        self, spectra: Tensor, wavelength: np.ndarray, resolution: float | np.ndarray
    ) -> Tensor:
        """
        Spectra (P, N) at other wavelengths and another resolution from spectra (H, N).

        Parameters
        ----------
        spectra : (H, N)
            One a column.
        wavelength : (P,)
            Vacuum, rest frame [Angstrom].
        resolution : float or (P,)
            Wavelength over full width at half maximum of a Gaussian; above the grid's own, it is
            the grid's own.

        Raises
        ------
        ValueError
            A wavelength is outside all windows, or a resolution is not above zero.
        """
        target = torch.log10(torch.tensor(wavelength, device=spectra.device))
        r = torch.as_tensor(resolution, dtype=torch.float64, device=spectra.device)
        if not bool((r > 0).all()):
            raise ValueError(f"resolution = {resolution} holds a value that is not above zero")
        variance = (1.0 / r**2 - 1.0 / self.resolution**2).clamp(min=0.0)
        sigma = (torch.sqrt(variance) / (FWHM * math.log(10.0))).expand_as(target)
        sampled = spectra.new_empty(len(target), spectra.shape[1])
        found = torch.zeros(len(target), dtype=torch.bool, device=spectra.device)
        for first, last, pixels in self.windows:
            inside = (target >= first) & (target <= last)
            if inside.any():
                size = pixels.stop - pixels.start
                matrix = lsf_matrix(target[inside], first, self.step, size, sigma[inside])
                sampled[inside] = matrix @ spectra[pixels]
                found |= inside
        if not found.all():
            ranges = " or ".join(f"{10**a:.1f} and {10**b:.1f}" for a, b, _ in self.windows)
            raise ValueError(f"wavelengths must be within {ranges} Angstrom")
        return sampled

    def broaden(self, spectra: Tensor, profile: Tensor) -> Tensor:
        """Spectra (H, N) convolved with a symmetric profile (2 n + 1,), as `convolve` does it."""
        return torch.cat([convolve(spectra[pixels], profile) for *_, pixels in self.windows])


class Bank:
    """Spectra of stars at some resolving powers, for instruments with any pixels.

    Parameters
    ----------
    components
        (C, H) float32, at the emulator's own resolving power.
    grid
        Its wavelengths.
    """

    def __init__(self, components: Tensor, grid: FineGrid):
        self.components, self.grid = components, grid
        self._smoothed: dict[tuple[float, torch.device], tuple[Tensor, FineGrid]] = {}

    def windows(self, instrument: Instrument) -> list[tuple[float, float]]:
        """First and last wavelength of the instrument's pixels in each window [Angstrom]."""
        grid = instrument.wavelength
        inside = [
            grid[(grid >= 10**first) & (grid <= 10**last)] for first, last, _ in self.grid.windows
        ]
        return [(float(pixels[0]), float(pixels[-1])) for pixels in inside if len(pixels)]

    def _at(self, power: float, device: torch.device) -> tuple[Tensor, FineGrid]:
        """Components (C, h) at a resolving power, and their wavelengths."""
        if (power, device) not in self._smoothed:
            step = 1 / (power * SAMPLES * math.log(10))
            numbers = [math.ceil((last - first) / step) for first, last, _ in self.grid.windows]
            grid = FineGrid(self.grid.starts, tuple(numbers), step, power)
            smoothed = self.grid.sample(self.components.T.double(), grid.wavelength, power)
            self._smoothed[power, device] = smoothed.T.float().contiguous().to(device), grid
        return self._smoothed[power, device]

    def __call__(self, coefficients: Tensor, instrument: Instrument) -> Tensor:
        """Flux over continuum (B, P) of stars with some coefficients (B, C), on their device.

        The instrument has one resolving power for all of its pixels.

        Raises
        ------
        ValueError
            It has pixels that the emulator does not reach, or no single resolving power.
        """
        device = coefficients.device
        if not isinstance(instrument.resolving_power, float):
            raise ValueError(f"{instrument} has no resolving power, or another one for each pixel")
        components, grid = self._at(instrument.resolving_power, device)
        log = np.log10(instrument.wavelength)
        place, first = np.full(len(log), np.nan), np.zeros(len(log), dtype=np.int64)
        for (low, high, _), (_, _, part) in zip(self.grid.windows, grid.windows, strict=True):
            inside = (log >= low) & (log <= high)
            place[inside] = part.start + (log[inside] - low) / grid.step
            # The four neighbours lie in the same window.
            inner = np.floor(place[inside]).astype(np.int64)
            first[inside] = inner.clip(part.start + 1, part.stop - 3)
        if np.isnan(place).any():
            raise ValueError(f"the emulator does not reach all pixels of {instrument}")
        low, high = int(first[0]) - 1, int(first[-1]) + 3
        fine = coefficients @ components[:, low:high]
        t = place - first
        # Lagrange's polynomials through four neighbours.
        weights = (
            -t * (t - 1) * (t - 2) / 6,
            (t + 1) * (t - 1) * (t - 2) / 2,
            -(t + 1) * t * (t - 2) / 2,
            (t + 1) * t * (t - 1) / 6,
        )
        flux = torch.zeros(len(fine), len(place), device=device)
        for i, weight in enumerate(weights):
            index = torch.as_tensor(first - 1 - low + i, device=device)
            flux += fine[:, index] * torch.as_tensor(weight, dtype=torch.float32, device=device)
        return flux.clamp_(max=1.0)


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
