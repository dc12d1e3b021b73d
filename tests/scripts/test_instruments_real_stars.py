"""Real stars by one model of many instruments, and stars that two instruments see."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from chain import load

from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT, air_to_vacuum
from stellarperceptron.instruments import GALAH, LOW_RESOLUTION
from stellarperceptron.instruments.spectrograph import Instrument

LINES = {"blue": 4800.0, "green": 5750.0, "red": 6600.0, "ir": 7800.0}  # Angstrom, in air


@pytest.fixture(scope="module")
def real():
    return load("results/instruments/real_stars.py")


@pytest.fixture(scope="module")
def two():
    return load("results/instruments/two_instruments.py")


def line(wavelength, center, width=0.15):
    continuum = 1 + 1e-3 * np.sin(wavelength)  # constant flux is no measurement
    return continuum - 0.5 * np.exp(-0.5 * ((wavelength - center) / width) ** 2)


def minima(stars):
    """Wavelength of the deepest pixel of each chip of the first star."""
    return [
        stars.instrument.wavelength[chip][np.nanargmin(stars.flux[0, chip])]
        for chip in stars.instrument.chips.values()
    ]


def test_benchmark_stars_are_taken_to_vacuum(real, tmp_path):
    arrays = {
        "names": np.array(["one"]),
        "labels": np.array([[5000.0, 3.0, 0.1]]),
        "label_names": np.array(["TEFF", "LOGG", "FE_H"]),
    }
    for arm, center in LINES.items():
        wavelength = center - 100 + 0.02 * np.arange(10_000)
        arrays[f"one_{arm}_flux"] = line(wavelength, center).astype(np.float32)
        arrays[f"one_{arm}_wavelength_start_step"] = np.array([center - 100, 0.02])
    np.savez(tmp_path / "spectra.npz", **arrays)
    stars = real.benchmarks(tmp_path / "spectra.npz")
    assert stars.names == ["one"] and np.isnan(stars.snr).all()
    expected = air_to_vacuum(np.array(list(LINES.values())))
    np.testing.assert_allclose(minima(stars), expected, atol=0.05)


def test_galah_is_taken_to_rest(real, tmp_path):
    velocity = 80.0
    wavelength = np.array([c - 100 + 0.05 * np.arange(4096) for c in LINES.values()])
    moved = [c * (1 + velocity / SPEED_OF_LIGHT) for c in LINES.values()]
    flux = np.array([line(x, c) for x, c in zip(wavelength, moved, strict=True)])
    np.savez(
        tmp_path / "galah.npz",
        wavelength=wavelength[None],
        flux=300 * flux[None],
        relative_error=np.full((1, *flux.shape), 0.02),
        id=np.array([7]),
        labels=np.array([[5000.0, 3.0, 0.1, velocity]]),
        label_names=np.array(["TEFF", "LOGG", "FE_H", "RV_COM"]),
    )
    stars = real.galah(tmp_path / "galah.npz")
    np.testing.assert_allclose(minima(stars), air_to_vacuum(np.array([*LINES.values()])), atol=0.06)
    assert stars.snr[0] == pytest.approx(50, rel=0.01)


def test_lamost_without_labels_is_left_out_and_the_rest_can_be_learned_from(real, tmp_path):
    wavelength = 10 ** (3.5682 + 1e-4 * np.arange(3904))
    labels = np.array([[5000.0, 3.0, 0.1], [np.nan] * 3])
    path = tmp_path / "lamost_dr1/lamost_dr1.npz"
    path.parent.mkdir()
    np.savez(
        path,
        wavelength=wavelength,
        flux=np.ones((2, 3904)) + 1e-3 * np.sin(wavelength),
        ivar=np.full((2, 3904), 400.0),
        bad=np.zeros((2, 3904), dtype=bool),
        z=np.zeros(2),
        id=np.array(["a.fits", "b.fits"]),
        labels=labels,
        label_names=np.array(["TEFF", "LOGG", "FE_H"]),
    )
    stars = real.lamost(path)
    assert stars.names == ["a"] and np.isfinite(stars.flux).all()
    assert stars.snr[0] == pytest.approx(20, rel=0.01)
    real.write_for_few_labels(stars, tmp_path / "few.npz")
    few = load("results/real_stars/few_labels.py")
    again = few.read_stars(tmp_path / "few.npz")
    assert again.resolving_power == 1800
    np.testing.assert_array_equal(again.flux, stars.flux)
    assert len(few.instrument_of(again).chips) == 4
    whole = real.read_set("LAMOST", tmp_path, LOW_RESOLUTION)
    assert whole.instrument == LOW_RESOLUTION and len(whole.flux) == 1
    wavelength, seen = LOW_RESOLUTION.wavelength, np.isfinite(whole.flux[0])
    assert seen.all() and len(wavelength) == seen.sum()
    real.write_for_few_labels(whole, tmp_path / "whole.npz")
    assert few.read_stars(tmp_path / "whole.npz").flux.shape == (1, seen.sum())
    with pytest.raises(ValueError, match="no spectra of GALAH: --sets LAMOST"):
        real.read_set("GALAH", tmp_path, LOW_RESOLUTION)
    # A slope of a factor of thirty leaves little trace, in spite of the pixels that are left out.
    with np.load(path) as file:
        arrays = dict(file)
    arrays["flux"] = arrays["flux"] * (arrays["wavelength"] / 5000.0) ** 4
    np.savez(path, **arrays)
    steep = real.read_set("LAMOST", tmp_path, LOW_RESOLUTION)
    np.testing.assert_allclose(steep.flux[0][seen], whole.flux[0][seen], atol=3e-4)


@pytest.mark.parametrize(("start", "told"), [(3.6, {}), (3.60003, {"resolving_power": 1800.0})])
def test_few_labels_tell_the_resolving_power_of_other_pixels_only(monkeypatch, start, told):
    few, given = load("results/real_stars/few_labels.py"), {}

    class Model:
        instrument = LOW_RESOLUTION

        def fit(self, flux, labels, wavelength, **options):
            given.update(options)

        def predict(self, flux, wavelength, labels, **options):
            return pd.DataFrame(np.zeros((len(flux), len(labels))), columns=labels)

    monkeypatch.setattr(few.StellarPerceptron, "load_for_finetuning", lambda path: Model())
    wavelength = 10 ** (start + 1e-4 * np.arange(25))
    stars = few.Stars(wavelength, np.ones((4, 25)), np.ones((4, 1)), ["TEFF"], 1800.0)
    answers = few.fine_tuned("checkpoint", 2, "all")(stars, np.arange(3), np.array([3]), 0)
    assert answers.shape == (1, 1)
    assert {k: v for k, v in given.items() if k == "resolving_power"} == told


def test_what_a_file_lacks_is_named(real, tmp_path):
    path = tmp_path / "gaia_benchmarks_hermes/spectra.npz"
    path.parent.mkdir()
    np.savez(path, names=np.array(["one"]), labels=np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"spectra\.npz lacks label_names"):
        real.read_set("Gaia benchmark stars", tmp_path)


def test_low_resolution_leaves_out_more_of_the_balmer_cores(real):
    instrument = real.lamost_in_windows()
    assert list(instrument.chips) == list(GALAH.chips)
    for center, half in ((4862.69, 1.2), (6564.61, 2.0)):
        distance = np.abs(instrument.wavelength - center).min()
        assert half + center / 1800 <= distance < half + 1.8 * center / 1800


def answered():
    """Answers for four stars, three of them within reach."""
    table = pd.DataFrame(
        {
            "set": ["Gaia benchmark stars"] * 3 + ["LAMOST"],
            "star": list("abcd"),
            "snr": np.nan,
            "flag_names": "",
        }
    )
    for label, values in (("TEFF", [5000, 4100, 4600, 6000]), ("LOGG", [3] * 4), ("FE_H", [0] * 4)):
        table[f"literature_{label}"] = np.array(values, dtype=float)
        table[label] = table[f"literature_{label}"] + np.array([0.1, -0.1, 0.1, 0.1])
        table[f"{label}_error"] = 0.1
    return table


def test_summary_tells_who_is_within_reach(real):
    errors = real.summary(answered()).set_index(["stars of", "label"])
    every = "Gaia benchmark stars, 4000 to 6500 K"
    assert errors.loc[(every, "TEFF"), "stars"] == 3
    assert errors.loc[(f"{every}, within the emulators' reach", "TEFF"), "stars"] == 2
    assert errors.loc[("LAMOST, within the emulators' reach", "FE_H"), "bias"] == pytest.approx(0.1)
    figure = real.draw(answered())
    assert len(figure.axes) == 3
    assert "5000" in real.star_text(answered()).iloc[0]["Teff [K]"]


class Told:
    """A model whose answer is the flux of the first pixel, with a known error."""

    def predict(self, flux, wavelength, labels, *, snr, resolving_power, progress):
        assert len(resolving_power) == len(wavelength) == flux.shape[1]
        error = 0.1 if resolving_power[0] > 5000 else 0.2
        return pd.DataFrame({labels[0]: flux[:, 0], f"{labels[0]}_error": error})


def test_two_instruments_are_compared_in_units_of_their_errors(two):
    random = np.random.default_rng(0)
    true = pd.DataFrame({"FE_H": random.normal(size=5000)})
    pair = tuple(
        Instrument(name, low + np.arange(3.0), resolving_power=power)
        for name, low, power in (("fine", 5000, 10_000.0), ("coarse", 6000, 2_000.0))
    )
    spectra = [
        np.repeat(true.to_numpy() + error * random.normal(size=(5000, 1)), 3, axis=1)
        for error in (0.1, 0.2)
    ]
    row = two.compare(Told(), pair, spectra, true, 100.0).iloc[0]
    assert abs(row["offset"]) < 0.05
    assert row["chi_squared"] == pytest.approx(1, abs=0.06)
    assert row["mean_mad_std"] == pytest.approx(0.2 / np.sqrt(5), rel=0.05)
    assert row["one_context_mad_std"] == row["first_mad_std"]
    text = two.text_table(pd.DataFrame([row])).iloc[0]
    assert "%" in text["weighted mean"]


def test_predicted_errors_are_counted_for_each_instrument():
    script = load("results/instruments/predicted_errors.py")
    seen_by = script.of_power(2_000.0, [(5000.0, 5100.0), (6000.0, 6100.0)])
    assert np.median(np.diff(np.log(seen_by.wavelength))) == pytest.approx(1 / 5_000)
    random = np.random.default_rng(0)
    true = pd.DataFrame({"FE_H": random.normal(size=5000)})
    scatter = 0.2 * random.normal(size=(5000, 1))  # twice the error at R = 10,000
    flux = np.repeat(true.to_numpy() + scatter, len(seen_by), axis=1)
    found = [
        script.pulls(Told(), dataclasses.replace(seen_by, resolving_power=power), flux, true, 50.0)
        for power in (2_000.0, 10_000.0)
    ]
    table = pd.concat(found).assign(instrument=["coarse", "fine"], **{"S/N": "50"})
    assert table["pull_std"].tolist() == pytest.approx([1, 2], rel=0.05)
    text = script.text_table(table)
    assert list(text) == ["instrument", "S/N", "[Fe/H]"]
    within = table["within_1_sigma"].tolist()
    assert within == pytest.approx([0.683, 0.383], abs=0.02)
    assert text["[Fe/H]"][0] == f"{100 * within[0]:.0f} ({table['pull_std'].iloc[0]:.2f})"


def test_one_star_has_a_panel_for_each_instrument():
    one = load("results/instruments/one_star.py")
    spectra = [np.ones(len(instrument)) for instrument in one.INSTRUMENTS]
    answer = pd.Series({"TEFF": 4800.0, "TEFF_error": 20.0})
    figure = one.draw(spectra, [answer] * 4, ["TEFF"], "Teff 4800 K")
    assert len(figure.axes) == 4
    assert all("4800" in axes.get_title(loc="left") for axes in figure.axes)


@pytest.mark.reference
def test_real_files_are_read(real, shared):
    for name, stars in (("Gaia benchmark stars", 11), ("GALAH", 6), ("LAMOST", 131)):
        found = real.read_set(name, shared / "real")
        assert found.flux.shape == (stars, len(found.instrument))
        assert np.isfinite(found.flux).mean() > 0.95
        assert np.nanmedian(found.flux) == pytest.approx(1, abs=0.05)
