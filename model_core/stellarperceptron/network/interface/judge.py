"""Flags of spectra, the pixels of each instrument judged by themselves."""

from collections.abc import Mapping

import numpy as np
import torch

from stellarperceptron.data.flags import (
    AIR_TOLERANCE,
    CONTINUUM_RATIO,
    LARGEST_SHIFT,
    LEAST_PIXELS,
    Flag,
    Reference,
)
from stellarperceptron.data.standardizer import Standardizer
from stellarperceptron.data.wavelengths import (
    LEAST_SIGNIFICANCE,
    SPEED_OF_LIGHT,
    line_shift,
    vacuum_to_air,
)
from stellarperceptron.instruments.combined import instrument_parts
from stellarperceptron.instruments.spectrograph import Instrument

__all__ = ["Judge", "SpectrumFlags"]

AT_REST = 0.5  # spectra that correlate better with the template are where they should be


def _shift_flags(flux: np.ndarray, template: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
    """SHIFTED and AIR_WAVELENGTHS for spectra (N, P) whose lines are not at rest.

    They are not looked for in spectra of fewer than `LEAST_PIXELS` pixels.

    Parameters
    ----------
    flux
        (N, P) normalized flux, NaN in bad pixels.
    template
        (P,) median spectrum of the training stars.
    wavelength
        (P,) vacuum [Angstrom], ascending in equal steps of the logarithm, with or without gaps.
    """
    flags = np.zeros(len(flux), dtype=np.int64)
    enough = np.isfinite(flux).sum(axis=1) >= LEAST_PIXELS
    look = np.flatnonzero(enough & ~(_correlation(flux, template) > AT_REST))
    velocity, significance = line_shift(flux[look], template, wavelength)
    found = significance >= LEAST_SIGNIFICANCE
    ratio = float(np.median(vacuum_to_air(wavelength) / wavelength))
    air = np.abs(velocity - SPEED_OF_LIGHT * (ratio - 1)) < AIR_TOLERANCE
    flags[look[found & (np.abs(velocity) > LARGEST_SHIFT)]] |= Flag.SHIFTED
    flags[look[found & air]] |= Flag.SHIFTED | Flag.AIR_WAVELENGTHS
    return flags


def _correlation(flux: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Correlation (N,) of spectra (N, P) with a template (P,), without a shift."""
    weight = np.isfinite(flux).astype(np.float32)
    number = np.maximum(weight.sum(axis=1), 1)
    middle = np.median(template)
    x = np.where(weight > 0, flux - middle, 0).astype(np.float32)
    y = (template - middle).astype(np.float32)
    mean_x, mean_y = x.sum(axis=1) / number, weight @ y / number
    covariance = x @ y / number - mean_x * mean_y
    variance_x = np.einsum("np,np->n", x, x) / number - mean_x**2
    variance_y = weight @ y**2 / number - mean_y**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return covariance / np.sqrt(variance_x * variance_y)


class SpectrumFlags:
    """Flags of spectra with the same pixels.

    Parameters
    ----------
    standardizer
        Center of every token: the median spectrum of the training stars.
    tokens, names
        (n,) tokens and names of the columns.
    instrument
        Instrument whose pixels are among them, if it is known. Shifts are looked for where its
        pixels are in equal steps of the logarithm of the wavelength.
    reference
        What training spectra are like, if it is known.
    """

    def __init__(
        self,
        standardizer: Standardizer,
        tokens: np.ndarray,
        names: np.ndarray,
        instrument: Instrument | None,
        reference: Reference | None,
    ):
        self.least_pixels = min(
            LEAST_PIXELS, len(tokens if instrument is None else instrument) // 2
        )
        self.order = np.zeros(0, dtype=int)
        if instrument is not None and instrument.log_step is not None:
            number = {name: i for i, name in enumerate(instrument.pixel_names().tolist())}
            pixels = np.array([number.get(name, -1) for name in names])
            known, first = np.unique(pixels, return_index=True)  # in order of wavelength, each once
            self.order = first[known >= 0]
            self.wavelength = instrument.wavelength[known[known >= 0]]
            self.center = standardizer.center[tokens[self.order]]
        self.columns, self.reference = np.zeros(0, dtype=int), reference
        if reference is not None:
            self.columns, self.reference = reference.at(tokens)

    def __call__(
        self, flux: np.ndarray, valid: np.ndarray, errors: np.ndarray | None = None
    ) -> np.ndarray:
        """Flags (N,) of spectra (N, n) with these numbers (N,) of valid values.

        `errors` (N, n) are those of the flux, NaN where unknown.
        """
        flags = np.where(valid < self.least_pixels, int(Flag.FEW_PIXELS), 0)
        flags[valid == 0] |= Flag.NO_MEASUREMENT
        if self.reference is not None and len(self.columns):
            part = flux[:, self.columns]
            known = None if errors is None else errors[:, self.columns]
            unexplained, strength, level = self.reference.departure(part, known).T
            limits = self.reference.limits_at(np.isfinite(part).sum(axis=1)).T
            flags[(unexplained > limits[0]) | (strength < limits[1])] |= Flag.UNLIKE_TRAINING
            flags[np.abs(level - 1) > limits[2]] |= Flag.CONTINUUM
        if len(self.order) > 1:
            part = flux[:, self.order]
            flags |= _continuum_flags(part, self.center)
            flags |= _shift_flags(part, self.center, self.wavelength)
        return flags


def _continuum_flags(flux: np.ndarray, center: np.ndarray) -> np.ndarray:
    """CONTINUUM for spectra (N, P) whose median flux is far from the training stars' (P,)."""
    some = slice(None, None, max(1, len(center) // 500))  # a median of 500 pixels will do
    flux, center = flux[:, some], center[some]
    with np.errstate(invalid="ignore"):
        ratio = torch.from_numpy(flux / np.where(center > 0, center, np.nan).astype(np.float32))
    low, high = CONTINUUM_RATIO
    ratio = ratio.nanmedian(dim=1).values.numpy()
    return np.where((ratio < low) | (ratio > high), int(Flag.CONTINUUM), 0)


class Judge:
    """Flags of spectra with the same pixels, of one instrument or of several.

    Parameters
    ----------
    standardizer, tokens, names, instrument
        See `SpectrumFlags`.
    references
        What training spectra are like, by the name of the instrument.

    Attributes
    ----------
    references : list of Reference
        Those of the instruments whose pixels these are.
    """

    def __init__(
        self,
        standardizer: Standardizer,
        tokens: np.ndarray,
        names: np.ndarray,
        instrument: Instrument | None,
        references: Mapping[str, Reference],
    ):
        self.parts: list[tuple[np.ndarray, SpectrumFlags]] = []
        self.references: list[Reference] = []
        number = {}
        if instrument is not None and instrument.parts:
            number = {name: pixel for pixel, name in enumerate(instrument.pixel_names().tolist())}
        pixels = np.array([number.get(name, -1) for name in names])
        for one in (None,) if instrument is None else instrument_parts(instrument):
            columns, own_names = np.arange(len(tokens)), names
            if one is not instrument:
                within = instrument.ranges[one.name]
                columns = np.flatnonzero((pixels >= within.start) & (pixels < within.stop))
                own_names = one.pixel_names()[pixels[columns] - within.start]
            if len(columns):
                reference = references.get("" if one is None else one.name)
                judge = SpectrumFlags(standardizer, tokens[columns], own_names, one, reference)
                self.parts.append((columns, judge))
                self.references += [] if reference is None else [reference]

    def __call__(
        self, flux: np.ndarray, valid: np.ndarray, errors: np.ndarray | None = None
    ) -> np.ndarray:
        """Flags (N,) of spectra (N, n); see `SpectrumFlags`."""
        flags = np.zeros(len(flux), dtype=np.int64)
        for columns, judge in self.parts:
            own_errors = None if errors is None else errors[:, columns]
            whole = len(columns) == flux.shape[1]
            flags |= judge(flux if whole else flux[:, columns], valid, own_errors)
        return flags
