"""Spectra on another grid than the instrument's."""

import numpy as np
import pytest
from conftest import LABELS, make_model, make_spectra

from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.data.wavelengths import resampling_onto, vacuum_to_air
from stellarperceptron.instruments import APOGEE

PART = slice(500, 1500)
GRID = APOGEE.wavelength[PART]


def test_pixels_of_the_instrument_stay_as_they_are():
    assert resampling_onto(APOGEE, GRID[::-1]) is None
    assert resampling_onto(APOGEE, GRID + 0.01) is None


@pytest.mark.parametrize("step", [0.05, 0.2])
def test_a_smooth_spectrum_is_interpolated(step):
    wavelengths = np.arange(GRID[0], GRID[-1], step)
    random = np.random.default_rng(0)
    order = random.permutation(len(wavelengths))
    flux = 1 + 0.1 * np.sin(wavelengths / 3)[None]
    resampling = resampling_onto(APOGEE, wavelengths[order])
    np.testing.assert_array_equal(resampling.pixels, np.arange(500, 500 + len(resampling.pixels)))
    expected = 1 + 0.1 * np.sin(APOGEE.wavelength[resampling.pixels] / 3)
    np.testing.assert_allclose(resampling(flux[:, order])[0], expected, atol=3e-4)


def test_wavelengths_that_are_there_twice_are_used_once():
    wavelengths = APOGEE.wavelength[100:200] + 0.05
    once = resampling_onto(APOGEE, wavelengths)
    twice = resampling_onto(APOGEE, np.append(wavelengths, wavelengths[::-1]))
    flux = np.sin(wavelengths)[None]
    np.testing.assert_array_equal(twice(np.hstack([flux, flux[:, ::-1]])), once(flux))


def test_bad_pixels_and_gaps_give_nothing():
    wavelengths = np.arange(GRID[0], GRID[-1], 0.1)
    wavelengths = np.delete(wavelengths, slice(300, 400))  # ten Angstrom
    flux = np.ones((1, len(wavelengths)))
    flux[0, 50] = np.nan
    resampling = resampling_onto(APOGEE, wavelengths)
    gap = (APOGEE.wavelength > GRID[0] + 30) & (APOGEE.wavelength < GRID[0] + 39)
    assert not np.isin(np.flatnonzero(gap), resampling.pixels).any()
    missing = APOGEE.wavelength[resampling.pixels[np.isnan(resampling(flux)[0])]]
    assert len(missing) and (np.abs(missing - wavelengths[50]) < 0.1).all()


def test_coarse_and_distant_wavelengths_are_refused():
    with pytest.raises(ValueError, match="do not resolve what APOGEE does"):
        resampling_onto(APOGEE, np.arange(GRID[0], GRID[-1], 1.0))
    with pytest.raises(ValueError, match="cover none"):
        resampling_onto(APOGEE, np.arange(5000.0, 5100.0, 0.1))


def test_predictions_from_another_grid_are_nearly_the_same():
    model, spectra = make_model(7514, context_length=7514), make_spectra(3, 7514, bad=0)
    part = slice(0, 400)
    smooth = np.apply_along_axis(lambda x: np.convolve(x, np.ones(9) / 9, "same"), 1, spectra)
    grid = APOGEE.wavelength[part]
    fine = np.arange(grid[0], grid[-1], 0.02)
    finer = np.stack([np.interp(fine, grid, star[part]) for star in smooth])
    with pytest.warns(UserWarning, match="interpolated onto"):
        found = model.predict(finer, fine, LABELS, progress=False)
    inner = slice(0, 399)  # the last pixel lies beyond the fine grid
    expected = model.predict(smooth[:, inner], grid[inner], LABELS, progress=False)
    scale = model.standardizer.scale[model.tokenize(LABELS)]
    assert np.abs((found - expected)[LABELS] / scale).max().max() < 0.05


@pytest.mark.filterwarnings("ignore:the wavelengths are not those")
def test_a_flux_of_zero_is_not_interpolated():
    model, grid = make_model(400, context_length=400), APOGEE.wavelength[:400]
    finer = np.arange(grid[0], grid[-1], 0.1)
    flux = 0.9 + 0.05 * np.sin(finer)[None]
    zero, missing = flux.copy(), flux.copy()
    zero[0, 500], missing[0, 500] = 0.0, np.nan
    found, expected, whole = (
        model.predict(one, finer, LABELS, progress=False) for one in (zero, missing, flux)
    )
    np.testing.assert_array_equal(found, expected)
    assert not np.allclose(found[LABELS], whole[LABELS], rtol=1e-6)


def test_a_model_of_some_pixels_takes_other_grids():
    model, grid = make_model(400, context_length=400), APOGEE.wavelength[:400]
    finer = np.arange(grid[0], grid[-1], 0.1)
    with pytest.warns(UserWarning, match="onto 399 of them"):
        flux = 0.9 + 0.05 * np.sin(finer)[None]
        found = model.predict(flux, finer, LABELS, progress=False)
    assert np.isfinite(found[LABELS]).all(axis=None)


def test_wavelengths_in_air_are_refused():
    model = make_model(7514, context_length=64)
    labels = {"TEFF": np.array([4600.0, 4800.0]), "LOGG": [2.3, 2.5], "FE_H": [-0.2, 0.1]}
    flux = Emulator.load("nominal").flux(labels, APOGEE.wavelength, 22_500).numpy()
    model.standardizer.center[1:7515] = flux.mean(axis=0)
    with pytest.raises(ValueError, match="in air"):
        model.predict(flux, vacuum_to_air(APOGEE.wavelength), LABELS, progress=False)


def test_errors_of_interpolated_flux():
    wavelengths = np.arange(GRID[0], GRID[-1], 0.1)
    resampling = resampling_onto(APOGEE, wavelengths)
    noise = 0.02 * np.random.default_rng(0).standard_normal((500, len(wavelengths)))
    errors = resampling.of_errors(np.full((1, len(wavelengths)), 0.02))[0]
    np.testing.assert_allclose(resampling(noise).std(axis=0), errors, rtol=0.2)
    assert errors.min() < 0.0145 and errors.max() > 0.0195
