"""Spectra and labels of a survey file or of the published arrays, with one interface.

A survey file is HDF5: `wavelength` at the root; groups `train` and `test`, each with `synthetic`
and `observed` spectra, `labels`, `label_errors`, `ids` and, for mock surveys, `true_labels`. NaN
is a bad pixel or a missing label. `SurveyWriter` writes it. The published data are a folder of
.npy arrays. Spectra are read from disk on demand.
"""

import math
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from stellarperceptron.data.mock.emulated import EmulatedSpectra
from stellarperceptron.data.sources import REMEDY, DatasetError, Source, open_source
from stellarperceptron.data.survey_file import ERRORS, KINDS, SPLITS
from stellarperceptron.utils.arrays import as_rows, sentinels_to_nan

__all__ = [
    "SpectraDataset",
    "Split",
    "draw_iron_rich",
]


class Split:
    """The training or the test stars of a data set.

    Attributes
    ----------
    name : str
        "train" or "test".
    n_stars, n_pixels : int
        Shape of its spectra.
    instrument : Instrument
        Instrument of the spectra.
    kinds : tuple of str
        Available kinds of spectra, "synthetic" or "observed" or both.
    has_errors : bool
        Whether there are standard deviations of the observed spectra, "observed_errors".
    """

    def __init__(self, source: Source, name: str):
        arrays = source.splits[name]
        self.name = name
        self.label_names = source.label_names
        self.instrument = source.instrument
        self.kinds = tuple(kind for kind in KINDS if kind in arrays)
        self.has_errors = ERRORS in arrays
        self._source = source.path
        self._arrays = arrays
        self.n_stars, self.n_pixels = map(int, arrays[self.kinds[0]].shape)

    def __len__(self) -> int:
        return self.n_stars

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels (N, L) float32, NaN where missing."""
        return sentinels_to_nan(self._load("labels", slice(None), slice(None)), self.label_names)

    @cached_property
    def label_errors(self) -> np.ndarray:
        """Standard deviations of the labels (N, L) float32, NaN where missing."""
        errors = self._load("label_errors", slice(None), slice(None))
        return sentinels_to_nan(errors, [f"{name}_ERR" for name in self.label_names])

    @cached_property
    def true_labels(self) -> np.ndarray | None:
        """Labels (N, L) float32 from which mock spectra were made; None for real stars."""
        if "true_labels" not in self._arrays:
            return None
        return self._load("true_labels", slice(None), slice(None))

    @cached_property
    def ids(self) -> np.ndarray:
        """Names of the stars (N,); row numbers if the data have no names."""
        if "ids" not in self._arrays:
            return np.arange(self.n_stars).astype(str)
        try:
            values = self._arrays["ids"][:]
            if values.dtype.kind == "U":
                return np.asarray(values)
            return np.array([value.decode("utf-8") for value in values.tolist()])
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{self._source} is damaged in {self.name}/ids ({error}): {REMEDY}"
            ) from error

    def pixel_range(self, pixels: str | slice | Sequence[int]) -> slice:
        """Slice of the pixels in a range; see `Instrument.pixel_range`.

        Raises
        ------
        ValueError
            For an unknown name, and for a range that is empty or outside the spectra.
        """
        return self.instrument.pixel_range(pixels, self.n_pixels)

    def read(
        self,
        kind: str,
        rows: slice | np.ndarray | Sequence[int] | None = None,
        pixels: str | slice | Sequence[int] = "full",
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Read spectra from the disk.

        Parameters
        ----------
        kind
            "synthetic" or "observed", or "observed_errors" if `has_errors`.
        rows
            Stars to read: a slice, row numbers in any order, or a mask (N,) of booleans. None: all
            stars.
        pixels
            Pixels to read; see `pixel_range`.
        out : (n, p) float32, optional
            Array for the result, for instance in pinned memory.

        Returns
        -------
        (n, p) float32
            The spectra in the order of `rows`, NaN in bad pixels.

        Raises
        ------
        DatasetError
            The data set has no spectra of this kind, or its file is damaged.
        IndexError
            A row is outside the split, or a mask is not as long as it.
        """
        if kind not in self.kinds and not (kind == ERRORS and self.has_errors):
            raise DatasetError(
                f"{self._source} has no '{kind}' spectra in '{self.name}', only "
                f"{' and '.join(self.kinds)}"
            )
        columns = self.pixel_range(pixels)
        if rows is None:
            rows = slice(0, self.n_stars)
        if isinstance(rows, slice) and rows.step not in (None, 1):
            rows = np.arange(self.n_stars)[rows]
        if not isinstance(rows, slice):
            rows = as_rows(rows, self.n_stars)
        spectra = self._load(kind, rows, columns, out)
        if (marked := sentinels_to_nan(spectra)) is not spectra:
            spectra[...] = marked
        return spectra

    def _load(
        self,
        name: str,
        rows: slice | np.ndarray,
        columns: slice,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        array = self._arrays[name]
        columns = slice(*columns.indices(array.shape[1]))
        n_rows = len(range(*rows.indices(len(array)))) if isinstance(rows, slice) else len(rows)
        shape = (n_rows, columns.stop - columns.start)
        if out is None:
            out = np.empty(shape, dtype=np.float32)
        if out.shape != shape or out.dtype != np.float32:
            raise ValueError(f"out is {out.dtype} {out.shape}: it must be float32 {shape}")
        try:
            if isinstance(rows, slice):
                out[...] = array[rows, columns]
            else:
                _gather(array, rows, columns, out)
        except OSError as error:  # a checksum that does not fit, a file cut off while open
            raise DatasetError(
                f"{self._source} is damaged in {self.name}/{name} ({error}): {REMEDY}"
            ) from error
        return out

    def recipe(self, kind: str) -> EmulatedSpectra | None:
        """Coefficients from which spectra of this kind are computed; None if they are stored."""
        array = self._arrays.get(kind)
        return array if isinstance(array, EmulatedSpectra) else None

    def validation_split(
        self, fraction: float = 0.1, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Split the stars at random into training and validation stars.

        The validation stars are the first ceil(fraction N) of a seeded permutation, the same on
        every machine and in every process: 102,747 stars become 92,472 + 10,275.

        Returns
        -------
        training, validation : (n,) int64
            Row numbers in ascending order.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}: it must lie between 0 and 1")
        order = _frozen_random(seed).permutation(self.n_stars)
        n_validation = math.ceil(round(fraction * self.n_stars, 9))
        return np.sort(order[n_validation:]), np.sort(order[:n_validation])

    def giants(self, low: float = 1.0, high: float = 3.5) -> np.ndarray:
        """Row numbers (n,) of the giants: low < log g < high."""
        logg = self._label("LOGG")
        return np.flatnonzero((logg > low) & (logg < high))

    def iron_rich_stars(
        self, n_stars: int = 100, min_fe_h: float = -1.0, seed: int = 77
    ) -> np.ndarray:
        """Row numbers (n_stars,) of stars with [Fe/H] > -1 drawn at random, in ascending order.

        The third stage is trained on these stars only.

        Raises
        ------
        DatasetError
            There are fewer such stars.
        """
        try:
            return draw_iron_rich(self._label("FE_H"), n_stars, min_fe_h, seed)
        except ValueError as error:
            raise DatasetError(f"{self._source}: '{self.name}' has {error}") from error

    def _label(self, name: str) -> np.ndarray:
        if name not in self.label_names:
            raise DatasetError(f"{self._source} has no label {name}: {', '.join(self.label_names)}")
        return self.labels[:, self.label_names.index(name)]


def draw_iron_rich(
    fe_h: np.ndarray, n_stars: int = 100, min_fe_h: float = -1.0, seed: int = 77
) -> np.ndarray:
    """Row numbers (n_stars,) of stars with [Fe/H] > -1; see `Split.iron_rich_stars`.

    Raises
    ------
    ValueError
        There are fewer such stars.
    """
    candidates = np.flatnonzero(fe_h > min_fe_h)
    if len(candidates) < n_stars:
        raise ValueError(
            f"{len(candidates)} stars with [Fe/H] > {min_fe_h:g}, {n_stars} are needed"
        )
    return np.sort(_frozen_random(seed).choice(candidates, n_stars, replace=False))


def _frozen_random(seed: int) -> np.random.RandomState:
    """Random numbers that are the same in every release of NumPy (NEP 19), unlike default_rng."""
    return np.random.RandomState(seed)


def _gather(array: Any, rows: np.ndarray, columns: slice, out: np.ndarray) -> None:
    """Read scattered rows in the order of the file, neighbouring rows together."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    # A new read begins after a gap of several rows, or when a read becomes too large.
    breaks = np.flatnonzero(np.diff(ordered) > 8) + 1
    for run in np.split(np.arange(len(ordered)), breaks):
        for first in range(0, len(run), 1024):
            part = run[first : first + 1024]
            if not len(part):
                continue
            start, stop = ordered[part[0]], ordered[part[-1]] + 1
            block = np.asarray(array[start:stop, columns])
            out[order[part]] = block[ordered[part] - start]


class SpectraDataset:
    """Spectra, labels and wavelengths of a survey, read on demand.

    Attributes
    ----------
    path : pathlib.Path
        The file or folder.
    instrument : Instrument
        Instrument of the spectra.
    wavelength : (P,) float64
        Wavelengths of the pixels [A, vacuum], all or some of the instrument's.
    label_names, label_units : tuple of str
        Names and units of the columns of the labels; "" for a unit that is unknown.
    provenance : dict
        How the data were made: generator, version, arguments, seed.
    train, test : Split
        The stars.

    Examples
    --------
    >>> dataset = SpectraDataset.open("survey.h5")  # doctest: +SKIP
    >>> spectra = dataset.train.read("observed", slice(0, 64), "first_half")  # doctest: +SKIP
    """

    def __init__(self, source: Source):
        self.path = source.path
        self.instrument = source.instrument
        self.wavelength = source.wavelength
        self.label_names = source.label_names
        self.label_units = source.label_units
        self.provenance = source.provenance
        self._file = source.file
        self.train, self.test = (Split(source, name) for name in SPLITS)

    @classmethod
    def open(
        cls, path: str | os.PathLike, label_names: Sequence[str] | None = None
    ) -> "SpectraDataset":
        """Open a survey file (HDF5) or a folder of published arrays.

        Parameters
        ----------
        path
            The file, or the folder with `synspec_train.npy`, `aspcap_spectra_train.npy`,
            `labels_train.npy`, `label_errs_train.npy`, the same with `_test`, and
            `apogee_wavelength_sol.csv`. One of the two kinds of spectra may be missing. Names of
            stars are read from `ids_train.npy` if it holds text, even in the form of Python
            objects, whose pickle is searched but never executed. Otherwise the stars are numbered.
        label_names
            Labels that the data must have, in any order, possibly among others. None: any labels.

        Raises
        ------
        FileNotFoundError
            There is no such file or folder.
        DatasetError
            The file is damaged, incomplete, or has a wrong number of pixels, or a label is missing;
            the message names the file and a remedy.
        """
        dataset = cls(open_source(path))
        missing = [name for name in label_names or () if name not in dataset.label_names]
        if missing:
            dataset.close()
            raise DatasetError(
                f"{path} lacks the labels {', '.join(missing)}; it has "
                f"{', '.join(dataset.label_names)}"
            )
        return dataset

    @property
    def identity(self) -> dict[str, Any]:
        """Properties that identify a survey, wherever its file is."""
        return {
            "stars": len(self.train),
            "test_stars": len(self.test),
            "provenance": self.provenance,
            **({"errors": True} if self.train.has_errors else {}),
        }

    def __reduce__(self):
        return SpectraDataset.open, (self.path,)

    def __enter__(self) -> "SpectraDataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; spectra cannot be read any more."""
        if self._file is not None:
            self._file.close()
