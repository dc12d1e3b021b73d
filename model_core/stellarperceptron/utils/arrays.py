"""Numbers in any container (lists, tables, tensors, quantities) as plain NumPy arrays."""

import re
import zipfile
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from astropy import units as u
from astropy.utils.masked import Masked

__all__ = [
    "as_array",
    "as_names",
    "as_rows",
    "as_spectra",
    "check_array_archive",
    "is_constant",
    "sentinels_to_nan",
]

_TEXT_SHOWN = 40  # characters of an offending value that a message repeats


def as_array(
    values: Any,
    *,
    unit: str | u.UnitBase | None = "",
    dtype: np.typing.DTypeLike = np.float64,
    name: str = "flux",
) -> np.ndarray:
    """Convert numbers in any container to a plain array; what is masked becomes NaN.

    Containers are numbers, lists and tuples (of numbers, rows, masked rows, quantities), NumPy
    arrays of any byte order and memory layout, masked arrays, astropy's `Masked`, `Quantity`,
    `Column` and `MaskedColumn`, pandas objects with `pd.NA`, tensors on any device, h5py data
    sets, and whatever else has ``__array__``.

    Parameters
    ----------
    values
        The numbers. None, `pd.NA`, NaN and masked entries are missing.
    unit
        Unit of the result. Values that carry a unit are converted; values without one are taken
        to be in `unit`. The default is dimensionless, where dex and mag are taken as they are.
        None keeps the numbers in whatever unit they have.
    dtype
        Floating-point type of the result.
    name
        What the values are, for messages.

    Returns
    -------
    np.ndarray
        Native byte order, C-contiguous, writable. An array that is all of this already is
        returned itself, not copied.

    Raises
    ------
    ValueError
        When something is no number, when rows differ in length, or when the unit cannot be
        converted. The message has `name` and the first offending row.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32 is infinite
        array = _convert(values, None if unit is None else u.Unit(unit), name, ())
        return np.require(array, dtype=dtype, requirements=["C", "W", "A", "E"])


def as_names(values: Any, name: str = "names") -> list[str]:
    """Convert one name, or names in any container, to a list of text.

    Raises
    ------
    ValueError
        When something is no text; the message has `name` and the place.
    """
    if isinstance(values, str | bytes):
        values = [values]
    if not isinstance(values, Iterable):
        raise ValueError(f"{name}: {_shown(values)} is no text")
    names = []
    for place, value in enumerate(values):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise ValueError(f"{name}: entry {place} holds {_shown(value)}, which is no text")
        names.append(str(text))
    return names


def as_spectra(spectra: Any, wavelengths: Any = None) -> tuple[Any, Any]:
    """Take apart what holds fluxes and wavelengths, and make a single spectrum a row.

    Parameters
    ----------
    spectra
        (N, n) fluxes, or (n,) of one star, in any container. Or an object with `flux` and
        `spectral_axis`, and perhaps a `mask` that is True for bad pixels, such as a `Spectrum` of
        specutils.
    wavelengths
        (n,) wavelengths, with or without a unit. None: those of the object.

    Returns
    -------
    spectra, wavelengths
        (N, n) and (n,). An array that can be sliced, such as an HDF5 data set, is not read.

    Raises
    ------
    ValueError
        The spectra have another shape, or there are no wavelengths.
    """
    if hasattr(spectra, "flux") and hasattr(spectra, "spectral_axis"):
        wavelengths = spectra.spectral_axis if wavelengths is None else wavelengths
        flux, mask = as_array(spectra.flux), getattr(spectra, "mask", None)
        spectra = flux if mask is None else np.where(mask, np.nan, flux)
    if wavelengths is None:
        raise ValueError("the spectra need wavelengths")
    if isinstance(spectra, torch.Tensor) or len(np.shape(spectra)) == 1:
        spectra = np.atleast_2d(as_array(spectra))
    if len(np.shape(spectra)) != 2:
        raise ValueError(f"spectra have shape {np.shape(spectra)}, expected (stars, pixels)")
    return spectra, wavelengths


def as_rows(rows: Any, size: int, name: str = "rows") -> np.ndarray:
    """Row numbers (n,) int64, from row numbers in any order or a mask of booleans.

    Parameters
    ----------
    rows
        Whole numbers from 0 to `size` - 1, or `size` booleans.
    size
        Number of rows that there are.
    name
        What they are, for messages.

    Raises
    ------
    IndexError
        A row does not exist, a mask has another length, or something is no row number (a
        fraction, a masked or missing entry).
    """
    if np.ma.is_masked(rows):
        raise IndexError(f"{name} holds masked entries, which are no rows")
    array = np.asarray(rows)
    if array.dtype == bool:
        if array.shape != (size,):
            raise IndexError(f"{name} is a mask of the shape {array.shape}, not of {size} rows")
        return np.flatnonzero(array)
    if not array.size:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise IndexError(f"{name} must be a list of numbers from 0 to {size - 1}, or a mask")
    outside = array[(array < 0) | (array >= size)]
    if len(outside):
        raise IndexError(f"{name} must be numbers from 0 to {size - 1}, not {outside[0]}")
    return array.astype(np.int64)


def check_array_archive(path: Path, most: int) -> None:
    """Check the headers of a `.npz` file before its arrays are read.

    Parameters
    ----------
    path
        The file.
    most
        Largest number of values of an array.

    Raises
    ------
    ValueError
        An array has more values; the message names the limit.
    """
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            with archive.open(record) as file:
                version = np.lib.format.read_magic(file)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }
                if version not in read:
                    raise ValueError(f"{record.filename} has version {version} of the format")
                shape, _, dtype = read[version](file)
            values = 1
            for length in shape:
                values *= length
            if values > most or values * dtype.itemsize > 16 * most:
                raise ValueError(
                    f"{record.filename} declares {values} values of {dtype.itemsize} bytes, at "
                    f"most {most} of 16 bytes are read"
                )


# --- what stands for no value ---------------------------------------------------------------------

# Catalogues, pipelines and file formats write these, and their negatives, where they have no value.
_MARKS = (999.0, 999.99, 9999.0, 9999.99, 99999.0, 999999.0, 1e20, 1e30)
_LEAST_MARK = 998.0
_LARGEST_FLUX = 1e36  # above it are fill values (9.97e36, 3.4e38), and numbers that overflow
_LARGEST_LABEL = 1e20
_LOWEST_LABEL = -999.0
_LARGEST_DEX = 99.0  # 99.0, 99.9, 99.99: no gravity or abundance is near
_LEAST_TEFF = 500.0  # K: temperatures that are standardized may be zero
_FASTEST = 9000.0  # km/s: no star of the Galaxy has a tenth of this velocity

_ERROR = re.compile(r"_ERR(OR)?S?$")
_IN_DEX = re.compile(r"^LOG_?G$|_H$|_FE$")
_POSITIVE = re.compile(r"^T_?EFF")


def sentinels_to_nan(
    values: np.ndarray | torch.Tensor, name: str | Sequence[str] = "flux"
) -> np.ndarray | torch.Tensor:
    """Replace the numbers that stand for a missing value (-9999, 9999, ...) by NaN.

    Parameters
    ----------
    values
        Floating-point numbers of any shape.
    name
        What they are, or a list of what the columns (the last axis) are.

        ``"flux"``: exactly 999, 999.99, 9999, 9999.99, 99999, 999999, 1e20 and 1e30, their
        negatives, and everything beyond 1e36 is missing, since flux may have any other value.
        ``"velocity"``: everything from 9000 km/s up, in either direction.

        Anything else is a label or, by a name that ends in ``_ERR``, its error. Missing are the
        marks of flux; everything from -999 down and from 1e20 up, but in an error everything below
        zero; from 99 up in dex (LOGG, FE_H, O_FE_ERR, ...); 0 and -1 in a temperature (TEFF).

    Returns
    -------
    np.ndarray or torch.Tensor
        `values` itself where nothing is missing, or else a copy.
    """
    if isinstance(name, str):
        missing = _missing(values, name)
    else:
        kinds = np.array([_kind(column) for column in name])
        missing = abs(values) < 0  # False everywhere
        for kind in np.unique(kinds):
            columns = np.flatnonzero(kinds == kind)
            missing[..., columns] = _missing(values[..., columns], str(kind))
    if not bool(missing.any()):
        return values
    if isinstance(values, torch.Tensor):
        return values.masked_fill(missing, float("nan"))
    return np.where(missing, np.asarray(np.nan, values.dtype), values)


def _kind(name: str) -> str:
    """The shortest name that has the same marks: "flux", "LOGG", "TEFF_ERR", "label", ..."""
    if name in ("flux", "velocity"):
        return name
    bare = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")
    error = "_ERR" if _ERROR.search(bare) else ""
    bare = _ERROR.sub("", bare)
    if _IN_DEX.search(bare):
        return f"LOGG{error}"
    return f"TEFF{error}" if _POSITIVE.search(bare) else f"label{error}"


def _missing(values: Any, name: str) -> Any:
    """Mask of the values that mark a missing one."""
    size, kind = abs(values), _kind(name)
    if kind == "velocity":
        return size >= _FASTEST
    if kind == "flux":
        missing = size >= _LARGEST_FLUX
        if isinstance(values, torch.Tensor):
            missing &= ~values.isinf()
        else:
            missing &= ~np.isinf(values)
    else:
        missing = (size >= _LARGEST_LABEL) | (values <= _LOWEST_LABEL)
        if kind.endswith("_ERR"):
            missing = values < 0  # an error without limits is no missing one
        if kind.startswith("LOGG"):
            missing |= size >= _LARGEST_DEX
        if kind == "TEFF":
            missing |= ((values == 0) | (values == -1)) & bool((size > _LEAST_TEFF).any())
    if bool((size >= _LEAST_MARK).any()):
        for mark in _MARKS:
            missing |= abs(size - mark) <= 1e-7 * mark
    return missing


_ROUNDING = 4e-7  # relative: single precision


def is_constant(flux: torch.Tensor) -> torch.Tensor:
    """Whether spectra (..., n) hold one number instead of a measurement.

    A spectrum is constant if nine in ten of its valid pixels equal, to rounding, the valid pixel
    before them; it then has eleven valid pixels or more.
    """
    valid = torch.isfinite(flux)
    number = valid.sum(-1)
    missing = flux.shape[-1] - number
    after = flux[..., 1:]

    def equal(before: torch.Tensor) -> torch.Tensor:
        return ((after - before).abs() <= _ROUNDING * before.abs()).sum(-1)

    # A missing pixel hides at most one pair of equal pixels: hardly any spectrum needs more work.
    if not bool((equal(flux[..., :-1]) + missing > 0.9 * number).any()):
        return torch.zeros_like(number, dtype=torch.bool)
    places = torch.arange(flux.shape[-1], device=flux.device).expand_as(valid)
    before = flux.gather(-1, torch.cummax(torch.where(valid, places, 0), dim=-1).values)
    return equal(before[..., :-1]) > 0.9 * number


# --- containers -----------------------------------------------------------------------------------


def _convert(values: Any, unit: u.UnitBase | None, name: str, place: tuple[int, ...]) -> np.ndarray:
    """Array of real numbers in `unit`, of any type and layout; `place` is the row within a list."""
    if isinstance(values, torch.Tensor):
        return _tensor(values, name)
    if isinstance(values, pd.DataFrame | pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        return _pandas(values, name, place)
    if values is None or values is pd.NA:
        return np.array(np.nan)
    if isinstance(values, h5py.Dataset):
        values = values[()]
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return _sequence(values, unit, name, place)
    mask, data, own_unit = None, values, getattr(values, "unit", None)
    if isinstance(values, Masked):
        mask, data = np.array(values.mask), values.unmasked
    elif isinstance(values, np.ma.MaskedArray):
        mask, data = np.ma.getmaskarray(values), np.ma.getdata(values)
    array = _plain(data, mask, name, place)
    if unit is not None and own_unit is not None:
        array = _in_unit(array, own_unit, unit, name, place)
    return array if mask is None or not mask.any() else np.where(mask, np.nan, array)


def _plain(data: Any, mask: np.ndarray | None, name: str, place: tuple[int, ...]) -> np.ndarray:
    """Array of real numbers of something that has no mask and no unit of its own."""
    if not isinstance(data, np.ndarray | np.generic | Real) and not hasattr(data, "__array__"):
        raise _no_number(name, data, place)
    array = np.asarray(data)
    if array.dtype.kind in "fiub":
        return array
    if array.dtype.kind != "O":
        first = array[(0,) * array.ndim] if array.size else array.dtype
        raise _no_number(name, first, place or (0,) * min(array.ndim, 1))
    numbers = np.full(array.shape, np.nan)
    for index in np.ndindex(array.shape):
        if mask is not None and mask[index]:
            continue
        number = _convert(array[index], None, name, (*place, *index))
        if number.ndim:
            raise _no_number(name, array[index], (*place, *index))
        numbers[index] = number
    return numbers


def _tensor(values: torch.Tensor, name: str) -> np.ndarray:
    """Array of a tensor on any device, with or without a gradient."""
    if values.is_complex():
        raise ValueError(f"{name} holds complex numbers, which no measurement is")
    if values.is_meta:
        raise ValueError(f"{name} is a tensor without data (device 'meta')")
    values = values.detach()
    if values.layout != torch.strided or values.is_quantized:
        values = values.dequantize() if values.is_quantized else values.to_dense()
    if values.dtype in (torch.bfloat16, torch.float16) or values.element_size() < 2:
        values = values.float()  # NumPy has no bfloat16 and no 8-bit floats
    return values.cpu().resolve_neg().numpy()


def _pandas(values: Any, name: str, place: tuple[int, ...]) -> np.ndarray:
    """Array of a pandas object; `pd.NA` becomes NaN, dates and text are refused."""
    if isinstance(values, pd.DataFrame):
        if all(isinstance(kind, np.dtype) and kind.kind in "fiub" for kind in values.dtypes):
            return values.to_numpy(dtype=np.float64)
        columns = [
            _pandas(values.iloc[:, i], f"{name}, column {label}", place)
            for i, label in enumerate(values.columns)
        ]
        return np.stack(columns, axis=1) if columns else np.empty(values.shape)
    if pd.api.types.is_numeric_dtype(values.dtype) and values.dtype.kind in "fiub":
        return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
    return _plain(np.asarray(values, dtype=object), None, name, place)


def _sequence(
    values: Sequence, unit: u.UnitBase | None, name: str, place: tuple[int, ...]
) -> np.ndarray:
    """Array of a list whose entries are numbers or rows, each of any kind."""
    if all(type(value) in (float, int) for value in values):
        return np.array(values, dtype=np.float64)
    rows = [_convert(value, unit, name, (*place, i)) for i, value in enumerate(values)]
    for i, row in enumerate(rows):
        if row.shape != rows[0].shape:
            raise ValueError(
                f"{name}: row {_shown_place((*place, i))} has the shape {row.shape}, the rows "
                f"before it {rows[0].shape}"
            )
    return np.stack(rows)


def _in_unit(
    array: np.ndarray, own: Any, unit: u.UnitBase, name: str, place: tuple[int, ...]
) -> np.ndarray:
    """Numbers of one unit in another; lengths, frequencies and wave numbers are all wavelengths."""
    own = u.Unit(own, parse_strict="silent")
    logarithmic = isinstance(own, u.function.FunctionUnitBase) or own in (u.dex, u.mag, u.dB)
    if own == unit or (logarithmic and unit == u.dimensionless_unscaled):
        return array
    spectral = u.spectral() if unit.is_equivalent(u.m) else []
    try:
        return own.to(unit, array.astype(np.float64), equivalencies=spectral)
    except (u.UnitsError, TypeError, ValueError) as error:
        wanted = f"to '{unit}'" if unit.to_string() else "to a dimensionless number"
        where = f": row {_shown_place(place)}" if place else ""
        raise ValueError(
            f"{name}{where} has the unit '{own}', which cannot be converted {wanted}"
        ) from error


# --- messages -------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    """Short text of a value."""
    text = repr(value)
    return text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]}..."


def _shown_place(place: tuple[int, ...]) -> str:
    """Row, and column where there is one."""
    return ", column ".join(map(str, place[:2]))


def _no_number(name: str, value: Any, place: tuple[int, ...]) -> ValueError:
    """Error about something that is no number."""
    where = f": row {_shown_place(place)}" if place else ""
    return ValueError(f"{name}{where} holds {_shown(value)}, which is no number")
