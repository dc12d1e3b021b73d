"""Errors of the pixels, given to predict: they decide which pixels count."""

import numpy as np
import pytest
from astropy import units
from small_model import WAVELENGTHS, predict

from stellarperceptron.network.interface.spectra import too_noisy

CONTENT = {"none": np.nan, "zero": 0.0, "negative": -1.0, "pipeline's mark": 1e10, "noisy": 0.06}


@pytest.fixture
def errors(spectra):
    return np.full(spectra.shape, 0.01)


@pytest.mark.parametrize("content", CONTENT.values(), ids=CONTENT)
def test_pixels_whose_errors_say_so_are_bad(model, spectra, errors, content):
    bad = np.random.default_rng(1).random(spectra.shape) < 0.3
    errors[bad] = content
    with pytest.warns(UserWarning, match=r"of 200 pixels count as bad, by their errors"):
        given = predict(model, spectra, errors=errors)
    without = predict(model, np.where(bad, np.nan, spectra))
    np.testing.assert_array_equal(given, without)


@pytest.mark.parametrize("error", [0.01, 0.2])
def test_pixels_of_bright_and_of_faint_stars_all_count(model, spectra, errors, error):
    errors[:] = error * np.random.default_rng(1).uniform(0.5, 1.5, errors.shape)
    np.testing.assert_array_equal(predict(model, spectra, errors=errors), predict(model, spectra))


def test_a_star_without_errors_has_no_labels(model, spectra, errors):
    errors[2] = np.nan
    with pytest.warns(UserWarning):
        given = predict(model, spectra, errors=errors)
    assert np.isnan(given).all(axis=1).tolist() == [False, False, True, False, False]


def test_errors_are_those_of_each_star(model, spectra, errors):
    errors[:, :20] = np.where(np.arange(5)[:, None] % 2, 0.01, np.nan)
    with pytest.warns(UserWarning, match="count as bad"):
        one, other = (predict(model, spectra, errors=errors, batch_size=n) for n in (1, 5))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_errors_come_in_any_container(model, spectra, errors):
    errors[:, 3] = 0.0
    masked = np.ma.masked_array(np.where(errors > 0, errors, 0.01), mask=errors == 0)
    percent = 100 * errors * units.percent
    with pytest.warns(UserWarning, match="count as bad"):
        expected, *others = (
            predict(model, spectra, errors=kind) for kind in (errors, masked, percent)
        )
    for other in others:
        np.testing.assert_array_equal(other, expected)


def test_errors_of_another_shape_are_refused(model, spectra, errors):
    with pytest.raises(ValueError, match=r"errors \(5, 39\) do not match spectra \(5, 40\)"):
        model.predict(spectra, WAVELENGTHS, errors=errors[:, 1:])


def test_errors_are_compared_with_those_of_neighbours():
    errors = np.geomspace(0.3, 0.03, 3000)[None].repeat(2, axis=0)  # a faint blue end
    errors[1, 100] *= 4
    assert too_noisy(errors).nonzero() == (1, 100)
    errors[0, :400] = np.nan
    assert too_noisy(errors)[0].nonzero()[0].tolist() == list(range(400))
