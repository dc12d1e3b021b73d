"""Opening and reading surveys."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_survey import COUNTS, N_PIXELS, make_arrays, write_folder, write_survey

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.dataset import SpectraDataset, _gather, draw_iron_rich
from stellarperceptron.data.sources import DatasetError
from stellarperceptron.labels import PUBLISHED_LABELS


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
    few, many = [True, False, True], np.ones(50, dtype=bool)
    hidden = np.ma.array([1, 2], mask=[False, True])
    for rows in ([40], [-1], [0.5], few, many, many[:40, None], hidden, ["1"], [None]):
        with pytest.raises(IndexError, match="rows "):
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


def test_iron_rich_stars_lie_above_minus_one():
    fe_h = np.array([-1.5, np.nan, -1.01, -1.0, -0.99, 0.4, -2.0])
    assert draw_iron_rich(fe_h, 2).tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"2 stars with \[Fe/H\] > -1, 3 are needed"):
        draw_iron_rich(fe_h, 3)


def test_iron_rich_stars_are_pinned():
    """Stage 3 sees the same hundred stars in every release of NumPy and of this package."""
    fe_h = np.linspace(-2, 0.5, 1000)
    rows = draw_iron_rich(fe_h)
    assert (len(rows), rows[:4].tolist(), rows[-2:].tolist()) == (
        100,
        [402, 405, 406, 417],
        [994, 997],
    )
    assert draw_iron_rich(fe_h, seed=78).tolist() != rows.tolist()


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
