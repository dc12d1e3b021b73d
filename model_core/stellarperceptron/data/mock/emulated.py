"""Synthetic spectra of the mock survey that are made when they are needed.

A spectrum of the survey takes 30 kB, and what it is made from some 400 numbers: with one set of
components for all line spreads and broadenings, and a polynomial of fourth order a chip as the
pseudo-continuum,

    flux = min(1, coefficients @ components) / (polynomials of the chips),

two matrix products give the spectra of a batch on any device. The stars are those of
`MockSurvey` with the same seed, so that a survey file of any size need not exist.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.data.apogee.continuum import VALID_FLUX, pseudo_continuum
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, CHIP_PIXELS
from stellarperceptron.data.mock.observation import LSF_GROUPS, MACROTURBULENCE, ROTATION
from stellarperceptron.data.mock.survey import BLOCK, MockSurvey, Stars
from stellarperceptron.data.sources import Source
from stellarperceptron.instruments import APOGEE
from stellarperceptron.labels import PUBLISHED_LABELS, label

__all__ = ["COMPONENTS", "EmulatedSpectra", "emulated_source"]

COMPONENTS = 384
"""Components for all line spreads: they leave 1e-5 of the flux over (rms), at most 1e-3."""


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
        of C chips.
    components
        (R, P) float32.

    Attributes
    ----------
    coefficients : Tensor
    shape, dtype
        As of an array.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, coefficients: Tensor, components: Tensor):
        self.coefficients = coefficients
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
        number = len(components)
        # Lines only absorb: what exceeds the continuum is the emulator's error.
        flux = (coefficients[:, :number] @ components[:, pixels]).clamp_(max=1.0)
        flux.div_(coefficients[:, number:] @ polynomials[:, pixels])
        lowest, highest = VALID_FLUX
        return flux.masked_fill_((flux < lowest) | (flux > highest), math.nan)


class _Compression:
    """Common components of all line spreads, and the coefficients of stars in them."""

    def __init__(self):
        survey = MockSurvey(0)
        self.bank = survey.nominal
        some = self.bank.emulator.coefficients(survey.stars("train", 0).theory)
        # The components of each line spread, as large as they are in the stars.
        covariance = some.T @ some / len(some)
        scatter = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(len(covariance)))
        kinds = [
            self.bank.projection(group, broadening)
            for group in range(len(LSF_GROUPS))
            for broadening in range(len(MACROTURBULENCE) + len(ROTATION))
        ]
        rows = torch.cat([torch.cat([k.mean[None], scatter.T @ k.components]) for k in kinds])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # 128 more than are kept make the last of these accurate.
            basis = torch.svd_lowrank(rows.float(), q=COMPONENTS + 128, niter=1)[2]
        components = torch.linalg.qr(basis[:, :COMPONENTS].double()).Q.T  # (R, P)
        self.components = components.float()
        self._means = torch.stack([k.mean @ components.T for k in kinds])
        self._factors = torch.stack([k.components @ components.T for k in kinds])
        self._fit = torch.linalg.pinv(_polynomials())  # (P, C M)

    def coefficients(self, stars: Stars) -> Tensor:
        """Coefficients (N, R + C M) of a block of stars; see `EmulatedSpectra`."""
        own = self.bank.emulator.coefficients(stars.theory)
        flux = self.bank(own, stars.group, stars.broadening)
        continuum = pseudo_continuum(flux).double() @ self._fit
        kinds = stars.group * (len(MACROTURBULENCE) + len(ROTATION)) + stars.broadening
        common = torch.empty(len(own), COMPONENTS, dtype=torch.float64)
        for kind in np.unique(kinds):
            rows = torch.from_numpy(np.flatnonzero(kinds == kind))
            common[rows] = torch.addmm(self._means[kind], own[rows], self._factors[kind])
        return torch.cat([common, continuum], dim=1).float()


@lru_cache(maxsize=1)
def _compression() -> _Compression:
    """The same for all stars; it takes about ten CPU seconds."""
    return _Compression()


def emulated_source(
    stars: int,
    seed: int = 1,
    label_names: str | Iterable[str] = PUBLISHED_LABELS,
    workers: int = 1,
) -> Source:
    """The first training stars of a mock survey with their synthetic spectra, without a file.

    Labels, names and spectra are those of the survey file of the same seed, whatever the number of
    its stars; the spectra agree within rounding and the accuracy of `COMPONENTS`. There are
    neither observed spectra nor test stars.

    Parameters
    ----------
    stars
        Number of stars; each takes 1.6 kB of memory and about a millisecond of one CPU core.
    seed, label_names
        See `MockSurvey`.
    workers
        Threads.

    Raises
    ------
    ValueError
        There is to be no star, or a label is unknown or given twice.
    """
    if stars < 1:
        raise ValueError(f"stars = {stars}: say how many stars to draw, at least one")
    survey = MockSurvey(seed, label_names=label_names)
    compression = _compression()

    def block(index: int) -> tuple[Tensor, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        drawn = survey.stars("train", index)
        return compression.coefficients(drawn), survey.catalogue(drawn)

    with ThreadPoolExecutor(workers) as pool:
        parts, tables = zip(*pool.map(block, range(math.ceil(stars / BLOCK))), strict=True)
    names = ("labels", "label_errors", "true_labels")
    columns = {
        name: np.concatenate(table)[:stars]
        for name, table in zip(names, zip(*tables, strict=True), strict=True)
    }
    columns["ids"] = np.array([f"mock-{seed}-train-{star:07d}" for star in range(stars)])
    columns["synthetic"] = EmulatedSpectra(torch.cat(parts)[:stars], compression.components)
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
