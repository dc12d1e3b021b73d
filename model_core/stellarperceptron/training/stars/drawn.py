"""Batches as other instruments see them; see `instruments.drawn` and `instruments.rows`."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.instruments.drawn import DrawnInstruments
from stellarperceptron.instruments.rows import BetweenRows, between_rows
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.network.patches import known_conditions
from stellarperceptron.training.stars.labelled import Stars

__all__ = ["DrawnSpectra", "OtherSpectra", "Seen", "at_all_powers", "other_stars"]

BORDERS = (0.1, 0.9)  # between two instruments, as fractions of the model's pixels


class Seen(NamedTuple):
    """Spectra of B stars for the network.

    Attributes
    ----------
    values : Tensor
        (B, n) standardized, NaN where bad.
    noise : Tensor or None
        (B,) standard deviation of the noise that augmentation added, or (B, T) of that in each
        token; None: unknown.
    weights : Tensor or None
        (B, n), see `Tokens`.
    conditions : Tensor or None
        (T, C) of all tokens, see `known_conditions`; None: as in other batches.
    """

    values: Tensor
    noise: Tensor | None = None
    weights: Tensor | None = None
    conditions: Tensor | None = None


class DrawnSpectra:
    """Makes the spectra of a batch as seen by one or two instruments that are drawn for it.

    Parameters
    ----------
    drawn
        How instruments are drawn.
    instrument
        The model's instrument, on all of whose pixels the spectra are spread.
    stars
        The stars, which can be seen by any instrument.
    augmentation
        Noise and other errors; None: there are none.
    """

    def __init__(
        self,
        drawn: DrawnInstruments,
        instrument: Instrument,
        stars: Stars,
        augmentation: Augmentation | None,
    ):
        if stars.see is None or len(stars.names) != len(instrument):
            raise ValueError(f"drawn instruments need emulated stars with all pixels: {instrument}")
        self.drawn, self.instrument = drawn, instrument
        self.see, self.augmentation = stars.see, augmentation
        self.windows = stars.windows or [tuple(map(float, instrument.wavelength[[0, -1]]))]

    def applies(self, random: np.random.Generator | None) -> bool:
        """Whether a batch is seen by a drawn instrument; none is in validation (`random` None)."""
        return random is not None and bool(random.random() < self.drawn.share)

    def __call__(
        self,
        coefficients: Tensor,
        statistics: tuple[Tensor, Tensor, Tensor],
        groups: np.ndarray,
        random: np.random.Generator,
        generator: torch.Generator,
    ) -> Seen:
        """Draw an instrument or two, and make what they see of stars with coefficients (B, k).

        Parameters
        ----------
        statistics
            Center, scale and limit (n,) of the model's pixels; see `TrainingData`.
        groups
            (T, P) pixels of each token, n for a missing one.
        random, generator
            Randomness of the instrument, and of noise and bad pixels.
        """
        border = self._border(random)
        parts, wavelengths, powers = [], [], []
        for windows in self._on_either_side(border):
            seen_by = self.drawn.draw(random, windows, self.instrument)
            flux = self.see(coefficients, seen_by)
            parts.append(self.with_errors(flux, seen_by, random, generator))
            wavelengths.append(seen_by.wavelength)
            powers.append(seen_by.resolving_power)
        wavelength = np.concatenate(wavelengths)
        above = np.arange(len(self.instrument)) >= border
        power = np.where(above, powers[-1], powers[0])
        flux = torch.cat([flux for flux, _ in parts], dim=1)
        rows = between_rows(self.instrument, wavelength)
        seen, added = _spread(flux, rows, power, statistics, groups), parts[0][1]
        if added is None:
            return seen
        if len(parts) == 1 and added.dim() == 1:  # the same in all tokens
            return seen._replace(noise=added)
        noise = [x if x.dim() == 2 else x[:, None].expand(f.shape) for f, x in parts]
        nearest = _nearest_pixels(self.instrument, groups, wavelength)
        return seen._replace(noise=torch.cat(noise, dim=1)[:, nearest])

    def _border(self, random: np.random.Generator) -> int:
        """First of the model's pixels that a second instrument sees; 0: there is no second one."""
        if not self.drawn.combined_share or random.random() >= self.drawn.combined_share:
            return 0
        pixels = len(self.instrument)
        return int(random.integers(*(round(share * pixels) for share in BORDERS)))

    def _on_either_side(self, border: int) -> list[list[tuple[float, float]]]:
        """Windows of wavelength of each instrument."""
        if not border:
            return [self.windows]
        middle = float(self.instrument.wavelength[border - 1 : border + 1].mean())
        below = [(low, min(high, middle)) for low, high in self.windows if low < middle]
        above = [(max(low, middle), high) for low, high in self.windows if high > middle]
        return [below, above]

    def with_errors(
        self,
        flux: Tensor,
        seen_by: Instrument,
        random: np.random.Generator,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor | None]:
        """Add errors and bad pixels to what an instrument sees (B, n).

        The second result is the standard deviation of the noise (B,) or (B, n), None if there is
        none.
        """
        noise = None
        if self.augmentation is not None:
            flux, noise = self.augmentation.with_noise(flux, generator, instrument=seen_by)
        lost = self.drawn.bad * random.random()
        luck = torch.rand(flux.shape, generator=generator, device=flux.device)
        bad = luck < lost
        if seen_by.valid_flux is not None:  # noise may exceed what counts as a measurement
            low, high = seen_by.valid_flux
            bad |= (flux < low) | (flux > high)
        return flux.masked_fill(bad, math.nan), noise


class OtherSpectra:
    """Spreads measured spectra of another instrument onto the model's pixels.

    Parameters
    ----------
    instrument
        The model's instrument.
    wavelengths, resolving_power
        (n,) of the spectra.
    augment
        Function of fluxes (B, n) and a generator; see `TrainingData`.
    """

    def __init__(
        self,
        instrument: Instrument,
        wavelengths: np.ndarray,
        resolving_power: np.ndarray,
        augment: Callable[[Tensor, torch.Generator], Any] | None = None,
    ):
        self.instrument, self.wavelengths = instrument, wavelengths
        self.rows = between_rows(instrument, wavelengths)
        order = np.argsort(wavelengths)
        self.power = np.interp(
            instrument.wavelength, wavelengths[order], np.asarray(resolving_power)[order]
        )
        self.augment = augment

    def applies(self, random: np.random.Generator | None) -> bool:
        """Whether a batch shows the other instrument: all do."""
        return True

    def __call__(
        self,
        flux: Tensor,
        statistics: tuple[Tensor, Tensor, Tensor],
        groups: np.ndarray,
        random: np.random.Generator | None,
        generator: torch.Generator | None,
    ) -> Seen:
        """Standardize and spread fluxes (B, n), augmented where there is a generator.

        `statistics` and `groups` as in `DrawnSpectra`.
        """
        noise = None
        if generator is not None and self.augment is not None:
            found = self.augment(flux, generator)
            flux, noise = found if isinstance(found, tuple) else (found, None)
            if noise is not None and noise.dim() == 2:
                noise = noise[:, _nearest_pixels(self.instrument, groups, self.wavelengths)]
        return _spread(flux, self.rows, self.power, statistics, groups)._replace(noise=noise)


def _nearest_pixels(
    instrument: Instrument, groups: np.ndarray, wavelengths: np.ndarray
) -> np.ndarray:
    """(T,) pixel among those at some wavelengths (m,) that is nearest to the middle of each token.

    `groups` (T, P) are pixels of the model's instrument, n for a missing one.
    """
    middle = np.nanmean(np.append(instrument.wavelength, np.nan)[groups], axis=1)
    order = np.argsort(wavelengths)
    ascending = wavelengths[order]
    return order[np.searchsorted(0.5 * (ascending[1:] + ascending[:-1]), middle)]


def _spread(
    flux: Tensor,
    rows: BetweenRows,
    power: np.ndarray,
    statistics: tuple[Tensor, Tensor, Tensor],
    groups: np.ndarray,
) -> Seen:
    """Standardize fluxes (B, m) of another instrument and spread them onto the model's pixels."""
    center, scale, limit = map(rows.interpolate, statistics)
    z = (flux[:, torch.as_tensor(rows.pixels, device=flux.device)] - center) / scale
    z = z.masked_fill((z.abs() > limit) | z.isinf(), math.nan)
    values, weights = rows.spread(z)
    groups = np.where(groups == len(power), -1, groups)
    conditions = known_conditions(groups, power).to(flux.device)
    return Seen(values, weights=weights, conditions=conditions)


def other_stars(
    instrument: Instrument, flux: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> Stars:
    """Stars (N, Q) whose fluxes (N, n) `OtherSpectra` spreads onto an instrument's pixels."""
    return Stars(
        read=lambda rows: flux[rows],
        names=instrument.pixel_names(),
        wavelengths=instrument.wavelength,
        labels=labels,
        label_errors=None,
        label_names=label_names,
        coefficients=torch.from_numpy(flux),
        decode=lambda some: some,  # the fluxes themselves
    )


def at_all_powers(stars: Stars, instrument: Instrument, drawn: DrawnInstruments) -> Stars:
    """Stars for a standardization that serves all drawn instruments.

    Each star is seen at one of the resolving powers, with the pixels of the model's instrument.
    Without drawn instruments the stars stay as they are.
    """
    if not drawn.share:
        return stars
    seen_by = [dataclasses.replace(instrument, resolving_power=power) for power in drawn.powers]

    def read(block: slice) -> np.ndarray:
        coefficients = stars.coefficients[block]
        flux = np.empty((len(coefficients), len(instrument)), dtype=np.float32)
        for i, one in enumerate(seen_by):
            rows = slice(i, None, len(seen_by))
            flux[rows] = stars.see(coefficients[rows], one).numpy()
        return flux

    return dataclasses.replace(stars, read=read)
