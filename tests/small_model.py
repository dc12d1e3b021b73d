"""A tiny model's answers, as users ask for them."""

import numpy as np
from conftest import LABELS

NAMES = np.array([f"syn_apogee{i}" for i in range(40)])
WAVELENGTHS = 15200.0 + 0.21 * np.arange(40)


def ask(model, spectra, part=slice(0, 12), **options):
    """Perceive some pixels and request all labels."""
    model.perceive(spectra[:, part], NAMES[part], WAVELENGTHS[part], **options)
    return model.request(LABELS).to_numpy()


def predict(model, spectra, wavelengths=WAVELENGTHS, **options):
    """Predict all labels from all pixels."""
    table = model.predict(spectra, wavelengths, LABELS, names=NAMES, **options)
    return table.drop(columns="flags").to_numpy()
