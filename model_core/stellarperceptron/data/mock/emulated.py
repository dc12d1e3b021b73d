"""Synthetic spectra of the mock survey that are made when they are needed.

A spectrum of the survey takes 30 kB, and what it is made from some 400 numbers: with one set of
components for all line spreads and broadenings, and a polynomial of fourth order a chip as the
pseudo-continuum,

    flux = min(1, coefficients @ components) / (polynomials of the chips),

two matrix products give the spectra of a batch on any device. The stars are those of
`MockSurvey` with the same seed, so that a survey file of any size need not exist.

The same stars can be seen by other instruments (`Bank`): further coefficients are those of
components at the emulator's own resolving power, which are smoothed to each resolving power once.
Spectra of other wavelengths than APOGEE's are made in this way only (`SeenSpectra`).
"""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.data.apogee.continuum import VALID_FLUX, normalize_as, pseudo_continuum
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, CHIP_PIXELS
from stellarperceptron.data.mock.emulator import Projection
from stellarperceptron.data.mock.line_spread import Bank
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

__all__ = [
    "COMPONENTS",
    "LINE_LISTS",
    "EmulatedSpectra",
    "SeenSpectra",
    "emulated_source",
]

COMPONENTS = 384
"""Components for all line spreads: they leave 1e-5 of the flux over (rms), at most 1e-3."""


BROADENINGS = len(MACROTURBULENCE) + len(ROTATION)
FINE_COMPONENTS = 256
"""Components at the emulator's own resolving power."""

LINE_LISTS = ("nominal", "mixed")
"""Line lists of the spectra; see `emulated_source`."""

LINES_SCATTER = 0.3
"""Scatter of the weights of single components of the difference between two line lists."""

LINES_STREAM = 500  # of random numbers, beyond those of the labels


@lru_cache(maxsize=1)
def _polynomials() -> Tensor:
    """Legendre polynomials (C * M, P), each on one chip, in double precision."""
    order = APOGEE.continuum.order
    rows = torch.zeros(len(CHIP_PIXELS), order + 1, len(APOGEE_WAVELENGTH), dtype=torch.float64)
    for row, chip in zip(rows, CHIP_PIXELS.values(), strict=True):
        pixels = np.linspace(-1, 1, chip.stop - chip.start)
        row[:, chip] = torch.from_numpy(np.polynomial.legendre.legvander(pixels, order).T)
    return rows.flatten(0, 1)


@lru_cache(maxsize=1)
def _fit_of_polynomials() -> Tensor:
    """Matrix (P, C * M) that fits them."""
    return torch.linalg.pinv(_polynomials())


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


class SeenSpectra(EmulatedSpectra):
    """Synthetic spectra (N, P) of an instrument, from the coefficients of a bank alone.

    Parameters
    ----------
    coefficients
        (N, C) float32, on the CPU: of the components of `bank`.
    bank, instrument
        What instruments see of these stars, and the instrument.
    """

    def __init__(self, coefficients: Tensor, bank: Bank, instrument: Instrument):
        self.coefficients, self.bank, self.instrument = coefficients, bank, instrument
        self.shape = (len(coefficients), len(instrument))

    def flux(self, coefficients: Tensor, pixels: slice = slice(None)) -> Tensor:
        """Normalized spectra (B, p) of some coefficients (B, C), on their device."""
        return self.seen_by(coefficients, self.instrument)[:, pixels]


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


def _projection(banks: Sequence[SpectraBank], group: int, broadening: int) -> Projection:
    """Projection of one emulator; or of two, and then the last component is their difference."""
    one = banks[0].projection(group, broadening)
    if len(banks) == 1:
        return one
    other = banks[1].projection(group, broadening)
    return Projection(one.mean, torch.cat([other.components, (other.mean - one.mean)[None]]))


class _Compression:
    """Common components of all line spreads, and the coefficients of stars in them.

    Parameters
    ----------
    instrument
        APOGEE, or the one whose emulators make the spectra.
    mixed
        Whether lines lie between the lists of *nominal* and *nature*; see `emulated_source`.
    """

    def __init__(self, instrument: Instrument, mixed: bool):
        survey = MockSurvey(0, instrument=instrument)
        self.banks = [survey.nominal, survey.nature] if mixed else [survey.nominal]
        if mixed and survey.nature.emulator is survey.nominal.emulator:
            raise ValueError(
                f'the emulators of {instrument} have one line list: line_lists = "nominal"'
            )
        stars = survey.stars("train", 0)
        reached = survey.reached(stars.theory)
        some = self._own(stars.theory[reached], np.random.default_rng(0))
        # The components of each line spread, as large as they are in the stars.
        covariance = some.T @ some / len(some)
        self.scatter = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(len(covariance)))

    @cached_property
    def common(self) -> _Common:
        """Components of all line spreads of APOGEE's fibres."""
        groups = range(len(LSF_GROUPS))
        kinds = [_projection(self.banks, g, b) for g in groups for b in range(BROADENINGS)]
        return _Common(kinds, self.scatter, COMPONENTS)

    @cached_property
    def fine(self) -> _Common:
        """The same at the emulator's own resolving power, on its own wavelengths."""
        emulators = [bank.emulator for bank in self.banks]
        banks = [SpectraBank(e, e.wavelength, e.resolution, groups=(1.0,)) for e in emulators]
        kinds = [_projection(banks, 0, broadening) for broadening in range(BROADENINGS)]
        return _Common(kinds, self.scatter, FINE_COMPONENTS)

    def _own(self, theory: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Coefficients (N, K) of stars in the components of `_projection`."""
        own = self.banks[-1].emulator.coefficients(theory)
        if len(self.banks) == 1:
            return own
        number = own.shape[1] - self.banks[0].emulator.size
        weights = rng.random((len(own), 1)) + LINES_SCATTER * rng.standard_normal(
            (len(own), number + 1)
        )
        weights = torch.from_numpy(weights)
        return torch.cat(
            [own[:, :-number], own[:, -number:] * weights[:, 1:], weights[:, :1]], dim=1
        )

    def coefficients(
        self, stars: Stars, rows: np.ndarray, apogee: bool, fine: bool, rng: np.random.Generator
    ) -> Tensor:
        """Coefficients (n, k) of some rows of stars; see `EmulatedSpectra` and `SeenSpectra`."""
        own = self._own(stars.theory[rows], rng)
        group, broadening = stars.group[rows], stars.broadening[rows]
        parts = []
        if apogee:
            common = self.common.coefficients(own, group * BROADENINGS + broadening)
            if len(self.banks) == 1:
                flux = self.banks[0](own, group, broadening)
            else:
                flux = (common.float() @ self.common.components).clamp_(max=1.0)
            parts += [common, pseudo_continuum(flux).double() @ _fit_of_polynomials()]
        if fine:
            parts.append(self.fine.coefficients(own, broadening))
        return torch.cat(parts, dim=1).float()


@lru_cache(maxsize=1)
def _compression(instrument: Instrument, mixed: bool) -> _Compression:
    """The same for all stars; it takes about ten CPU seconds."""
    return _Compression(instrument, mixed)


def emulated_source(
    stars: int,
    seed: int = 1,
    label_names: str | Iterable[str] = PUBLISHED_LABELS,
    workers: int = 1,
    any_instrument: bool = False,
    instrument: Instrument = APOGEE,
    line_lists: str = "nominal",
) -> Source:
    """The first training stars of a mock survey with their synthetic spectra, without a file.

    Labels, names and spectra are those of the survey file of the same seed, whatever the number of
    its stars; the spectra agree within rounding and the accuracy of `COMPONENTS`. There are
    neither observed spectra nor test stars.

    Stars of other instruments than APOGEE are those that the instrument's emulators reach, and have
    the resolving power of its row in the table, without the scatter of a survey's.

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
    instrument
        The instrument, of which `MockSurvey` knows how it observes.
    line_lists
        "nominal": lines as in the emulator *nominal*. "mixed": each star's lines lie between those
        of *nominal* and *nature*. The weight of *nature* is drawn uniformly from 0 to 1, and a
        scatter of 0.3 is added for each component of the difference. A network then relies on no
        line list; but the spectra that a survey observes are *nature*'s, and tests with them say
        less about real stars.

    Raises
    ------
    ValueError
        There is to be no star, a label is unknown or given twice, or the line lists are unknown or
        not those of the instrument's emulators.
    FileNotFoundError
        There is no file with emulators of the instrument's wavelengths.
    """
    if stars < 1:
        raise ValueError(f"stars = {stars}: say how many stars to draw, at least one")
    if line_lists not in LINE_LISTS:
        raise ValueError(f"line_lists = {line_lists!r} is not one of {', '.join(LINE_LISTS)}")
    survey = MockSurvey(seed, label_names=label_names, instrument=instrument)
    compression = _compression(instrument, line_lists == "mixed")
    apogee = instrument == APOGEE
    any_instrument = any_instrument or not apogee
    bank = None
    if any_instrument:
        bank = Bank(compression.fine.components, compression.banks[0].emulator.grid)

    def block(index: int) -> tuple[Tensor, np.ndarray, list[np.ndarray]]:
        drawn = survey.stars("train", index)
        rows = np.flatnonzero(survey.reached(drawn.theory))
        rng = np.random.default_rng([seed, 0, index, LINES_STREAM])
        found = compression.coefficients(drawn, rows, apogee, any_instrument, rng)
        return found, index * BLOCK + rows, [column[rows] for column in survey.catalogue(drawn)]

    parts: list[Tensor] = []
    numbers: list[np.ndarray] = []
    tables: list[list[np.ndarray]] = []
    with ThreadPoolExecutor(workers) as pool:
        while (missing := stars - sum(map(len, parts))) > 0:
            first = len(parts)
            more = range(first, first + math.ceil(missing / BLOCK))
            for found, kept, table in pool.map(block, more):
                parts.append(found)
                numbers.append(kept)
                tables.append(table)
    names = ("labels", "label_errors", "true_labels")
    columns = {
        name: np.concatenate(table)[:stars]
        for name, table in zip(names, zip(*tables, strict=True), strict=True)
    }
    columns["ids"] = np.array(
        [f"mock-{seed}-train-{star:07d}" for star in np.concatenate(numbers)[:stars]]
    )
    coefficients = torch.cat(parts)[:stars]
    if apogee:
        spectra = EmulatedSpectra(coefficients, compression.common.components, bank)
    else:
        spectra = SeenSpectra(coefficients, bank, instrument)
    columns["synthetic"] = spectra
    chosen: dict[str, Any] = {"stars": stars, "labels": list(survey.label_names)}
    if line_lists != "nominal":
        chosen["line_lists"] = line_lists
    return Source(
        path=Path("emulator"),
        instrument=instrument,
        wavelength=instrument.wavelength,
        label_names=survey.label_names,
        label_units=tuple(label(name).unit for name in survey.label_names),
        provenance={
            "generator": "emulator",
            "arguments": chosen,
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
