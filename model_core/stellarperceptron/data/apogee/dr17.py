"""APOGEE data release 17: its catalogue, the paths of its files, the paper's cuts and split.

Sources: data models at https://data.sdss.org/datamodel/files/APOGEE_ASPCAP (allStar, aspcapStar);
bit masks at https://www.sdss4.org/dr17/irspec/apogee-bitmasks; cuts of Koblischke & Bovy (2024,
arXiv:2411.04750), section 2.
"""

import gzip
import os
import re
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from stellarperceptron.data.apogee.spectrum_files import READ_ERRORS
from stellarperceptron.labels import PUBLISHED_LABELS
from stellarperceptron.utils.arrays import as_array, sentinels_to_nan

__all__ = [
    "ARCHIVE",
    "CATALOGUE",
    "FOLDER",
    "MAX_VSCATTER",
    "MIN_SNR",
    "MOST_ROW_BYTES",
    "PUBLISHED_STARS",
    "SAS_VARIABLE",
    "SPLIT_SEED",
    "STAR_BAD",
    "TEST_SHARE",
    "Catalogue",
    "aspcap_path",
    "clean_labels",
    "read_catalogue",
]

ARCHIVE = "https://data.sdss.org/sas"
"""Public address of the survey's archive (Science Archive Server)."""

SAS_VARIABLE = "SDSS_LOCAL_SAS_MIRROR"
"""Environment variable that names a local copy of the archive, by convention of the field."""

FOLDER = "dr17/apogee/spectro/aspcap/dr17/synspec_rev1"
"""Results of ASPCAP with Synspec's spectra, first revision; the same below archive and mirror."""

CATALOGUE = f"{FOLDER}/allStar-dr17-synspec_rev1.fits"
"""The catalogue: 733,901 rows, one a star and field."""

# --- cuts -----------------------------------------------------------------------------------------

STAR_BAD = 1 << 23
"""ASPCAPFLAG bit 23: the star's parameters or its spectrum are bad (APOGEE_ASPCAPFLAG)."""

MIN_SNR = 200.0
"""The signal-to-noise ratio a pixel (SNR) must be higher."""

MAX_VSCATTER = 1.0
"""The scatter of the visits' radial velocities (VSCATTER) must be lower [km/s]: no binaries."""

SPLIT_SEED = 42
TEST_SHARE = 0.2

PUBLISHED_STARS: Mapping[str, int] = MappingProxyType(
    {"catalogue": 733_901, "selected": 128_485, "train": 102_747, "test": 25_681}
)
"""Stars of the paper's data set: rows of the catalogue, after the cuts, and with labels."""

MOST_ROW_BYTES = 100_000
"""Longer rows are not read; those of the catalogue have 5,500 bytes."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9+_.-]*[A-Za-z0-9+_-][A-Za-z0-9+_.-]*")


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Columns of the catalogue that select stars and label them.

    Attributes
    ----------
    row : (N,) int64
        Row in the catalogue's file.
    apogee_id, telescope, field : (N,) bytes
        Name of the star, and telescope and field, which give the path of its file.
    aspcapflag, starflag : (N,) int64
        Bit masks.
    snr : (N,) float64
        Signal-to-noise ratio a pixel.
    vscatter : (N,) float64
        Scatter of the radial velocities [km/s].
    labels, label_errors : (N, 5) float32
        TEFF [K], LOGG [log10 cm/s2], O_FE, MG_FE, FE_H [dex]; NaN where missing.
    """

    row: np.ndarray
    apogee_id: np.ndarray
    telescope: np.ndarray
    field: np.ndarray
    aspcapflag: np.ndarray
    starflag: np.ndarray
    snr: np.ndarray
    vscatter: np.ndarray
    labels: np.ndarray
    label_errors: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: np.ndarray | slice) -> "Catalogue":
        return Catalogue(**{name: array[rows] for name, array in vars(self).items()})


def clean_labels(labels: np.ndarray) -> np.ndarray:
    """Replace the survey's marks of missing labels and errors by NaN.

    These are the marks of `sentinels_to_nan` for labels: 9999, values below -999, and so on.
    """
    return sentinels_to_nan(as_array(labels, unit=None, name="labels"), "labels")


def read_catalogue(path: str | os.PathLike, rows_at_once: int = 20_000) -> Catalogue:
    """Read the columns of an allStar file, gzipped or not, that are needed, in one pass.

    The file is 4 GB, most of it other columns: it is read in pieces, so that the memory stays at
    a few hundred megabytes. Numbers that mean that a value is missing (-9999) become NaN.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        For a file that is damaged, truncated, or lacks a column; the message names it.
    """
    path = Path(path)
    remedy = "remove it and fetch it anew with dataset/download_dr17.py"
    label_columns = (*PUBLISHED_LABELS, *(f"{name}_ERR" for name in PUBLISHED_LABELS))
    names = ("APOGEE_ID", "TELESCOPE", "FIELD", "ASPCAPFLAG", "STARFLAG", "SNR", "VSCATTER")
    try:
        packed = _is_gzipped(path)
        with warnings.catch_warnings(), fits.open(path, memmap=not packed) as hdus:
            warnings.simplefilter("ignore", AstropyUserWarning)  # of truncation: an error below
            table = hdus[1]
            columns, start = table.columns, table.fileinfo()["datLoc"]
            n_rows, row_bytes = table.header["NAXIS2"], table.header["NAXIS1"]
            # ASPCAPFLAG and APOGEE_ID are found whatever their case.
            available = {column.name.upper(): column for column in columns}
            dtype = columns.dtype.newbyteorder(">")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: there is no such file; fetch it with dataset/download_dr17.py"
        ) from error
    except PermissionError as error:
        raise PermissionError(
            f"{path} cannot be read, permission is denied: make it readable with chmod"
        ) from error
    except READ_ERRORS as error:
        raise ValueError(f"{path} is no FITS table or is damaged ({error}): {remedy}") from error
    missing = [name for name in (*names, *label_columns) if name not in available]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}: is it an allStar file?")
    if row_bytes > MOST_ROW_BYTES:
        raise ValueError(
            f"{path}: its rows have {row_bytes} bytes, at most {MOST_ROW_BYTES} are read"
        )
    if dtype.itemsize != row_bytes:
        raise ValueError(f"{path}: its rows have {row_bytes} bytes, its columns {dtype.itemsize}")
    if not packed and path.stat().st_size < start + n_rows * row_bytes:
        raise ValueError(f"{path} is truncated: {remedy}")

    def values(block: np.ndarray, name: str) -> np.ndarray:
        column = available[name]
        raw = block[column.name]
        if raw.dtype.kind == "S":
            return np.char.strip(raw)
        if raw.ndim != 1:
            raise ValueError(f"{path}: its column {name} holds {raw.shape[1:]} numbers a row")
        scale, zero = (
            default if v in (None, "") else v
            for v, default in ((column.bscale, 1), (column.bzero, 0))
        )
        if raw.dtype.kind in "iu" and scale == 1:  # unsigned integers are stored with an offset
            return (raw.astype(np.int64).view(np.uint64) + np.uint64(int(zero))).view(np.int64)
        number = raw.astype(np.float64) * scale + zero
        return sentinels_to_nan(number, "velocity" if name == "VSCATTER" else "flux")

    pieces: list[list[np.ndarray]] = []
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            file.seek(start)
            for first in range(0, n_rows, rows_at_once):
                size = min(rows_at_once, n_rows - first) * row_bytes
                block = np.frombuffer(file.read(size), dtype)
                if block.nbytes < size:
                    raise EOFError(f"it ends after {first + len(block)} of {n_rows} rows")
                numbers = np.stack([values(block, name) for name in label_columns], axis=1)
                numbers = clean_labels(numbers).astype(np.float32)
                pieces.append([*(values(block, name) for name in names), numbers])
            while packed and file.read(1 << 24):
                pass  # only at its end does a gzipped file's checksum tell that all was right
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}): {remedy}") from error
    if not pieces:
        raise ValueError(f"{path} has no rows")
    *columns, numbers = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    n_labels = len(PUBLISHED_LABELS)
    return Catalogue(np.arange(n_rows), *columns, numbers[:, :n_labels], numbers[:, n_labels:])


def _is_gzipped(path: Path) -> bool:
    """Whether a file is packed, whatever its name."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def aspcap_path(telescope: bytes | str, field: bytes | str, apogee_id: bytes | str) -> str:
    """Path of a star's aspcapStar file, relative to the archive's address or a mirror's folder.

    Raises
    ------
    ValueError
        For a name that is empty or could lead elsewhere; names come from a downloaded file.
    """
    names = [
        part.decode("ascii", "replace") if isinstance(part, bytes) else part
        for part in (telescope, field, apogee_id)
    ]
    for kind, name in zip(("TELESCOPE", "FIELD", "APOGEE_ID"), names, strict=True):
        if not _SAFE_NAME.fullmatch(name):
            raise ValueError(f"{kind} '{name}' is no name of a file or folder")
    telescope, field, apogee_id = names
    return f"{FOLDER}/{telescope}/{field}/aspcapStar-dr17-{apogee_id}.fits"
