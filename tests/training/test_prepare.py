"""Training data: read once, augmented before they are standardized."""

import numpy as np
import pytest
import torch
from conftest import LABELS, make_model, make_spectra
from small_training import NAMES, WAVELENGTHS, make_data

from stellarperceptron import StellarPerceptron
from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.prepare import (
    fewest_tokens,
    fit_standardization,
    prepare_training_data,
    usable_stars,
)
from stellarperceptron.training.stars.labelled import Stars


def test_augmentation_receives_fluxes_before_they_are_standardized():
    seen = []

    def augment(flux, generator):
        seen.append(flux)
        return flux + 0.1 * torch.arange(40)

    data = make_data(bad=0, augment=augment)
    changed = data.seen(data.values[:4], torch.Generator()).values
    flux = make_spectra(4, 40, bad=0)
    np.testing.assert_allclose(seen[0], flux, rtol=1e-5)
    model = make_model()
    expected = model.standardizer.standardize(flux + 0.1 * np.arange(40), model.tokenize(NAMES))
    np.testing.assert_allclose(changed, expected, rtol=1e-3, atol=1e-3)


def test_augmentation_is_fresh_in_training_and_absent_in_validation():
    def augment(flux, generator):
        return flux + 0.01 * torch.randn(flux.shape, generator=generator)

    data = make_data(bad=0, augment=augment)
    training = TrainingGenerator(data, np.arange(30), 30, 40)

    def by_pixel(batch):
        order = batch.stars.argsort()
        pixels, values = (x[order, :, 0] for x in batch.tokens[:2])
        return torch.zeros(30, 40).scatter_(1, pixels - 1, values)

    first, second = (by_pixel(next(training.batches(epoch))) for epoch in (0, 1))
    assert torch.equal(first, by_pixel(next(training.batches(0))))
    assert (first != second).float().mean() > 0.9
    validation = next(TrainingGenerator(data, np.arange(30), 30, 40, fixed=True).batches())
    torch.testing.assert_close(by_pixel(validation), data.standardized(data.values))


def test_stars_without_labels_or_pixels_are_not_usable():
    data = make_data()
    data.labels[3] = torch.nan
    data.values[5] = torch.nan
    assert usable_stars(data).tolist() == [i for i in range(30) if i not in (3, 5)]
    assert fewest_tokens(data, np.array([5, 6])) == 0


def test_fluxes_beyond_ten_scales_are_bad():
    data = make_data(bad=0)
    data.values[2] = 11 * data.scale
    assert data.standardized(data.values[2:3]).isnan().all()
    assert 2 not in usable_stars(data)


def test_half_precision_rounds_a_flux_by_less_than_a_ten_thousandth():
    single, half = make_data(), make_data(dtype=torch.float16)
    difference = (single.values - half.values.float()).nan_to_num().abs()
    assert 0 < difference.max() < 1e-4


def test_standardization_is_fitted_to_the_training_stars():
    model = StellarPerceptron([*NAMES, *LABELS], device="cpu", embedding_dim=16, seed=0)
    spectra, labels = make_spectra(50, 40), make_spectra(50, 3, bad=0)
    stars = Stars(spectra.__getitem__, NAMES, WAVELENGTHS, labels, None, LABELS)
    with pytest.raises(ValueError, match="no standardization"):
        prepare_training_data(model, stars)
    fit_standardization(model, stars)
    data = prepare_training_data(model, stars)
    median = data.standardized(data.values).nanmedian(dim=0).values
    np.testing.assert_allclose(median, 0, atol=0.1)
    np.testing.assert_allclose(data.labels.median(dim=0).values, 0, atol=0.1)
    assert not data.label_errors.any()


def test_label_errors_are_scaled_as_the_labels_and_unknown_ones_are_zero():
    model = make_model()
    labels, errors = np.ones((9, 3)), np.full((9, 3), 0.02)
    errors[4, 1] = np.nan
    stars = Stars(make_spectra(9, 40).__getitem__, NAMES, None, labels, errors, LABELS)
    data = prepare_training_data(model, stars)
    scale = model.standardizer.scale[model.tokenize(LABELS)]
    np.testing.assert_allclose(data.label_errors, np.nan_to_num(errors) / scale, rtol=1e-6)


def test_known_standardization_stays_as_it_is():
    model = make_model()
    before = model.standardizer.center.copy()
    stars = Stars(make_spectra(9, 40).__getitem__, NAMES, None, np.ones((9, 3)), None, LABELS)
    fit_standardization(model, stars)
    np.testing.assert_array_equal(model.standardizer.center, before)
