"""Opening and reading surveys."""

import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_survey import COUNTS, N_PIXELS, make_arrays, write_survey

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.dataset import SpectraDataset, _gather
from stellarperceptron.data.sources import DatasetError
from stellarperceptron.labels import PUBLISHED_LABELS


def write_folder(path, dtype=np.float64, n_pixels=N_PIXELS):
    path.mkdir()
    for split in COUNTS:
        arrays = make_arrays(split, n_pixels, dtype)
        np.save(path / f"synspec_{split}.npy", arrays["synthetic"])
        np.save(path / f"aspcap_spectra_{split}.npy", arrays["observed"])
        np.save(path / f"labels_{split}.npy", arrays["labels"])
        np.save(path / f"label_errs_{split}.npy", arrays["label_errors"])
    np.savetxt(path / "apogee_wavelength_sol.csv", APOGEE_WAVELENGTH[:n_pixels])
    return path


@pytest.fixture(scope="module")
def survey_path(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "survey.h5")


@pytest.fixture(scope="module")
def folder_path(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("published") / "data")


@pytest.fixture(params=["survey", "folder"])
def dataset(request, survey_path, folder_path):
    with SpectraDataset.open(survey_path if request.param == "survey" else folder_path) as opened:
        yield opened


# --- what both sources give -----------------------------------------------------------------------


def test_spectra_are_those_that_were_written(dataset):
    for split in ("train", "test"):
        for kind in ("synthetic", "observed"):
            expected = make_arrays(split, dtype=np.float32 if dataset._file else np.float64)[kind]
            result = getattr(dataset, split).read(kind)
            np.testing.assert_array_equal(result, expected.astype(np.float32))


def test_everything_is_single_precision(dataset):
    train = dataset.train
    assert {train.read("observed").dtype, train.labels.dtype, train.label_errors.dtype} == {
        np.dtype(np.float32)
    }


def test_missing_values_stay_nan(dataset):
    assert np.isnan(dataset.train.labels[3, 2])
    assert np.isnan(dataset.train.read("observed")[5, 7])


def test_wavelengths_and_labels_are_described(dataset):
    np.testing.assert_allclose(dataset.wavelength, APOGEE_WAVELENGTH[:N_PIXELS], rtol=1e-15)
    assert dataset.label_names == PUBLISHED_LABELS
    assert isinstance(dataset.provenance, dict)


def test_nothing_is_read_on_opening(dataset):
    assert not set(vars(dataset.train)) & {"labels", "label_errors", "ids", "true_labels"}


def test_data_set_survives_pickling(dataset):
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.train.labels, dataset.train.labels)


def test_rows_out_of_range_are_refused(dataset):
    for rows in ([40], [-1], [0.5]):
        with pytest.raises((IndexError, TypeError)):
            dataset.train.read("observed", rows)


def test_out_receives_the_spectra(dataset):
    out = np.zeros((3, 10), dtype=np.float32)
    result = dataset.train.read("observed", [4, 2, 9], "0:10", out=out)
    assert result is out
    np.testing.assert_array_equal(out, dataset.train.read("observed")[[4, 2, 9], :10])


def test_out_of_the_wrong_shape_is_refused(dataset):
    with pytest.raises(ValueError, match="must be float32"):
        dataset.train.read("observed", [4, 2], out=np.zeros((3, N_PIXELS), dtype=np.float32))


rows_of_train = st.one_of(
    st.none(),
    st.slices(COUNTS["train"]),
    st.lists(st.integers(0, COUNTS["train"] - 1)),
    hnp.arrays(bool, COUNTS["train"]),
)


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_train, start=st.integers(0, N_PIXELS - 1), width=st.integers(1, N_PIXELS))
def test_any_selection_is_that_of_numpy(survey_path, folder_path, rows, start, width):
    pixels = slice(start, min(start + width, N_PIXELS))
    for path in (survey_path, folder_path):
        with SpectraDataset.open(path) as opened:
            everything = opened.train.read("observed")
            index = slice(None) if rows is None else rows
            index = np.array(index, dtype=int) if isinstance(index, list) else index
            result = opened.train.read("observed", rows, pixels)
            np.testing.assert_array_equal(result, everything[index][:, pixels])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 4999), min_size=1, max_size=50))
def test_scattered_rows_come_in_the_order_asked_for(rows):
    array = np.arange(5000, dtype=np.float32)[:, None] * np.ones(3, dtype=np.float32)
    out = np.empty((len(rows), 2), dtype=np.float32)
    _gather(array, np.array(rows), slice(1, 3), out)
    np.testing.assert_array_equal(out[:, 0], rows)


# --- selections -----------------------------------------------------------------------------------


def test_validation_split_divides_the_stars(dataset):
    training, validation = dataset.train.validation_split()
    assert len(validation) == 4
    assert sorted([*training, *validation]) == list(range(40))


def test_validation_split_depends_on_the_seed_only(dataset):
    first, again = (dataset.train.validation_split(seed=5)[1] for _ in range(2))
    other = dataset.train.validation_split(seed=6)[1]
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()


def test_validation_split_of_the_papers_size(dataset, monkeypatch):
    monkeypatch.setattr(dataset.train, "n_stars", 102_747)
    training, validation = dataset.train.validation_split()
    assert (len(training), len(validation)) == (92_472, 10_275)


def test_validation_split_is_pinned(dataset):
    """The stars that are drawn must not change with releases of NumPy or of this package."""
    assert dataset.train.validation_split(seed=0)[1].tolist() == [4, 20, 22, 25]


@pytest.mark.parametrize("fraction", [0, 1, -0.1])
def test_validation_fraction_lies_between_none_and_all(dataset, fraction):
    with pytest.raises(ValueError, match="fraction"):
        dataset.train.validation_split(fraction)


def test_giants_are_chosen_by_gravity(dataset):
    logg = dataset.train.labels[:, 1]
    np.testing.assert_array_equal(
        dataset.train.giants(), [i for i in range(40) if 1.0 < logg[i] < 3.5]
    )


def test_iron_rich_stars_are_drawn_without_repetition(dataset):
    rows = dataset.train.iron_rich_stars(n_stars=10)
    assert len(set(rows.tolist())) == 10
    assert (dataset.train.labels[rows, 4] > -1).all()


def test_iron_rich_stars_needs_a_hundred(dataset):
    with pytest.raises(DatasetError, match="100 are needed"):
        dataset.train.iron_rich_stars()


@pytest.mark.reference
def test_selections_of_the_published_stars(shared, tmp_path):
    for split in ("train", "test"):
        for stem in ("labels", "label_errs"):
            shutil.copy(shared / "published" / f"{stem}_{split}.npy", tmp_path)
        n_stars = len(np.load(tmp_path / f"labels_{split}.npy", mmap_mode="r"))
        np.lib.format.open_memmap(
            tmp_path / f"synspec_{split}.npy", "w+", np.float32, (n_stars, N_PIXELS)
        )
    np.savetxt(tmp_path / "apogee_wavelength_sol.csv", APOGEE_WAVELENGTH[:N_PIXELS])
    with SpectraDataset.open(tmp_path) as opened:
        assert (opened.train.n_stars, opened.test.n_stars) == (102_747, 25_681)
        assert len(opened.train.iron_rich_stars()) == 100
        giants = opened.test.labels[opened.test.giants()]
        assert len(giants) / 25_681 == pytest.approx(0.63, abs=0.05)


# --- names of stars -------------------------------------------------------------------------------


def test_names_are_text(survey_path):
    with SpectraDataset.open(survey_path) as opened:
        assert opened.train.ids[:2].tolist() == ["2Mé0000", "2Mé0001"]
        assert opened.train.ids.dtype.kind == "U"


def test_stars_without_names_are_numbered(folder_path):
    with SpectraDataset.open(folder_path) as opened:
        assert opened.test.ids.tolist() == [str(i) for i in range(12)]


def test_names_in_a_plain_array_are_read(tmp_path):
    folder = write_folder(tmp_path / "data")
    np.save(folder / "ids_train.npy", np.array([f"2M{i}" for i in range(40)]))
    with SpectraDataset.open(folder) as opened:
        assert opened.train.ids[39] == "2M39"


class Bomb:
    """An object whose pickle runs code when it is read."""

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_pickled_names_are_never_read(tmp_path):
    folder = write_folder(tmp_path / "data")
    bomb = Bomb()
    bomb.path = str(tmp_path / "exploded")
    np.save(folder / "ids_train.npy", np.array([bomb] * 40, dtype=object), allow_pickle=True)
    with pytest.warns(UserWarning, match="pickled"), SpectraDataset.open(folder) as opened:
        assert opened.train.ids[3] == "3"
    assert not (tmp_path / "exploded").exists()


def test_pickled_spectra_are_refused(tmp_path):
    folder = write_folder(tmp_path / "data")
    np.save(folder / "labels_train.npy", np.array([{}] * 40, dtype=object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"labels_train\.npy"):
        SpectraDataset.open(folder)


def test_only_mock_surveys_have_true_labels(survey_path, folder_path):
    with SpectraDataset.open(survey_path) as opened:
        np.testing.assert_allclose(opened.test.true_labels, opened.test.labels + 1, rtol=1e-6)
    with SpectraDataset.open(folder_path) as opened:
        assert opened.test.true_labels is None


# --- what is refused ------------------------------------------------------------------------------


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
        arrays = {
            "aspcap_spectra": rng.uniform(0.8, 1.1, (4, 7514)),
            "labels": labels,
            "label_errs": np.where(abs(labels) > 900, -9999, 0.1),
        }
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}_{split}.npy", array)
    with SpectraDataset.open(tmp_path) as dataset:
        for values in (dataset.train.labels, dataset.test.label_errors):
            assert np.argwhere(np.isnan(values)).tolist() == [[0, 4], [1, 4], [2, 4]]
