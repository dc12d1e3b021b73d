"""Spectra as people have them, embeddings, labels apart from spectra, and what a model says."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from astropy import units as u
from astropy.table import Table
from conftest import make_model, make_spectra

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.mock.survey import MockSurvey
from stellarperceptron.instruments import APOGEE
from stellarperceptron.utils.arrays import as_spectra

WAVELENGTH = APOGEE.wavelength[:40]


class Spectrum:
    """What `specutils.Spectrum` has."""

    def __init__(self, flux, spectral_axis, mask=None):
        self.flux, self.spectral_axis, self.mask = flux, spectral_axis, mask


def predict(model, *arguments, **options):
    return model.predict(*arguments, progress=False, **options).to_numpy()


# --- containers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flux", "wavelengths"),
    [
        (lambda x: x, lambda w: w * u.AA),
        (lambda x: x, lambda w: (w * u.AA).to(u.nm)),
        (lambda x: x * u.dimensionless_unscaled, lambda w: (w * u.AA).to(u.um)),
        (lambda x: x * 100 * u.percent, lambda w: (w * u.AA).to(u.THz, u.spectral())),
        (lambda x: torch.tensor(x, requires_grad=True), torch.tensor),
        (lambda x: pd.DataFrame(x), pd.Series),
        (lambda x: x.tolist(), list),
    ],
    ids=["angstrom", "nm", "micron", "thz", "tensor", "pandas", "list"],
)
def test_containers_and_units_give_the_same_labels(model, spectra, flux, wavelengths):
    expected = predict(model, spectra, WAVELENGTH, ["TEFF", "FE_H"])
    given = predict(model, flux(spectra), wavelengths(WAVELENGTH), ["TEFF", "FE_H"])
    np.testing.assert_allclose(given, expected, rtol=1e-6)


def test_one_spectrum_is_one_star(model, spectra):
    expected = predict(model, spectra, WAVELENGTH, ["TEFF"])
    given = predict(model, spectra[2], WAVELENGTH, ["TEFF"])
    np.testing.assert_allclose(given, expected[2:3], rtol=1e-6)


def test_spectrum_objects_bring_their_wavelengths_and_masks(model, spectra):
    spectra = np.nan_to_num(spectra, nan=0.9)
    mask = np.zeros(spectra.shape, dtype=bool)
    mask[:, 5:9] = True
    expected = predict(model, np.where(mask, np.nan, spectra), WAVELENGTH)
    axis = (WAVELENGTH * u.AA).to(u.nm)
    given = Spectrum(spectra * u.dimensionless_unscaled, axis, mask)
    np.testing.assert_allclose(predict(model, given), expected, rtol=1e-6)
    one = Spectrum(given.flux[0], axis, mask[0])
    np.testing.assert_allclose(predict(model, one), expected[:1], rtol=1e-6)


def test_spectra_of_specutils(model, spectra):
    specutils = pytest.importorskip("specutils")
    kind = getattr(specutils, "Spectrum", None) or specutils.Spectrum1D
    flux = np.nan_to_num(spectra, nan=0.9)
    expected = predict(model, flux, WAVELENGTH)
    given = kind(flux=flux * u.dimensionless_unscaled, spectral_axis=WAVELENGTH * u.AA)
    np.testing.assert_allclose(predict(model, given), expected, rtol=1e-6)


def test_data_sets_are_not_read_at_once(tmp_path, spectra):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset("flux", data=spectra)
        assert as_spectra(data, WAVELENGTH)[0] is data


def test_spectra_without_wavelengths_or_shape_are_refused(model, spectra):
    with pytest.raises(ValueError, match="need wavelengths"):
        model.predict(spectra)
    with pytest.raises(ValueError, match="expected \\(stars, pixels\\)"):
        model.predict(spectra[None], WAVELENGTH)
    with pytest.raises(ValueError, match="erg"):
        model.predict(spectra * u.erg, WAVELENGTH)


def test_all_labels_are_predicted_if_none_is_named(model, spectra):
    frame = model.predict(spectra, WAVELENGTH, progress=False)
    assert list(frame)[:3] == list(model.labels) == ["TEFF", "LOGG", "FE_H"]
    model.instrument = None
    with pytest.raises(ValueError, match="name labels"):
        model.predict(spectra, WAVELENGTH, names=model.vocabs[:40])


def test_a_model_says_what_it_is(model):
    assert model.labels["TEFF"].unit == "K"
    text = repr(model)
    assert "Teff [K], log g [dex], [Fe/H] [dex]" in text and "APOGEE (7514 pixels" in text
    number = sum(p.numel() for p in model.torch_model.parameters())
    assert f"{number:,} parameters" in text


# --- fit ------------------------------------------------------------------------------------------

FIT = {"epochs": 2, "batch_size": 8, "progress": False, "validation_split": 0.25}


def make_labels(stars=24):
    """Labels near those that the standardization of `make_model` knows."""
    random = np.random.default_rng(5)
    labels = [1, 3] + 0.05 * random.normal(size=(stars, 2))
    return pd.DataFrame(labels, columns=["Teff", "[Fe/H]"])


def test_obvious_form_trains_as_the_published_one():
    flux, labels = make_spectra(24, 40), make_labels()
    one, other = make_model(), make_model()
    history = one.fit(flux, labels, WAVELENGTH, **FIT)
    inputs = np.hstack([flux, labels])
    names = [*other.vocabs[:40], "TEFF", "FE_H"]
    published = other.fit(
        inputs, names, names[40:], inputs_wavelength=np.append(WAVELENGTH, [0, 0]), **FIT
    )
    np.testing.assert_allclose(history["loss"], published["loss"], rtol=1e-4)
    np.testing.assert_allclose(
        predict(one, flux, WAVELENGTH), predict(other, flux, WAVELENGTH), rtol=1e-3
    )


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (lambda table: Table.from_pandas(table), {}),
        (lambda table: {name: table[name].tolist() for name in table}, {}),
        (lambda table: table.to_numpy(), {"label_names": ["Teff", "[Fe/H]"]}),
        (lambda table: table.assign(extra="a"), {"label_names": ["Teff", "[Fe/H]"]}),
    ],
    ids=["astropy", "dict", "array", "column choice"],
)
def test_labels_come_in_any_table(labels, options):
    flux, table = make_spectra(24, 40), make_labels()
    expected, given = make_model(), make_model()
    expected.fit(flux, table, WAVELENGTH, **FIT)
    given.fit(flux, labels(table), WAVELENGTH * u.AA, **options, **FIT)
    np.testing.assert_array_equal(
        predict(given, flux, WAVELENGTH), predict(expected, flux, WAVELENGTH)
    )


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (make_labels(23), {}, r"labels have shape \(23, 2\), expected \(24, 2\)"),
        (make_labels().to_numpy(), {}, "give label_names"),
        (make_labels().rename(columns={"Teff": "X"}), {}, "no label 'X'; known are TEFF"),
    ],
)
def test_labels_that_do_not_fit_are_named(model, labels, options, message):
    with pytest.raises(ValueError, match=message):
        model.fit(make_spectra(24, 40), labels, WAVELENGTH, **options, **FIT)


# --- embeddings -----------------------------------------------------------------------------------


def test_embedding_is_the_mean_perception(model, spectra):
    some = spectra[:, :12]
    embedded = model.embed(some, WAVELENGTH[:12], progress=False)
    model.perceive(some, model.vocabs[:12], WAVELENGTH[:12])
    perception, mask = model._perception
    mean = [p[m].mean(dim=0).numpy() for p, m in zip(perception, mask, strict=True)]
    np.testing.assert_allclose(embedded, mean, atol=1e-6)


def test_embeddings_do_not_depend_on_the_batch_and_on_other_pixels(model, spectra):
    whole = model.embed(spectra, WAVELENGTH, progress=False)  # three patches
    assert whole.shape == (5, 16) and np.isfinite(whole).all()
    np.testing.assert_allclose(
        model.embed(spectra, WAVELENGTH, batch_size=2, progress=False), whole, atol=1e-6
    )
    spectra[1] = np.nan
    with pytest.warns(UserWarning, match="index 1"):
        one_empty = model.embed(spectra, WAVELENGTH, progress=False)
    assert np.isnan(one_empty[1]).all()
    np.testing.assert_allclose(one_empty[2:], whole[2:], atol=1e-6)


@pytest.mark.slow
def test_iron_is_read_from_the_embeddings_of_200_stars():
    """Ridge regression, its strength chosen by leave-one-out residuals of the 200 stars."""
    model = StellarPerceptron.from_pretrained("laptop", device="cpu")
    half = APOGEE.pixel_range("first_half")
    stars = MockSurvey(seed=99).block("test", 0, 400)
    x = model.embed(stars["observed"][:, half], APOGEE.wavelength[half], progress=False)
    iron = stars["true_labels"][:, 4].astype(float)
    x = (x - x[:200].mean(axis=0)) / x[:200].std(axis=0)
    x = np.column_stack([np.ones(400), x]).astype(float)
    best = None
    for strength in 10.0 ** np.arange(-4, 4):
        inverse = np.linalg.inv(x[:200].T @ x[:200] + strength * np.eye(x.shape[1]))
        hat = x[:200] @ inverse @ x[:200].T
        residual = (iron[:200] - hat @ iron[:200]) / (1 - np.diag(hat))
        if best is None or np.square(residual).mean() < best[0]:
            best = np.square(residual).mean(), inverse @ x[:200].T @ iron[:200]
    residual = iron[200:] - x[200:] @ best[1]
    assert 1 - residual.var() / iron[200:].var() > 0.9
