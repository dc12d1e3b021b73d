"""Perceive, request and predict: input that they take or refuse."""

import warnings

import numpy as np
import pytest
import small_model
from conftest import LABELS, make_model, make_spectra
from small_model import NAMES, WAVELENGTHS, ask, predict

from stellarperceptron import StellarPerceptron


@pytest.mark.parametrize("predicts", [True, False])
@pytest.mark.parametrize("pixels_per_token", [1, 3])
def test_a_star_without_pixels_is_nan_and_named(spectra, predicts, pixels_per_token):
    model = make_model(pixels_per_token=pixels_per_token)
    function = predict if predicts else ask
    good = function(model, spectra)
    spectra[3] = np.nan
    with pytest.warns(UserWarning, match="index 3"):
        answer = function(model, spectra)
    assert np.isnan(answer[3]).all()
    others = [0, 1, 2, 4]
    np.testing.assert_allclose(answer[others], good[others], rtol=1e-5, atol=1e-6)


def test_a_patch_without_pixels_does_not_count(model):
    spectra = make_spectra(1, 40, bad=0)
    spectra[0, 1:] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = predict(model, spectra)
    np.testing.assert_allclose(answer, ask(model, spectra, slice(0, 1)), rtol=1e-5, atol=1e-6)


def test_warnings_point_to_the_caller(model, spectra):
    spectra[3] = np.nan
    for call in (ask, predict):
        with pytest.warns(UserWarning, match="index 3") as record:
            call(model, spectra)
        assert record[0].filename == small_model.__file__  # of the two functions


def test_attention_of_a_star_without_pixels(model, spectra):
    spectra[3] = np.nan
    with pytest.warns(UserWarning, match="index 3"):
        ask(model, spectra)
    _, attention = model.request(LABELS, return_attention_scores=True)
    assert np.isnan(attention[3]).all() and np.isfinite(attention[2]).all()


def test_a_failed_perceive_forgets_the_stars_before(model, spectra):
    ask(model, spectra)
    with pytest.raises(ValueError, match="context"):
        ask(model, spectra, slice(0, 17))
    with pytest.raises(RuntimeError, match="perceive"):
        model.request(LABELS)


def test_padding_is_no_pixel_and_no_label(model, spectra):
    names = NAMES.astype("U20")
    names[5] = "[pad]"
    with pytest.raises(ValueError, match="padding"):
        model.predict(spectra, WAVELENGTHS, LABELS, names=names)
    with pytest.raises(ValueError, match="padding"):
        model.predict(spectra, WAVELENGTHS, ["[pad]"], names=NAMES)


def test_padding_between_pixels_is_not_grouped_with_them(spectra):
    model = make_model(pixels_per_token=3)
    names = np.insert(NAMES[:12], 5, "[pad]")
    wavelengths = np.insert(WAVELENGTHS[:12], 5, WAVELENGTHS[4] + 0.1)
    model.perceive(np.insert(spectra[:, :12], 5, 1.0, axis=1), names, wavelengths)
    padded = model.request(LABELS)
    np.testing.assert_allclose(padded, ask(model, spectra), rtol=1e-5, atol=1e-6)


def test_pixels_of_the_same_wavelength_may_come_in_any_order(model, spectra):
    wavelengths = np.full(40, 15250.0)
    order = np.random.default_rng(0).permutation(40)
    straight = model.predict(spectra, wavelengths, LABELS, names=NAMES)
    shuffled = model.predict(spectra[:, order], wavelengths, LABELS, names=NAMES[order])
    np.testing.assert_allclose(straight, shuffled, rtol=1e-5, atol=1e-6)


def test_dropout_never_touches_predictions(model, spectra):
    expected = predict(model, spectra)
    model.torch_model.train()
    np.testing.assert_array_equal(predict(model, spectra), expected)
    assert model.torch_model.training


def test_no_stars_give_no_rows(model):
    assert ask(model, np.empty((0, 40))).shape == (0, 6)


def test_no_pixels(model):
    with pytest.raises(ValueError, match="no pixels"):
        model.predict(np.empty((3, 0)), [], LABELS, names=[])


@pytest.mark.parametrize("batch_size", [0, -1])
def test_impossible_batch_sizes(model, spectra, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        predict(model, spectra, batch_size=batch_size)


def test_many_unknown_names_are_refused_at_once(model, spectra):
    with pytest.raises(ValueError, match="and 35 more"):
        model.predict(spectra, WAVELENGTHS, LABELS, names=[f"pixel{i}" for i in range(40)])


def test_request_needs_perception(model):
    with pytest.raises(RuntimeError, match="perceive"):
        model.request(LABELS)


def test_unknown_label_names_the_nearest(model, spectra):
    ask(model, spectra)
    with pytest.raises(ValueError, match=r"'TEF'.*TEFF"):
        model.request(["TEF"])
    with pytest.raises(ValueError, match=r"'MG_FE'.*FE_H"):
        model.predict(spectra, WAVELENGTHS, ["MG_FE"], names=NAMES)


@pytest.mark.parametrize("name", ["Teff", "teff", "logg", "log g", "fe_h", "[Fe/H]", "FEH"])
def test_labels_are_known_as_people_write_them(model, spectra, name):
    label = {"t": "TEFF", "l": "LOGG", "f": "FE_H"}[name.strip("[").lower()[0]]
    predicted = model.predict(spectra, WAVELENGTHS, [name], names=NAMES)
    assert list(predicted) == [label, f"{label}_error", "flags"]


def test_more_pixels_than_the_context(model, spectra):
    with pytest.raises(ValueError, match="predict"):
        ask(model, spectra, slice(0, 17))


@pytest.mark.parametrize(
    ("inputs", "names", "wavelengths"),
    [
        (np.ones((2, 3)), NAMES[:4], WAVELENGTHS[:3]),
        (np.ones((2, 3)), NAMES[:3], WAVELENGTHS[:4]),
        (np.ones((2, 3)), None, WAVELENGTHS[:3]),
        (np.ones((2, 3, 1)), NAMES[:3], WAVELENGTHS[:3]),
        (np.ones((2, 3)), np.tile(NAMES[:3], (3, 1)), WAVELENGTHS[:3]),
    ],
)
def test_shapes_that_do_not_match(model, inputs, names, wavelengths):
    with pytest.raises(ValueError, match=r"do not match|expected"):
        model.perceive(inputs, names, wavelengths)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_wavelengths_must_be_finite(model, spectra, bad):
    wavelengths = WAVELENGTHS.copy()
    wavelengths[7] = bad
    with pytest.raises(ValueError, match="finite"):
        model.predict(spectra, wavelengths, LABELS, names=NAMES)
    with pytest.raises(ValueError, match="finite"):
        model.perceive(spectra[:, :12], NAMES[:12], wavelengths[:12])


def test_wavelengths_outside_the_range_warn_once(model, spectra):
    with pytest.warns(UserWarning, match="15000"):
        model.predict(spectra, WAVELENGTHS - 5000, LABELS, names=NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(spectra, WAVELENGTHS - 5000, LABELS, names=NAMES)


def test_pixels_without_names(spectra):
    model = StellarPerceptron(["blue", "red"], device="cpu", seed=0)
    model.fit_standardization(spectra[:, :2], ["blue", "red"])
    with pytest.raises(ValueError, match="names="):
        model.predict(spectra[:, :1], WAVELENGTHS[:1], ["red"])


def test_without_standardization_nothing_is_guessed(spectra):
    model = StellarPerceptron([*NAMES, "TEFF"], device="cpu", seed=0)
    with pytest.raises(ValueError, match="standardization"):
        model.predict(spectra, WAVELENGTHS, ["TEFF"], names=NAMES)
    with pytest.raises(ValueError, match="standardization"):
        model.perceive(spectra[:, :12], NAMES[:12], WAVELENGTHS[:12])


@pytest.mark.parametrize("options", [{"combine": "median"}, {"precision": "float8"}])
def test_unknown_choices_name_the_known(model, spectra, options):
    with pytest.raises(ValueError, match=r"mean, inverse_variance|float32, bfloat16"):
        predict(model, spectra, **options)


def test_groups_need_shared_wavelengths(spectra):
    model = make_model(pixels_per_token=2)
    with pytest.raises(ValueError, match="2 pixels a token"):
        model.perceive(spectra[:, :4], NAMES[:4], np.tile(WAVELENGTHS[:4], (5, 1)))


def test_nothing_is_printed(model, spectra, capfd):
    ask(model, spectra)
    predict(model, spectra)
    assert capfd.readouterr() == ("", "")
