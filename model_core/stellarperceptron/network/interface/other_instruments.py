"""Spectra of other instruments for a model that was trained on many; see `instruments.rows`."""

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.data.standardizer import Standardizer
from stellarperceptron.data.wavelengths import Resampling
from stellarperceptron.instruments.drawn import DrawnInstruments
from stellarperceptron.instruments.rows import between_rows
from stellarperceptron.instruments.spectrograph import Instrument

__all__ = ["OtherInstrument"]


class OtherInstrument:
    """Spectra at other wavelengths than those of a model's pixels, spread onto the pixels.

    Parameters
    ----------
    instrument
        The model's instrument.
    drawn
        Instruments that the model was trained on.
    wavelengths
        (n,) of the spectra, vacuum [Angstrom], in any order.
    resolving_power
        (n,) at these wavelengths.

    Attributes
    ----------
    pixels : (m,) int
        The pixels of the model's instrument within the range of the spectra.
    resolving_power : (m,) float
        Resolving power of the spectra there.

    Raises
    ------
    ValueError
        The resolving power is not given, or it, the sampling, or the range is none of those that
        the model was trained on.
    """

    def __init__(
        self,
        instrument: Instrument,
        drawn: DrawnInstruments,
        wavelengths: np.ndarray,
        resolving_power: np.ndarray | None,
    ):
        if resolving_power is None or not np.isfinite(resolving_power).all():
            raise ValueError(
                f"the wavelengths are not those of {instrument.name} pixels: say which resolving "
                "power the spectra have, predict(..., resolving_power=...)"
            )
        self.order = np.argsort(wavelengths, kind="stable")
        x = wavelengths[self.order]
        if (np.diff(x) <= 0).any():
            raise ValueError("wavelengths are given twice")
        power = resolving_power[self.order]
        grid = instrument.wavelength
        self.rows = between_rows(instrument, x) if len(x) > 1 else None
        if self.rows is None or not len(self.rows.pixels):
            raise ValueError(
                f"wavelengths from {x[0]:.0f} to {x[-1]:.0f} Angstrom lie outside those that the "
                f"model was trained on, {grid[0]:.0f} to {grid[-1]:.0f}"
            )
        drawn.refuse(x, power)
        outside = int(((x < grid[0]) | (x > grid[-1])).sum())
        if outside:
            warnings.warn(
                f"{outside} of {len(x)} pixels are left out: they lie outside of the "
                f"{grid[0]:.0f} to {grid[-1]:.0f} Angstrom that the model was trained on",
                stacklevel=3,
            )
        first, last = self.rows.left[0], self.rows.left[-1] + 1
        self.pixels = np.arange(first, last + 1)
        self.resolving_power = np.interp(grid[self.pixels], x, power)
        right = np.searchsorted(x, grid[self.pixels]).clip(1, len(x) - 1)
        weight = ((grid[self.pixels] - x[right - 1]) / (x[right] - x[right - 1])).clip(0, 1)
        self._interpolation = Resampling(self.pixels, right - 1, right, weight.astype(np.float32))

    def on_pixels(self, flux: np.ndarray) -> np.ndarray:
        """Flux (N, m) interpolated at the model's pixels; NaN beside a bad pixel."""
        return self._interpolation(flux[:, self.order])

    def spread(
        self, flux: np.ndarray, standardizer: Standardizer, tokens: np.ndarray, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Standardized values and weights (N, m) of spectra (N, n), as tensors like another one.

        Parameters
        ----------
        flux
            (N, n) fluxes over the pseudo-continuum, NaN for bad pixels.
        standardizer, tokens
            The model's standardization, and its tokens (R,) of all pixels of its instrument.
        """
        values = torch.from_numpy(flux[:, self.order[self.rows.pixels]]).to(like)
        center, scale, limit = map(self.rows.interpolate, standardizer.statistics(tokens, like))
        z = (values - center) / scale
        z = z.masked_fill((z.abs() > limit) | z.isinf(), math.nan)
        values, weights = self.rows.spread(z)
        part = slice(int(self.pixels[0]), int(self.pixels[-1]) + 1)
        return values[:, part], weights[:, part]
