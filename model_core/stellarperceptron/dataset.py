"""One way to open spectra and labels, whether from a survey file or from the published arrays.

A survey file is HDF5: `wavelength` at the root; groups `train` and `test`, each with `synthetic`
and `observed` spectra, `labels`, `label_errors`, `ids` and, for mock surveys, `true_labels`. NaN
is a bad pixel or a missing label. `SurveyWriter` writes it. The
published data are a folder of .npy arrays. Spectra stay on the disk until they are asked for.
"""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stellarperceptron.spectra import APOGEE_WAVELENGTH, pixel_range
from stellarperceptron.survey_file import (
    FORMAT_VERSION,
    KINDS,
    LABEL_NAMES,
    SPLITS,
    SurveyWriter,
)

__all__ = ["LABEL_NAMES", "DatasetError", "SpectraDataset", "Split", "SurveyWriter"]

# File names of the published arrays: what goes before "_train.npy" and "_test.npy".
_PUBLISHED = {
    "synthetic": "synspec",
    "observed": "aspcap_spectra",
    "labels": "labels",
    "label_errors": "label_errs",
}
_PUBLISHED_WAVELENGTH = "apogee_wavelength_sol.csv"
_REMEDY = "make it anew (dataset/create_mock_survey.py or dataset/create_dataset.py)"


class DatasetError(ValueError):
    """A data set that cannot be used: damaged, half-written, or not what it should be."""


class Split:
    """The training or the test stars of a data set.

    Attributes
    ----------
    name : str
        "train" or "test".
    n_stars, n_pixels : int
        Shape of its spectra.
    kinds : tuple of str
        Which of "synthetic" and "observed" there are.
    """

    def __init__(
        self, source: Path, name: str, arrays: Mapping[str, Any], label_names: tuple[str, ...]
    ):
        self.name = name
        self.label_names = label_names
        self.kinds = tuple(kind for kind in KINDS if kind in arrays)
        self._source = source
        self._arrays = arrays
        self.n_stars, self.n_pixels = map(int, arrays[self.kinds[0]].shape)

    def __len__(self) -> int:
        return self.n_stars

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels (N, L) float32, NaN where missing."""
        return self._load("labels", slice(None), slice(None))

    @cached_property
    def label_errors(self) -> np.ndarray:
        """Standard deviations of the labels (N, L) float32, NaN where missing."""
        return self._load("label_errors", slice(None), slice(None))

    @cached_property
    def true_labels(self) -> np.ndarray | None:
        """Labels (N, L) float32 that a mock spectrum was made with; None for real stars."""
        if "true_labels" not in self._arrays:
            return None
        return self._load("true_labels", slice(None), slice(None))

    @cached_property
    def ids(self) -> np.ndarray:
        """Names of the stars (N,); their row numbers where the data have no names."""
        if "ids" not in self._arrays:
            return np.arange(self.n_stars).astype(str)
        try:
            values = self._arrays["ids"][:]
            if values.dtype.kind == "U":
                return np.asarray(values)
            return np.array([value.decode("utf-8") for value in values.tolist()])
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{self._source} is damaged in {self.name}/ids ({error}): {_REMEDY}"
            ) from error

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
            "synthetic" or "observed".
        rows
            Which stars: a slice, row numbers in any order, or a mask (N,) of booleans; all when
            left out.
        pixels
            Which pixels (see `stellarperceptron.spectra.pixel_range`).
        out : (n, p) float32, optional
            Where to put the result, for instance pinned memory.

        Returns
        -------
        (n, p) float32
            The spectra in the order of `rows`, NaN in bad pixels.

        Raises
        ------
        DatasetError
            When the data set has no spectra of this kind, or its file is damaged.
        IndexError
            For rows outside the split.
        """
        if kind not in self.kinds:
            raise DatasetError(
                f"{self._source} has no '{kind}' spectra in '{self.name}', only "
                f"{' and '.join(self.kinds)}"
            )
        columns = pixel_range(pixels, self.n_pixels)
        if rows is None:
            rows = slice(0, self.n_stars)
        if isinstance(rows, slice) and rows.step not in (None, 1):
            rows = np.arange(self.n_stars)[rows]
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            if rows.dtype == bool and rows.shape == (self.n_stars,):
                rows = np.flatnonzero(rows)
            rows = rows.astype(np.int64, casting="same_kind") if rows.size else np.empty(0, int)
            if rows.ndim != 1 or (rows.size and (rows.min() < 0 or rows.max() >= self.n_stars)):
                raise IndexError(f"rows must be numbers from 0 to {self.n_stars - 1}")
        return self._load(kind, rows, columns, out)

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
                f"{self._source} is damaged in {self.name}/{name} ({error}): {_REMEDY}"
            ) from error
        return out

    def validation_split(
        self, fraction: float = 0.1, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Divide the stars at random into training and validation stars.

        The first ceil(fraction N) stars of a seeded permutation are the validation stars, the same
        on every machine and in every process: 102,747 stars become 92,472 + 10,275.

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

    def iron_rich_hundred(
        self, n_stars: int = 100, min_fe_h: float = -1.0, seed: int = 77
    ) -> np.ndarray:
        """Row numbers (n_stars,) of stars with [Fe/H] > -1 drawn at random, in ascending order.

        The third stage of training sees only these.

        Raises
        ------
        DatasetError
            When there are fewer such stars.
        """
        candidates = np.flatnonzero(self._label("FE_H") > min_fe_h)
        if len(candidates) < n_stars:
            raise DatasetError(
                f"{self._source}: '{self.name}' has {len(candidates)} stars with [Fe/H] > "
                f"{min_fe_h:g}, {n_stars} are needed"
            )
        return np.sort(_frozen_random(seed).choice(candidates, n_stars, replace=False))

    def _label(self, name: str) -> np.ndarray:
        if name not in self.label_names:
            raise DatasetError(f"{self._source} has no label {name}: {', '.join(self.label_names)}")
        return self.labels[:, self.label_names.index(name)]


def _frozen_random(seed: int) -> np.random.RandomState:
    """Random numbers that no release of NumPy will change (NEP 19), unlike default_rng's."""
    return np.random.RandomState(seed)


def _gather(array: Any, rows: np.ndarray, columns: slice, out: np.ndarray) -> None:
    """Read scattered rows: neighbours together, in the order in which they lie on the disk."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    # A new read begins after a gap of more than a few rows, and when a read grows too large.
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
    """Spectra, labels and wavelengths of a survey, read when they are asked for.

    Attributes
    ----------
    path : pathlib.Path
        The file or folder.
    wavelength : (P,) float64
        Wavelengths of the pixels [A, vacuum].
    label_names : tuple of str
        Names of the columns of the labels.
    provenance : dict
        How the data were made: generator, version, arguments, seed.
    train, test : Split
        The stars.

    Examples
    --------
    >>> dataset = SpectraDataset.open("survey.h5")  # doctest: +SKIP
    >>> spectra = dataset.train.read("observed", rows=slice(0, 64), pixels="first_half")
    """

    def __init__(
        self,
        path: Path,
        wavelength: np.ndarray,
        label_names: tuple[str, ...],
        provenance: dict,
        splits: Mapping[str, Mapping[str, Any]],
        file: h5py.File | None = None,
    ):
        self.path = path
        self.wavelength = wavelength
        self.label_names = label_names
        self.provenance = provenance
        self._file = file
        for name in SPLITS:
            _check_shapes(path, name, splits[name], len(wavelength), len(label_names))
        self.train = Split(path, "train", splits["train"], label_names)
        self.test = Split(path, "test", splits["test"], label_names)

    @classmethod
    def open(
        cls, path: str | os.PathLike, label_names: Sequence[str] | None = LABEL_NAMES
    ) -> "SpectraDataset":
        """Open a survey file (HDF5) or a folder of published arrays.

        Parameters
        ----------
        path
            The file, or the folder with `synspec_train.npy`, `aspcap_spectra_train.npy`,
            `labels_train.npy`, `label_errs_train.npy`, the same with `_test`, and
            `apogee_wavelength_sol.csv`. Of the two kinds of spectra one may be absent. Names of
            stars are read from `ids_train.npy` if that is an array of text; pickled names are
            never read, and rows are numbered instead.
        label_names
            The labels that the data must have, in this order; None accepts any.

        Raises
        ------
        FileNotFoundError
            When there is nothing at `path`.
        DatasetError
            For a damaged or half-written file, a missing part, a wrong number of pixels or wrong
            labels; the message names the file and what helps.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file or folder; {_REMEDY}")
        dataset = _open_folder(cls, path) if path.is_dir() else _open_hdf5(cls, path)
        if label_names is not None and tuple(label_names) != dataset.label_names:
            dataset.close()
            raise DatasetError(
                f"{path} has the labels {', '.join(dataset.label_names)}; expected are "
                f"{', '.join(label_names)}, in this order"
            )
        return dataset

    def __reduce__(self):
        return SpectraDataset.open, (self.path, None)

    def __enter__(self) -> "SpectraDataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; spectra cannot be read afterwards."""
        if self._file is not None:
            self._file.close()


def _open_hdf5(cls: type[SpectraDataset], path: Path) -> SpectraDataset:
    """Open a survey file."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path} is no HDF5 file or is damaged ({error}): {_REMEDY}") from error
    try:
        if not file.attrs.get("complete", False):
            raise DatasetError(f"{path} is half-written: {_REMEDY}")
        version = file.attrs.get("format_version")
        if version != FORMAT_VERSION:
            raise DatasetError(
                f"{path} has format version {version}, this program reads {FORMAT_VERSION}: "
                f"{_REMEDY}"
            )
        label_names = tuple(str(name) for name in file.attrs["label_names"])
        provenance = json.loads(file.attrs.get("provenance", "{}"))
        wavelength = file["wavelength"][:].astype(np.float64)
        splits = {name: _members(file[name]) for name in SPLITS}
        return cls(path, wavelength, label_names, provenance, splits, file)
    except DatasetError:
        file.close()
        raise
    except KeyError as error:
        file.close()
        raise DatasetError(f"{path} lacks a part ({error.args[0]}): {_REMEDY}") from error
    except (OSError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        file.close()
        raise DatasetError(f"{path} is damaged ({error}): {_REMEDY}") from error


def _members(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Data sets of a group that hold their own data: a link into another file is not followed."""
    own = [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]
    return {name: group[name] for name in own if isinstance(group[name], h5py.Dataset)}


def _open_folder(cls: type[SpectraDataset], path: Path) -> SpectraDataset:
    """Open a folder of published arrays."""
    splits: dict[str, dict[str, np.ndarray]] = {}
    for split in SPLITS:
        files = {name: path / f"{stem}_{split}.npy" for name, stem in _PUBLISHED.items()}
        splits[split] = {name: _map_npy(file) for name, file in files.items() if file.exists()}
        ids = path / f"ids_{split}.npy"
        if ids.exists():
            try:
                splits[split]["ids"] = np.load(ids, mmap_mode="r", allow_pickle=False)
            except ValueError:
                warnings.warn(
                    f"{ids} holds pickled objects, which are never read: rows are numbered instead",
                    stacklevel=3,
                )
    csv = path / _PUBLISHED_WAVELENGTH
    if csv.exists():
        try:
            wavelength = np.loadtxt(csv, dtype=np.float64, ndmin=1)
        except ValueError as error:
            raise DatasetError(f"{csv} is damaged ({error})") from error
    else:
        wavelength = APOGEE_WAVELENGTH
    provenance = {"generator": "published arrays", "arguments": {"folder": path.name}}
    return cls(path, wavelength, LABEL_NAMES, provenance, splits)


def _map_npy(path: Path) -> np.ndarray:
    """Map an array into memory; one with pickled objects is refused."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(
            f"{path} is damaged or no plain array ({error}): fetch it anew"
        ) from error
    if array.dtype.kind != "f":
        raise DatasetError(f"{path} holds {array.dtype}, not floating-point numbers")
    return array


def _check_shapes(
    path: Path, split: str, arrays: Mapping[str, Any], n_pixels: int, n_labels: int
) -> None:
    """Check that a split has all its parts and that they belong together."""
    if path.is_dir():
        names = {name: f"{stem}_{split}.npy" for name, stem in _PUBLISHED.items()}
    else:
        names = {name: f"{split}/{name}" for name in _PUBLISHED}
    for name in ("labels", "label_errors"):
        if name not in arrays:
            raise DatasetError(f"{path} lacks {names[name]}: {_REMEDY}")
    kinds = [kind for kind in KINDS if kind in arrays]
    if not kinds:
        raise DatasetError(
            f"{path} lacks spectra: neither {names['synthetic']} nor {names['observed']} is there; "
            f"{_REMEDY}"
        )
    n_stars = arrays["labels"].shape[0] if arrays["labels"].ndim else 0
    expected = {kind: (n_stars, n_pixels) for kind in kinds}
    expected |= {"labels": (n_stars, n_labels), "label_errors": (n_stars, n_labels)}
    expected |= {"true_labels": (n_stars, n_labels)} if "true_labels" in arrays else {}
    for name, shape in expected.items():
        where, array = names.get(name, f"{split}/{name}"), arrays[name]
        if array.shape != shape:
            raise DatasetError(
                f"{path}: {where} has the shape {array.shape}, expected is {shape} (stars of the "
                f"labels, {'pixels of the wavelengths' if name in KINDS else 'labels'})"
            )
        if array.dtype.kind != "f":
            raise DatasetError(f"{path}: {where} holds {array.dtype}, not floating-point numbers")
    if "ids" in arrays and (
        arrays["ids"].shape != (n_stars,) or arrays["ids"].dtype.kind not in "USO"
    ):
        raise DatasetError(f"{path}: the names of the '{split}' stars are not {n_stars} texts")
