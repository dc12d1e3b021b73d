"""The look at a data set: what is printed, and the page of plots."""

import importlib.util

import numpy as np
import pytest
from chain import ROOT
from small_survey import COUNTS, make_arrays, write_survey
from tqdm import tqdm

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.survey_file import SurveyWriter
from stellarperceptron.instruments import GALAH

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "dataset" / "inspect_dataset.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("inspect_dataset", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def write_apogee(path, ids=None, **changes):
    """A survey with all 7,514 pixels and error spectra, some of its arrays changed."""
    options = {"counts": COUNTS, "provenance": {"seed": 3}, "errors": True}
    with SurveyWriter(path, **options) as writer:
        for split in COUNTS:
            arrays = make_arrays(split, len(APOGEE_WAVELENGTH))
            arrays["observed_errors"] = np.full_like(arrays["observed"], 0.01)
            for name, change in changes.items():
                change(arrays[name])
            names = [f"{split}-{i}" for i in range(COUNTS[split])] if ids is None else ids(split)
            writer.append(split, ids=names, **arrays)
    return path


def test_sizes_shares_and_labels_are_printed(script, tmp_path, capsys):
    def spoil(flux):
        flux[:, :751] = np.nan

    path = write_apogee(tmp_path / "a.h5", observed=spoil)
    script.main([str(path)])
    said = capsys.readouterr().out
    assert "7,514 pixels, 15152.2 to 16943.5 Angstrom" in said
    assert "train observed: 40 stars, bad pixels 9.99 %" in said
    assert "train synthetic: 40 stars, bad pixels 0.00 %" in said
    assert "test observed_errors: 12 stars, bad pixels 0.00 %" in said
    o_fe = next(line for line in said.splitlines() if line.startswith("O_FE"))
    assert o_fe.split()[1] == "1"
    assert "WARNING" not in said
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_every_label_has_a_plot(script):
    five = ("TEFF", "LOGG", "O_FE", "MG_FE", "FE_H")
    kiel, oxygen = ("TEFF", "LOGG", "FE_H"), ("FE_H", "O_FE", "TEFF")
    assert script.label_plots(five) == [kiel, oxygen, ("FE_H", "MG_FE", "TEFF")]
    assert script.label_plots(("VMICRO", "C_FE", "FE_H", "TEFF")) == [
        ("FE_H", "C_FE", "TEFF"),
        ("VMICRO",),
    ]
    assert script.label_plots(("AGE",)) == [("AGE",)]


def test_other_labels_are_printed_and_drawn(script, tmp_path, capsys):
    names = ("AGE_OF_THE_STAR", "LOGG", "FE_H", "C_FE", "TEFF")
    path = write_survey(tmp_path / "a.h5", label_names=names)
    script.main([str(path)])
    lines = capsys.readouterr().out.splitlines()
    head, age = (next(x for x in lines if x.startswith(y)) for y in ("train  ", "AGE_OF_THE_STAR "))
    assert len(head) == len(age)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_percentiles_are_right(script, tmp_path, capsys):
    def ramp(labels):
        labels[:, 0] = np.linspace(4000, 5000, len(labels))

    script.main([str(write_apogee(tmp_path / "a.h5", labels=ramp))])
    teff = [line.split() for line in capsys.readouterr().out.splitlines() if "TEFF" in line]
    assert teff[0] == ["TEFF", "0", "4000", "4160", "4500", "4840", "5000", teff[0][-1]]


def test_mean_and_scatter_are_those_of_the_good_pixels(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "BLOCK", 7)
    with SpectraDataset.open(write_survey(tmp_path / "a.h5")) as data, tqdm(disable=True) as bar:
        flux = data.train.read("observed").astype(float)
        found = script.spectra_summary(data.train, "observed", np.arange(len(flux)), bar)
    np.testing.assert_allclose(found["mean"], np.nanmean(flux, axis=0))
    np.testing.assert_allclose(found["scatter"], np.nanstd(flux, axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found["bad_pixel"], np.isnan(flux).mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found["bad_star"], np.isnan(flux).mean(axis=1), atol=1e-12)


def test_what_should_not_be_so_is_said(script, tmp_path, capsys):
    def empty_row(flux):
        flux[2] = np.nan

    def no_label(labels):
        labels[4] = np.nan

    def names(split):
        return ["same", "same", *(f"{split}{i}" for i in range(COUNTS[split] - 2))]

    path = write_apogee(tmp_path / "a.h5", names, observed=empty_row, labels=no_label)
    script.main([str(path)])
    said = capsys.readouterr().out
    assert "1 names of 'train' are there twice" in said
    assert "1 stars are in both splits, such as same" in said
    assert "1 stars of 'test' have no label" in said
    assert "1 stars of 'train' have no pixel in their observed spectrum" in said


def test_numbered_rows_are_no_stars_in_both_splits(script, tmp_path, capsys):
    """Published arrays without names: their rows are numbered in each split."""
    path = write_apogee(tmp_path / "a.h5", lambda split: [str(i) for i in range(COUNTS[split])])
    script.main([str(path)])
    assert "WARNING" not in capsys.readouterr().out


def test_detectors_are_those_of_the_instrument(script, tmp_path):
    path = tmp_path / "galah.h5"
    wavelength = GALAH.wavelength[200:]
    with SurveyWriter(
        path, counts=COUNTS, provenance={}, instrument=GALAH, wavelength=wavelength
    ) as writer:
        for split in COUNTS:
            names = [f"{split}-{i}" for i in range(COUNTS[split])]
            writer.append(split, ids=names, **make_arrays(split, len(wavelength)))
    with SpectraDataset.open(path) as data:
        found = script.chips(data)
    expected = [(max(chip.start - 200, 0), chip.stop - 200) for chip in GALAH.chips.values()]
    assert found == expected
    script.main([str(path), "--stars", "5"])


def test_any_number_of_pixels(script, tmp_path, capsys):
    script.main([str(write_survey(tmp_path / "a.h5")), "--stars", "5"])
    assert "from 5 stars" in capsys.readouterr().out


def test_no_data_is_said(script, tmp_path):
    with pytest.raises(SystemExit, match="there is no such file"):
        script.main([str(tmp_path / "none.h5")])
    (tmp_path / "bad.h5").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="no HDF5 file"):
        script.main([str(tmp_path / "bad.h5")])


def test_scripts_beside_it_find_pythons_own_inspect():
    """A script named inspect.py would take the place of Python's module in all scripts there."""
    assert not (SCRIPT.parent / "inspect.py").exists()


def test_a_survey_is_never_replaced_by_its_plots(script, tmp_path, capsys):
    path = write_apogee(tmp_path / "survey.png")
    content = path.read_bytes()
    with pytest.raises(SystemExit):
        script.main([str(path)])
    assert "is there and no picture" in capsys.readouterr().err
    assert path.read_bytes() == content
    script.main([str(path), "--output", str(tmp_path / "plots.png")])
    script.main([str(path), "--output", str(tmp_path / "plots.png")])  # a picture may be
