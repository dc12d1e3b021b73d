"""One conversion for numbers in any container."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from astropy import units as u
from astropy.table import Column, MaskedColumn, QTable
from astropy.utils.masked import Masked
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from stellarperceptron.utils.arrays import as_array, as_names, sentinels_to_nan

HIDDEN = -9999.0  # below masks: nobody may see it


def h5py_dataset(values):
    file = h5py.File("not on disk", "w", driver="core", backing_store=False)
    return file.create_dataset("flux", data=values)


def rows_of(values, row):
    return [row(part) for part in values]


def masked(values):
    return np.ma.array(np.where(np.isnan(values), HIDDEN, values), mask=np.isnan(values))


def read_only(values):
    copy = values.copy()
    copy.flags.writeable = False
    return copy


CONTAINERS = {
    "list": lambda v: v.tolist(),
    "tuple": lambda v: tuple(map(tuple, v.tolist())),
    "list with None": lambda v: [[None if np.isnan(x) else x for x in row] for row in v],
    "list with pd.NA": lambda v: [[pd.NA if np.isnan(x) else x for x in row] for row in v],
    "list of arrays": list,
    "list of masked rows": lambda v: rows_of(v, masked),
    "list of masked numbers": lambda v: [[masked(row)[i] for i in range(len(row))] for row in v],
    "list of tensors": lambda v: rows_of(v, torch.tensor),
    "list of Masked rows": lambda v: rows_of(v, lambda r: Masked(masked(r).data, np.isnan(r))),
    "big-endian": lambda v: v.astype(">f8"),
    "Fortran order": np.asfortranarray,
    "turned around": lambda v: v[::-1, ::-1].copy()[::-1, ::-1],
    "every other": lambda v: np.repeat(v, 2, axis=1)[:, ::2],
    "read-only": read_only,
    "objects": lambda v: v.astype(object),
    "objects with pd.NA": lambda v: np.where(np.isnan(v), pd.NA, v.astype(object)),
    "masked array": masked,
    "masked big-endian": lambda v: masked(v).astype(">f8"),
    "Masked": lambda v: Masked(masked(v).data, mask=np.isnan(v)),
    "Masked Quantity": lambda v: Masked(masked(v).data, mask=np.isnan(v)) * u.one,
    "Quantity": lambda v: v * u.dimensionless_unscaled,
    "percent": lambda v: (100 * v) * u.percent,
    "Column": Column,
    "MaskedColumn": lambda v: MaskedColumn(masked(v), unit=u.one),
    "column of a QTable": lambda v: QTable({"flux": v * u.one})["flux"],
    "DataFrame": pd.DataFrame,
    "DataFrame, Float64": lambda v: pd.DataFrame(v).astype("Float64"),
    "DataFrame of objects": lambda v: pd.DataFrame(v.astype(object)),
    "DataFrame, mixed": lambda v: pd.DataFrame(v).astype({0: "Float64"}),
    "tensor": torch.tensor,
    "tensor with gradient": lambda v: torch.tensor(v, requires_grad=True),
    "tensor, transposed": lambda v: torch.tensor(v.T.copy()).T,
    "tensor of negated imaginary parts": lambda v: (0 - 1j * torch.tensor(v)).conj().imag,
    "h5py data set": h5py_dataset,
}


@pytest.mark.parametrize("container", CONTAINERS)
@given(
    values=arrays(
        np.float64,
        array_shapes(min_dims=2, max_dims=2, max_side=4),
        elements=st.one_of(st.just(np.nan), st.floats(-1e4, 1e4)),
    )
)
def test_every_container_gives_the_same_array(container, values):
    result = as_array(CONTAINERS[container](values))
    np.testing.assert_allclose(result, values, rtol=1e-14)
    assert type(result) is np.ndarray
    assert result.dtype == np.float64
    assert result.dtype.isnative
    assert result.flags.c_contiguous
    assert result.flags.writeable


@given(arrays(np.float32, 5, elements=st.one_of(st.just(np.nan), st.floats(-99, 99, width=32))))
def test_series_of_any_type_give_the_same_array(values):
    series = pd.Series(values)
    for container in (series, series.astype("Float32"), series.astype(object), pd.Index(series)):
        np.testing.assert_array_equal(as_array(container, dtype=np.float32), values)


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([1, None, 3], dtype="Int64"),
        np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        MaskedColumn([1, 2, 3], mask=[0, 1, 0]),
        Masked(np.array([1, 2, 3]), mask=[False, True, False]),
        [1, np.ma.masked, 3],
    ],
)
def test_integers_may_be_masked(values):
    np.testing.assert_array_equal(as_array(values), [1, np.nan, 3])


def test_single_numbers_stay_single():
    for value in (4, 4.0, np.float32(4), torch.tensor(4), 4 * u.one, np.array(4)):
        assert as_array(value).shape == ()
        assert as_array(value) == 4
    assert np.isnan(as_array(np.ma.masked))


def test_array_that_fits_is_not_copied():
    values = np.ones(3)
    assert as_array(values) is values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.bool])
def test_tensors_that_numpy_does_not_know_are_converted(dtype):
    np.testing.assert_array_equal(as_array(torch.ones(2, dtype=dtype)), [1, 1])


@pytest.mark.parametrize("unit", [u.nm, u.micron, u.m, u.AA])
def test_wavelengths_come_in_angstrom(unit):
    wavelength = np.linspace(15_000, 17_000, 5)
    given = (wavelength * u.AA).to(unit)
    for container in (given, Column(given.value, unit=unit), Masked(given), list(given)):
        np.testing.assert_allclose(as_array(container, unit="Angstrom"), wavelength, rtol=1e-12)
    np.testing.assert_array_equal(as_array(wavelength, unit=u.AA), wavelength)


def test_wave_numbers_and_frequencies_are_wavelengths_too():
    given = (15_500 * u.AA).to(1 / u.cm, u.spectral())
    assert as_array(given, unit="Angstrom") == pytest.approx(15_500)


def test_flux_with_a_unit_is_refused_or_kept():
    flux = np.ones(3) * u.Unit("1e-17 erg / (s cm2 AA)")
    with pytest.raises(ValueError, match=r"flux has the unit .* cannot be converted"):
        as_array(flux)
    np.testing.assert_array_equal(as_array(flux, unit=None), 1)
    with pytest.raises(ValueError, match="flux: row 1 has the unit 'K'"):
        as_array([1.0, 2 * u.K])


def test_decades_are_numbers():
    assert as_array(2.5 * u.dex(u.cm / u.s**2), name="LOGG") == 2.5
    assert as_array(-0.5 * u.dex, name="FE_H") == -0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, "bright"], "TEFF: row 1 holds 'bright'"),
        ([[1.0, 2.0], [3.0, object]], "TEFF: row 1, column 1 holds"),
        (np.array(["1", "2"]), "TEFF: row 0 holds"),
        ([[1.0], [1.0, 2.0]], "TEFF: row 1 has the shape"),
        (np.array([1.0 + 2j]), "TEFF: row 0 holds"),
        (np.zeros(2, dtype="f4,f4"), "TEFF: row 0 holds"),
        (pd.Series([1, "x"]), "TEFF: row 1 holds 'x'"),
        (pd.DataFrame({"a": [1, 2], "b": [1, "x"]}), "TEFF, column b: row 1 holds 'x'"),
        (pd.to_datetime(["2020-01-01"]), "TEFF: row 0 holds Timestamp"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "TEFF: row 0 holds"),
        ("4500", "TEFF holds '4500'"),
        ({"TEFF": 1}, "TEFF holds"),
        (torch.ones(2, dtype=torch.complex64), "TEFF holds complex"),
        (torch.ones(2, device="meta"), "without data"),
    ],
)
def test_what_is_no_number_is_refused_by_name_and_row(values, message):
    with pytest.raises(ValueError, match=message):
        as_array(values, name="TEFF")


def test_what_a_mask_hides_need_not_be_a_number():
    values = np.ma.array(np.array([1.0, "none"], dtype=object), mask=[False, True])
    np.testing.assert_array_equal(as_array(values), [1, np.nan])


def test_names_come_as_text():
    for names in (["a", "b"], np.array(["a", "b"]), np.array([b"a", b"b"]), pd.Series(["a", "b"])):
        assert as_names(names) == ["a", "b"]
    assert as_names("TEFF") == ["TEFF"]
    with pytest.raises(ValueError, match="labels: entry 1 holds 5"):
        as_names(["TEFF", 5], "labels")


# --- sentinels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "missing", "kept"),
    [
        ("flux", [-9999, 9999, -999.99, 999999], [-1000, 99.99, 9998, 0, np.inf]),
        ("TEFF", [-9999, 9999, -999, -5000], [99.99, 4500, 9998]),
        ("LOGG", [-9999, 99.99], [4.5, -0.5]),
        ("FE_H_ERR", [99.99, 9999], [0.02]),
        ("velocity", [-9999, 9999, 999999, 12_000], [-999.99, 300, 99.99]),
    ],
)
@pytest.mark.parametrize("make", [np.array, torch.tensor])
@pytest.mark.parametrize("bits", [32, 64])
def test_marks_for_none_become_nan(name, missing, kept, make, bits):
    values = np.array([*missing, *kept], dtype=f"f{bits // 8}")
    result = sentinels_to_nan(make(values), name)
    assert type(result) is type(make(values))
    assert np.asarray(result).dtype == values.dtype
    np.testing.assert_array_equal(
        np.asarray(result), np.where(np.arange(len(values)) < len(missing), np.nan, values)
    )


def test_array_without_marks_is_not_copied():
    values = np.ones(4)
    assert sentinels_to_nan(values) is values
