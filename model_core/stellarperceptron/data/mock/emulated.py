"""Synthetic spectra of the mock survey that are made when they are needed.

A spectrum of the survey takes 30 kB, and what it is made from some 400 numbers: with one set of
components for all line spreads and broadenings, and a polynomial of fourth order a chip as the
pseudo-continuum,

    flux = min(1, coefficients @ components) / (polynomials of the chips),

two matrix products give the spectra of a batch on any device. The stars are those of
`MockSurvey` with the same seed, so that a survey file of any size need not exist.

The same stars can be seen by other instruments (`Bank`): further coefficients are those of
components at the emulator's own resolving power, which are smoothed to each resolving power once.
"""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.data.apogee.continuum import VALID_FLUX, normalize_as, pseudo_continuum
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, CHIP_PIXELS
from stellarperceptron.data.mock.emulator import Projection
from stellarperceptron.data.mock.line_spread import FineGrid
from stellarperceptron.data.mock.observation import (
    LSF_GROUPS,
    MACROTURBULENCE,
    ROTATION,
    SpectraBank,
)
from stellarperceptron.data.mock.survey import BLOCK, MockSurvey, Stars
from stellarperceptron.data.sources import Source
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.labels import PUBLISHED_LABELS, label

__all__ = ["COMPONENTS", "Bank", "EmulatedSpectra", "emulated_source"]

COMPONENTS = 384
"""Components for all line spreads: they leave 1e-5 of the flux over (rms), at most 1e-3."""


BROADENINGS = len(MACROTURBULENCE) + len(ROTATION)
FINE_COMPONENTS = 256
"""Components at the emulator's own resolving power."""

SAMPLES = 5
"""Samples a resolution element of smoothed components: cubic interpolation errs by 0.4 % of the
depth of a line at most."""


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
        self._smoothed: dict[tuple[float, torch.device], tuple[Tensor, float, float]] = {}

    def _at(self, power: float, device: torch.device) -> tuple[Tensor, float, float]:
        """Components (C, h) at a resolving power, the first log10 wavelength, and the step."""
        if (power, device) not in self._smoothed:
            low, high = np.log10(self.grid.wavelength[[0, -1]])
            step = 1 / (power * SAMPLES * math.log(10))
            wavelength = 10.0 ** np.arange(low, high, step)
            smoothed = self.grid.sample(self.components.T.double(), wavelength, power)
            self._smoothed[power, device] = smoothed.T.float().contiguous().to(device), low, step
        return self._smoothed[power, device]

    def __call__(self, coefficients: Tensor, instrument: Instrument) -> Tensor:
        """Flux over continuum (B, P) of stars with some coefficients (B, C), on their device.

        The instrument has one resolving power for all of its pixels.
        """
        device = coefficients.device
        components, start, step = self._at(instrument.resolving_power, device)
        place = (np.log10(instrument.wavelength) - start) / step
        first = np.floor(place).astype(np.int64).clip(1, components.shape[1] - 3)
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


@lru_cache(maxsize=1)
def _polynomials() -> Tensor:
    """Legendre polynomials (C * M, P), each on one chip, in double precision."""
    order = APOGEE.continuum.order
    rows = torch.zeros(len(CHIP_PIXELS), order + 1, len(APOGEE_WAVELENGTH), dtype=torch.float64)
    for row, chip in zip(rows, CHIP_PIXELS.values(), strict=True):
        pixels = np.linspace(-1, 1, chip.stop - chip.start)
        row[:, chip] = torch.from_numpy(np.polynomial.legendre.legvander(pixels, order).T)
    return rows.flatten(0, 1)


class EmulatedSpectra:
    """Synthetic spectra (N, 7514), float32: an array that is computed when it is read.

    Parameters
    ----------
    coefficients
        (N, R + C M) float32, on the CPU: of the R components, then of the M polynomials of each
        of C chips; and of the components of `bank`, if there is one.
    components
        (R, P) float32.
    bank
        What other instruments see of these stars.

    Attributes
    ----------
    coefficients : Tensor
    shape, dtype
        As of an array.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, coefficients: Tensor, components: Tensor, bank: Bank | None = None):
        self.coefficients, self.bank = coefficients, bank
        self.shape = (len(coefficients), components.shape[1])
        self._factors = {components.device: (components, _polynomials().float())}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        rows, pixels = key
        return self.flux(self.coefficients[rows], pixels).numpy()

    def flux(self, coefficients: Tensor, pixels: slice = slice(None)) -> Tensor:
        """Normalized spectra (B, p) of some coefficients (B, R + C M), on their device."""
        device = coefficients.device
        if device not in self._factors:
            first = next(iter(self._factors.values()))
            self._factors[device] = tuple(factor.to(device) for factor in first)
        components, polynomials = self._factors[device]
        number, terms = len(components), len(polynomials)
        # Lines only absorb: what exceeds the continuum is the emulator's error.
        flux = (coefficients[:, :number] @ components[:, pixels]).clamp_(max=1.0)
        flux.div_(coefficients[:, number : number + terms] @ polynomials[:, pixels])
        lowest, highest = VALID_FLUX
        return flux.masked_fill_((flux < lowest) | (flux > highest), math.nan)

    def seen_by(self, coefficients: Tensor, instrument: Instrument) -> Tensor:
        """Normalized spectra (B, p) of some coefficients as another instrument sees them."""
        flux = self.bank(coefficients[:, -len(self.bank.components) :], instrument)
        return normalize_as(instrument, flux)


class _Common:
    """Common components of several projections of an emulator, and coefficients in them.

    Parameters
    ----------
    kinds
        The projections: a line spread and a broadening each.
    scatter
        (K, K) square root of the covariance of the emulator's coefficients among the stars.
    number
        Number of components.
    """

    def __init__(self, kinds: Sequence[Projection], scatter: Tensor, number: int):
        rows = torch.cat([torch.cat([k.mean[None], scatter.T @ k.components]) for k in kinds])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # 128 more than are kept make the last of these accurate.
            basis = torch.svd_lowrank(rows.float(), q=number + 128, niter=1)[2]
        components = torch.linalg.qr(basis[:, :number].double()).Q.T  # (R, P)
        self.components = components.float()
        self._means = torch.stack([k.mean @ components.T for k in kinds])
        self._factors = torch.stack([k.components @ components.T for k in kinds])

    def coefficients(self, own: Tensor, kinds: np.ndarray) -> Tensor:
        """Coefficients (N, R) of stars with the emulator's own (N, K), seen by these kinds (N,)."""
        common = torch.empty(len(own), len(self.components), dtype=torch.float64)
        for kind in np.unique(kinds):
            rows = torch.from_numpy(np.flatnonzero(kinds == kind))
            common[rows] = torch.addmm(self._means[kind], own[rows], self._factors[kind])
        return common


class _Compression:
    """Common components of all line spreads, and the coefficients of stars in them."""

    def __init__(self):
        survey = MockSurvey(0)
        self.bank = survey.nominal
        some = self.bank.emulator.coefficients(survey.stars("train", 0).theory)
        # The components of each line spread, as large as they are in the stars.
        covariance = some.T @ some / len(some)
        self.scatter = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(len(covariance)))
        kinds = [
            self.bank.projection(group, broadening)
            for group in range(len(LSF_GROUPS))
            for broadening in range(BROADENINGS)
        ]
        self._common = _Common(kinds, self.scatter, COMPONENTS)
        self.components = self._common.components
        self._fit = torch.linalg.pinv(_polynomials())  # (P, C M)

    @cached_property
    def fine(self) -> _Common:
        """The same at the emulator's own resolving power, on its own wavelengths."""
        emulator = self.bank.emulator
        bank = SpectraBank(emulator, emulator.wavelength, emulator.resolution, groups=(1.0,))
        kinds = [bank.projection(0, broadening) for broadening in range(BROADENINGS)]
        return _Common(kinds, self.scatter, FINE_COMPONENTS)

    def coefficients(self, stars: Stars, fine: bool = False) -> Tensor:
        """Coefficients (N, k) of a block of stars; see `EmulatedSpectra`."""
        own = self.bank.emulator.coefficients(stars.theory)
        flux = self.bank(own, stars.group, stars.broadening)
        continuum = pseudo_continuum(flux).double() @ self._fit
        kinds = stars.group * BROADENINGS + stars.broadening
        parts = [self._common.coefficients(own, kinds), continuum]
        if fine:
            parts.append(self.fine.coefficients(own, stars.broadening))
        return torch.cat(parts, dim=1).float()


@lru_cache(maxsize=1)
def _compression() -> _Compression:
    """The same for all stars; it takes about ten CPU seconds."""
    return _Compression()


def emulated_source(
    stars: int,
    seed: int = 1,
    label_names: str | Iterable[str] = PUBLISHED_LABELS,
    workers: int = 1,
    any_instrument: bool = False,
) -> Source:
    """The first training stars of a mock survey with their synthetic spectra, without a file.

    Labels, names and spectra are those of the survey file of the same seed, whatever the number of
    its stars; the spectra agree within rounding and the accuracy of `COMPONENTS`. There are
    neither observed spectra nor test stars.

    Parameters
    ----------
    stars
        Number of stars; each takes up to 2.6 kB of memory, and about a millisecond of one core.
    seed, label_names
        See `MockSurvey`.
    workers
        Threads.
    any_instrument
        Make what other instruments see of the stars, too; see `EmulatedSpectra.seen_by`.

    Raises
    ------
    ValueError
        There is to be no star, or a label is unknown or given twice.
    """
    if stars < 1:
        raise ValueError(f"stars = {stars}: say how many stars to draw, at least one")
    survey = MockSurvey(seed, label_names=label_names)
    compression = _compression()
    bank = None
    if any_instrument:
        bank = Bank(compression.fine.components, compression.bank.emulator.grid)

    def block(index: int) -> tuple[Tensor, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        drawn = survey.stars("train", index)
        return compression.coefficients(drawn, any_instrument), survey.catalogue(drawn)

    with ThreadPoolExecutor(workers) as pool:
        parts, tables = zip(*pool.map(block, range(math.ceil(stars / BLOCK))), strict=True)
    names = ("labels", "label_errors", "true_labels")
    columns = {
        name: np.concatenate(table)[:stars]
        for name, table in zip(names, zip(*tables, strict=True), strict=True)
    }
    columns["ids"] = np.array([f"mock-{seed}-train-{star:07d}" for star in range(stars)])
    columns["synthetic"] = EmulatedSpectra(torch.cat(parts)[:stars], compression.components, bank)
    return Source(
        path=Path("emulator"),
        instrument=APOGEE,
        wavelength=APOGEE_WAVELENGTH,
        label_names=survey.label_names,
        label_units=tuple(label(name).unit for name in survey.label_names),
        provenance={
            "generator": "emulator",
            "arguments": {"stars": stars, "labels": list(survey.label_names)},
            "seed": seed,
            **survey.provenance(),
        },
        splits={
            "train": columns,
            "test": {name: _none_of(column) for name, column in columns.items()},
        },
    )


def _none_of(column: np.ndarray | EmulatedSpectra) -> np.ndarray:
    """No star of a column."""
    return np.empty((0, *column.shape[1:]), dtype=column.dtype)
