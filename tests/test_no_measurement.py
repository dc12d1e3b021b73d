"""What holds no measurement gets no labels, whatever stands there instead of one."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import LABELS, make_model, make_spectra

from stellarperceptron.data.apogee.continuum import normalize, pseudo_continuum
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.flags import Flag
from stellarperceptron.data.wavelengths import vacuum_to_air
from stellarperceptron.evaluation.baselines import QuadraticRegression
from stellarperceptron.instruments import APOGEE
from stellarperceptron.network.baselines.published import BaselineNetwork
from stellarperceptron.utils.arrays import is_constant

NAMES = [f"syn_apogee{i}" for i in range(40)]
WAVELENGTHS = 15200.0 + 0.21 * np.arange(40)
FEW = slice(0, 15)
MARKS = (-9999.0, 9999.0, -9999.99, 99999.0, -999.0, 999.99, 1e20, -1e30, 9.97e36, np.inf, -np.inf)


def ask(model, spectra):
    model.perceive(spectra[:, FEW], NAMES[FEW], WAVELENGTHS[FEW])
    return model.request(LABELS).to_numpy()


def predict(model, spectra):
    answer = model.predict(spectra, WAVELENGTHS, LABELS, names=NAMES, progress=False)
    empty = answer[LABELS].isna().all(axis=1)
    np.testing.assert_array_equal(answer["flags"].to_numpy() & int(Flag.NO_MEASUREMENT) != 0, empty)
    return answer.drop(columns="flags").to_numpy()


def wide_model(**options):
    """A model to which no flux between -10 and 10 is unusual."""
    model = make_model(**options)
    model.standardizer.scale[1:41] = 1.0
    return model


EMPTY = {
    "zero": np.zeros(40),
    "negative": -make_spectra(1, 40, bad=0)[0],
    "one": np.ones(40),
    "a number": np.full(40, 0.93),
    "one but for rounding": 1 + 1e-7 * np.random.default_rng(0).normal(size=40),
    "one with gaps": np.where(np.arange(40) % 3, np.nan, 1.0),
    "mark": np.full(40, -9999.0),
    "nothing": np.full(40, np.nan),
    "infinity": np.full(40, np.inf),
}


@pytest.mark.parametrize("function", [ask, predict])
@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("pixels_per_token", [1, 4])
def test_a_spectrum_without_measurements_has_no_labels(function, kind, pixels_per_token):
    model = wide_model(pixels_per_token=pixels_per_token)
    spectra = make_spectra(3, 40)
    expected = function(model, spectra)
    if function is ask and kind == "one with gaps":
        spectra[1] = np.where(np.arange(40) % 15 == 3, np.nan, 1.0)
    else:
        spectra[1] = EMPTY[kind]
    with pytest.warns(UserWarning, match="index 1"):
        answer = function(model, spectra)
    assert np.isnan(answer[1]).all()
    np.testing.assert_allclose(answer[[0, 2]], expected[[0, 2]], rtol=1e-5)


def test_stars_with_names_of_their_own_are_checked_one_by_one():
    model = wide_model()
    spectra = make_spectra(3, 16, bad=0)
    spectra[1] = 1.0
    names = np.array([np.random.default_rng(i).permutation(NAMES)[:16] for i in range(3)])
    with pytest.warns(UserWarning, match="index 1"):
        model.perceive(spectra, names)
    assert np.isnan(model.request(LABELS).to_numpy()).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [0.0, 1.0, -0.2])
def test_a_dead_chip_leaves_the_others(value):
    flux = torch.from_numpy(make_spectra(2, 7514, bad=0.01))
    green = APOGEE.chips["green"]
    flux[1, green] = value
    model = make_model(7514)
    tokens = np.arange(1, 7515)
    measured = model.measured(flux, tokens)
    assert measured[1, green].isnan().all()
    assert measured[1].isfinite().sum() == flux[1].isfinite().sum() - (green.stop - green.start)
    assert torch.equal(measured[0].nan_to_num(), flux[0].nan_to_num())
    turned = model.measured(flux.flip(1), tokens[::-1]).flip(1)
    assert torch.equal(turned.nan_to_num(), measured.nan_to_num())


def test_measured_flux_is_not_copied():
    flux = torch.from_numpy(make_spectra(2, 7514, bad=0.1))
    assert make_model(7514).measured(flux, np.arange(1, 7515)) is flux


def test_labels_and_colours_may_be_zero_and_alike():
    labels = [f"L{i}" for i in range(15)]
    model = make_model(labels=labels)
    model.standardizer.center[41:] = 0
    model.perceive(np.zeros((1, 15)), labels)
    assert np.isfinite(model.request(["L3"])).all(axis=None)


def test_few_pixels_may_be_alike():
    assert not is_constant(torch.ones(3, 10)).any()
    assert is_constant(torch.ones(3, 11)).all()
    spectrum = torch.linspace(0.9, 1.0, 100)
    assert not is_constant(spectrum)
    spectrum[:95] = 0.5
    assert is_constant(spectrum)


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("function", [ask, predict])
def test_marks_in_a_spectrum_are_bad_pixels(function, mark):
    model = make_model()
    model.standardizer.scale[1:41] = 1e35  # nothing is too far from the training stars
    spectra = make_spectra(4, 40)
    expected = function(model, spectra)
    marked = np.where(np.isnan(spectra), mark, spectra)
    np.testing.assert_allclose(function(model, marked), expected, rtol=1e-5)
    given = torch.from_numpy(marked).requires_grad_()
    np.testing.assert_allclose(function(model, given), expected, rtol=1e-5)


@pytest.mark.parametrize("mark", MARKS)
def test_marks_do_not_move_the_continuum(mark):
    shape = 500 + 200 * np.cos(APOGEE_WAVELENGTH / 600)
    flux = shape * make_spectra(2, 7514, bad=0.02)
    marked = np.where(np.isnan(flux), mark, flux)
    for given in (marked, torch.from_numpy(marked), np.ma.array(marked)):
        np.testing.assert_array_equal(normalize(given), normalize(flux))
        np.testing.assert_array_equal(pseudo_continuum(given), pseudo_continuum(flux))


def test_a_spectrum_below_zero_is_not_normalized_to_above_zero():
    flux = -300 * make_spectra(1, 7514, bad=0)
    assert np.isnan(normalize(flux)).all()
    assert np.isnan(normalize(flux, valid_flux=None)).all()


# --- labels -----------------------------------------------------------------------------------


def fitted(labels, errors=None, label="TEFF", stars=60, spectra=None):
    model = make_model(labels=[label])
    model.standardizer.fitted[:] = False
    flux = make_spectra(stars, 40) if spectra is None else spectra
    history = model.fit(
        np.column_stack([flux, labels]),
        [*NAMES, label],
        [label],
        inputs_err=None if errors is None else np.column_stack([0 * flux, errors]),
        inputs_wavelength=np.append(WAVELENGTHS, 0),
        epochs=1,
        batch_size=16,
        progress=False,
    )
    return model.standardizer.center[-1], model.standardizer.scale[-1], history["loss"].iloc[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "low", "high", "marks"),
    [
        ("TEFF", 4000, 6000, (*MARKS, 0.0, -1.0)),
        ("LOGG", 1, 4, (*MARKS, 99.0, 99.9, 99.99, -99.0, -99.99)),
        ("FE_H", -2, 0.5, (*MARKS, 99.999, -99.9)),
    ],
)
def test_marks_in_labels_are_not_trained_on(label, low, high, marks):
    labels = np.random.default_rng(0).uniform(low, high, 60)
    labels[::2] = np.nan
    expected = fitted(labels, label=label)
    for mark in marks:
        given = np.where(np.isnan(labels), mark, labels)
        np.testing.assert_allclose(fitted(given, label=label), expected, rtol=1e-6, err_msg=mark)


def test_marks_in_errors_are_no_errors():
    labels = np.random.default_rng(0).uniform(4000, 6000, 60)
    errors = np.where(np.arange(60) % 2, 50.0, np.nan)
    expected = fitted(labels, errors)
    for mark in (-9999.0, 9999.0, -1.0, 99999.0):
        given = np.where(np.isnan(errors), mark, errors)
        np.testing.assert_allclose(fitted(labels, given), expected, rtol=1e-6)


@pytest.mark.parametrize("error", [np.inf, 1e40])
def test_a_label_of_unlimited_error_is_unknown(error):
    labels = np.random.default_rng(0).uniform(4000, 6000, 60)
    unknown = np.arange(60) % 2 == 0
    *_, expected = fitted(np.where(unknown, np.nan, labels), np.full(60, 50.0))
    *_, loss = fitted(labels, np.where(unknown, error, 50.0))
    assert np.isfinite(loss) and loss == pytest.approx(expected, rel=0.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [(5000.0, "label TEFF is 5000 in all stars"), (np.nan, "no star has TEFF")],
)
def test_a_label_that_is_the_same_for_all_stars_is_named(value, message):
    with pytest.raises(ValueError, match=f"{message}: there is nothing to learn"):
        fitted(np.full(60, value))


def test_stars_without_a_measurement_are_not_trained_on():
    labels = np.random.default_rng(0).uniform(4000, 6000, 60)
    spectra = make_spectra(60, 40)
    empty = spectra.copy()
    empty[:20] = np.nan
    expected = fitted(labels, spectra=empty)
    for value in (0.0, 1.0, -9999.0, -0.5):
        empty[:20] = value
        np.testing.assert_allclose(fitted(labels, spectra=empty), expected, rtol=1e-6)


def test_catalogues_with_marks_calibrate_as_without(model):
    spectra = make_spectra(300, 40)
    predicted = model.predict(spectra, WAVELENGTHS, LABELS, names=NAMES, progress=False)[LABELS]
    scatter = 0.3 * np.random.default_rng(0).normal(size=predicted.shape)
    labels = predicted + scatter
    unknown = np.random.default_rng(1).random(labels.shape) < 0.4
    errors = labels * 0 + 0.01

    def factors(labels, errors):
        model.calibrate(spectra, WAVELENGTHS, labels, errors, names=NAMES, windows=(1.0,))
        return model.calibration.factors

    expected = factors(labels.mask(unknown), errors.mask(unknown))
    marked = factors(labels.mask(unknown, -9999.0), errors.mask(unknown, -9999.0))
    nullable = factors(
        labels.astype("Float64").mask(unknown), errors.astype("Float64").mask(unknown)
    )
    assert marked == nullable == expected


# --- baselines --------------------------------------------------------------------------------


def test_baselines_give_no_labels_either():
    random = np.random.default_rng(0)
    teff = random.uniform(4000, 6000, 200)
    flux = 1 - teff[:, None] * np.linspace(0, 5e-5, 40) + 0.01 * random.normal(size=(200, 40))
    regression = QuadraticRegression().fit(flux, teff[:, None], None, ["TEFF"])
    network = BaselineNetwork(40, "TEFF")
    spectra = flux[:5].copy()
    spectra[1], spectra[2], spectra[3] = np.nan, 1.0, -9999.0
    for baseline in (regression, network):
        answer = baseline.predict(np.ma.array(spectra))
        assert isinstance(answer, pd.DataFrame)
        assert answer.isna().all(axis=1).tolist() == [False, True, True, True, False]


# --- wavelengths ------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "factor"), [("nm", 10), ("micron", 1e4), ("m", 1e10)])
def test_plain_numbers_in_another_unit_are_refused(model, spectra, unit, factor):
    given = WAVELENGTHS / factor
    with pytest.raises(ValueError, match=f"are in {unit}, it seems"):
        model.perceive(spectra[:, FEW], NAMES[FEW], given[FEW])
    with pytest.raises(ValueError, match=f"are in {unit}, it seems"):
        model.predict(spectra, given, LABELS, names=NAMES)
    table = pd.DataFrame(spectra, columns=NAMES).assign(TEFF=np.arange(5.0))
    with pytest.raises(ValueError, match=f"are in {unit}, it seems"):
        model.fit(table, outputs_name="TEFF", inputs_wavelength=np.append(given, 0))


def test_wavelengths_in_air_of_named_pixels_are_refused(model, spectra):
    air = vacuum_to_air(APOGEE_WAVELENGTH[:40])
    for wavelengths in (air, np.tile(air, (5, 1))):
        with pytest.raises(ValueError, match="in air of the APOGEE pixels"):
            model.perceive(spectra[:, FEW], NAMES[FEW], wavelengths[..., FEW])
    with pytest.raises(ValueError, match="in air of the APOGEE pixels"):
        model.predict(spectra, air, LABELS, names=NAMES)
    table = pd.DataFrame(spectra, columns=NAMES).assign(TEFF=np.arange(5.0))
    with pytest.raises(ValueError, match="in air of the APOGEE pixels"):
        model.fit(table, outputs_name="Teff", inputs_wavelength=np.append(air, 0))


def test_answers_that_are_not_finite_are_told(model, spectra):
    with torch.no_grad():
        model.torch_model.torch_decoder.decoder_out.bias.fill_(3e38)
        model.torch_model.torch_decoder.decoder_out.weight.fill_(3e38)
    with pytest.warns(UserWarning, match="not finite"):
        predict(model, spectra)
