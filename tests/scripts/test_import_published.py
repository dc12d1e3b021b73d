"""Turning the published arrays into a survey file."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
from chain import ROOT
from dr17_files import LABELS, write_archive

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, VALID_PIXELS
from stellarperceptron.data.dataset import SpectraDataset

SCRIPT = ROOT / "dataset" / "import_published.py"
COUNTS = {"train": 30, "test": 9}


def load(path):
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load(SCRIPT)


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
        errors = np.abs(labels)
        labels[1, 3] = errors[1, 3] = -9999
        np.save(path / f"labels_{split}.npy", labels)
        np.save(path / f"label_errs_{split}.npy", errors)
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
        for labels in (survey.train.labels, survey.train.label_errors):
            assert np.isnan(labels[1]).tolist() == [False] * 3 + [True, False]


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


# --- the other way to the same stars --------------------------------------------------------------


@pytest.fixture
def both_ways(tmp_path):
    """A survey file from an archive, and the same stars as published arrays: double precision,
    names as objects, fluxes as they stand in the archive's files."""
    archive = write_archive(tmp_path / "sas", 100, seed=4)
    survey = tmp_path / "archive.h5"
    create = load(SCRIPT.with_name("create_dataset.py"))
    create.main(["--local-sas", str(tmp_path / "sas"), "--output", str(survey)])
    folder = tmp_path / "published"
    folder.mkdir()
    row = {archive.rows["APOGEE_ID"][i]: i for i in archive.spectra if archive.fate[i] == "good"}
    row |= {
        archive.rows["APOGEE_ID"][i]: max(
            (j for j in archive.spectra if archive.rows["APOGEE_ID"][j] == name),
            key=lambda j: archive.rows["SNR"][j],
        )
        for i, name in enumerate(archive.rows["APOGEE_ID"])
        if archive.fate[i] == "duplicate"
    }
    with SpectraDataset.open(survey) as data:
        for split in (data.train, data.test):
            rows = [row[name] for name in split.ids.tolist()]
            spectra = np.stack([archive.spectra[i] for i in rows]).astype(np.float64)
            spectra = spectra[:, :, VALID_PIXELS]
            np.save(folder / f"aspcap_spectra_{split.name}.npy", spectra[:, 0])
            np.save(folder / f"synspec_{split.name}.npy", spectra[:, 2])
            for stem, end in (("labels", ""), ("label_errs", "_ERR")):
                labels = [archive.rows[name + end][rows] for name in LABELS]
                labels = np.stack(labels, axis=1).astype(np.float64)
                np.save(folder / f"{stem}_{split.name}.npy", labels)
            names = np.array(split.ids.tolist(), dtype=object)
            np.save(folder / f"ids_{split.name}.npy", names, allow_pickle=True)
    np.savetxt(folder / "apogee_wavelength_sol.csv", APOGEE_WAVELENGTH)
    return survey, folder


def test_published_arrays_give_the_same_as_the_archive(script, both_ways, tmp_path):
    survey, folder = both_ways
    script.main([str(folder), str(tmp_path / "imported.h5")])
    with (
        SpectraDataset.open(survey) as one,
        SpectraDataset.open(tmp_path / "imported.h5") as other,
        SpectraDataset.open(folder) as direct,
    ):
        for name in COUNTS:
            a, b, c = (getattr(data, name) for data in (one, other, direct))
            assert a.ids.tolist() == b.ids.tolist() == c.ids.tolist()
            for kind in ("synthetic", "observed"):
                np.testing.assert_array_equal(a.read(kind), b.read(kind))
                np.testing.assert_array_equal(a.read(kind), script.clean_flux(c.read(kind)))
            for labels in ("labels", "label_errors"):
                np.testing.assert_array_equal(getattr(a, labels), getattr(b, labels))
                np.testing.assert_array_equal(getattr(a, labels), getattr(c, labels))


class Malicious(str):
    """A text that would run code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path(self),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_names_as_objects_are_read_without_running_anything(folder, tmp_path, protocol):
    header = {"descr": "|O", "fortran_order": False, "shape": (30,)}
    names = [f"2M{i:08d}+0000000" for i in range(30)]
    with open(folder / "ids_train.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(np.array(names, dtype=object), file, protocol=protocol)
    with SpectraDataset.open(folder) as data:
        assert data.train.ids.tolist() == names
    names[7] = Malicious(tmp_path / "harm")
    with open(folder / "ids_train.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(np.array(names, dtype=object), file, protocol=protocol)
    with (
        pytest.warns(UserWarning, match="rows are numbered"),
        SpectraDataset.open(folder) as data,
    ):
        assert data.train.ids[7] == "7"
    assert not (tmp_path / "harm").exists()
