"""Pixels of other instruments between the rows of a model."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stellarperceptron.instruments import APOGEE, MOONS_H
from stellarperceptron.instruments.rows import between_rows, log_widths

STEP = 6e-6 * np.log(10)


def test_the_models_own_pixels_are_rows():
    rows = between_rows(APOGEE, APOGEE.wavelength)
    assert rows.pixels.tolist() == list(range(7514))
    np.testing.assert_allclose(rows.width, 1, atol=1e-4)
    values = torch.randn(2, 7514, dtype=torch.float64)
    values[0, 100] = torch.nan
    spread, weights = rows.spread(values)
    bad = weights[0] < 1e-3
    assert bad.nonzero().tolist() == [[100]]
    torch.testing.assert_close(spread[0, ~bad], values[0, ~bad], atol=1e-4, rtol=0)
    torch.testing.assert_close(weights[1], torch.ones_like(weights[1]), atol=1e-3, rtol=0)


def test_a_pixel_between_two_rows_is_shared_by_its_distance():
    wavelengths = APOGEE.wavelength[1000] * np.exp(STEP * (0.25 + 2 * np.arange(5)))
    rows = between_rows(APOGEE, wavelengths)
    spread, weights = rows.spread(torch.tensor([[1.0, 2.0, torch.nan, 4.0, 5.0]]))
    np.testing.assert_allclose(spread[0, 1000:1004], [1.5, 0.5, 3.0, 1.0], rtol=1e-4)
    np.testing.assert_allclose(weights[0, 1000:1004], [1.5, 0.5, 1.5, 0.5], rtol=1e-4)
    assert spread[0, 1004:1006].isnan().all() and not weights[0, 1004:1006].any()


@given(
    sampling=st.floats(1.0, 20.0),
    start=st.floats(15_000, 16_500),
    length=st.integers(2, 3000),
)
def test_weights_are_the_widths_of_the_pixels_within_the_chips(sampling, start, length):
    wavelengths = start * np.exp(STEP * sampling * np.arange(length))
    rows = between_rows(APOGEE, wavelengths)
    _, weights = rows.spread(torch.ones(1, len(rows.pixels), dtype=torch.float64))
    assert weights.sum().item() == pytest.approx(sampling * len(rows.pixels), rel=1e-4)
    index = (np.log10(wavelengths) - 4.179) / 6e-6
    chips = ((246, 3274), (3585, 6080), (6344, 8335))
    near = np.any([(index > a - 0.51) & (index < b - 0.49) for a, b in chips], axis=0)
    far = np.any([(index > a - 0.49) & (index < b - 0.51) for a, b in chips], axis=0)
    kept = np.isin(np.arange(length), rows.pixels)
    assert (kept <= near).all() and (kept >= far).all()


def test_interpolation_is_linear_and_does_not_cross_a_gap():
    rows = between_rows(APOGEE, MOONS_H.wavelength)
    place = (np.log10(APOGEE.wavelength) - 4.179) / 6e-6
    at = rows.interpolate(torch.from_numpy(place)).numpy()
    expected = (np.log10(MOONS_H.wavelength[rows.pixels]) - 4.179) / 6e-6
    np.testing.assert_allclose(at, expected, atol=0.51)
    assert np.median(np.abs(at - expected)) < 1e-6
    assert np.isin(np.round(at), APOGEE.grid_index).all()


def test_a_gap_makes_no_pixel_wider():
    wavelengths = np.array([100.0, 101.0, 102.0, 120.0, 121.0])
    np.testing.assert_allclose(log_widths(wavelengths[::-1]), log_widths(wavelengths)[::-1])
    assert log_widths(wavelengths).max() < 0.011
