"""The mean of regression and network: shares, who answers alone, and files."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import LABELS, make_model, make_spectra
from hypothesis import given
from hypothesis import strategies as st
from small_model import NAMES, WAVELENGTHS

from stellarperceptron import StellarPerceptron
from stellarperceptron.network.baselines.averaged import AveragedRegression
from stellarperceptron.network.baselines.quadratic import QuadraticForm

PIXELS, SNR = 40, np.array([200.0, 50.0, 0.0])
ERRORS = {"pixels_per_token": 8, "conditions": True}


def make_regression(share=(0.6, 0.2, 0.3), labels=LABELS, vocabulary=(*NAMES, *LABELS)):
    """A regression whose answers depend on all pixels."""
    random = np.random.default_rng(3)
    q = len(labels)
    form = QuadraticForm(
        random.normal(size=q),
        random.normal(size=(PIXELS, q)).astype(np.float32),
        random.normal(size=(PIXELS, 2)).astype(np.float32),
        random.normal(size=(3, q)),
    )
    return AveragedRegression(
        np.arange(1, PIXELS + 1),
        np.array([1 + vocabulary.index(label) for label in labels]),
        random.normal(size=PIXELS),
        form,
        SNR,
        np.broadcast_to(np.array(share)[:, None], (len(SNR), q)).copy(),
        np.full((len(SNR), q), 0.9),
        np.full((len(SNR), q), 100.0),
    )


@pytest.fixture
def model():
    model = make_model(**ERRORS)
    model.regression = make_regression(vocabulary=tuple(model.vocabs))
    return model


def ask(model, spectra, part=slice(None), snr=200.0, **options):
    """Predict all labels; values and errors (2, N, Q)."""
    spectra, wavelengths, names = spectra[:, part], WAVELENGTHS[part], NAMES[part]
    options = {"names": names, "snr": snr, "progress": False, **options}
    table = model.predict(spectra, wavelengths, LABELS, **options)
    errors = [f"{label}_error" for label in LABELS]
    return np.stack([table[LABELS].to_numpy(), table[errors].to_numpy()])


def alone(model, spectra, *args, **options):
    regression, model.regression = model.regression, None
    try:
        return ask(model, spectra, *args, **options)
    finally:
        model.regression = regression


def regressed(model, spectra):
    """Labels by the regression, in their units."""
    columns = model.regression.columns(model.tokenize(NAMES))
    answers = model.regression.answers(spectra, columns)
    return model.standardizer.inverse_standardize(answers, model.regression.label_tokens)


@pytest.mark.filterwarnings("ignore:.*flagged")
def test_predict_gives_the_weighted_mean(model, monkeypatch):
    monkeypatch.setattr("stellarperceptron.network.interface.judge.Judge.__call__", no_flags)
    spectra = make_spectra(6, PIXELS, bad=0.02)
    network, both = alone(model, spectra), ask(model, spectra)
    expected = 0.4 * network[0] + 0.6 * regressed(model, spectra)
    np.testing.assert_allclose(both[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(both[1], 0.9 * network[1], rtol=1e-6)


def no_flags(self, flux, valid, errors=None):
    return np.zeros(len(flux), dtype=np.int64)


@pytest.mark.parametrize("snr, share", [(1000.0, 0.6), (100.0, 0.4), (10.0, 0.2), (np.nan, 0.3)])
def test_the_share_follows_the_signal_to_noise_ratio(snr, share):
    regression = make_regression()
    value = np.zeros((1, len(LABELS)))
    mean, _ = regression.average(
        value, value + 1, value + 1, regression.label_tokens, np.array([snr])
    )
    np.testing.assert_allclose(mean, share)


def test_without_ratios_the_share_is_that_of_unknown_ones():
    regression = make_regression()
    value = np.zeros((3, len(LABELS)))
    mean, _ = regression.average(value, value + 1, value + 1, regression.label_tokens)
    np.testing.assert_allclose(mean, 0.3)


def test_labels_that_the_regression_does_not_know_stay():
    regression = make_regression(labels=LABELS[:1])
    tokens = np.array([regression.label_tokens[0], 999])
    mean, error = regression.average(np.zeros((2, 2)), np.ones((2, 2)), np.ones((2, 1)), tokens)
    np.testing.assert_allclose(mean, [[0.3, 0.0]] * 2)
    np.testing.assert_allclose(error, [[0.9, 1.0]] * 2)


@pytest.mark.filterwarnings("ignore:.*flagged")
@pytest.mark.parametrize("part", [slice(0, 32), slice(4, 40)])
def test_the_network_answers_alone_from_other_pixels(model, part):
    spectra = make_spectra(4, PIXELS, bad=0.0)
    np.testing.assert_array_equal(ask(model, spectra, part), alone(model, spectra, part))


@pytest.mark.filterwarnings("ignore:.*flagged")
def test_the_network_answers_alone_for_flagged_stars(model, monkeypatch):
    def second_is_flagged(self, flux, valid, errors=None):
        return np.where(np.arange(len(flux)) == 1, 32, 0)

    monkeypatch.setattr(
        "stellarperceptron.network.interface.judge.Judge.__call__", second_is_flagged
    )
    spectra = make_spectra(3, PIXELS, bad=0.0)
    network, both = alone(model, spectra), ask(model, spectra)
    np.testing.assert_array_equal(both[:, 1], network[:, 1])
    assert (both[:, [0, 2]] != network[:, [0, 2]]).all()


def test_the_network_answers_alone_for_stars_with_many_bad_pixels():
    regression = make_regression()
    flux = np.zeros((2, PIXELS))
    flux[0, :4], flux[1, :5] = np.nan, np.nan
    answers = regression.answers(flux, np.arange(PIXELS))
    assert np.isfinite(answers[0]).all() and np.isnan(answers[1]).all()


def test_the_network_answers_alone_where_the_two_disagree():
    regression = dataclasses.replace(make_regression(), differences=np.full((3, len(LABELS)), 0.3))
    value = np.zeros((1, len(LABELS)))
    answers = np.array([[2.4, 2.6, -9.0]])  # 0.5 is the usual scatter and the error in quadrature
    mean, error = regression.average(value, value + 0.4, answers, regression.label_tokens)
    np.testing.assert_allclose(mean, [[0.3 * 2.4, 0, 0]])
    np.testing.assert_allclose(error, [[0.9 * 0.4, 0.4, 0.4]])


@given(st.permutations(list(range(PIXELS))))
def test_pixels_may_come_in_any_order(order):
    regression, tokens = make_regression(), np.array(order) + 1
    np.testing.assert_array_equal(tokens[regression.columns(tokens)], regression.tokens)


def test_half_precision_hardly_changes_the_answers(model, tmp_path):
    model.save(tmp_path / "half", dtype=torch.float16)
    half = StellarPerceptron.load(tmp_path / "half", device="cpu").regression
    spectra, columns = make_spectra(20, PIXELS), np.arange(PIXELS)
    one, other = (r.answers(spectra, columns) for r in (model.regression, half))
    known = np.isfinite(one)
    assert 0 < np.abs(one - other)[known].max() < 0.01 * one[known].std()


def test_a_checkpoint_keeps_the_regression_and_fine_tuning_drops_it(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = StellarPerceptron.load(tmp_path / "model", device="cpu")
    for name, array in model.regression.to_arrays().items():
        np.testing.assert_array_equal(loaded.regression.to_arrays()[name], array)
    tuned = StellarPerceptron.load_for_finetuning(tmp_path / "model", device="cpu")
    assert tuned.regression is None


def changed(**arrays):
    return {**make_regression().to_arrays(), **arrays}


@pytest.mark.parametrize(
    "arrays, message",
    [
        (changed(shares=np.full((3, len(LABELS)), 1.5)), "not possible"),
        (changed(snr=np.array([50.0, 200.0, 0.0])), "not possible"),
        (changed(snr=np.array([200.0, 50.0, 20.0])), "not possible"),
        (changed(mean=np.full(PIXELS, np.nan)), "mean of the regression is not finite"),
        (changed(axes=np.zeros(PIXELS)), "axes of the regression is not an array"),
        (changed(tokens=np.arange(PIXELS)), "not tokens of this model"),
        ({"mean": np.zeros(3)}, "the regression has"),
    ],
)
def test_impossible_arrays_are_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        AveragedRegression.from_arrays(arrays, PIXELS + len(LABELS))
