"""Spectra and labels as people have them: tables, masked arrays, tensors, units, byte orders."""

import warnings

import astropy.units as u
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LABELS, make_model, make_spectra
from small_model import NAMES, WAVELENGTHS, predict

FEW = slice(0, 12)


def ask(model, spectra, names=NAMES[FEW], wavelengths=WAVELENGTHS[FEW]):
    model.perceive(spectra, names, wavelengths)
    return model.request(LABELS).to_numpy()


def test_one_star_and_data_frames(model, spectra):
    expected = ask(model, spectra[:, FEW])
    frame = pd.DataFrame(spectra[:, FEW], columns=NAMES[FEW])
    np.testing.assert_allclose(ask(model, frame, None), expected, rtol=1e-5)
    np.testing.assert_allclose(ask(model, spectra[2, FEW])[0], expected[2], rtol=1e-5)


def test_data_frames_may_have_nullable_columns(model, spectra):
    frame = pd.DataFrame(spectra).astype("Float64").mask(np.isnan(spectra))
    assert frame.isna().any(axis=None)
    np.testing.assert_array_equal(predict(model, frame), predict(model, spectra))


def test_masked_values_are_bad_pixels(model, spectra):
    masked = np.ma.MaskedArray(np.nan_to_num(spectra, nan=7.0), np.isnan(spectra))
    np.testing.assert_array_equal(ask(model, masked[:, FEW]), ask(model, spectra[:, FEW]))
    np.testing.assert_array_equal(predict(model, masked), predict(model, spectra))


@pytest.mark.parametrize("unit", [u.nm, u.micron])
def test_wavelengths_may_have_any_unit_of_length(model, spectra, unit):
    given = (WAVELENGTHS * u.AA).to(unit)
    expected = ask(model, spectra[:, FEW])
    result = ask(model, spectra[:, FEW], wavelengths=given[FEW])
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    np.testing.assert_allclose(predict(model, spectra, given), predict(model, spectra), rtol=1e-5)


def test_arrays_may_be_reversed_and_big_endian(model, spectra):
    expected = ask(model, spectra[:, FEW])
    turned = spectra[:, FEW][:, ::-1], NAMES[FEW][::-1], WAVELENGTHS[FEW][::-1]
    np.testing.assert_allclose(ask(model, *turned), expected, rtol=1e-5, atol=1e-6)
    swapped = spectra[:, FEW].astype(">f8"), NAMES[FEW], WAVELENGTHS[FEW].astype(">f8")
    np.testing.assert_allclose(ask(model, *swapped), expected, rtol=1e-5, atol=1e-6)
    swapped = spectra.astype(">f4"), WAVELENGTHS.astype(">f4")
    np.testing.assert_allclose(predict(model, *swapped), predict(model, spectra), rtol=1e-3)


@pytest.mark.filterwarnings("error")
def test_read_only_wavelengths_and_tensors_give_no_warning(model, spectra, wavelengths):
    wavelengths.flags.writeable = False
    spectra = np.where(np.isfinite(spectra), spectra, 1.0)
    ask(model, spectra[:, FEW], wavelengths=wavelengths[FEW])
    expected, given = (predict(model, f, wavelengths) for f in (spectra, torch.from_numpy(spectra)))
    np.testing.assert_array_equal(given, expected)


# --- training ---------------------------------------------------------------------------------


def values(stars=64):
    """(N, 41) spectra and TEFF; a third of the stars have none."""
    teff = np.random.default_rng(0).uniform(4000, 6000, stars)
    teff[::3] = np.nan
    return np.column_stack([make_spectra(stars, 40), teff])


def fitted(given, outputs):
    model = make_model(labels=["TEFF"])
    model.standardizer.fitted[:] = False
    history = model.fit(
        given,
        None if isinstance(given, pd.DataFrame) else [*NAMES, "TEFF"],
        outputs,
        inputs_wavelength=np.append(WAVELENGTHS, 0),
        epochs=1,
        batch_size=16,
        seed=0,
        progress=False,
    )
    return model.standardizer, history["loss"].to_numpy()


def test_fit_takes_masked_arrays_and_data_frames():
    expected, loss = fitted(values(), ["TEFF"])
    masked = np.ma.MaskedArray(np.nan_to_num(values(), nan=-8888.0), np.isnan(values()))
    frame = pd.DataFrame(values(), columns=[*NAMES, "TEFF"]).astype("Float64")
    for given in (masked, frame):
        standardizer, its_loss = fitted(given, "TEFF")  # a single label needs no list
        np.testing.assert_allclose(standardizer.center, expected.center)
        np.testing.assert_allclose(standardizer.scale, expected.scale)
        np.testing.assert_allclose(its_loss, loss, rtol=1e-5)


def test_standardization_takes_masked_arrays_and_data_frames():
    masked = np.ma.MaskedArray(np.nan_to_num(values(), nan=-8888.0), np.isnan(values()))
    frame = pd.DataFrame(values()).astype("Float64").mask(np.isnan(values()))
    for given in (masked, frame):
        model = make_model(labels=["TEFF"])
        model.standardizer.fitted[:] = False
        model.fit_standardization(given, [*NAMES, "TEFF"])
        assert model.standardizer.center[-1] == pytest.approx(np.nanmedian(values()[:, -1]))


def test_a_label_that_is_mostly_the_same_is_not_trained_on_in_kelvin():
    grid = values()
    grid[:, -1] = np.where(np.arange(len(grid)) < 40, 5000.0, 5500.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        standardizer, loss = fitted(grid, ["TEFF"])
    assert standardizer.scale[-1] > 100 and abs(loss[-1]) < 100
