"""Shifts of lines, air and vacuum."""

import numpy as np
import pytest

from stellarperceptron.data.apogee.continuum import normalize
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.data.wavelengths import (
    LEAST_SIGNIFICANCE,
    SPEED_OF_LIGHT,
    air_or_vacuum,
    air_to_vacuum,
    line_shift,
    vacuum_to_air,
)

STARS = {
    "TEFF": np.array([4000.0, 4600.0, 5000.0, 4800.0, 5500.0, 6000.0]),
    "LOGG": np.array([1.0, 2.3, 3.2, 4.6, 4.4, 4.2]),
    "FE_H": np.array([-0.3, 0.1, -1.0, 0.0, 0.2, -0.5]),
}
TEMPLATE = {"TEFF": 4800.0, "LOGG": 2.8, "FE_H": -0.1}


@pytest.fixture(scope="module")
def emulator():
    return Emulator.load("nature")


@pytest.fixture(scope="module")
def template(emulator):
    return emulator.flux(TEMPLATE, APOGEE_WAVELENGTH, 22_500).numpy()[0]


def observe(emulator, velocity, snr=100, seed=0, wavelength=APOGEE_WAVELENGTH):
    """Normalized spectra of `STARS` that move away with a velocity [km/s]."""
    rest = wavelength / (1 + velocity / SPEED_OF_LIGHT)
    inside = np.clip(rest, *emulator.wavelength[[0, -1]])
    flux = emulator.flux(STARS, inside, 22_500).numpy()
    return flux + np.random.default_rng(seed).normal(0, 1 / snr, flux.shape)


@pytest.mark.parametrize("velocity", [-300.0, -60.0, -20.0, 0.0, 9.0, 60.0])
def test_shifts_of_giants_and_dwarfs_are_measured(emulator, template, velocity):
    flux = normalize(observe(emulator, velocity))
    flux[:, 700:760] = np.nan
    measured, significance = line_shift(flux, template)
    np.testing.assert_allclose(measured, velocity, atol=1.5)
    assert significance.min() > LEAST_SIGNIFICANCE


def test_no_shift_is_claimed_in_a_hundred_tries_at_rest(emulator, template):
    for seed in range(17):
        measured, _ = line_shift(observe(emulator, 0.0, seed=seed), template)
        assert np.abs(measured).max() < 5


def test_noise_has_no_significant_shift(template):
    noise = np.random.default_rng(1).normal(1, 0.05, (100, len(template)))
    assert (line_shift(noise, template)[1] < LEAST_SIGNIFICANCE).mean() >= 0.95


def test_each_star_may_have_a_template_of_its_own(emulator):
    own = observe(emulator, 0.0, snr=1e6)
    measured, _ = line_shift(observe(emulator, 60.0), own)
    np.testing.assert_allclose(measured, 60.0, atol=0.5)


def test_spectrum_without_valid_pixels_has_no_shift(template):
    flux = np.stack([np.full_like(template, np.nan), template])
    measured, significance = line_shift(flux, template)
    assert np.isnan([measured[0], significance[0]]).all()
    assert measured[1] == pytest.approx(0, abs=1e-6)


def test_part_of_the_grid_is_enough(emulator, template):
    half = slice(0, 3757)
    measured, _ = line_shift(
        observe(emulator, 60.0)[:, half], template[half], APOGEE_WAVELENGTH[half]
    )
    np.testing.assert_allclose(measured, 60.0, atol=3)


def test_other_wavelengths_than_logarithmic_ones_are_refused(template):
    with pytest.raises(ValueError, match="equal steps of their logarithm"):
        line_shift(template, template, np.linspace(15100, 17000, len(template)))
    with pytest.raises(ValueError, match="pixels"):
        line_shift(template[1:], template)


def test_air_and_vacuum_are_the_inverse_of_each_other():
    wavelength = np.linspace(3000, 20_000, 100)
    np.testing.assert_allclose(air_to_vacuum(vacuum_to_air(wavelength)), wavelength, rtol=1e-12)
    # The sodium D lines, vacuum 5891.583 and 5897.558 (NIST).
    np.testing.assert_allclose(
        vacuum_to_air(np.array([5891.583, 5897.558])), [5889.951, 5895.924], atol=2e-3
    )


@pytest.mark.parametrize("grid", ["survey", "steps of 0.15", "descending", "half"])
@pytest.mark.parametrize("kind", ["air", "vacuum"])
def test_air_wavelengths_are_recognised(emulator, template, grid, kind):
    wavelength = {
        "survey": APOGEE_WAVELENGTH,
        "steps of 0.15": np.arange(15200.0, 16900.0, 0.15),
        "descending": APOGEE_WAVELENGTH[::-1],
        "half": APOGEE_WAVELENGTH[:3757],
    }[grid]
    flux = observe(emulator, 0.0, wavelength=wavelength)
    given = vacuum_to_air(wavelength) if kind == "air" else wavelength
    told = air_or_vacuum(given, flux, APOGEE_WAVELENGTH, template)
    assert told.tolist() == [kind] * len(flux)


def test_stars_that_move_and_noise_are_neither_air_nor_vacuum(emulator, template):
    flux = observe(emulator, 40.0)
    assert set(air_or_vacuum(APOGEE_WAVELENGTH, flux, APOGEE_WAVELENGTH, template)) == {""}
    noise = np.random.default_rng(1).normal(1, 0.05, (20, len(template)))
    told = air_or_vacuum(APOGEE_WAVELENGTH, noise, APOGEE_WAVELENGTH, template)
    assert (told == "").mean() >= 0.95
    far = APOGEE_WAVELENGTH / 3
    assert set(air_or_vacuum(far, flux, APOGEE_WAVELENGTH, template)) == {""}
