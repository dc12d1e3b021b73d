"""The mock survey: any number of APOGEE-like stars, made in blocks from one seed.

A star has true labels, a catalogue's labels with errors, a *synthetic* spectrum (the theory's best
fit: emulator *nominal* at the catalogue's labels) and an *observed* one (emulator *nature* at the
true labels, through the spectrograph and the reduction). Stars come in blocks of `BLOCK`; each
block has its own random numbers, drawn by NumPy from (seed, split, block), so that neither the
number of stars nor of threads changes a star. Each label beyond the published five has a random
stream of its own, so that the choice of labels changes no label and no observed spectrum either.
"""

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from stellarperceptron.data.apogee.continuum import VALID_FLUX, normalize
from stellarperceptron.data.apogee.grid import CHIP_PIXELS
from stellarperceptron.data.mock.emulator import EMULATOR_FILE, Emulator
from stellarperceptron.data.mock.observation import (
    LSF_GROUPS,
    MAX_SHIFT,
    PIXEL_VELOCITY,
    RIPPLE_ORDERS,
    SKY_FILE,
    Augmentation,
    SpectraBank,
    broadening_index,
    broadening_velocity,
    continuum_ripple,
    correlate_noise,
    sky_templates,
    sky_windows,
    vary_line_spread,
)
from stellarperceptron.data.mock.population import (
    COOL_DWARF,
    MAIN,
    POPULATION_FILE,
    LabelDistribution,
    all_labels,
)
from stellarperceptron.data.mock.stellar_labels import CARBON_LIMIT, LABELS
from stellarperceptron.data.survey_file import FORMAT_VERSION, SPLITS, SurveyWriter
from stellarperceptron.labels import (
    ALL_LABELS,
    PUBLISHED_LABELS,
    label,
    resolve_label_names,
)

__all__ = [
    "BLOCK",
    "Augmentation",
    "Emulator",
    "MockSurvey",
    "Observation",
    "create_survey",
]

BLOCK = 1024


@dataclass(frozen=True)
class Observation:
    """
    Parameters of the observation and reduction of spectra.

    Attributes
    ----------
    snr
        Signal-to-noise ratio a pixel: the lower end is the survey's cut, above it an exponential
        distribution of this scale, up to the last.
    correlation
        Of the noise of neighbouring pixels, which are resampled from the detector's (measured: 0.4
        in the difference of two visits to 2M17335483-2753043, two of APOGEE's example spectra).
    line_spread
        Standard deviation of the relative change of the line spread's variance within a group of
        fibres.
    sky
        Median standard deviation of the residual of the strongest OH line, over the continuum;
        stars scatter about it by 0.3 dex.
    telluric
        Standard deviation of the error of the CO2 and the CH4 correction, over the continuum at
        the deepest line.
    ripple
        Root mean square of the pseudo-continuum's error, uniform between these.
    bad_pixel
        Probability that a single pixel is lost (cosmic rays).
    dead_columns
        Number of detector columns lost for every star; their wavelengths depend on its velocity.
    dead_stretch
        Probability that a star loses 20 to 150 neighbouring pixels.
    velocity
        Standard deviation of the stars' velocities [km/s] at [Fe/H] above and below -1.
    """

    snr: tuple[float, float, float] = (200.0, 140.0, 600.0)
    correlation: float = 0.4
    line_spread: float = 0.04
    sky: float = 0.01
    telluric: float = 0.006
    ripple: tuple[float, float] = (0.003, 0.005)
    bad_pixel: float = 0.002
    dead_columns: int = 30
    dead_stretch: float = 0.08
    velocity: tuple[float, float] = (50.0, 140.0)

    @cached_property
    def dead(self) -> Tensor:
        """Lost detector columns (8575 + 2 MAX_SHIFT,), the same in every survey."""
        columns = torch.zeros(8575 + 2 * MAX_SHIFT, dtype=torch.bool)
        rng = np.random.default_rng(2017)
        columns[torch.from_numpy(rng.integers(0, len(columns), self.dead_columns))] = True
        return columns

    def lost(self, shift: np.ndarray, rng: np.random.Generator, size: int) -> Tensor:
        """Mask (N, P) of the pixels without a measurement."""
        lost = sky_windows(self.dead, shift)
        count = rng.poisson(self.bad_pixel * size, len(shift))
        rows = np.repeat(np.arange(len(shift)), count)
        lost[torch.from_numpy(rows), torch.from_numpy(rng.integers(0, size, len(rows)))] = True
        stretched = np.flatnonzero(rng.random(len(shift)) < self.dead_stretch)
        starts = rng.integers(0, size, len(stretched))
        for row, start, length in zip(
            stretched, starts, rng.integers(20, 151, len(stretched)), strict=True
        ):
            lost[row, start : start + length] = True
        return lost

    def __call__(self, flux: Tensor, fe_h: np.ndarray, rng: np.random.Generator) -> Tensor:
        """
        Observed, normalized spectra (N, 7514) of stars with flux over continuum `flux` (N, 7514).

        Parameters
        ----------
        fe_h : (N,)
            Metal-poor stars move faster.
        """
        n, size = flux.shape

        def normal(*shape: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

        spread = np.where(fe_h > -1.0, *self.velocity)
        shift = spread * rng.standard_normal(n) / PIXEL_VELOCITY
        lowest, scale, highest = self.snr
        # Exponential, cut off at `highest`, by inversion.
        share = 1.0 - math.exp(-(highest - lowest) / scale)
        snr = lowest - scale * np.log(1.0 - rng.random(n) * share)
        sigma = torch.from_numpy((1.0 / snr).astype(np.float32))[:, None] * _edge_noise()

        sky = sky_templates()
        change = (self.line_spread * normal(n)).clamp(-0.3, 0.3)
        flux = vary_line_spread(flux, change)
        left_over = self.sky * 10.0 ** (0.3 * normal(n, 1)) * sky_windows(sky["OH"], shift)
        telluric = self.telluric * normal(n, 1) * sky_windows(sky["CO2"], shift)
        telluric += self.telluric * normal(n, 1) * sky_windows(sky["CH4"], shift)
        noise = correlate_noise(normal(n, size), self.correlation).mul_(
            torch.hypot(sigma, left_over)
        )
        flux = noise.addcmul_(flux, telluric.add_(1.0))

        lost = self.lost(shift, rng, size)
        observed = normalize(flux, lost, valid_flux=None)
        low, high = self.ripple
        rms = low + (high - low) * torch.from_numpy(rng.random(n, dtype=np.float32))
        ripple = continuum_ripple(rms, normal(n, 3, RIPPLE_ORDERS[1] - RIPPLE_ORDERS[0]))
        observed = observed.mul_(ripple.add_(1.0))
        return observed.masked_fill_(
            (observed < VALID_FLUX[0]) | (observed > VALID_FLUX[1]), math.nan
        )


@lru_cache(maxsize=1)
def _edge_noise() -> Tensor:
    """Relative noise (7514,): a chip's ends receive less light."""
    noise = torch.empty(CHIP_PIXELS["red"].stop)
    for chip in CHIP_PIXELS.values():
        noise[chip] = 1.0 + 0.25 * torch.linspace(-1.0, 1.0, chip.stop - chip.start) ** 2
    return noise


class MockSurvey:
    """
    Stars and their spectra.

    Parameters
    ----------
    seed
        The same seed gives the same stars.
    observation
        Parameters of the observed spectra.
    emulator_file
        File with the emulators *nominal* and *nature*.
    label_names
        Labels of the catalogue in the order of their columns, of
        `stellarperceptron.labels.ALL_LABELS`; "all" for all of them.

    Raises
    ------
    ValueError
        A label is unknown or given twice, or the emulator file is damaged.
    """

    def __init__(
        self,
        seed: int = 1,
        observation: Observation | None = None,
        emulator_file=EMULATOR_FILE,
        label_names: str | Iterable[str] = PUBLISHED_LABELS,
    ):
        self.seed = seed
        self.label_names = resolve_label_names(label_names, ALL_LABELS)
        self.emulator_file = emulator_file
        self.observation = observation or Observation()
        self.population = LabelDistribution.load()
        self.nominal = SpectraBank(Emulator.load("nominal", emulator_file))
        self.nature = SpectraBank(Emulator.load("nature", emulator_file))
        low = torch.maximum(self.nominal.emulator.low, self.nature.emulator.low)
        high = torch.minimum(self.nominal.emulator.high, self.nature.emulator.high)
        self.low, self.high = low.numpy(), high.numpy()

    def provenance(self) -> dict:
        """
        Everything but seed and size that the spectra depend on; no date, so that bytes repeat.

        NumPy's version is included since its random streams may differ between versions.
        """
        files = {"emulators": self.emulator_file, "labels": POPULATION_FILE, "sky": SKY_FILE}
        digests = {
            f"{name}_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()
            for name, path in files.items()
        }
        return {
            "version": version("stellarperceptron"),
            "numpy": np.__version__,
            **digests,
            "observation": asdict(self.observation),
        }

    def labels(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """True labels (number, 5) of random stars, `PUBLISHED_LABELS`, in the emulators' range."""
        main = list(MAIN)
        out = np.empty((0, len(main)))
        while len(out) < number:
            draw = self.population.draw(number, rng, self.low[main], self.high[main])
            out = np.concatenate(
                [out, draw[(draw[:, 1] < COOL_DWARF[0]) | (draw[:, 0] > COOL_DWARF[1])]]
            )
        return out[:number]

    def block(self, split: str, index: int, size: int = BLOCK) -> dict[str, np.ndarray | list]:
        """
        The first `size` stars of block `index` of "train" or "test".

        Returns
        -------
        dict
            ``ids``, ``synthetic`` and ``observed`` (size, 7514), ``labels``, ``label_errors`` and
            ``true_labels`` (size, L), of `label_names`: the arguments of `SurveyWriter.append`.
        """
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        true = self.labels(BLOCK, rng)
        errors = self.population.errors(true, rng)
        catalogue = true + errors * rng.standard_normal(true.shape)
        missing = self.population.without_abundances(true, rng)
        nature = all_labels(true, rng, self.low, self.high)
        columns = {
            name: (catalogue[:, i], errors[:, i], true[:, i])
            for i, name in enumerate(PUBLISHED_LABELS)
        }
        # Theory: the catalogue's labels, the abundances that it lacks as they are.
        theory = nature.copy()
        theory[:, list(MAIN)] = catalogue
        for name in self.label_names:
            if name not in columns:
                columns[name] = self._catalogue(name, split, index, true, nature)
                theory[:, LABELS.index(name)] = columns[name][0]
        if "C_FE" in columns:  # the catalogue's errors turn no star into a carbon star
            carbon, oxygen = LABELS.index("C_FE"), LABELS.index("O_FE")
            theory[:, carbon] = np.minimum(theory[:, carbon], theory[:, oxygen] + CARBON_LIMIT)
        theory = np.clip(theory, self.low, self.high)
        group = rng.integers(0, len(LSF_GROUPS), BLOCK)
        broadening = broadening_index(true, broadening_velocity(true, rng))

        # A block is always computed whole: its first stars do not depend on how many are wanted.
        flux = self.nominal(self.nominal.emulator.coefficients(theory), group, broadening)
        synthetic = normalize(flux)
        flux = self.nature(self.nature.emulator.coefficients(nature), group, broadening)
        observed = self.observation(flux, true[:, 4], rng)
        catalogue, errors, true = (
            np.stack(values, axis=1).astype(np.float32)
            for values in zip(*(columns[name] for name in self.label_names), strict=True)
        )
        abundances = [i for i, name in enumerate(self.label_names) if label(name).is_abundance]
        for array in (catalogue, errors):
            array[np.ix_(missing, abundances)] = np.nan
        first = index * BLOCK
        return {
            "ids": [f"mock-{self.seed}-{split}-{first + i:07d}" for i in range(size)],
            "synthetic": synthetic[:size].numpy(),
            "observed": observed[:size].numpy(),
            "labels": catalogue[:size],
            "label_errors": errors[:size],
            "true_labels": true[:size],
        }

    def _catalogue(
        self, name: str, split: str, index: int, true: np.ndarray, nature: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Catalogue's value, its error and the true value (BLOCK,) of a label beyond the five."""
        column = LABELS.index(name)
        # NumPy takes (seed, split, block, 0) for (seed, split, block): counted from 1.
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index, 1 + column])
        errors, truth = self.population.errors_of(name, true, rng), nature[:, column]
        value = truth + errors * rng.standard_normal(len(truth))
        return np.clip(value, *label(name).range), errors, truth

    def blocks(self, split: str, stars: int, workers: int = 1) -> Iterator[dict]:
        """
        The first `stars` stars of "train" or "test", in blocks, computed by threads ahead.

        At most ``workers + 1`` blocks (each about 0.3 GB while it is computed) are held at once.
        """
        sizes = [min(BLOCK, stars - first) for first in range(0, stars, BLOCK)]
        with ThreadPoolExecutor(workers) as pool:
            pending: deque = deque()
            for index, size in enumerate(sizes):
                pending.append(pool.submit(self.block, split, index, size))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()


def create_survey(
    output: Path,
    stars: int,
    test_stars: int,
    seed: int = 1,
    label_names: Sequence[str] = PUBLISHED_LABELS,
    workers: int = 1,
    format_version: int = FORMAT_VERSION,
) -> None:
    """Write a mock survey to a file, with a progress bar where the output is a terminal.

    Parameters
    ----------
    output
        HDF5 file; 60 kB a star.
    stars, test_stars
        Numbers of stars of the two splits.
    seed
        Seed of all random numbers.
    label_names
        Labels of the catalogue.
    workers
        Threads.
    format_version
        See `SurveyWriter`.

    Raises
    ------
    OSError
        The file cannot be written, or the disk has not enough room.
    """
    survey = MockSurvey(seed, label_names=label_names)
    counts = {"train": stars, "test": test_stars}
    chosen = {} if tuple(label_names) == PUBLISHED_LABELS else {"labels": label_names}
    provenance = {
        "generator": "create_mock_survey.py",
        "arguments": {"stars": stars, "test_stars": test_stars, **chosen},
        "seed": seed,
        **survey.provenance(),
    }
    with (
        SurveyWriter(
            output,
            counts=counts,
            provenance=provenance,
            label_names=label_names,
            true_labels=True,
            format_version=format_version,
        ) as writer,
        tqdm(total=sum(counts.values()), unit=" stars", disable=None) as bar,
    ):
        for split, number in counts.items():
            for block in survey.blocks(split, number, workers):
                writer.append(split, **block)
                bar.update(len(block["ids"]))
