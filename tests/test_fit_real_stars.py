"""Fitting the emulator to spectra of stars."""

import sys
from pathlib import Path

import numpy as np
import pytest

from stellarperceptron.emulator import Emulator, standard_labels
from stellarperceptron.spectra import APOGEE_WAVELENGTH, SPEED_OF_LIGHT, Spectrum

FOLDER = Path(__file__).parents[1] / "dataset" / "mock_survey"
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


def test_fit_finds_the_labels_of_a_made_up_star(script, forward, monkeypatch):
    monkeypatch.setattr(script, "STARTS", ((4300.0, 1.8, 0.0),))
    truth = GIANT | {"MG_FE": 0.2, "O_FE": 0.1}
    flux = 700 * forward(standard_labels(truth), 4.0, 15.0)
    noise = 0.005 * flux * np.random.default_rng(0).standard_normal(flux.size)
    star = Spectrum(
        star_id="made up",
        kind="apStar",
        flux=flux + noise,
        error=0.005 * flux,
        mask=np.zeros(flux.size, dtype=np.int64),
    )
    fit = script.fit_star(star, forward)
    assert fit.labels["TEFF"] == pytest.approx(4600, abs=30)
    assert fit.labels["LOGG"] == pytest.approx(2.3, abs=0.1)
    assert fit.labels["FE_H"] == pytest.approx(-0.3, abs=0.04)
    assert fit.labels["MG_FE"] == pytest.approx(0.2, abs=0.04)
    assert (fit.velocity, fit.width) == pytest.approx((4.0, 15.0), abs=0.2)
    assert fit.rms == pytest.approx(0.005, rel=0.1)
