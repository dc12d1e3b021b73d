"""Layout of survey files, and a writer that leaves no incomplete file."""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.labels import PUBLISHED_LABELS, label
from stellarperceptron.utils.arrays import as_array
from stellarperceptron.utils.data_utils import atomic_output, check_output_file, room_to_close

__all__ = ["ERRORS", "FORMAT_VERSION", "KINDS", "SPLITS", "SurveyWriter"]

FORMAT_VERSION = 2
"""Version of the layout of a survey file.

1: spectra of APOGEE. 2: the file names its instrument and the units of its labels.
"""

SPLITS = ("train", "test")
KINDS = ("synthetic", "observed")
ERRORS = "observed_errors"
"""Name of the standard deviations of the observed spectra, which are optional."""

_ROWS_PER_CHUNK = 16  # half a megabyte of APOGEE spectra, so that random rows are read fast
_RESERVE = 32_000_000  # free space to keep for data that HDF5 has not written yet [bytes]
_ID_BYTES = 32
_TEXT = h5py.string_dtype("utf-8", _ID_BYTES)


class SurveyWriter:
    """Write a survey file in one pass; it appears at `path` when it is complete.

    The size is known beforehand, so that the free disk space is checked first. All parts have
    checksums (data: Fletcher, 32 bits per chunk), which reveal damage on reading. The same input
    gives the same bytes.

    Parameters
    ----------
    path
        Path of the file.
    counts
        Number of stars in "train" and in "test".
    provenance
        Origin of the data: generator, version, arguments, seed; stored as JSON.
    instrument
        Instrument of the spectra.
    wavelength : (P,), optional
        Wavelengths of the pixels [A, vacuum], if the file has only some of the instrument's.
    label_names
        Names of the labels, in the order of the columns, each once.
    label_units
        Units of the labels; None: those in `stellarperceptron.labels`.
    kinds
        Kinds of spectra: "synthetic", "observed".
    true_labels
        Whether to store the labels from which mock spectra are made.
    errors
        Whether to store standard deviations of the observed spectra (`ERRORS`).
    format_version
        Version of the layout; see `FORMAT_VERSION`. Format 1 is for APOGEE only.

    Attributes
    ----------
    written : dict
        Number of stars written so far to "train" and to "test".

    Raises
    ------
    OSError
        There is a folder at `path`, or it cannot be written to. Or the disk is too full, before or
        during writing; the message gives the required space, and the temporary file is removed.
    ValueError
        Arrays do not fit, or stars are missing at the end.

    Examples
    --------
    >>> with SurveyWriter(path, counts=counts, provenance={}) as writer:  # doctest: +SKIP
    ...     for split, block in blocks:
    ...         writer.append(split, **block)
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        counts: Mapping[str, int],
        provenance: Mapping,
        instrument: Instrument = APOGEE,
        wavelength: np.ndarray | None = None,
        label_names: Sequence[str] = PUBLISHED_LABELS,
        label_units: Sequence[str] | None = None,
        kinds: Sequence[str] = KINDS,
        true_labels: bool = False,
        errors: bool = False,
        format_version: int = FORMAT_VERSION,
    ):
        if set(counts) != set(SPLITS) or min(counts.values()) < 1:
            raise ValueError(f"counts is {dict(counts)}: give one star or more to train and test")
        if not kinds or not set(kinds) <= set(KINDS):
            raise ValueError(f"kinds is {tuple(kinds)}: it must hold some of {KINDS}")
        if not label_names or len(set(label_names)) < len(label_names):
            raise ValueError(f"label_names is {tuple(label_names)}: give one or more, each once")
        if format_version not in (1, FORMAT_VERSION):
            raise ValueError(f"format_version is {format_version}: it must be 1 or 2")
        if format_version == 1 and instrument != APOGEE:
            raise ValueError(f"a survey file of format 1 holds {APOGEE}, not {instrument}")
        if label_units is None:
            label_units = [label(name).unit for name in label_names]
        if len(label_units) != len(label_names):
            raise ValueError(f"{len(label_units)} units do not belong to {len(label_names)} labels")
        self.path = Path(path)
        self.counts = dict(counts)
        self.written = dict.fromkeys(SPLITS, 0)
        self._provenance = json.dumps(dict(provenance), sort_keys=True)
        self._wavelength = instrument.wavelength
        if wavelength is not None:
            self._wavelength = as_array(wavelength, unit="Angstrom", name="wavelength")
            instrument.pixels_at(self._wavelength)
        self._format_version = format_version
        self._instrument = json.dumps(instrument.to_dict(), sort_keys=True)
        self._label_names = tuple(label_names)
        self._label_units = tuple(label_units)
        n_labels = len(self._label_names)
        self._columns = {kind: len(self._wavelength) for kind in KINDS if kind in kinds}
        self._columns |= {ERRORS: len(self._wavelength)} if errors else {}
        self._columns |= {"labels": n_labels, "label_errors": n_labels}
        self._columns |= {"true_labels": n_labels} if true_labels else {}
        # Kept open: closing a data set after each append would write its last chunk each time.
        self._members: dict[str, dict[str, h5py.Dataset]] = {}

    @property
    def n_bytes(self) -> int:
        """Size of the finished file, rounded up [bytes]."""
        # Chunks are stored whole, the last one of each array too.
        stars = sum(self.counts.values()) + len(SPLITS) * _ROWS_PER_CHUNK
        return (
            stars * self._row_bytes
            + 8 * len(self._wavelength)
            + len(self._instrument)
            + len(self._provenance)
            + 1_000_000
        )

    @property
    def _row_bytes(self) -> int:
        """Size of the data of one star [bytes]."""
        return 4 * sum(self._columns.values()) + _ID_BYTES

    def __enter__(self) -> "SurveyWriter":
        check_output_file(self.path)
        with ExitStack() as stack:
            temporary = stack.enter_context(
                atomic_output(self.path, expected_bytes=self.n_bytes + _RESERVE)
            )
            # Since version 1.10 of HDF5's format, metadata have checksums too.
            file = h5py.File(temporary, "w", libver=("v110", "v110"), rdcc_nbytes=8 * 1024**2)
            self._file = stack.enter_context(file)
            stack.enter_context(room_to_close(temporary.parent))
            self._create()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> bool | None:
        if exception[0] is not None:
            return self._stack.__exit__(*exception)
        with self._stack:
            missing = {name: self.counts[name] - self.written[name] for name in SPLITS}
            if any(missing.values()):
                raise ValueError(f"{self.path} is not complete: stars missing are {missing}")
            self._file.attrs["complete"] = True
        return None

    def _create(self) -> None:
        """Create the attributes, groups and data sets of the file."""
        self._file.attrs["complete"] = False
        self._file.attrs["format_version"] = self._format_version
        self._describe("label_names", self._label_names)
        self._describe("provenance", self._provenance)
        if self._format_version > 1:
            self._describe("instrument", self._instrument)
            self._describe("label_units", self._label_units)
        self._file.create_dataset(
            "wavelength", data=self._wavelength, chunks=self._wavelength.shape, fletcher32=True
        )
        for split, count in self.counts.items():
            group = self._file.create_group(split)
            chunk = min(_ROWS_PER_CHUNK, count)
            members = {
                name: group.create_dataset(
                    name, (count, n_columns), "f4", chunks=(chunk, n_columns), fletcher32=True
                )
                for name, n_columns in self._columns.items()
            }
            members["ids"] = group.create_dataset(
                "ids", (count,), _TEXT, chunks=(chunk,), fletcher32=True
            )
            self._members[split] = members

    def _describe(self, name: str, texts: str | tuple[str, ...]) -> None:
        """Store texts as an attribute."""
        # Text of fixed length is covered by checksums; text of variable length is not.
        encoded = np.char.encode(np.array(texts), "utf-8")
        longest = max(encoded.dtype.itemsize, 1)
        text = encoded.astype(h5py.string_dtype("utf-8", longest))
        self._file.attrs.create(name, text)

    def append(self, split: str, *, ids: Sequence[str], **arrays: np.ndarray) -> None:
        """Write the next stars of "train" or "test".

        Parameters
        ----------
        split
            "train" or "test".
        ids
            Names of n stars, at most 32 bytes in UTF-8 each.
        **arrays : (n, P) or (n, L)
            All arrays of the file: the kinds of spectra, `labels`, `label_errors` and, if the file
            has them, `observed_errors` and `true_labels`, in any container of `as_array`. What is
            NaN or masked is a bad pixel or a missing label.

        Raises
        ------
        ValueError
            An array is missing, unknown or of a wrong shape, a name is too long, or there are more
            stars than announced.
        """
        if split not in SPLITS:
            raise ValueError(f"split is '{split}': it must be one of {SPLITS}")
        if set(arrays) != set(self._columns):
            raise ValueError(f"arrays are {sorted(arrays)}: the file has {sorted(self._columns)}")
        names = [str(name).encode("utf-8") for name in ids]
        self._check_room(len(names))
        first, count = self.written[split], self.counts[split]
        if first + len(names) > count:
            raise ValueError(f"'{split}' was announced with {count} stars, more are appended")
        too_long = next((name for name in names if len(name) > _ID_BYTES), None)
        if too_long is not None:
            raise ValueError(f"the name {too_long.decode()} is longer than {_ID_BYTES} bytes")
        rows = slice(first, first + len(names))
        for name, values in arrays.items():
            values = as_array(values, unit=None, dtype=np.float32, name=name)
            if values.shape != (len(names), self._columns[name]):
                raise ValueError(
                    f"{name} has the shape {values.shape}, expected is "
                    f"{(len(names), self._columns[name])}"
                )
            self._members[split][name][rows] = values
        self._members[split]["ids"][rows] = np.array(names, dtype=_TEXT)
        self.written[split] += len(names)

    def _check_room(self, n_stars: int) -> None:
        """Stop before the disk is full."""
        free = shutil.disk_usage(self.path.parent).free
        if free < n_stars * self._row_bytes + _RESERVE:
            raise OSError(errno.ENOSPC, f"{free} bytes are free beside {self.path}")
