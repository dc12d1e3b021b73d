"""Opening and checking of survey files and of folders of published arrays."""

import json
import math
import os
import pickletools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stellarperceptron.data.survey_file import ERRORS, FORMAT_VERSION, KINDS, SPLITS
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.labels import PUBLISHED_LABELS, label

__all__ = ["REMEDY", "DatasetError", "Source", "open_source"]

REMEDY = "make it anew (dataset/create_mock_survey.py or dataset/create_dataset.py)"

# File names of the published arrays, without "_train.npy" and "_test.npy".
_PUBLISHED = {
    "synthetic": "synspec",
    "observed": "aspcap_spectra",
    "labels": "labels",
    "label_errors": "label_errs",
}
_PUBLISHED_WAVELENGTH = "apogee_wavelength_sol.csv"

# Instructions of a pickle (see Python's `pickletools`) for texts, and for a list of them.
_TEXT_INSTRUCTIONS = {
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_LIST_INSTRUCTIONS = {
    *("MARK", "APPEND", "APPENDS", "FRAME"),
    *("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"),
}


class DatasetError(ValueError):
    """A data set that is damaged, incomplete, or cannot be used for another reason."""


@dataclass(frozen=True, eq=False)
class Source:
    """An open data set, whose spectra and labels have not been read yet.

    Attributes
    ----------
    path, instrument, wavelength, label_names, label_units, provenance
        As in `dataset.SpectraDataset`.
    splits : dict
        Arrays by name of "train" and "test": data sets of the file, or memory maps.
    file : h5py.File or None
        The open file.
    """

    path: Path
    instrument: Instrument
    wavelength: np.ndarray
    label_names: tuple[str, ...]
    label_units: tuple[str, ...]
    provenance: dict
    splits: Mapping[str, Mapping[str, Any]]
    file: h5py.File | None = None

    def __post_init__(self):
        _check_wavelength(self.path, self.wavelength)
        if len(set(self.label_names)) < len(self.label_names):
            names = ", ".join(self.label_names)
            raise DatasetError(f"{self.path} has a label twice among {names}: {REMEDY}")
        for split, arrays in self.splits.items():
            _check(self.path, split, arrays, len(self.wavelength), len(self.label_names))
        _check_pixels(self.path, self.wavelength, self.instrument)
        if len(self.label_units) != len(self.label_names):
            raise DatasetError(
                f"{self.path} has {len(self.label_units)} label_units for "
                f"{len(self.label_names)} labels: {REMEDY}"
            )


def open_source(path: str | os.PathLike) -> Source:
    """Open a survey file or a folder of published arrays and check that its parts fit together.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder.
    DatasetError
        The data cannot be used, for example because wavelengths do not ascend or are not those of
        the instrument; the message names the file and a remedy.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder; {REMEDY}")
    return _open_folder(path) if path.is_dir() else _open_hdf5(path)


def _open_hdf5(path: Path) -> Source:
    """Open a survey file; close it again if it cannot be used."""
    try:
        file = h5py.File(path, "r")
    except PermissionError as error:
        raise PermissionError(error.errno, f"{path} may not be read: {error.strerror}") from error
    except OSError as error:
        raise DatasetError(f"{path} is no HDF5 file or is damaged ({error}): {REMEDY}") from error
    try:
        return _read_layout(path, file)
    except BaseException as error:
        file.close()
        if isinstance(error, DatasetError):
            raise
        if isinstance(error, KeyError):
            raise DatasetError(f"{path} lacks a part ({error.args[0]}): {REMEDY}") from error
        if isinstance(error, OSError | RuntimeError | TypeError | ValueError | AttributeError):
            raise DatasetError(f"{path} is damaged ({error}): {REMEDY}") from error
        raise


def _read_layout(path: Path, file: h5py.File) -> Source:
    """Read the attributes and the layout of a survey file."""
    if not file.attrs.get("complete", False):
        raise DatasetError(f"{path} is half-written: {REMEDY}")
    version = file.attrs.get("format_version")
    if version not in range(1, FORMAT_VERSION + 1):
        raise DatasetError(
            f"{path} has format version {version}, this program reads 1 to {FORMAT_VERSION}: "
            f"{REMEDY}"
        )
    label_names = tuple(_text(name) for name in file.attrs["label_names"])
    if version == 1:
        instrument = APOGEE
        label_units = tuple(label(name).unit for name in label_names)
    else:
        instrument = _read_instrument(path, file)
        label_units = tuple(_text(unit) for unit in file.attrs["label_units"])
    return Source(
        path,
        instrument=instrument,
        wavelength=own_dataset(file, "wavelength", path)[:].astype(np.float64),
        label_names=label_names,
        label_units=label_units,
        provenance=json.loads(_text(file.attrs.get("provenance", "{}"))),
        splits={name: _members(own_group(file, name, path), path) for name in SPLITS},
        file=file,
    )


def _read_instrument(path: Path, file: h5py.File) -> Instrument:
    """Read the instrument of a survey file."""
    text = _text(file.attrs["instrument"])
    try:
        return Instrument.from_dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path} has an instrument that cannot be used: {error}") from error


def _text(value: str | bytes) -> str:
    """Text of an attribute, of fixed or of variable length."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _members(group: h5py.Group, path: Path) -> dict[str, h5py.Dataset]:
    """Data sets of a group; links and data in other files are refused."""
    links = {name: group.get(name, getlink=True) for name in group}
    return {
        name: own_dataset(group, name, path)
        for name, link in links.items()
        if not (isinstance(link, h5py.HardLink) and isinstance(group[name], h5py.Group))
    }


def _open_folder(path: Path) -> Source:
    """Map a folder of published arrays."""
    splits: dict[str, dict[str, np.ndarray]] = {}
    for split in SPLITS:
        files = {name: path / f"{stem}_{split}.npy" for name, stem in _PUBLISHED.items()}
        splits[split] = {name: _map_npy(file) for name, file in files.items() if file.exists()}
        ids = path / f"ids_{split}.npy"
        if ids.exists():
            try:
                splits[split]["ids"] = _read_names(ids)
            except (ValueError, EOFError) as error:
                warnings.warn(
                    f"{ids} holds no texts ({error}): rows are numbered instead", stacklevel=4
                )
    wavelength = APOGEE.wavelength
    csv = path / _PUBLISHED_WAVELENGTH
    if csv.exists():
        try:
            wavelength = np.loadtxt(csv, dtype=np.float64, ndmin=1, encoding="utf-8-sig")
        except ValueError as error:
            raise DatasetError(f"{csv} is damaged ({error})") from error
    provenance = {"generator": "published arrays", "arguments": {"folder": path.name}}
    units = tuple(label(name).unit for name in PUBLISHED_LABELS)
    return Source(path, APOGEE, wavelength, PUBLISHED_LABELS, units, provenance, splits)


def _read_names(path: Path) -> np.ndarray:
    """Names of stars (N,), from an array of texts, or of Python objects that are texts.

    NumPy stores objects as a pickle, which could run any code. It is not executed: its instructions
    are listed, and the texts in its only list are returned.
    """
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"version {version} of the format")
        shape, _, dtype = read_header(file)
        if dtype.kind != "O":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        instructions = iter(pickletools.genops(file))
        for instruction, _, _ in instructions:
            if instruction.name == "EMPTY_LIST":
                break
        names: list[str] = []
        for instruction, argument, _ in instructions:
            if isinstance(argument, str | bytes) and instruction.name in _TEXT_INSTRUCTIONS:
                text = argument.decode("utf-8") if isinstance(argument, bytes) else argument
                names.append(text)
            elif instruction.name.startswith("TUPLE"):  # the end of the list
                break
            elif instruction.name not in _LIST_INSTRUCTIONS:
                raise ValueError(f"pickled objects other than texts: {instruction.name}")
    if shape != (len(names),):
        raise ValueError(f"{len(names)} pickled texts in an array of the shape {shape}")
    return np.array(names, dtype=str)


def _map_npy(path: Path) -> np.ndarray:
    """Map an array into memory; arrays with pickled objects are refused."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(
            f"{path} is damaged or no plain array ({error}): fetch it anew"
        ) from error
    if array.dtype.kind != "f":
        raise DatasetError(f"{path} holds {array.dtype}, not floating-point numbers")
    return array


def _where(path: Path) -> str:
    """Location of the wavelengths of a data set, for messages."""
    return f"{path / _PUBLISHED_WAVELENGTH}" if path.is_dir() else f"{path}: wavelength"


def _check_wavelength(path: Path, wavelength: np.ndarray) -> None:
    """Check that wavelengths (P,) ascend."""
    where = _where(path)
    if wavelength.ndim != 1 or not len(wavelength):
        raise DatasetError(f"{where} has the shape {wavelength.shape}, not one of pixels: {REMEDY}")
    if not np.isfinite(wavelength).all() or not (np.diff(wavelength) > 0).all():
        raise DatasetError(f"{where} must hold finite numbers in ascending order: {REMEDY}")


def _check_pixels(path: Path, wavelength: np.ndarray, instrument: Instrument) -> None:
    """Check that wavelengths (P,) [A] agree with the instrument's to a twentieth of a pixel."""
    pixels = instrument.nearest_pixels(wavelength)
    difference = np.abs(wavelength - instrument.wavelength[pixels])
    if (difference > 0.05 * instrument.pixel_width[pixels]).any():
        raise DatasetError(
            f"{_where(path)} differs by up to {difference.max():.3g} Angstrom from the pixels of "
            f"{instrument} in vacuum: {REMEDY}"
        )


def _check(path: Path, split: str, arrays: Mapping[str, Any], n_pixels: int, n_labels: int) -> None:
    """Check that a split is complete and that its arrays have matching shapes."""
    if path.is_dir():
        names = {name: f"{stem}_{split}.npy" for name, stem in _PUBLISHED.items()}
    else:
        names = {name: f"{split}/{name}" for name in _PUBLISHED}
    for name in ("labels", "label_errors"):
        if name not in arrays:
            raise DatasetError(f"{path} lacks {names[name]}: {REMEDY}")
    kinds = [kind for kind in KINDS if kind in arrays]
    if not kinds:
        raise DatasetError(
            f"{path} lacks spectra: neither {names['synthetic']} nor {names['observed']} is there; "
            f"{REMEDY}"
        )
    n_stars = arrays["labels"].shape[0] if arrays["labels"].ndim else 0
    spectra = [name for name in (*KINDS, ERRORS) if name in arrays]
    expected = {name: (n_stars, n_pixels) for name in spectra}
    expected |= {"labels": (n_stars, n_labels), "label_errors": (n_stars, n_labels)}
    expected |= {"true_labels": (n_stars, n_labels)} if "true_labels" in arrays else {}
    for name, shape in expected.items():
        where, array = names.get(name, f"{split}/{name}"), arrays[name]
        if array.shape != shape:
            raise DatasetError(
                f"{path}: {where} has the shape {array.shape}, expected is {shape} (stars of the "
                f"labels, {'pixels of the wavelengths' if name in spectra else 'labels'})"
            )
        if array.dtype.kind != "f":
            raise DatasetError(f"{path}: {where} holds {array.dtype}, not floating-point numbers")
    if "ids" in arrays and (
        arrays["ids"].shape != (n_stars,) or arrays["ids"].dtype.kind not in "USO"
    ):
        raise DatasetError(f"{path}: the names of the '{split}' stars are not {n_stars} texts")


# --- HDF5 links to other files -------------------------------------------------------------------

MOST_COMPRESSED = 100
"""Largest ratio of declared to stored bytes of a compressed data set."""


def _require_own_link(group: h5py.Group, name: str, path: Path) -> None:
    """Check that a name exists and refers to an object in the same file.

    Raises
    ------
    KeyError
        There is no such name.
    ValueError
        It is a link to another place or file. Links are not followed.
    """
    link = group.get(name, getlink=True)
    if link is None:
        raise KeyError(name)
    if isinstance(link, h5py.ExternalLink):
        raise ValueError(
            f"{path}: '{name}' leads to another file ({link.filename}), which is not opened: copy "
            "the data into one file"
        )
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{path}: '{name}' is a link ({link.path}), which is not followed")


def own_group(file: h5py.Group, name: str, path: Path) -> h5py.Group:
    """Group in a file; links are refused.

    Raises
    ------
    KeyError
        There is no such name.
    ValueError
        It is a link or not a group.
    """
    _require_own_link(file, name, path)
    group = file[name]
    if not isinstance(group, h5py.Group):
        raise ValueError(f"{path}: '{name}' is no group")
    return group


def own_dataset(group: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    """Data set with all of its data in the same file.

    Raises
    ------
    KeyError
        There is no such name.
    ValueError
        It is a link, a virtual data set, has data in other files, or declares more data than it
        holds.
    """
    _require_own_link(group, name, path)
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{path}: '{name}' is no data set")
    name = dataset.name.lstrip("/")
    if dataset.is_virtual or dataset.external:
        kind = "virtual" if dataset.is_virtual else "stored outside"
        raise ValueError(
            f"{path}: '{name}' is {kind}: its data lie in other files, which are not opened; copy "
            "them into this one"
        )
    declared = math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    # Filters other than checksums and shuffling may compress the data.
    filters = dataset.id.get_create_plist()
    codes = {filters.get_filter(i)[0] for i in range(filters.get_nfilters())}
    compressed = bool(codes - {h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SHUFFLE})
    if stored * (MOST_COMPRESSED if compressed else 1) < declared:
        limit = f", more than {MOST_COMPRESSED} times as many" if compressed else ""
        raise ValueError(
            f"{path}: '{name}' declares {declared} bytes{limit}, but the file has {stored} of them"
        )
    return dataset
