"""Flags: why an answer of a model should not be believed.

What spectra of the training set are like is described by their mean and leading principal
components. A spectrum is judged by three numbers: the share of its lines that the components do not
explain, the strength of those that they do, and the level of its continuum. Their limits are
measured on training stars, as they are and with noise, for the whole spectra and for parts of them.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import IntFlag
from functools import cached_property
from typing import Self

import numpy as np
import pandas as pd
import torch

from stellarperceptron.utils.data_utils import require_arrays, require_names

__all__ = ["LEAST_PIXELS", "Flag", "Reference", "flag_names", "warn_of_flags"]


class Flag(IntFlag):
    """Bits of the column `flags`; 0 says that nothing was found."""

    NO_MEASUREMENT = 1
    """No valid pixel: the labels are NaN."""
    FEW_PIXELS = 2
    """Fewer than `LEAST_PIXELS` valid pixels, or than half of the model's where it has few."""
    CONTINUUM = 4
    """The flux is not divided by the pseudo-continuum that the training spectra were divided by."""
    SHIFTED = 8
    """The lines are shifted by more than `LARGEST_SHIFT`: the spectrum is not at rest."""
    AIR_WAVELENGTHS = 16
    """The lines are shifted as wavelengths in air are, by about -82 km/s; SHIFTED is set, too."""
    UNLIKE_TRAINING = 32
    """No combination of training spectra has these lines, or they are weaker than in nearly all."""
    EDGE = 64
    """An answer lies within its predicted error of the edge of the training labels, or beyond."""
    OTHER_INSTRUMENT = 128
    """The instrument is like those that training made up, but none of them is exactly this one."""


LEAST_PIXELS = 200
"""Valid pixels below which a spectrum says little."""

LARGEST_SHIFT = 15.0
"""Shifts of the lines beyond this are flagged [km/s]."""

AIR_TOLERANCE = 12.0
"""Shifts within this of the one from vacuum to air may be that of air [km/s]."""

CONTINUUM_RATIO = (0.9, 1.1)
"""Median flux over the median of the training stars, outside which the scale is another."""

COMPONENTS = 8
NOISE = 1 / 30
"""Standard deviation of the faintest spectra that count as like the training spectra."""

CHANCE = 2.0  # noise that correlates between pixels looks more like lines than white noise
OUTSIDE = 0.0025
"""Share of training stars outside each limit."""

LEVEL_MARGIN = 3.0  # real continua differ from those of a mock survey
WINDOWS = (1.0, 0.5, 0.25, 0.125)
WINDOWS_AT_RANDOM = 4

# Share of the training labels beyond the lower and the upper edge. Hot stars have few lines: those
# of 7,000 K look like the hottest training stars, and are given their temperatures.
EDGES = {"TEFF": (0.0005, 0.004)}
OTHER_EDGES = (0.0005, 0.0005)


def flag_names(flags: int) -> str:
    """Names of the bits of a number.

    Examples
    --------
    >>> flag_names(40), flag_names(0)
    ('SHIFTED, UNLIKE_TRAINING', '')
    """
    return ", ".join(flag.name for flag in Flag if flag & int(flags))


def warn_of_flags(flags: np.ndarray) -> None:
    """Warn once if more than a tenth of the answers should not be believed."""
    doubtful = flags & ~int(Flag.NO_MEASUREMENT | Flag.FEW_PIXELS | Flag.OTHER_INSTRUMENT)
    if np.count_nonzero(doubtful) > 0.1 * len(flags):
        counts = {flag.name: np.count_nonzero(flags & flag) for flag in Flag}
        told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        warnings.warn(
            f"{np.count_nonzero(doubtful)} of {len(flags)} answers are flagged as doubtful, see "
            f"the column flags: {told}",
            stacklevel=3,
        )


@dataclass(frozen=True, eq=False)
class Reference:
    """Description of the spectra and labels of the training stars.

    Attributes
    ----------
    tokens : (n,) int
        Tokens of the pixels, ascending.
    mean : (n,) float32
        Mean flux.
    components : (K, n) float32
        Principal components of the flux, orthonormal.
    variances : (K,) float32
        Mean square of each one's coefficients.
    pixels : (W,) float32
        Numbers of valid pixels, ascending, for which there are limits.
    limits : (W, 3) float32
        Largest unexplained share of the lines, smallest strength of the explained ones, and largest
        deviation of the level of the continuum from 1.
    label_tokens : (Q,) int
        Tokens of the labels.
    label_ranges : (Q, 2) float32
        Their lower and upper edges.
    """

    tokens: np.ndarray
    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    pixels: np.ndarray
    limits: np.ndarray
    label_tokens: np.ndarray
    label_ranges: np.ndarray

    @classmethod
    def fit(
        cls,
        flux: np.ndarray,
        tokens: np.ndarray,
        labels: pd.DataFrame,
        label_tokens: np.ndarray,
        seed: int = 0,
    ) -> Self:
        """Measure a reference on training stars.

        Parameters
        ----------
        flux
            (N, n) flux, NaN in bad pixels. Every second spectrum gives the components, the others
            the limits.
        tokens
            (n,) tokens of the pixels.
        labels
            (M, Q) labels of these stars, or of more, NaN where missing, with their names as
            columns.
        label_tokens
            (Q,) tokens of the labels.
        seed
            Seed of noise and windows.
        """
        ranges = {
            token: _label_range(name, labels[name].to_numpy(dtype=float))
            for name, token in zip(labels, label_tokens, strict=True)
            if labels[name].notna().any()
        }
        order = np.argsort(tokens)
        tokens = np.asarray(tokens)[order]
        flux = np.asarray(flux, dtype=np.float32)[:, order]
        flux = flux[np.isfinite(flux).sum(axis=1) > len(tokens) // 2]
        number = min(COMPONENTS, len(flux) // 20, len(tokens) // 50)
        mean, components, variances = _principal_components(flux[::2], number, seed)
        reference = cls(
            tokens=tokens,
            mean=mean,
            components=components,
            variances=variances,
            pixels=np.zeros(0, dtype=np.float32),
            limits=np.zeros((0, 3), dtype=np.float32),
            label_tokens=np.array(list(ranges), dtype=np.int64),
            label_ranges=np.array(list(ranges.values()), dtype=np.float32).reshape(-1, 2),
        )
        if not number:
            return reference
        random = np.random.default_rng(seed)
        noise = NOISE * random.standard_normal(flux[1::2].shape, dtype=np.float32)
        spectra = np.concatenate([flux[1::2], flux[1::2] + noise])
        pixels, limits = [], []
        for share in WINDOWS:
            length = round(share * len(tokens))
            found = []
            for _ in range(1 if share == 1 else WINDOWS_AT_RANDOM):
                start = int(random.integers(len(tokens) - length + 1))
                part = slice(start, start + length)
                columns, window = reference.at(tokens[part])
                found.append(window.departure(spectra[:, part][:, columns]))
            unexplained, strength, level = np.concatenate(found).T
            pixels.append(np.median(np.isfinite(flux[:, :length]).sum(axis=1)))
            limits.append(
                (
                    np.nanquantile(unexplained, 1 - OUTSIDE),
                    np.nanquantile(strength, OUTSIDE),
                    LEVEL_MARGIN * np.nanquantile(np.abs(level - 1), 1 - OUTSIDE),
                )
            )
        return replace(
            reference,
            pixels=np.array(pixels[::-1], dtype=np.float32),
            limits=np.array(limits[::-1], dtype=np.float32),
        )

    def at(self, tokens: np.ndarray) -> tuple[np.ndarray, Self]:
        """Columns of those tokens (n,) that are known here, and the reference at these columns."""
        columns = np.flatnonzero(np.isin(tokens, self.tokens))
        rows = np.searchsorted(self.tokens, np.asarray(tokens)[columns])
        return columns, replace(
            self,
            tokens=self.tokens[rows],
            mean=self.mean[rows],
            components=self.components[:, rows],
        )

    def departure(self, flux: np.ndarray, errors: np.ndarray | None = None) -> np.ndarray:
        """Departure of spectra (N, n) from the reference at all of its tokens.

        The coefficients of the components, and the level of the continuum, are fitted by least
        squares to the valid pixels, with the training stars as prior.

        Parameters
        ----------
        flux
            (N, n), NaN in bad pixels.
        errors
            (N, n) of the flux, NaN where unknown; None: of all. The limits allow for noise of
            `NOISE`. For the unexplained share, noisier pixels are weighted by the inverse square of
            their noise, and their noise in excess of `NOISE` is subtracted from the squares. From
            that of the strength, `CHANCE` times what the components explain of it by chance.

        Returns
        -------
        (N, 3)
            Unexplained share: root mean square of the residuals over the standard deviation of
            the flux. Strength: root of the difference of their squares. Level: factor between
            the flux and the fit.
        """
        weight = np.isfinite(flux).astype(np.float32)
        difference = np.where(weight > 0, flux - self.mean, 0).astype(np.float32)
        square, variance, level = self._fit(difference, weight)
        strength = variance - square
        if errors is not None:
            noise = np.fmax(np.nan_to_num(np.abs(errors), posinf=0), NOISE).astype(np.float32) ** 2
            count = np.maximum((weight > 0).sum(axis=1), 1)
            total = np.where(weight > 0, noise - NOISE**2, 0).sum(axis=1, dtype=np.float64)
            strength -= CHANCE * (len(self.components) + 1) * total / count**2
            weight *= NOISE**2 / noise
            excess = (weight * (noise - NOISE**2)).sum(axis=1, dtype=np.float64)
            excess /= np.maximum(weight.sum(axis=1), 1e-9)
            square, variance, _ = self._fit(difference, weight)
            square, variance = (np.maximum(x - excess, 0) for x in (square, variance))
        with np.errstate(divide="ignore", invalid="ignore"):
            unexplained = np.sqrt(square / variance)
        return np.stack([unexplained, np.sqrt(np.maximum(strength, 0)), level], axis=1)

    def _fit(
        self, difference: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fit differences from the mean (N, n), 0 in bad pixels, with weights of the pixels (N, n).

        Returns
        -------
        square, variance, level : ndarray
            (N,) weighted means of the squared residuals and of the squared deviations of the flux
            from its mean, and the factor between the flux and the fit.
        """
        count = np.maximum(weight.sum(axis=1), 1e-9)
        basis = np.vstack([self.components, self.mean, np.ones_like(self.mean)])
        weighted = weight * difference
        # All sums over pixels: of squares, of products with the basis, and within the basis.
        total = np.einsum("np,np->n", weighted, difference).astype(np.float64)
        vector = (weighted @ basis.T).astype(np.float64)
        matrix = (weight @ self._products.T).astype(np.float64)
        matrix = matrix.reshape(-1, len(basis), len(basis))
        normal, known = matrix[:, :-1, :-1], vector[:, :-1]
        prior = np.diag(np.append(NOISE**2 / self.variances, 1e-6))
        coefficients = np.linalg.solve(normal + prior, known[..., None])[..., 0]
        fitted = np.einsum("nij,nj->ni", normal, coefficients)
        square = (total + ((fitted - 2 * known) * coefficients).sum(axis=1)) / count
        mean = (vector[:, -1] + matrix[:, -2, -1]) / count
        variance = (total + 2 * vector[:, -2] + matrix[:, -2, -2]) / count - mean**2
        return np.maximum(square, 0), variance, 1 + coefficients[:, -1]

    @cached_property
    def _products(self) -> np.ndarray:
        """Products ((K + 2)^2, n) of components, mean and 1."""
        basis = np.vstack([self.components, self.mean, np.ones_like(self.mean)])
        return (basis[:, None] * basis).reshape(len(basis) ** 2, -1)

    def limits_at(self, pixels: np.ndarray) -> np.ndarray:
        """Limits (N, 3) for numbers of valid pixels (N,); NaN where there are too few to judge."""
        if not len(self.pixels):
            return np.full((len(pixels), 3), np.nan)
        x = np.log(np.maximum(pixels, 1))
        limits = [np.interp(x, np.log(self.pixels), limit) for limit in self.limits.T]
        few = np.asarray(pixels) < 0.8 * self.pixels[0]
        return np.where(few[:, None], np.nan, np.stack(limits, axis=1))

    def edge_flags(self, answers: np.ndarray, errors: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """EDGE for stars (N,) whose answer (N, Q) and error reach beyond the range of a label.

        Stars beyond the edge are given labels near it.
        """
        flags = np.zeros(len(answers), dtype=np.int64)
        for answer, error, token in zip(answers.T, errors.T, tokens, strict=True):
            for low, high in self.label_ranges[self.label_tokens == token]:
                flags[(answer - error <= low) | (answer + error >= high)] = Flag.EDGE
        return flags

    # --- in files --------------------------------------------------------------------------

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays, by the names of the attributes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], vocab_size: int) -> Self:
        """Make a reference from arrays of a file.

        Raises
        ------
        ValueError
            An array is missing, has the wrong shape, or holds impossible numbers.
        """
        names = [field.name for field in fields(cls)]
        require_names("the reference", arrays, names)
        n, k, w, q = (len(np.atleast_1d(arrays[x])) for x in (names[0], *names[3:5], names[6]))
        shapes = ((n,), (n,), (k, n), (k,), (w,), (w, 3), (q,), (q, 2))
        require_arrays("the reference", arrays, dict(zip(names, shapes, strict=True)), vocab_size)
        ascending = (np.diff(arrays["tokens"]) > 0).all() and (np.diff(arrays["pixels"]) >= 0).all()
        if not ascending or (arrays["variances"] <= 0).any() or (arrays["pixels"] <= 0).any():
            raise ValueError("tokens, pixels or variances of the reference are not possible")
        return cls(**arrays)


def _label_range(label: str, values: np.ndarray) -> tuple[float, float]:
    """Lower and upper edge of a label's values (N,) in training."""
    low, high = EDGES.get(label, OTHER_EDGES)
    return float(np.nanquantile(values, low)), float(np.nanquantile(values, 1 - high))


def _principal_components(
    flux: np.ndarray, number: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (n,), components (K, n) and variances (K,) of spectra with bad pixels."""
    valid = np.isfinite(flux)
    mean = np.where(valid, flux, 0).sum(axis=0) / np.maximum(valid.sum(axis=0), 1)
    deviation = np.where(valid, flux - mean, 0).astype(np.float32)
    components = np.zeros((number, flux.shape[1]), dtype=np.float32)
    for _ in range(3 if number else 0):  # bad pixels take the values of the fit before
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, _, vectors = torch.svd_lowrank(torch.from_numpy(deviation), q=number + 8)
        components = vectors[:, :number].T.contiguous().numpy()
        fit = (deviation @ components.T) @ components
        deviation = np.where(valid, deviation, fit)
    variances = np.square(deviation @ components.T).mean(axis=0)
    return mean.astype(np.float32), components, np.maximum(variances, 1e-12)
