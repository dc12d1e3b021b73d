"""Turning the published arrays into a survey file."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from stellarperceptron.dataset import SpectraDataset
from stellarperceptron.spectra import APOGEE_WAVELENGTH

SCRIPT = Path(__file__).parents[1] / "dataset" / "import_published.py"
COUNTS = {"train": 30, "test": 9}


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("import_published", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """Published arrays of a few stars in double precision, with what has to be cleaned."""
    path = tmp_path / "published"
    path.mkdir()
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for stem in ("synspec", "aspcap_spectra"):
            flux = rng.uniform(0.7, 1.1, (count, 7514))
            flux[2, :4] = 0.0, 1.5, np.nan, 1.19
            np.save(path / f"{stem}_{split}.npy", flux)
        labels = rng.normal(size=(count, 5))
        labels[1, 3] = -9999
        np.save(path / f"labels_{split}.npy", labels)
        np.save(path / f"label_errs_{split}.npy", np.abs(labels))
    np.savetxt(path / "apogee_wavelength_sol.csv", APOGEE_WAVELENGTH)
    return path


def test_survey_holds_the_same_as_the_folder(script, folder, tmp_path):
    script.main([str(folder), str(tmp_path / "survey.h5")])
    with (
        SpectraDataset.open(folder) as source,
        SpectraDataset.open(tmp_path / "survey.h5") as survey,
    ):
        assert (len(survey.train), len(survey.test)) == (30, 9)
        np.testing.assert_array_equal(survey.wavelength, source.wavelength)
        np.testing.assert_array_equal(survey.test.ids, source.test.ids)
        expected = source.test.read("observed")
        expected[2, :2] = np.nan
        np.testing.assert_array_equal(survey.test.read("observed"), expected)


def test_flux_and_labels_that_are_none_become_nan(script, folder, tmp_path):
    script.main([str(folder), str(tmp_path / "survey.h5")])
    with SpectraDataset.open(tmp_path / "survey.h5") as survey:
        assert np.isnan(survey.train.read("synthetic")[2, :4]).tolist() == [True] * 3 + [False]
        assert np.isnan(survey.train.labels[1]).tolist() == [False] * 3 + [True, False]


def test_blocks_do_not_matter(script, folder, tmp_path, monkeypatch):
    script.import_published(folder, tmp_path / "a.h5")
    monkeypatch.setattr(script, "BLOCK", 7)
    script.import_published(folder, tmp_path / "b.h5")
    with SpectraDataset.open(tmp_path / "a.h5") as a, SpectraDataset.open(tmp_path / "b.h5") as b:
        np.testing.assert_array_equal(a.train.read("observed"), b.train.read("observed"))


def test_one_kind_of_spectra_is_enough(script, folder, tmp_path):
    for split in COUNTS:
        (folder / f"synspec_{split}.npy").unlink()
    script.main([str(folder), str(tmp_path / "survey.h5")])
    with SpectraDataset.open(tmp_path / "survey.h5") as survey:
        assert survey.train.kinds == ("observed",)


def test_missing_array_is_said_and_leaves_nothing(script, folder, tmp_path):
    (folder / "labels_test.npy").unlink()
    with pytest.raises(SystemExit, match=r"labels_test\.npy"):
        script.main([str(folder), str(tmp_path / "survey.h5")])
    assert not list(tmp_path.glob("survey*"))
