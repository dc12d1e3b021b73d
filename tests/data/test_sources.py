"""Survey files and published arrays: what is refused when they are opened."""

import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_survey import make_arrays, write_folder, write_survey

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.sources import DatasetError
from stellarperceptron.labels import PUBLISHED_LABELS


@pytest.fixture(scope="module")
def survey_path(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "survey.h5")


def edited_copy(survey_path, tmp_path, edit):
    copy = shutil.copy(survey_path, tmp_path / "copy.h5")
    with h5py.File(copy, "r+") as file:
        edit(file)
    return copy


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.h5.*create_mock_survey"):
        SpectraDataset.open(tmp_path / "nowhere.h5")


def replace_wavelength(file):
    del file["wavelength"]
    file["wavelength"] = np.arange(49.0)


def change_wavelength(change):
    """An edit that replaces the wavelengths by a function of them."""

    def edit(file):
        file["wavelength"][...] = change(file["wavelength"][:])

    return edit


def link_outside(file):
    del file["train/observed"], file["train/synthetic"]
    file["train/observed"] = h5py.ExternalLink("other.h5", "observed")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda file: file.attrs.__setitem__("complete", False), "half-written"),
        (lambda file: file.attrs.__delitem__("complete"), "half-written"),
        (lambda file: file.attrs.__setitem__("format_version", 99), "format version 99"),
        (lambda file: file.attrs.__setitem__("label_names", ["TEFF"] * 5), "label twice"),
        (lambda file: file.attrs.__setitem__("provenance", "{"), "damaged"),
        (lambda file: file.__delitem__("test"), "lacks a part.*test"),
        (lambda file: file.__delitem__("train/labels"), "lacks train/labels"),
        (lambda file: file["train"].move("labels", "label_errors2"), "lacks train/labels"),
        (lambda file: file.__delitem__("wavelength"), "lacks a part.*wavelength"),
        (replace_wavelength, r"\(40, 50\), expected is \(40, 49\)"),
        (change_wavelength(lambda grid: grid * np.nan), "wavelength must hold finite numbers"),
        (change_wavelength(lambda grid: grid[::-1]), "in ascending order"),
        (change_wavelength(np.ones_like), "in ascending order"),
        (link_outside, r"'observed' leads to another file \(other\.h5\)"),
    ],
)
def test_file_with_a_wrong_part_is_refused(survey_path, tmp_path, edit, message):
    copy = edited_copy(survey_path, tmp_path, edit)
    with pytest.raises(DatasetError, match=message) as caught:
        SpectraDataset.open(copy)
    assert "copy.h5" in str(caught.value)


def test_required_labels_that_are_missing_are_named(survey_path):
    with SpectraDataset.open(survey_path, ["FE_H", "TEFF"]) as opened:  # any order will do
        assert opened.label_names == PUBLISHED_LABELS
    with pytest.raises(DatasetError, match=r"\.h5 lacks the labels C_FE, EU_FE; it has TEFF, LOGG"):
        SpectraDataset.open(survey_path, ["TEFF", "C_FE", "EU_FE"])


def test_any_labels_are_accepted(survey_path, tmp_path):
    names = ["A", "B", "C", "D", "E"]
    copy = edited_copy(survey_path, tmp_path, lambda f: f.attrs.__setitem__("label_names", names))
    with SpectraDataset.open(copy) as opened:
        assert opened.label_names == tuple(names)
        with pytest.raises(DatasetError, match="no label LOGG"):
            opened.train.giants()


@pytest.mark.parametrize("content", [b"", b"no HDF5 file"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "survey.h5").write_bytes(content)
    with pytest.raises(DatasetError, match=r"survey\.h5"):
        SpectraDataset.open(tmp_path / "survey.h5")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_file_cut_off_is_refused(survey_path, tmp_path, share):
    content = survey_path.read_bytes()
    (tmp_path / "survey.h5").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DatasetError, match=r"survey\.h5.*damaged"):
        SpectraDataset.open(tmp_path / "survey.h5")


def test_flipped_bit_in_the_spectra_is_noticed(survey_path, tmp_path):
    content = bytearray(survey_path.read_bytes())
    pattern = make_arrays("train")["observed"][20].tobytes()
    content[content.index(pattern) + 100] ^= 1
    (tmp_path / "survey.h5").write_bytes(content)
    with (
        SpectraDataset.open(tmp_path / "survey.h5") as opened,
        pytest.raises(DatasetError, match=r"survey\.h5 is damaged in train/observed"),
    ):
        opened.train.read("observed")


@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_changed_byte_is_noticed_or_harmless(survey_path, tmp_path_factory, position, value):
    content = bytearray(survey_path.read_bytes())
    content[int(position * len(content))] = value
    path = tmp_path_factory.getbasetemp() / "changed.h5"
    path.write_bytes(content)
    try:
        with SpectraDataset.open(path) as opened:
            result = [opened.train.read("observed"), opened.train.read("synthetic")]
            result += [opened.train.labels, opened.train.label_errors, opened.train.ids]
    except DatasetError:
        return
    with SpectraDataset.open(survey_path) as original:
        expected = [original.train.read("observed"), original.train.read("synthetic")]
        expected += [original.train.labels, original.train.label_errors, original.train.ids]
    for now, before in zip(result, expected, strict=True):
        np.testing.assert_array_equal(now, before)


def test_absent_kind_of_spectra_is_named(tmp_path):
    folder = write_folder(tmp_path / "data")
    (folder / "synspec_train.npy").unlink()
    with SpectraDataset.open(folder) as opened:
        assert opened.train.kinds == ("observed",)
        with pytest.raises(DatasetError, match="no 'synthetic' spectra in 'train'"):
            opened.train.read("synthetic")


def test_missing_array_is_named(tmp_path):
    folder = write_folder(tmp_path / "data")
    (folder / "label_errs_test.npy").unlink()
    with pytest.raises(DatasetError, match=r"label_errs_test\.npy"):
        SpectraDataset.open(folder)


def test_array_cut_off_is_named(tmp_path):
    folder = write_folder(tmp_path / "data")
    content = (folder / "synspec_train.npy").read_bytes()
    (folder / "synspec_train.npy").write_bytes(content[:-100])
    with pytest.raises(DatasetError, match=r"synspec_train\.npy is damaged"):
        SpectraDataset.open(folder)


def test_arrays_of_different_length_are_refused(tmp_path):
    folder = write_folder(tmp_path / "data")
    np.save(folder / "label_errs_train.npy", np.zeros((39, 5)))
    with pytest.raises(DatasetError, match=r"label_errs_train\.npy has the shape \(39, 5\)"):
        SpectraDataset.open(folder)


def test_folder_without_wavelengths_needs_the_apogee_grid(tmp_path):
    folder = write_folder(tmp_path / "data")
    (folder / "apogee_wavelength_sol.csv").unlink()
    with pytest.raises(DatasetError, match=r"expected is \(40, 7514\)"):
        SpectraDataset.open(folder)


@pytest.mark.parametrize(
    ("wavelength", "message"),
    [
        (np.full(7514, np.nan), "finite numbers"),
        (np.linspace(15_000, 17_000, 7514), "differs by up to .* Angstrom"),
        (APOGEE_WAVELENGTH + 0.02, r"differs by up to 0\.02 Angstrom"),
        (APOGEE_WAVELENGTH / 1.000273, "differs by up to 4.* Angstrom"),  # in air
    ],
)
def test_other_wavelengths_than_the_surveys_are_refused(tmp_path, wavelength, message):
    folder = write_folder(tmp_path / "data", n_pixels=7514)
    np.savetxt(folder / "apogee_wavelength_sol.csv", wavelength)
    with pytest.raises(DatasetError, match=rf"apogee_wavelength_sol\.csv .*{message}"):
        SpectraDataset.open(folder)


def test_wavelengths_rounded_in_a_file_are_the_surveys(tmp_path):
    folder = write_folder(tmp_path / "data", n_pixels=7514)
    np.savetxt(folder / "apogee_wavelength_sol.csv", APOGEE_WAVELENGTH, fmt="%.2f")
    with SpectraDataset.open(folder) as opened:
        np.testing.assert_allclose(opened.wavelength, APOGEE_WAVELENGTH, atol=0.005001, rtol=0)


def test_marks_for_no_label_are_missing(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        labels = rng.normal(size=(4, 5))
        labels[:3, 4] = -9999, 9999, -999.99
        labels[:, 0], labels[3, 1] = (4500, 4600, 4700, 0), 99.99  # marks of TEFF and LOGG
        flux = rng.uniform(0.8, 1.1, (4, 7514))
        flux[2, 5:9] = -9999, 9999, 1e30, -999
        arrays = {
            "aspcap_spectra": flux,
            "labels": labels,
            "label_errs": np.where(np.isin(labels, (-9999, 9999, -999.99)), -1.0, 0.1),
        }
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}_{split}.npy", array)
    with SpectraDataset.open(tmp_path) as dataset:
        missing = [[0, 4], [1, 4], [2, 4]]
        assert np.argwhere(np.isnan(dataset.test.label_errors)).tolist() == missing
        missing += [[3, 0], [3, 1]]
        assert np.argwhere(np.isnan(dataset.train.labels)).tolist() == missing
        missing = [[2, pixel] for pixel in range(5, 9)]
        out = np.empty((4, 7514), np.float32)
        for read in (dataset.train.read("observed"), dataset.train.read("observed", out=out), out):
            assert np.argwhere(np.isnan(read)).tolist() == missing
