"""The mock survey: any number of stars that APOGEE or another instrument observes, from one seed.

A star has true labels, a catalogue's labels with errors, a *synthetic* spectrum (the theory's best
fit: emulator *nominal* at the catalogue's labels) and an *observed* one (emulator *nature* at the
true labels, through the spectrograph and the reduction). Stars come in blocks of `BLOCK`; each
block has its own random numbers, drawn by NumPy from (seed, split, block), so that neither the
number of stars nor of threads changes a star. Each label beyond the published five has a random
stream of its own, so that the choice of labels changes no label and no observed spectrum either;
so has each instrument besides APOGEE, so that all instruments observe the same stars.
"""

import hashlib
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from stellarperceptron.data.apogee.continuum import normalize, normalize_as
from stellarperceptron.data.mock.emulator import EMULATOR_FILE, Emulator, read_emulators
from stellarperceptron.data.mock.observation import (
    LSF_GROUPS,
    SKY_FILE,
    Augmentation,
    SpectraBank,
    broadening_index,
    broadening_velocity,
)
from stellarperceptron.data.mock.population import (
    COOL_DWARF,
    MAIN,
    POPULATION_FILE,
    LabelDistribution,
    all_labels,
)
from stellarperceptron.data.mock.spectrographs import SPECTROGRAPHS, Observation, Spectrograph
from stellarperceptron.data.mock.stellar_labels import CARBON_LIMIT, LABELS
from stellarperceptron.data.survey_file import ERRORS, FORMAT_VERSION, SPLITS, SurveyWriter
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument
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
    "Stars",
    "create_survey",
]

BLOCK = 1024


@dataclass
class Stars:
    """
    A block of stars, before anyone observes them.

    Attributes
    ----------
    true : (BLOCK, 5)
        True `PUBLISHED_LABELS`.
    columns
        Catalogue's value, its error and the true value (BLOCK,) of each of its labels, by name.
    missing : (BLOCK,) bool
        Stars whose abundances the catalogue lacks.
    nature, theory : (BLOCK, 20)
        The emulators' labels, as they are and as the catalogue has them.
    group : (BLOCK,)
        APOGEE's group of fibres.
    broadening : (BLOCK,)
        Index of `broadening_index`.
    rng
        The block's random numbers, with which APOGEE's observations go on.
    """

    true: np.ndarray
    columns: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    missing: np.ndarray
    nature: np.ndarray
    theory: np.ndarray
    group: np.ndarray
    broadening: np.ndarray
    rng: np.random.Generator


def _range(emulators: Iterable[Emulator]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest labels (20,) that all of some emulators reach."""
    emulators = list(emulators)
    low = torch.stack([one.low for one in emulators]).amax(0)
    high = torch.stack([one.high for one in emulators]).amin(0)
    return low.numpy(), high.numpy()


class MockSurvey:
    """
    Stars and their spectra.

    Parameters
    ----------
    seed
        The same seed gives the same stars.
    observation
        Parameters of APOGEE's observed spectra.
    emulator_file
        File with the emulators *nominal* and *nature* of the instrument's wavelengths, or with
        *nominal* alone, which then makes observed spectra, too; None: the one that
        `stellarperceptron.data.mock.spectrographs` names.
    label_names
        Labels of the catalogue in the order of their columns, of
        `stellarperceptron.labels.ALL_LABELS`; "all" for all of them.
    instrument
        Instrument that observes the stars. Stars that its emulators do not reach are left out; the
        others have the same names and labels in every instrument's survey with this seed.

    Raises
    ------
    FileNotFoundError
        There is no file with emulators of the instrument's wavelengths.
    ValueError
        A label is unknown or given twice, the emulator file is damaged or does not reach the
        instrument's wavelengths, or it is not known how the instrument observes.
    """

    def __init__(
        self,
        seed: int = 1,
        observation: Observation | None = None,
        emulator_file=None,
        label_names: str | Iterable[str] = PUBLISHED_LABELS,
        instrument: Instrument = APOGEE,
    ):
        self.seed = seed
        self.label_names = resolve_label_names(label_names, ALL_LABELS)
        self.instrument, self.pixels = instrument, slice(0, len(instrument))
        self.observation = observation or Observation()
        self.population = LabelDistribution.load()
        self.spectrograph: Spectrograph | None = None
        if instrument != APOGEE:
            self.spectrograph = SPECTROGRAPHS.get(instrument.name)
            if self.spectrograph is None or self.spectrograph.instrument != instrument:
                raise ValueError(
                    f"it is not known how {instrument} observes: known are APOGEE, "
                    f"{', '.join(SPECTROGRAPHS)}"
                )
        if emulator_file is None:
            emulator_file = self.spectrograph.emulator_file() if self.spectrograph else None
        self.emulator_file = emulator_file or EMULATOR_FILE
        # Stars are drawn within the range of the package's emulators, whoever observes them.
        file = self.emulator_file if self.spectrograph is None else EMULATOR_FILE
        emulators = read_emulators(file)
        self.low, self.high = self._reached = _range(emulators.values())
        if self.spectrograph is None:
            self.nominal, self.nature = (SpectraBank(one) for one in emulators.values())
            return
        if self.emulator_file != EMULATOR_FILE:
            emulators = read_emulators(self.emulator_file)
        banks = [self.spectrograph.bank(one) for one in emulators.values()]
        self.nominal, self.nature = (bank for bank, _ in banks)
        self.pixels = banks[0][1]
        self._reached = _range(emulators.values())

    @property
    def wavelength(self) -> np.ndarray:
        """Wavelengths (P,) of the pixels that the emulators reach [Angstrom, vacuum]."""
        return self.instrument.wavelength[self.pixels]

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
        observation = asdict(self.observation)
        if self.spectrograph is not None:
            about = {field.name for field in fields(self.spectrograph)} - {"instrument"}
            observation = {name: getattr(self.spectrograph, name) for name in sorted(about)}
        return {
            "version": version("stellarperceptron"),
            "numpy": np.__version__,
            **digests,
            "observation": observation,
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

    def stars(self, split: str, index: int) -> Stars:
        """Stars of block `index` of "train" or "test", the same for all instruments."""
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
        return Stars(true, columns, missing, nature, theory, group, broadening, rng)

    def catalogue(self, stars: Stars) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels (BLOCK, L) of the catalogue, NaN where it lacks them, errors, and true labels."""
        labels, errors, true = (
            np.stack(values, axis=1).astype(np.float32)
            for values in zip(*(stars.columns[name] for name in self.label_names), strict=True)
        )
        abundances = [i for i, name in enumerate(self.label_names) if label(name).is_abundance]
        for array in (labels, errors):
            array[np.ix_(stars.missing, abundances)] = np.nan
        return labels, errors, true

    def observed_stars(self, stars: Stars) -> np.ndarray:
        """Mask (BLOCK,) of the stars that the instrument observes, which its emulators reach."""
        if self.spectrograph is None:
            return np.ones(BLOCK, dtype=bool)
        return self.reached(stars.nature)

    def reached(self, labels: np.ndarray) -> np.ndarray:
        """Mask (N,) of the labels (N, 20) that the emulators reach."""
        low, high = self._reached
        margin = 1e-6 * (high - low)  # rounding is not extrapolation
        return ((labels >= low - margin) & (labels <= high + margin)).all(axis=1)

    def block(self, split: str, index: int, size: int = BLOCK) -> dict[str, np.ndarray | list]:
        """
        The first `size` stars of block `index` of "train" or "test", of those that are observed.

        Returns
        -------
        dict
            ``ids``, ``synthetic``, ``observed`` and ``observed_errors`` (n, P), ``labels``,
            ``label_errors`` and ``true_labels`` (n, L), of `label_names`: the arguments of
            `SurveyWriter.append`.
        """
        stars = self.stars(split, index)
        # A block is always computed whole: its first stars do not depend on how many are wanted.
        if self.spectrograph is None:
            synthetic, (observed, noise) = self._apogee(stars)
        else:
            synthetic, (observed, noise) = self._other_instrument(
                self.spectrograph, stars, split, index
            )
        catalogue, errors, true = self.catalogue(stars)
        rows = np.flatnonzero(self.observed_stars(stars)[:size])
        first = index * BLOCK
        return {
            "ids": [f"mock-{self.seed}-{split}-{first + i:07d}" for i in rows],
            "synthetic": synthetic[rows].numpy(),
            "observed": observed[rows].numpy(),
            ERRORS: noise[rows].numpy(),
            "labels": catalogue[rows],
            "label_errors": errors[rows],
            "true_labels": true[rows],
        }

    def _apogee(self, stars: Stars) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Synthetic spectra (BLOCK, 7514) of APOGEE, and observed ones with their errors."""
        nominal, nature = self.nominal, self.nature
        flux = nominal(nominal.emulator.coefficients(stars.theory), stars.group, stars.broadening)
        synthetic = normalize(flux)
        flux = nature(nature.emulator.coefficients(stars.nature), stars.group, stars.broadening)
        return synthetic, self.observation(flux, stars.true[:, 4], stars.rng)

    def _other_instrument(
        self, spectrograph: Spectrograph, stars: Stars, split: str, index: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Synthetic spectra (BLOCK, P) of another instrument, and observed ones with errors."""
        # Beyond the numbers of the labels, which have streams of their own, too.
        stream = 1000 + zlib.crc32(self.instrument.name.encode())
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index, stream])
        group = rng.integers(0, len(spectrograph.fibres), BLOCK)
        low, high = self._reached
        fluxes = []
        for bank, labels in ((self.nominal, stars.theory), (self.nature, stars.nature)):
            coefficients = bank.emulator.coefficients(np.clip(labels, low, high))
            fluxes.append(bank(coefficients, group, stars.broadening))
        synthetic = normalize_as(self.instrument, fluxes[0], pixels=self.pixels)
        return synthetic, spectrograph.observe(fluxes[1], stars.true[:, 4], rng, self.pixels)

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

    def count(self, split: str, stars: int) -> int:
        """Number of the first `stars` stars of "train" or "test" that the instrument observes."""
        if self.spectrograph is None:
            return stars
        return sum(
            int(self.observed_stars(self.stars(split, first // BLOCK))[: stars - first].sum())
            for first in range(0, stars, BLOCK)
        )

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
    instrument: Instrument = APOGEE,
    emulator_file: Path | None = None,
) -> dict[str, int]:
    """Write a mock survey to a file, with a progress bar where the output is a terminal.

    Parameters
    ----------
    output
        HDF5 file; 90 kB a star.
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
    instrument, emulator_file
        See `MockSurvey`.

    Returns
    -------
    dict
        Numbers of stars in the file, by split: all, or those that the instrument observes.

    Raises
    ------
    OSError
        The file cannot be written, or the disk has not enough room; or there are no emulators of
        the instrument's wavelengths.
    ValueError
        See `MockSurvey`; or the instrument observes none of the stars.
    """
    survey = MockSurvey(
        seed, label_names=label_names, instrument=instrument, emulator_file=emulator_file
    )
    wanted = {"train": stars, "test": test_stars}
    counts = {split: survey.count(split, number) for split, number in wanted.items()}
    for split, number in counts.items():
        if not number:
            raise ValueError(
                f"none of the {wanted[split]} {split} stars is within the range of {instrument}'s "
                "emulators: ask for more stars"
            )
    chosen: dict[str, object] = {}
    if tuple(label_names) != PUBLISHED_LABELS:
        chosen["labels"] = label_names
    if instrument != APOGEE:
        chosen["instrument"] = instrument.name
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
            instrument=instrument,
            wavelength=None if instrument == APOGEE else survey.wavelength,
            label_names=label_names,
            true_labels=True,
            errors=True,
            format_version=format_version,
        ) as writer,
        tqdm(total=sum(counts.values()), unit=" stars", disable=None) as bar,
    ):
        for split, number in wanted.items():
            for block in survey.blocks(split, number, workers):
                writer.append(split, **block)
                bar.update(len(block["ids"]))
    return counts
