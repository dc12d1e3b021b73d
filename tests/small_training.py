"""Training data of random spectra, for the tests of batches and of training."""

import numpy as np
from conftest import LABELS, make_model, make_spectra

from stellarperceptron.training.prepare import fit_standardization, prepare_training_data
from stellarperceptron.training.stars.labelled import Stars

NAMES = [f"syn_apogee{i}" for i in range(40)]
WAVELENGTHS = 15200.0 + 0.21 * np.arange(40)


def make_data(
    stars=30, bad=0.3, pixels_per_token=1, seed=0, conditions=False, errors=None, **options
):
    model = make_model(pixels_per_token=pixels_per_token, conditions=conditions)
    spectra = make_spectra(stars, 40, seed, bad)
    random = np.random.default_rng(seed)
    labels = np.linspace(1, 3, 3) + 0.05 * random.normal(size=(stars, 3))
    labels[random.random(labels.shape) < 0.3] = np.nan
    labels[:, 0] = np.where(np.isnan(labels).all(axis=1), 1.0, labels[:, 0])
    stars = Stars(
        spectra.__getitem__,
        NAMES,
        WAVELENGTHS,
        labels,
        np.full_like(labels, 0.01),
        LABELS,
        read_errors=errors and (lambda rows: errors(spectra[rows])),
    )
    fit_standardization(model, stars)
    return prepare_training_data(model, stars, **options)
