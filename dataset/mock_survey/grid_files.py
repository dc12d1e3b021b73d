"""
Files of the grids of synthetic spectra: a file for each spectrum at first, one HDF5 file at the
end.

Beside a grid ``g.h5`` is the folder ``g.parts`` with ``000007.npz`` for each finished spectrum,
``000007.failed`` (the reason) for each that failed, ``settings.json`` (the settings that the grid
depends on) and ``size.json`` (the number of spectra it is to have). Files are written to temporary
names and renamed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
from spectral_ranges import APOGEE, RANGES, SpectralRange
from synthesis import LABEL_NAMES

from stellarperceptron.utils.data_utils import atomic_output, room_to_close

FORMAT_VERSION = 1
# Flux is rounded to 2^-17 = 7.6e-6, so that it compresses.
FLUX_SCALE = 2.0**17
COMPRESSED = 0.5  # size of compressed flux, at most, relative to what it is in memory


class GridError(RuntimeError):
    """A grid file that is damaged, half-written or of another kind; the message names it."""


# ------------------------------------------------------------------------------------- parts


def part_path(parts: Path, index: int) -> Path:
    """File of spectrum `index`."""
    return parts / f"{index:06d}.npz"


def write_part(target: Path, labels: dict[str, float], flux: np.ndarray) -> None:
    """Write one spectrum, (pixels,), and its labels."""
    values = np.array([labels[n] for n in LABEL_NAMES], np.float32)
    need = 4 * (np.size(flux) + 1000)
    with atomic_output(target, expected_bytes=need) as partial, partial.open("wb") as file:
        np.savez(file, labels=values, flux=flux)
    target.with_suffix(".failed").unlink(missing_ok=True)


def write_failure(target: Path, reason: str) -> None:
    """Note why the spectrum that belongs into `target` failed."""
    with atomic_output(target.with_suffix(".failed")) as partial:
        partial.write_text(reason, encoding="utf-8")


def _read_part(path: Path, pixels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels, (21,), and flux, (pixels,), of a part; None for a damaged file."""
    try:
        with np.load(path) as part:  # checks the sums that a zip archive holds
            labels, flux = part["labels"], part["flux"]
    except Exception:  # a damaged file can raise anything
        return None
    whole = labels.shape == (len(LABEL_NAMES),) and flux.shape == (pixels,)
    return (labels, flux) if whole else None


def read_parts(
    parts: Path, indices, pixels: int = APOGEE.pixels
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the spectra that exist; damaged files are deleted, so that they are made again.

    Returns
    -------
    index : ndarray, (N,)
    labels : ndarray, (N, 21), float32
    flux : ndarray, (N, pixels), float32
    """
    found, labels, flux = [], [], []
    for index in indices:
        path = part_path(parts, index)
        if not path.exists():
            continue
        part = _read_part(path, pixels)
        if part is None:
            print(f"{path} is damaged and was deleted")
            path.unlink()
            continue
        found.append(index)
        labels.append(part[0])
        flux.append(part[1])
    return (
        np.array(found, np.int64),
        np.array(labels, np.float32).reshape(-1, len(LABEL_NAMES)),
        np.array(flux, np.float32).reshape(-1, pixels),
    )


def read_failures(parts: Path, indices) -> dict[int, str]:
    """Reasons of the spectra that failed and have not been made since."""
    failed = {}
    for index in indices:
        path = part_path(parts, index)
        if not path.exists() and path.with_suffix(".failed").exists():
            failed[index] = path.with_suffix(".failed").read_text(encoding="utf-8")
    return failed


def open_parts(parts: Path, values: dict) -> None:
    """Make the folder of parts, or check that it was made under the same settings."""
    stamp = parts / "settings.json"
    text = json.dumps(values, indent=1, sort_keys=True)
    if not stamp.exists():
        with atomic_output(stamp) as partial:
            partial.write_text(text)
    elif stamp.read_text() != text:
        raise GridError(f"{parts} was made with other settings ({stamp}); move it away")


def announced_size(path: Path, parts: Path) -> int | None:
    """Return how many spectra a grid is to have; None if that was never noted."""
    try:
        return int(json.loads((parts / "size.json").read_text()))
    except FileNotFoundError:
        pass
    try:  # a folder of before size.json
        return int(json.loads(read_grid(path, allow_incomplete=True)[2]["arguments"])["spectra"])
    except (FileNotFoundError, GridError, KeyError, TypeError, ValueError):
        return None


def announce_size(parts: Path, size: int) -> None:
    """Note how many spectra a grid is to have."""
    with atomic_output(parts / "size.json") as partial:
        partial.write_text(json.dumps(size))


# ------------------------------------------------------------------------------------- grids


def _set_text(attributes, name: str, texts) -> None:
    """Store texts with fixed length, because HDF5 has no checksums for variable-length ones."""
    encoded = np.char.encode(np.array(texts, dtype=str), "utf-8")
    kind = h5py.string_dtype("utf-8", max(1, encoded.dtype.itemsize))
    attributes.create(name, encoded.astype(kind))


def write_grid(
    path: Path,
    index,
    labels,
    flux,
    attributes: dict,
    failed: dict,
    complete_: bool,
    band: SpectralRange = APOGEE,
):
    """Write a grid, all of it with checksums.

    Datasets: `flux` (N, pixels) float32, `labels` (N, 21) float32 with attribute `label_names`,
    `index` (N,), `failed` (M,) of JSON texts [index, reason].
    """
    rounded = (np.round(flux * FLUX_SCALE) / FLUX_SCALE).astype(np.float32)
    labels = labels.astype(np.float32)
    need = int(COMPRESSED * rounded.nbytes) + labels.nbytes + 1_000_000
    # Since version 1.10 of the format, metadata have checksums, too.
    with (
        atomic_output(path, expected_bytes=need) as partial,
        h5py.File(partial, "w", libver=("v110", "v110")) as file,
        room_to_close(partial.parent),
    ):

        def add(name, data, rows, **options):
            # Only chunks have checksums.
            chunks = (max(1, min(rows, len(data))), *data.shape[1:]) if len(data) else None
            options |= {"chunks": chunks, "fletcher32": True} if len(data) else {}
            return file.create_dataset(name, data=data, **options)

        packed = {"shuffle": True, "compression": "gzip", "compression_opts": 4}
        add("flux", rounded, 16, **(packed if len(rounded) else {}))
        _set_text(add("labels", labels, 1000).attrs, "label_names", LABEL_NAMES)
        add("index", np.asarray(index, np.int64), 1000)
        texts = [json.dumps([int(i), failed[i]]).encode() for i in sorted(failed)]
        kind = h5py.string_dtype("utf-8", max(map(len, texts), default=1))
        add("failed", np.array(texts, dtype=kind), 100)
        file.attrs["format_version"] = FORMAT_VERSION
        _set_text(file.attrs, "label_names", LABEL_NAMES)
        for name, value in _geometry(band).items():
            file.attrs[name] = value
        _set_text(file.attrs, "labels_sha256", hashlib.sha256(labels.tobytes()).hexdigest())
        for name, value in attributes.items():
            if isinstance(value, str):
                _set_text(file.attrs, name, value)
            else:
                file.attrs[name] = value
        file.attrs["n_spectra"] = len(index)
        file.attrs["complete"] = bool(complete_)


def _geometry(band: SpectralRange) -> dict:
    """Attributes that say which wavelengths the pixels have; one number where one suffices."""
    starts = [window.start for window in band.windows]
    step, resolution = band.windows[0].log10_step, band.windows[0].resolution
    geometry = {"log10_wavelength_start": starts[0]}
    if len(starts) > 1:
        geometry["log10_wavelength_start"] = np.array(starts)
        geometry["window_pixels"] = np.array([window.pixels for window in band.windows])
    return {**geometry, "log10_wavelength_step": step, "resolution": resolution}


def _decoded(value):
    """Texts as str (object arrays of them), whether stored in fixed length or not."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray) and value.dtype.kind == "S":
        return np.char.decode(value, "utf-8").astype(object)
    return value


def read_grid(path: Path, allow_incomplete: bool = False):
    """Read a grid and check it.

    Returns
    -------
    labels : ndarray, (N, 21)
    flux : ndarray, (N, pixels)
    attributes : dict
        "range" names the entry of `RANGES`; without it, the grid is one of the H band.

    Raises
    ------
    GridError
        The file is damaged, of another format, or not finished (unless allowed).
    """
    try:
        with h5py.File(path, "r") as file:
            attributes = {name: _decoded(value) for name, value in file.attrs.items()}
            if attributes.get("format_version") != FORMAT_VERSION:
                raise GridError(f"{path}: not a grid of format {FORMAT_VERSION}")
            labels, flux = file["labels"][:], file["flux"][:]
            # Reading checks the checksums.
            file["index"][:], file["failed"][:], file["labels"].attrs["label_names"]
    except (GridError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # a damaged file can raise anything
        raise GridError(f"{path}: damaged or not a grid ({error}); make it again") from error
    band = RANGES.get(attributes.get("range", APOGEE.name))
    if band is None:
        raise GridError(f"{path}: of an unknown range, {attributes['range']!r}")
    if "complete" not in attributes or flux.shape != (attributes.get("n_spectra"), band.pixels):
        raise GridError(f"{path}: half-written; make it again")
    if hashlib.sha256(labels.tobytes()).hexdigest() != attributes.get("labels_sha256"):
        raise GridError(f"{path}: labels are damaged; make it again")
    same = all(np.array_equal(attributes.get(k), v) for k, v in _geometry(band).items())
    if not same or tuple(attributes.get("label_names", ())) != LABEL_NAMES:
        raise GridError(f"{path}: wavelengths or label names are damaged, or of another version")
    if not np.isfinite(flux).all():
        raise GridError(f"{path}: flux is not finite; make it again")
    if not attributes["complete"] and not allow_incomplete:
        raise GridError(f"{path}: not finished ({len(flux)} spectra so far); run it to the end")
    return labels, flux, attributes


def read_failed(path: Path) -> dict[int, str]:
    """Index -> reason, of the spectra that failed in a grid."""
    with h5py.File(path, "r") as file:
        return dict(json.loads(text) for text in file["failed"].asstr()[:])
