"""Numbers in any container (lists, tables, tensors, quantities) as plain NumPy arrays."""

import math
import re
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from astropy import units as u
from astropy.utils.masked import Masked

__all__ = ["as_array", "as_names", "sentinels_to_nan"]

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


# Catalogues and pipelines write these where they have no value.
_SENTINELS = (9999.0, 9999.99, 99999.0, 999999.0, 999.99)
_DEX_SENTINELS = (99.99, 99.999)
_IN_DEX = re.compile(r"^LOG_?G|_H\b|_H_ERR|_FE\b|_FE_ERR")
_NO_VALUE_BELOW = -999.0
_FASTEST = 9000.0  # km/s: no star of the Galaxy has a tenth of this velocity


def sentinels_to_nan(
    values: np.ndarray | torch.Tensor, name: str = "flux"
) -> np.ndarray | torch.Tensor:
    """Replace the numbers that stand for a missing value (-9999, 9999, ...) by NaN.

    Parameters
    ----------
    values
        Floating-point numbers of any shape.
    name
        What they are. ``"flux"``: exactly +-9999, +-9999.99, +-99999, +-999999 and +-999.99 are
        missing, since flux may have any other value. ``"velocity"``: everything from 9000 km/s up
        is missing, in either direction. Anything else is a label or its error: the marks of flux
        and everything from -999 down are missing; so is 99.99 in labels by name that are no
        temperatures or velocities (LOGG, FE_H, O_FE_ERR, ...).

    Returns
    -------
    np.ndarray or torch.Tensor
        `values` itself where nothing is missing, or else a copy.
    """
    size = abs(values)
    missing: Any
    if name == "velocity":
        missing = size >= _FASTEST
    else:
        missing = values <= (-math.inf if name == "flux" else _NO_VALUE_BELOW)
        for mark in (*_SENTINELS, *(_DEX_SENTINELS if _IN_DEX.search(name.upper()) else ())):
            missing |= abs(size - mark) <= 1e-7 * mark
    if not bool(missing.any()):
        return values
    if isinstance(values, torch.Tensor):
        return values.masked_fill(missing, float("nan"))
    return np.where(missing, np.asarray(np.nan, values.dtype), values)


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
