"""Perceive, request and predict, as users call them."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import LABELS, make_model, make_spectra
from hypothesis import given
from hypothesis import strategies as st
from reference_network import ReferenceNetwork
from small_model import NAMES, WAVELENGTHS, ask, predict

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.layers import Tokens
from stellarperceptron.network.patches import split_into_patches

# --- the same answer, however the question is put ---------------------------------------------


@given(batch_size=st.integers(1, 7), seed=st.integers(0, 1000))
def test_batch_size_changes_nothing(batch_size, seed):
    model, spectra = make_model(), make_spectra(5, 40, seed)
    np.testing.assert_allclose(
        ask(model, spectra, batch_size=batch_size), ask(model, spectra), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        predict(model, spectra, batch_size=batch_size),
        predict(model, spectra),
        rtol=1e-5,
        atol=1e-6,
    )


@given(order=st.permutations(range(12)), seed=st.integers(0, 1000))
def test_order_of_pixels_changes_nothing_in_perceive(order, seed):
    model, spectra = make_model(), make_spectra(3, 40, seed)
    np.testing.assert_allclose(
        ask(model, spectra, list(order)), ask(model, spectra, slice(0, 12)), rtol=1e-5, atol=1e-6
    )


@given(order=st.permutations(range(40)), pixels_per_token=st.sampled_from([1, 3]))
def test_order_of_pixels_changes_nothing_in_predict(order, pixels_per_token):
    model, spectra = make_model(pixels_per_token=pixels_per_token), make_spectra(3, 40)
    order = list(order)
    shuffled = model.predict(spectra[:, order], WAVELENGTHS[order], LABELS, names=NAMES[order])
    shuffled = shuffled.drop(columns="flags")
    np.testing.assert_allclose(shuffled, predict(model, spectra), rtol=1e-5, atol=1e-6)


@given(padding=st.integers(0, 4), seed=st.integers(0, 1000))
def test_padding_changes_nothing(padding, seed):
    model, spectra = make_model(), make_spectra(3, 40, seed)
    random = np.random.default_rng(seed)
    fill = random.normal(size=(3, padding))
    names = np.append(NAMES[:12], ["[pad]"] * padding)
    wavelengths = np.append(WAVELENGTHS[:12], 15300.0 + np.arange(padding))
    model.perceive(np.hstack([spectra[:, :12], fill]), names, wavelengths)
    padded = model.request(LABELS).to_numpy()
    np.testing.assert_allclose(padded, ask(model, spectra), rtol=1e-5, atol=1e-6)


@given(labels=st.permutations(LABELS))
def test_labels_do_not_see_each_other(labels):
    model, spectra = make_model(), make_spectra(3, 40)
    ask(model, spectra)
    together = model.request(labels)
    for label in labels:
        np.testing.assert_allclose(model.request([label])[label], together[label], rtol=1e-5)


def test_bad_pixels_are_as_good_as_absent(model, spectra):
    star = spectra[:1].copy()
    star[:, 3:6] = np.nan
    kept = [i for i in range(12) if not np.isnan(star[0, i])]
    np.testing.assert_allclose(ask(model, star), ask(model, star, kept), rtol=1e-5, atol=1e-6)


def test_attending_to_bad_pixels_is_the_published_choice(model, spectra):
    masked = ask(model, spectra)
    model.nan_policy = "attend"
    assert np.abs(ask(model, spectra) - masked).max() > 1e-4


def test_names_for_each_star(model, spectra):
    order = np.array([np.random.default_rng(i).permutation(12) for i in range(5)])
    model.perceive(np.take_along_axis(spectra, order, axis=1), NAMES[order], WAVELENGTHS[order])
    np.testing.assert_allclose(model.request(LABELS), ask(model, spectra), rtol=1e-5, atol=1e-6)


# --- what the answers are ---------------------------------------------------------------------


def test_request_gives_values_and_errors_in_order(model, spectra):
    ask(model, spectra)
    frame = model.request(["LOGG", "TEFF"])
    assert frame.columns.tolist() == ["LOGG", "TEFF", "LOGG_error", "TEFF_error"]
    assert (frame[["LOGG_error", "TEFF_error"]] > 0).all(axis=None)
    assert model.request("LOGG").columns.tolist() == ["LOGG", "LOGG_error"]


def test_answers_are_those_of_the_formulas_in_the_units_of_the_labels(model, spectra):
    part = slice(0, 16)
    pixels, labels = model.tokenize(NAMES[part]), model.tokenize(LABELS)
    center, scale = model.standardizer.center, model.standardizer.scale
    standardized = (spectra[:, part] - center[pixels]) / scale[pixels]
    value, logvar = ReferenceNetwork.of(model)(
        pixels[:, None], standardized[..., None], WAVELENGTHS[part], labels
    )
    expected = np.hstack(
        [value * scale[labels] + center[labels], np.exp(logvar / 2) * scale[labels]]
    )
    predicted = model.predict(spectra[:, part], WAVELENGTHS[part], LABELS, names=NAMES[part])
    answers = predicted.drop(columns="flags")
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ask(model, spectra, part), expected, rtol=1e-5, atol=1e-6)


def test_one_patch_predicts_what_perceive_and_request_do(model, spectra):
    part = slice(0, 16)
    predicted = model.predict(spectra[:, part], WAVELENGTHS[part], LABELS, names=NAMES[part])
    predicted = predicted.drop(columns="flags")
    np.testing.assert_allclose(predicted, ask(model, spectra, part), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("combine", ["mean", "inverse_variance"])
@pytest.mark.parametrize("pixels_per_token", [1, 2])
def test_predict_averages_its_patches(spectra, pixels_per_token, combine):
    model = make_model(pixels_per_token=pixels_per_token, context_length=10)
    layer = model.torch_model.embedding_layer
    patches = split_into_patches(model.tokenize(NAMES), WAVELENGTHS, np.arange(40), layer, 10)
    assert len(patches) == 4 // pixels_per_token
    answers = []
    for patch in patches:
        groups = patch.pixels.numpy()
        # perceive would pair neighbours of what it is given: ask the network itself.
        values = model.standardizer.standardize(
            spectra[:, groups.ravel()], model.tokenize(NAMES)[groups.ravel()]
        )
        values = torch.from_numpy(values).reshape(5, *groups.shape)
        with torch.no_grad():
            value, logvar = model.torch_model(
                Tokens(patch.ids, values, patch.encoding),
                torch.as_tensor(model.tokenize(LABELS)),
            )
        answers.append(np.hstack([value, (0.5 * logvar).exp()]))
    tokens = model.tokenize(LABELS)
    value, error = np.split(np.array(answers), 2, axis=2)
    weight = np.ones_like(error) if combine == "mean" else error**-2.0
    value = np.average(value, axis=0, weights=weight)
    error = error.mean(axis=0) if combine == "mean" else weight.mean(axis=0) ** -0.5
    expected = np.hstack(
        [
            model.standardizer.inverse_standardize(value, tokens),
            model.standardizer.inverse_standardize_error(error, tokens),
        ]
    )
    answers = predict(model, spectra, combine=combine)
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pixels_per_token", [1, 3])
def test_compiled_predictions_are_the_same(monkeypatch, spectra, pixels_per_token):
    # Tracing without a code generator: no compiler is needed, and no minutes.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = make_model(pixels_per_token=pixels_per_token, context_length=9)
    compiled = predict(model, spectra, compile=True, batch_size=3)  # five stars in patches of 7, 8
    np.testing.assert_allclose(compiled, predict(model, spectra), rtol=1e-5, atol=1e-6)


def test_predict_reads_what_can_be_sliced(model, spectra, tmp_path):
    np.save(tmp_path / "spectra.npy", spectra)
    mapped = np.load(tmp_path / "spectra.npy", mmap_mode="r")
    np.testing.assert_array_equal(predict(model, mapped), predict(model, spectra))


def test_predict_finds_apogee_pixels_by_wavelength():
    model, spectra = make_model(), make_spectra(2, 30)
    wavelengths = APOGEE_WAVELENGTH[5:35]
    found = model.predict(spectra, wavelengths, LABELS)
    named = model.predict(spectra, wavelengths, LABELS, names=NAMES[5:35])
    np.testing.assert_array_equal(found, named)


def test_predict_takes_no_stars(model):
    assert predict(model, np.empty((0, 40))).shape == (0, 6)


def test_bfloat16_is_close(model, spectra):
    exact, rounded = predict(model, spectra), predict(model, spectra, precision="bfloat16")
    assert 0 < np.abs(rounded - exact).max() < 0.05


def test_labels_and_colours_as_inputs(model):
    model.perceive([[1.0, 2.0]], ["TEFF", "LOGG"])
    first = model.request("FE_H").to_numpy()
    model.perceive([[1.05, 2.0]], ["TEFF", "LOGG"])
    assert np.isfinite(first).all()
    assert (model.request("FE_H").to_numpy() != first).all()


def test_pixels_and_labels_together(spectra):
    model = make_model(pixels_per_token=3)
    names = np.append(NAMES[:12], "TEFF")
    wavelengths = np.append(WAVELENGTHS[:12], 0.0)
    inputs = np.hstack([spectra[:, :12], np.full((5, 1), 1.0)])
    model.perceive(inputs, names, wavelengths)
    with_label = model.request("FE_H").to_numpy()
    model.perceive(inputs[:, :12], names[:12], wavelengths[:12])
    assert (model.request("FE_H").to_numpy() != with_label).all()


# --- attention --------------------------------------------------------------------------------


def test_attention_of_a_request_sums_to_one(model, spectra):
    ask(model, spectra)
    frame, attention = model.request(LABELS, return_attention_scores=True)
    assert attention.shape == (5, 12, 3)
    np.testing.assert_allclose(attention.sum(axis=1), 1.0, rtol=1e-6)
    assert (attention[np.isnan(spectra[:, :12])] == 0).all()
    np.testing.assert_allclose(frame, model.request(LABELS), rtol=1e-5)


@pytest.mark.parametrize(("normalization", "axis"), [("pixels", 2), ("published", 1)])
def test_attention_of_the_encoder(model, normalization, axis):
    attention = model.perceive(
        make_spectra(2, 12, bad=0),
        NAMES[:12],
        WAVELENGTHS[:12],
        return_attention_scores=True,
        attention_normalization=normalization,
    )
    assert attention.shape == (2, 12, 12)
    np.testing.assert_allclose(attention.sum(axis=axis), 1.0, rtol=1e-5)


def test_seed_sets_the_weights_and_leaves_the_global_generator():
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    models = [make_model(seed=3), make_model(seed=3), make_model(seed=4)]
    assert torch.equal(torch.rand(1), first)
    same, again, other = (m.torch_model.embedding_layer.embeddings for m in models)
    assert torch.equal(same, again) and not torch.equal(same, other)


@pytest.mark.slow
def test_a_context_of_the_whole_spectrum_trains_within_8_gb():
    """Paper's model, 7,514 pixels at once, forward and backward at batch 2, in its own process."""
    code = """
import resource, torch
from stellarperceptron import StellarPerceptron
from stellarperceptron.layers import Tokens
torch.set_num_threads(1)
names = [f"syn_apogee{i}" for i in range(7514)]
model = StellarPerceptron([*names, "FE_H"], device="cpu", context_length=7514)
network = model.torch_model.train()
tokens = Tokens(torch.arange(1, 7515)[:, None], torch.randn(2, 7514, 1), torch.randn(7514, 256))
value, logvar = network(tokens, torch.tensor([7515]))
(value + logvar).sum().backward()
assert all(p.grad.isfinite().all() for p in network.parameters())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 8.0
