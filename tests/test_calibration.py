"""Predicted errors, brought to the scatter of stars that training has not seen."""

import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import LABELS, make_spectra

from stellarperceptron import StellarPerceptron
from stellarperceptron.model_core import Calibration, error_scale

WAVELENGTHS = 15200.0 + 0.21 * np.arange(40)
NAMES = [f"syn_apogee{i}" for i in range(40)]


def calibrated(model, factor=2.5, stars=4000):
    """Labels that scatter about the predictions by `factor` predicted errors."""
    spectra = make_spectra(stars, 40, seed=3)
    predicted = model.predict(spectra, WAVELENGTHS, LABELS, names=NAMES, progress=False)
    random = np.random.default_rng(4)
    labels = pd.DataFrame(
        {
            label: random.normal(predicted[label], factor * predicted[f"{label}_error"])
            for label in LABELS
        }
    )
    model.calibrate(spectra, WAVELENGTHS, labels, names=np.array(NAMES), windows=(1.0,))
    return spectra, predicted


@pytest.mark.slow
def test_errors_become_the_scatter(model):
    spectra, before = calibrated(model)
    after = model.predict(spectra, WAVELENGTHS, LABELS, names=NAMES, progress=False)
    for label in LABELS:
        np.testing.assert_array_equal(after[label], before[label])
        ratio = after[f"{label}_error"] / before[f"{label}_error"]
        np.testing.assert_allclose(ratio, 2.5, rtol=0.05)


def test_checkpoints_keep_the_calibration(model, tmp_path):
    spectra, _ = calibrated(model)
    model.save(tmp_path / "model")
    loaded = StellarPerceptron.load(tmp_path / "model", device="cpu")
    assert loaded.calibration.factors == model.calibration.factors
    for grown in (loaded, StellarPerceptron.load_for_finetuning(tmp_path / "model", device="cpu")):
        pd.testing.assert_frame_equal(
            *(m.predict(spectra[:5], WAVELENGTHS, LABELS, names=NAMES) for m in (model, grown))
        )


def test_perceive_and_request_have_it_too(model):
    spectra, _ = calibrated(model)
    part = slice(0, 16)
    model.perceive(spectra[:5, part], NAMES[part], WAVELENGTHS[part])
    predicted = model.predict(spectra[:5, part], WAVELENGTHS[part], LABELS, names=NAMES[part])
    predicted = predicted.drop(columns="flags")
    pd.testing.assert_frame_equal(model.request(LABELS), predicted, rtol=1e-5)


def test_fewer_pixels_have_a_factor_of_their_own():
    calibration = Calibration()
    pixels = np.array([4000.0, 2000.0, 500.0])
    calibration.fit("TEFF", pixels, 1.5 * (pixels / 1000) ** -0.3, first=True)
    factor = calibration.factor(["TEFF", "LOGG"], np.array([4000, 100]))
    np.testing.assert_allclose(factor[:, 0], 1.5 * np.array([4.0, 0.1]) ** -0.3)
    assert (factor[:, 1] == 1).all()


def test_the_calibration_is_exact_for_the_whole_spectrum():
    calibration = Calibration()
    calibration.fit("TEFF", np.array([1000.0, 500, 250]), np.array([1.2, 0.9, 0.9]), first=True)
    whole, half, quarter = calibration.factor(["TEFF"], np.array([1000, 500, 250]))[:, 0]
    assert whole == pytest.approx(1.2)
    assert quarter < 0.9 < half < whole


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("snr", [None, np.array([250.0]), np.array([np.nan])])
def test_one_measurement_holds_for_any_number_of_pixels(first, snr):
    calibration = Calibration()
    calibration.fit("TEFF", np.array([512.0]), np.array([2.0]), snr, first)
    for told in (None, np.array([30.0, np.nan])):
        factor = calibration.factor(["TEFF"], np.array([1, 7514]), told)
        np.testing.assert_allclose(factor, 2.0)


def test_the_fit_is_exact_for_the_whole_spectrum_told_and_untold():
    calibration = Calibration()
    pixels, snr = np.array([4000.0, 2000, 500, 4000, 4000, 4000]), np.full(6, 250.0)
    snr[3:] = np.nan, 90.0, 30.0
    scales = np.array([1.3, 1.2, 1.5, 0.8, 1.1, 1.4])
    calibration.fit("TEFF", pixels, scales, snr, first=True)
    told, untold = calibration.factor(["TEFF"], pixels[:2] * [1, 2], snr[[0, 3]])[:, 0]
    assert (told, untold) == (pytest.approx(1.3), pytest.approx(0.8))


def test_signal_to_noise_ratios_have_a_factor_of_their_own():
    calibration = Calibration()
    pixels = np.array([4000.0, 2000, 500, 500, 1000])
    snr = np.array([50.0, 400, 200, np.nan, 30])
    told = np.nan_to_num(snr / 100, nan=4.0)
    calibration.fit("TEFF", pixels, 1.5 * (pixels / 1000) ** -0.3 * told**-0.2, snr)
    expected = (np.log(1.5), -0.3, -0.2, -0.2 * np.log(4))
    np.testing.assert_allclose(calibration.factors["TEFF"], expected)
    given = np.array([50, np.nan, 1e9, 1.0]), np.array([0.5, 4.0, 5.0, 0.2])  # limits
    factor = calibration.factor(["TEFF", "LOGG"], np.full(4, 1000), given[0])
    np.testing.assert_allclose(factor[:, 0], 1.5 * given[1] ** -0.2)
    assert (factor[:, 1] == 1).all()


def test_two_numbers_mean_what_they_did():
    pixels = np.arange(1, 9000, 7)
    calibration = Calibration({"TEFF": (-0.5042893902160249, 0.08638171880660125)})
    expected = np.exp(-0.5042893902160249 + 0.08638171880660125 * np.log(pixels / 1000))
    for snr in (None, np.linspace(1, 1e4, len(pixels))):
        np.testing.assert_array_equal(calibration.factor(["TEFF"], pixels, snr)[:, 0], expected)


def test_only_valid_pixels_count(model):
    """In `predict` and in `request`: bad pixels tell nothing."""
    spectra, part = make_spectra(4, 40, bad=0), slice(0, 16)
    for star, bad in enumerate((0, 4, 8, 15)):
        spectra[star, :bad] = np.nan
    given = spectra[:, part], NAMES[part], WAVELENGTHS[part]
    model.perceive(*given)
    before = model.request(["TEFF"])["TEFF_error"]
    model.calibration = Calibration({"TEFF": (0.0, -0.5)})
    expected = before * (np.array([16, 12, 8, 1]) / Calibration.PIXELS) ** -0.5
    predicted = model.predict(given[0], given[2], ["TEFF"], names=given[1], progress=False)
    for after in (model.request(["TEFF"]), predicted):
        np.testing.assert_allclose(after["TEFF_error"], expected, rtol=1e-5)


def test_catalogue_errors_are_no_part_of_the_predicted_ones():
    random = np.random.default_rng(0)
    errors, label_errors = np.full(20_000, 2.0), np.full(20_000, 3.0)
    residuals = random.normal(0, np.hypot(1.2 * errors, label_errors))
    # 68.3 % within one standard deviation: r^2 < (s e)^2 + c^2.
    inside = np.abs(residuals) < np.hypot(error_scale(residuals, errors, label_errors) * 2, 3)
    assert inside.mean() == pytest.approx(0.6827, abs=1e-3)
    assert error_scale(residuals, errors, label_errors) == pytest.approx(1.2, abs=0.05)


def test_labels_that_tell_nothing_stay_as_they_are(model):
    spectra = make_spectra(20, 40)
    labels = pd.DataFrame({"TEFF": np.full(20, np.nan)})
    with pytest.warns(UserWarning, match="errors of TEFF stay uncalibrated"):
        model.calibrate(spectra, WAVELENGTHS, labels, names=np.array(NAMES))
    assert not model.calibration.factors


def test_it_warns_of_a_star_once(model):
    spectra = make_spectra(20, 40)
    spectra[3] = np.nan
    labels = pd.DataFrame({"TEFF": np.linspace(0, 3, 20)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.calibrate(spectra, WAVELENGTHS, labels, names=np.array(NAMES), windows=(1.0, 0.5))
    found = [str(warning.message) for warning in caught]
    assert [text for text in found if "any valid value" in text] == [found[0]]


def test_calibrating_one_label_leaves_the_others_as_they_are(model):
    spectra = make_spectra(20, 40)
    labels = pd.DataFrame({"TEFF": np.linspace(0, 3, 20)})
    model.calibration = Calibration({"LOGG": (0.5, 0.1)})
    model.calibrate(spectra, WAVELENGTHS, labels, names=np.array(NAMES))
    found = model.calibration.factors
    assert set(found) == {"TEFF", "LOGG"} and found["LOGG"] == (0.5, 0.1, 0, 0)
    with pytest.raises(ValueError, match="vocabulary"):
        model.calibrate(spectra, WAVELENGTHS, labels, names=np.array(["nothing"] * 40))
    assert model.calibration.factors == found


def test_windows_lie_anywhere(model, monkeypatch):
    windows, predict = [], model.predict

    def note(spectra, wavelengths, *given, **options):
        windows.append(wavelengths)
        return predict(spectra, wavelengths, *given, **options)

    monkeypatch.setattr(model, "predict", note)
    labels = pd.DataFrame({"TEFF": np.linspace(0, 3, 20)})
    options = {"names": np.array(NAMES), "windows": (0.25,), "positions": 8}
    model.calibrate(make_spectra(20, 40), WAVELENGTHS, labels, **options)
    for window in windows:
        np.testing.assert_allclose(np.diff(window), np.full(9, 0.21), atol=1e-9)
    assert len(windows) == 8 and len({w[0] for w in windows}) > 3


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], 5 * [1.0]])
def test_impossible_calibrations_are_refused(values):
    with pytest.raises(ValueError, match="calibration of TEFF"):
        Calibration({"TEFF": values})


@pytest.mark.parametrize("windows", [(0.0,), (1.0, 1.5)])
def test_windows_are_fractions(model, windows):
    spectra, labels = make_spectra(20, 40), pd.DataFrame({"TEFF": np.ones(20)})
    with pytest.raises(ValueError, match="no fractions of the pixels"):
        model.calibrate(spectra, WAVELENGTHS, labels, names=np.array(NAMES), windows=windows)


def test_a_model_of_several_instruments_has_a_calibration_for_each():
    about = {"BLUE": {"TEFF": (0.5, 0.1), "LOGG": (1.0, 0.0)}, "RED": {"TEFF": (0.1, 0.3)}}
    both = Calibration(about)
    assert Calibration(both.to_dict()).to_dict() == both.to_dict() == about
    assert both.of(["RED"]).to_dict() == {"TEFF": (0.1, 0.3)}
    mean = {"TEFF": pytest.approx((0.3, 0.2, 0, 0)), "LOGG": (1.0, 0, 0, 0)}
    assert both.of(["BLUE", "RED"]).factors == both.of([]).factors == mean
    alone = Calibration({"TEFF": (0.5, 0.1)})
    assert alone.of(["BLUE"]) is alone
    with pytest.raises(ValueError, match="calibration of TEFF"):
        Calibration({"BLUE": {"TEFF": [1.0]}})


def test_only_one_of_several_instruments_may_know_errors():
    both = Calibration({"BLUE": {"TEFF": (0.5, 0.1)}, "RED": {"TEFF": (0.1, 0.3, -0.2, 0.4)}})
    assert both.of(["BLUE", "RED"]).factors["TEFF"] == pytest.approx((0.3, 0.2, -0.1, 0.2))
