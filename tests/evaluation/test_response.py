"""Responses of the flux to labels, and how well attention is placed on them."""

import numpy as np
import pytest

from stellarperceptron.data.apogee.continuum import normalize
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.evaluation.response import (
    best_linear_weights,
    concentration,
    label_information,
    label_response,
    label_slopes,
    leading_pixels,
    token_response,
)


def test_response_is_the_slope_of_the_normalized_flux():
    emulator, star = Emulator.load("nature"), {"TEFF": 4600.0, "LOGG": 2.3, "FE_H": -0.2}
    slopes = label_slopes(emulator, {name: [value] for name, value in star.items()}, ["TEFF"])

    def flux(teff):
        spectrum = emulator.flux({**star, "TEFF": teff}, APOGEE_WAVELENGTH, 22_500.0)[0].numpy()
        return normalize(spectrum, valid_flux=None, clip_high=np.inf)

    slope = (flux(4601.0) - flux(4599.0)) / 2
    np.testing.assert_allclose(slopes[0, 0], slope, atol=1e-4 * np.abs(slope).max())


def test_response_is_the_rms_of_the_stars():
    slopes = np.array([[[3.0, 0.0]], [[-4.0, 1.0]]])
    np.testing.assert_allclose(label_response(slopes), [[12.5**0.5, 0.5**0.5]])


def test_magnesium_responds_in_its_lines():
    """The strong triplet of the H band lies at 15,745 to 15,770 A (vacuum)."""
    star = {"TEFF": [4600.0, 4700.0], "LOGG": [2.3, 2.5], "FE_H": [-0.2, 0.0]}
    response = label_response(label_slopes(Emulator.load("nature"), star, ["MG_FE"]))[0]
    for line in (15745.0, 15753.3, 15770.1):
        near = np.abs(APOGEE_WAVELENGTH - line) < 1.5
        assert response[near].max() > 10 * np.median(response)


def test_unknown_label_is_refused():
    with pytest.raises(ValueError, match="AGE"):
        label_slopes(Emulator.load("nature"), {"TEFF": [5000.0]}, ["AGE"])


def test_information_is_what_no_other_label_could_tell():
    """Two labels that move the first pixel alike, and one more pixel each."""
    slopes = np.array([[[1.0, 0.5, 0.0, 0.0], [1.0, 0.0, 0.25, 0.0]]])
    information = np.square(label_information(slopes))
    np.testing.assert_allclose(information.sum(axis=1), 1)
    assert information[0, 1] > 0.75 > information[1, 2] > 0.05
    assert information[0, 0] < 0.02 and information[0, 3] == 0


def test_information_is_that_of_the_inverse_of_the_fisher_matrix():
    slopes = np.random.default_rng(0).normal(size=(3, 4, 30)) * np.array([[1e-3], [1], [1], [5]])
    inverse = [np.linalg.inv(star @ star.T) for star in slopes]
    best = [a @ star for a, star in zip(inverse, slopes, strict=True)]
    np.testing.assert_allclose(best_linear_weights(slopes), np.mean(best, axis=0), rtol=1e-8)
    # Variance of a label: an element of the inverse, the sum of the squares of its weights.
    shares = [w**2 / np.diag(a)[:, None] for a, w in zip(inverse, best, strict=True)]
    np.testing.assert_allclose(
        np.square(label_information(slopes)), np.mean(shares, axis=0), rtol=1e-8
    )


def test_best_linear_weights_know_one_label_from_the_others():
    slopes = np.random.default_rng(1).normal(size=(1, 4, 30))
    np.testing.assert_allclose(best_linear_weights(slopes) @ slopes[0].T, np.eye(4), atol=1e-12)


def test_response_of_tokens_is_the_rms_of_their_pixels():
    pixels = np.array([[0, 1], [2, -1]])
    np.testing.assert_allclose(
        token_response(np.array([[3.0, 4.0, 2.0]]), pixels), [[12.5**0.5, 2]]
    )


def test_leading_pixels_are_those_that_rank_highest():
    ranking = np.arange(40.0)[::-1]
    assert np.flatnonzero(leading_pixels(ranking, 0.05)).tolist() == [0, 1]
    assert leading_pixels(ranking, 0.001).sum() == 1
    with pytest.raises(ValueError, match="between 0 and 1"):
        leading_pixels(ranking, 1.0)


# --- the one on the other -------------------------------------------------------------------------

RESPONSE = np.linspace(1, 0, 100) ** 3


def test_even_attention_is_chance():
    result = concentration(np.ones(100), RESPONSE, 0.05)
    assert (result.chance, result.ratio) == pytest.approx((0.05, 1))
    assert np.isnan(result.rank_correlation)


def test_attention_on_what_responds_has_all_of_the_share():
    result = concentration((np.arange(100) < 5).astype(float), RESPONSE, 0.05)
    assert (result.share, result.ratio) == pytest.approx((1, 20))


def test_attention_that_follows_the_response_has_its_ratio():
    result = concentration(RESPONSE, RESPONSE, 0.1)
    assert result.ratio == pytest.approx(result.ratio_of_response)
    assert result.ratio_of_square > result.ratio_of_response > 1
    assert result.rank_correlation == pytest.approx(1)


def test_attention_that_shuns_the_response_ranks_the_other_way():
    result = concentration(-RESPONSE + 2, RESPONSE, 0.1)
    assert result.ratio < 1
    assert result.rank_correlation == pytest.approx(-1)


def test_tokens_that_no_star_has_are_left_out():
    attention = np.ones(100)
    attention[::2] = np.nan
    assert concentration(attention, RESPONSE, 0.1).chance == pytest.approx(5 / 50)


@pytest.mark.parametrize("top", [0, 1, -0.1])
def test_wrong_shares_are_refused(top):
    with pytest.raises(ValueError, match="between 0 and 1"):
        concentration(RESPONSE, RESPONSE, top)


def test_shapes_must_match():
    with pytest.raises(ValueError, match="attention"):
        concentration(RESPONSE[1:], RESPONSE)
