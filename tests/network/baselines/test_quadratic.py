"""Quadratic regression: what it can learn exactly, and labels that some stars lack."""

import numpy as np
import pytest

from stellarperceptron.network.baselines.quadratic import QuadraticForm, fit_quadratic


@pytest.fixture(scope="module")
def stars():
    """Fluxes (400, 30) of three components and noise, and two labels, one of them quadratic."""
    random = np.random.default_rng(0)
    components = random.normal(size=(400, 3))
    flux = components @ random.normal(size=(3, 30)) + 1e-3 * random.normal(size=(400, 30))
    linear, quadratic = components[:, 0] + 2, components[:, 1] * components[:, 2] - components[:, 0]
    return (flux - flux.mean(axis=0)).astype(np.float32), np.stack([linear, quadratic], axis=1)


def test_it_learns_a_quadratic_label(stars):
    flux, labels = stars
    form, errors, chosen = fit_quadratic(flux[:300], labels[:300])
    residual = form(flux[300:]) - labels[300:]
    assert residual.std(axis=0).max() < 0.02
    assert errors.max() < 0.02
    assert chosen[1][0][1] >= 3  # at least three components are multiplied with each other


def test_a_label_is_learned_from_the_stars_that_have_it(stars):
    flux, labels = stars[0], stars[1].copy()
    labels[:200, 1] = np.nan
    form, _, _ = fit_quadratic(flux, labels)
    alone, _, _ = fit_quadratic(flux, np.where(np.arange(400)[:, None] < 200, np.nan, labels))
    np.testing.assert_allclose(form(flux)[:, 1], alone(flux)[:, 1], atol=1e-6)
    assert np.std(form(flux)[:, 0] - labels[:, 0]) < 0.02


def test_a_label_that_hardly_any_star_has_is_zero(stars):
    flux, labels = stars[0], stars[1].copy()
    labels[9:, 1] = np.nan
    form, _, _ = fit_quadratic(flux, labels)
    np.testing.assert_array_equal(form(flux)[:, 1], 0)
    assert np.std(form(flux)[:, 0] - labels[:, 0]) < 0.02


def test_the_form_is_its_formula():
    random = np.random.default_rng(1)
    form = QuadraticForm(*(random.normal(size=s) for s in ((2,), (5, 2), (5, 3), (6, 2))))
    x = random.normal(size=(4, 5))
    u = x @ form.axes
    pairs = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    products = np.stack([u[:, i] * u[:, j] for i, j in pairs], axis=1)
    expected = form.constant + x @ form.linear + products @ form.products
    np.testing.assert_allclose(form(x), expected)
