"""Catalogues of spectra of other surveys: which files are meant, which model answers."""

import re

import numpy as np
import pandas as pd
import pytest
from apogee_files import absorption
from astropy.io import fits
from chain import run_here
from conftest import make_model
from spectrum_files import OBSERVATION, SOURCE, desi_hdus, mwm_hdus, write_gaia, write_galah

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.apogee.continuum import normalize_as
from stellarperceptron.data.apogee.spectrum_files import NoVelocityError
from stellarperceptron.data.mock import spectrographs
from stellarperceptron.data.readers.files import read_spectrum_file
from stellarperceptron.evaluation.catalogue.command import main
from stellarperceptron.evaluation.catalogue.files import find_files, read_normalized
from stellarperceptron.instruments import APOGEE, GAIA_RVS, GALAH, LOW_RESOLUTION

FULL = slice(0, len(GALAH))
LABELS = ["TEFF", "FE_H"]


@pytest.fixture(scope="module")
def rvs_model(tmp_path_factory):
    """A tiny model for Gaia's spectra, with random weights."""
    names = [*GAIA_RVS.pixel_names(), *LABELS]
    model = StellarPerceptron(
        names,
        instrument=GAIA_RVS,
        device="cpu",
        seed=1,
        context_length=64,
        pixels_per_token=48,
        wavelength_range=GAIA_RVS.encoding_range,
        embedding_dim=16,
        encoder_head_num=4,
        encoder_dense_num=32,
        decoder_head_num=4,
        decoder_dense_num=32,
    )
    center = np.append(absorption(GAIA_RVS.wavelength), [5000.0, 0.0])
    model.fit_standardization(
        center + 0.05 * np.random.default_rng(1).normal(size=(50, len(names))), names
    )
    folder = tmp_path_factory.mktemp("rvs") / "checkpoint"
    model.save(folder)
    return folder


def predict(checkpoint, *files, output):
    words = ("predict", *files, "-o", output, "--checkpoint", checkpoint, "--workers", 1)
    main([*map(str, words), "--device", "cpu"])
    return pd.read_csv(output)


def test_a_model_of_rvs_reads_files_of_gaia(rvs_model, tmp_path):
    path = write_gaia(tmp_path, "csv")
    table = predict(rvs_model, tmp_path, output=tmp_path / "labels.csv")
    assert table["file"].tolist() == [str(path)]
    assert table["id"].tolist() == [SOURCE]
    assert table["kind"].tolist() == ["RVS_MEAN_SPECTRUM"]
    assert table["good_pixels"][0] == pytest.approx(2381 / 2401)
    _, flux = read_normalized(path, slice(0, 2401), GAIA_RVS)
    model = StellarPerceptron.load(rvs_model, device="cpu")
    expected = model.predict(flux[None].astype(np.float32), GAIA_RVS.wavelength, LABELS)
    np.testing.assert_allclose(table[LABELS], expected[LABELS], rtol=1e-5)


def test_files_of_another_instrument_and_of_none_are_failures(rvs_model, tmp_path):
    write_galah(tmp_path)
    (tmp_path / "RVS_MEAN_SPECTRUM_notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="2 of 2 files could not be used"):
        predict(rvs_model, tmp_path, output=tmp_path / "labels.csv")
    reasons = pd.read_csv(tmp_path / "failures.csv")["reason"]
    assert any(re.search(r"is a spectrum of GALAH.*, not of GAIA_RVS", text) for text in reasons)
    assert any(re.search("notes.csv: it is of no known kind", text) for text in reasons)


def test_a_model_of_apogee_reads_files_of_sdss5(tmp_path):
    make_model(7514, ["TEFF"], context_length=64, pixels_per_token=128).save(tmp_path / "model")
    path = tmp_path / "mwmStar-0.6.0-54321.fits"
    mwm_hdus().writeto(path)
    table = predict(tmp_path / "model", path, output=tmp_path / "labels.csv")
    assert table["id"].tolist() == [54321] and table["kind"].tolist() == ["mwmStar"]
    spectrum, flux = read_normalized(path, slice(0, 3757))
    assert spectrum.instrument == APOGEE and np.isfinite(flux).sum() == 7513


def test_script_draws_spectra_of_other_instruments(rvs_model, tmp_path, monkeypatch):
    monkeypatch.setattr(spectrographs, "CHECKOUT", tmp_path)  # there are no emulators here
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_gaia(tmp_path, "ecsv")
    script = "results/real_stars/predict_real_stars.py"
    words = ("--checkpoint", rvs_model, "--output", tmp_path / "out", "--device", "cpu")
    assert not run_here(script, path, *words)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert (tmp_path / "out" / table["picture"][0]).stat().st_size > 10_000
    said = run_here(script, *words)
    assert "checkpoint is for GAIA_RVS" in said and "name files of its spectra" in said


# --- files ----------------------------------------------------------------------------------------


def test_the_cameras_of_a_star_are_one_file(tmp_path):
    write_galah(tmp_path, cameras=(2, 3, 4))
    assert find_files([tmp_path]) == [tmp_path / f"{OBSERVATION}2.fits"]


def test_tables_of_gaia_are_found_in_folders_and_others_are_not(tmp_path):
    path = write_gaia(tmp_path, "xml")
    (tmp_path / "labels.ecsv").touch()
    assert find_files([tmp_path]) == [path]


def test_velocities_are_measured_by_the_lines_where_files_have_none(tmp_path):
    path = write_galah(tmp_path, velocity=20.0)
    for camera in (1, 2, 3, 4):
        with fits.open(tmp_path / f"{OBSERVATION}{camera}.fits", mode="update") as hdus:
            del hdus[0].header["RVCOM"]
    at_rest = normalize_as(GALAH, absorption(GALAH.wavelength))
    noise = 1 + 0.05 * np.random.default_rng(3).normal(size=len(GALAH))
    with pytest.raises(NoVelocityError, match="no radial velocity"):
        read_normalized(path, FULL, GALAH)
    spectrum, _ = read_normalized(path, FULL, GALAH, at_rest)
    assert spectrum.velocity == pytest.approx(20.0, abs=0.3)
    with pytest.raises(NoVelocityError, match="its lines do not tell one"):
        read_normalized(path, FULL, GALAH, noise)


def test_a_star_is_chosen_from_a_file_of_several(tmp_path):
    path, pixels = tmp_path / "coadd.fits", slice(0, len(LOW_RESOLUTION))
    hdus = desi_hdus(stars=3)
    for arm in "BRZ":  # another star, at 300 km/s
        wavelength = hdus[f"{arm}_WAVELENGTH"].data
        flux = hdus[f"{arm}_FLUX"].data
        flux[1] = np.interp(wavelength / 1.001, wavelength, flux[0])
    hdus.writeto(path)
    at_rest = read_spectrum_file(path, row=0, radial_velocity=0.0).normalized()
    with pytest.raises(ValueError, match="has 3 stars: say which one"):
        read_normalized(path, pixels, LOW_RESOLUTION, at_rest)
    spectrum, flux = read_normalized(path, pixels, LOW_RESOLUTION, at_rest, row=1)
    assert spectrum.star_id == "39627001"
    assert spectrum.velocity == pytest.approx(300, abs=5)
    alike = np.abs(flux - at_rest) < 0.01
    assert alike.mean() > 0.99  # all but the ends of the arms
