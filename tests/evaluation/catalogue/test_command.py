"""The command: catalogues of files, whoever makes them; what models and surveys are."""

import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from apogee_files import apstar_hdus, apvisit_hdus
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from conftest import make_model

from stellarperceptron import StellarPerceptron
from stellarperceptron.evaluation.catalogue import parts
from stellarperceptron.evaluation.catalogue.command import main
from stellarperceptron.evaluation.catalogue.files import read_normalized
from stellarperceptron.evaluation.catalogue.table import predict_labels
from stellarperceptron.instruments import APOGEE
from stellarperceptron.labels import PUBLISHED_LABELS
from stellarperceptron.network.checkpoint import weights_sha256

pytestmark = pytest.mark.slow

HALF = APOGEE.pixel_range("first_half")
N_FILES = 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    make_model(7514, PUBLISHED_LABELS, context_length=64, pixels_per_token=16).save(folder)
    return folder


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    """Six apStar files of different stars, and a visit."""
    folder = tmp_path_factory.mktemp("stars")
    for number in range(N_FILES - 1):
        hdus = apstar_hdus()
        hdus[0].header["OBJID"] = f"2M0000000{number}+0000000"
        hdus[1].data = hdus[1].data ** (1 + 0.1 * number)
        hdus.writeto(folder / f"apStar-{number}.fits")
    apvisit_hdus(-30.0).writeto(folder / "apVisit.fits")
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_FILES", 3)


@pytest.fixture
def predict(checkpoint, stars, tmp_path):
    """Make a catalogue of all stars, or of the files given; its path."""

    def run(*options, files=(stars,), output="labels.fits"):
        fixed = ["--checkpoint", checkpoint, "--workers", 1, "--shuffles", 2, "--device", "cpu"]
        path = tmp_path / output
        main([str(word) for word in ("predict", *files, "-o", path, *fixed, *options)])
        return path

    return run


def read(path: Path) -> Table:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = Table.read(path)
    table.convert_bytestring_to_unicode()
    return table


# --- what is in it --------------------------------------------------------------------------------


def test_labels_are_those_of_the_model(predict, checkpoint, stars):
    table = read(predict())
    model = StellarPerceptron.load(checkpoint, device="cpu")
    flux = [read_normalized(Path(path), HALF)[1] for path in table["file"]]
    expected = predict_labels(model, flux, HALF, PUBLISHED_LABELS, 2)  # no pixel is noisy
    for name in expected:
        np.testing.assert_allclose(table[name], expected[name], rtol=1e-6)
    assert set(table["checkpoint"]) == {weights_sha256(checkpoint)[:16]}
    assert table.meta["WEIGHTS"] == weights_sha256(checkpoint)


def test_errors_of_the_files_count_as_those_given_to_predict(predict, checkpoint, tmp_path):
    hdus = apstar_hdus()
    noisy = np.flatnonzero(np.random.default_rng(3).random(3757) < 0.2)
    hdus[2].data[:, 246 + noisy[noisy < 3028]] *= 10  # 0.08 of the continuum; of the blue chip
    hdus.writeto(tmp_path / "star.fits")
    model = StellarPerceptron.load(checkpoint, device="cpu")
    spectrum, flux = read_normalized(tmp_path / "star.fits", HALF)
    flux, error = flux[HALF], (spectrum.error / spectrum.flux * flux)[HALF]

    def teff(**errors):
        answers = (
            model.predict(flux, APOGEE.wavelength[HALF], ["TEFF"], seed=seed, **errors)
            for seed in range(2)  # as many as there are shuffles
        )
        return np.mean([answer["TEFF"][0] for answer in answers])

    with pytest.warns(UserWarning, match="count as bad, by their errors"):
        expected = teff(errors=error)
    assert abs(expected - teff()) > 1e-4
    good = np.isfinite(flux).mean()
    assert read(predict(files=[tmp_path / "star.fits"]))["good_pixels"][0] < 0.9 * good
    for option, answer in (("--errors", expected), ("--no-errors", teff())):
        table = read(predict(option, "--overwrite", files=[tmp_path / "star.fits"]))
        assert table["TEFF"][0] == pytest.approx(answer, rel=1e-6)
    # Parts of one question are no answer to the other.
    predict("--array-index", 0, "--array-count", 1, files=[tmp_path / "star.fits"], output="a.csv")
    with pytest.raises(SystemExit, match="1 of 1 parts"):
        predict("--merge", "--no-errors", files=[tmp_path / "star.fits"], output="a.csv")


def test_flagged_answers_are_counted_at_the_end(predict, capsys):
    flagged = np.count_nonzero(read(predict())["flags"])
    said = capsys.readouterr()
    assert said.out.endswith(f"7 of 7 files; {flagged} with flags\n") and "Warning" not in said.err


def test_rows_say_what_was_read(predict, stars):
    table = read(predict())
    assert [Path(path).name for path in table["file"]] == sorted(p.name for p in stars.iterdir())
    assert table["id"][4] == "2M00000004+0000000"
    assert table["kind"].tolist() == ["apStar"] * 6 + ["apVisit"]
    assert table["radial_velocity"].tolist() == [0.0] * 6 + [-30.0]
    assert table["snr"][0] == 210.5 and np.ma.is_masked(table["snr"][6])  # NaN in the file
    assert table["good_pixels"][0] == pytest.approx(1 - 2 / 3757)


def test_columns_have_units_and_descriptions(predict):
    for output in ("labels.fits", "labels.ecsv"):
        table = read(predict(output=output))
        assert all(column.description for column in table.itercols())
        assert table["TEFF"].unit == table["TEFF_error"].unit == "K"
        assert table["FE_H"].unit == table["LOGG_error"].unit == u.dex
        assert table["radial_velocity"].unit == "km/s"
        assert set(table.meta) >= {"WEIGHTS", "VERSION", "MODEL"}
        assert table.meta["PIXELS"] == "first_half"
    header = fits.getheader(predict("--overwrite"), 1)
    number = 1 + table.colnames.index("FE_H")
    assert header[f"TTYPE{number}"] == "FE_H" and header[f"TCOMM{number}"].endswith(" [dex]")


def test_all_formats_hold_the_same(predict):
    tables = [read(predict(output=f"labels{suffix}")) for suffix in (".fits", ".ecsv")]
    tables.append(Table.from_pandas(pd.read_csv(predict(output="labels.csv"))))
    for table in tables[1:]:
        assert table.colnames == tables[0].colnames
        for name in ("id", "TEFF", "FE_H_error", "file"):
            assert table[name].tolist() == tables[0][name].tolist()


class Flagging:
    """A model whose answers have a column of whole numbers."""

    def __init__(self, model):
        self.config, self.instrument = model.config, model.instrument
        self.predict_labels = model.predict

    def predict(self, flux, wavelength, labels, *, seed, progress):
        table = self.predict_labels(flux, wavelength, labels, seed=seed, progress=progress)
        return table.assign(flags=np.arange(len(table)) * 4 + seed)


def test_other_columns_of_the_model_are_kept(checkpoint, stars):
    model = Flagging(StellarPerceptron.load(checkpoint, device="cpu"))
    flux = [np.ones(7514), np.full(7514, 0.9)]
    table = predict_labels(model, flux, HALF, ["TEFF"], 2)
    assert table["flags"].tolist() == [1, 5]  # the bits of both shuffles
    assert table["flags"].dtype.kind == "i"


# --- who makes it ---------------------------------------------------------------------------------


def test_tasks_make_the_same_catalogue(predict):
    alone = predict(output="alone.ecsv").read_text()
    for task in (2, 0, 1):
        predict("--array-index", task, "--array-count", 3, output="tasks.ecsv")
    assert predict("--merge", output="tasks.ecsv").read_text() == alone


def test_missing_tasks_are_named(predict, tmp_path):
    predict("--array-index", 0, "--array-count", 3)
    with pytest.raises(SystemExit, match=r"2 of 3 parts .* \(1, 2\)"):
        predict("--merge")
    assert not (tmp_path / "labels.fits").exists()


def test_parts_of_another_question_are_not_merged(predict):
    predict("--array-index", 0, "--array-count", 1)
    with pytest.raises(SystemExit, match="3 of 3 parts"):
        predict("--merge", "--labels", "Teff")


def test_an_interrupted_run_continues(predict, monkeypatch, tmp_path):
    read_all, reads = parts.read_all, []

    def break_down(files, *rest):
        reads.append(len(files))
        if len(reads) == 3:
            raise KeyboardInterrupt
        return read_all(files, *rest)

    monkeypatch.setattr(parts, "read_all", break_down)
    with pytest.raises(SystemExit) as stop:
        predict()
    assert stop.value.code == 130 and not (tmp_path / "labels.fits").exists()
    predict()
    assert sum(reads) < 2 * N_FILES  # what was made was not made again
    assert len(read(tmp_path / "labels.fits")) == N_FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.fits"]


def test_changed_files_are_read_again(predict, tmp_path):
    folder = tmp_path / "stars"
    folder.mkdir()
    apstar_hdus().writeto(folder / "a.fits")
    predict("--array-index", 0, "--array-count", 1, files=[folder])
    apvisit_hdus().writeto(folder / "a.fits", overwrite=True)
    assert read(predict(files=[folder]))["kind"].tolist() == ["apVisit"]


def test_several_workers_make_the_same_catalogue(predict):
    one = predict(output="one.ecsv").read_text()
    assert predict("--workers", 2, output="two.ecsv").read_text() == one


# --- what is refused ------------------------------------------------------------------------------


def test_existing_catalogues_are_replaced_only_if_told(predict, tmp_path):
    (tmp_path / "labels.fits").write_text("precious")
    with pytest.raises(SystemExit, match=r"labels\.fits exists.*--overwrite"):
        predict()
    assert (tmp_path / "labels.fits").read_text() == "precious"
    assert len(read(predict("--overwrite"))) == N_FILES


def test_bad_files_are_listed_and_the_others_done(predict, stars, tmp_path):
    (tmp_path / "text.fits").write_text("no spectrum")
    with pytest.raises(SystemExit, match=r"1 of 8 files could not be used, see .*failures\.csv"):
        predict(files=[stars, tmp_path / "text.fits"])
    assert len(read(tmp_path / "labels.fits")) == N_FILES
    failures = pd.read_csv(tmp_path / "failures.csv")
    assert failures["file"].tolist() == [str(tmp_path / "text.fits")]
    assert "damaged" in failures["reason"][0]
    predict(output="other.fits")  # of another catalogue in the same folder
    assert pd.read_csv(tmp_path / "failures.csv").equals(failures)
    predict("--overwrite")
    assert not (tmp_path / "failures.csv").exists()


def test_a_foreign_list_of_failures_is_left_alone(predict, tmp_path):
    (tmp_path / "failures.csv").write_text("day,failure\n1,rain\n")
    with pytest.raises(SystemExit, match=r"failures\.csv is no list of this command's failures"):
        predict()
    assert (tmp_path / "failures.csv").read_text().endswith("rain\n")


def test_nothing_but_bad_files_gives_an_empty_catalogue(predict, tmp_path):
    (tmp_path / "text.fits").write_text("no spectrum")
    with pytest.raises(SystemExit, match="1 of 1 files"):
        predict(files=[tmp_path / "text.fits"])
    table = read(tmp_path / "labels.fits")
    assert len(table) == 0 and table["TEFF"].unit == "K"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "labels.txt"}, "must end in .fits, .ecsv, .csv"),
        ({"files": ["nowhere/*.fits"]}, r"there is no nowhere/\*\.fits"),
        ({"files": ["nowhere.fits"]}, "there is no nowhere.fits"),
    ],
)
def test_nonsense_is_named(predict, options, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        predict(**options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--array-index", 1), "belong together"),
        (("--array-index", 3, "--array-count", 3), "is not within 0 and 2"),
        (("--array-index", 0, "--array-count", 3, "--merge"), "a run of its own"),
        (("--labels", "Teff", "[X/Fe]"), r"no label '\[X/Fe\]'"),
        (("--pixels", "second_half"), "second_half"),
        (("--checkpoint", "lapdog"), "nearest known: laptop"),
        (("--checkpoint", "runs/nowhere"), "runs/nowhere is no folder of a checkpoint"),
    ],
)
def test_nonsense_among_the_options_is_named(predict, words, message):
    with pytest.raises(SystemExit, match=message):
        predict(*words)


def test_patterns_and_lists_of_files(predict, stars, tmp_path):
    assert len(read(predict(files=[stars / "apStar-*.fits"]))) == N_FILES - 1
    (tmp_path / "list.txt").write_text("\n".join(map(str, stars.iterdir())))
    table = read(predict("--overwrite", files=[f"@{tmp_path / 'list.txt'}"]))
    assert len(table) == N_FILES


def test_a_second_run_of_the_same_catalogue_says_so(predict, checkpoint, stars, tmp_path):
    lock = "from stellarperceptron.utils.locks import FileLock; import sys, time\n"
    lock += "with FileLock(sys.argv[1], 'it'):\n    print('locked', flush=True); time.sleep(60)"
    path = tmp_path / ".labels.fits.parts.lock"
    command = [sys.executable, "-c", lock, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(SystemExit, match=f"in use by process {other.pid}"):
            predict()
        other.send_signal(signal.SIGKILL)
    predict()


# --- other parts of the command -------------------------------------------------------------------


def test_info_of_a_model(capsys, checkpoint):
    main(["info", str(checkpoint)])
    said = capsys.readouterr().out
    assert "Teff [K]" in said and weights_sha256(checkpoint) in said and "no model card" in said
    main(["info", "laptop"])
    assert "What it must not be used for" in capsys.readouterr().out


def test_survey_and_its_info(capsys, tmp_path):
    path = tmp_path / "survey.h5"
    words = ("survey", "--stars", 4, "--test-stars", 2, "--seed", 5, "-o", path)
    main([*map(str, words), "--labels", "Teff", "[Fe/H]"])
    main(["info", str(path)])
    said = capsys.readouterr().out
    assert "4 for training, 2 for tests" in said and "Teff [K], [Fe/H] [dex]" in said
    assert re.search(r"create_mock_survey\.py [\d.]+, seed 5", said)
    with pytest.raises(SystemExit, match=r"nothing\.h5: there is no such file"):
        main(["info", str(tmp_path / "nothing.h5")])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--instrument", "HARPS", r"^stellarperceptron survey: unknown instrument 'HARPS'"),
        ("--output", "a.fits", r"a\.fits must end in \.h5"),
        ("--output", ".", r"^stellarperceptron survey: /.* is a folder: give the name of a file"),
        ("--stars", "1e3", "argument --stars: '1e3' is no whole number"),
        ("--seed", "one", "argument --seed: 'one' is no whole number"),
        ("--labels", "Zr", "no label 'Zr'"),
    ],
)
def test_impossible_surveys_are_refused_in_a_line(
    capsys, tmp_path, monkeypatch, option, value, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["survey", "--stars", "4", "--test-stars", "2", "--output", "a.h5", option, value])
    said = stop.value.code if isinstance(stop.value.code, str) else capsys.readouterr().err
    assert re.search(message, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"], ["survey", "--help"]])
def test_help_shows_units_and_defaults(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "stellarperceptron" in said
    if words[0] == "predict":
        assert "(default: laptop)" in said and "[K]" in said


def test_version_and_nothing(capsys):
    main(["--version"])
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main([])
    assert "say what to do" in capsys.readouterr().err
