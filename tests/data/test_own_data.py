"""Survey files whose data lie elsewhere, or nowhere."""

import shutil

import h5py
import numpy as np
import pytest
from small_survey import write_survey

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.sources import DatasetError


@pytest.fixture(scope="module")
def survey_path(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "survey.h5")


def replace(file, name, make):
    shape = file[name].shape
    del file[name]
    make(file, name, shape)


def external_link(file, name, _):
    file[name] = h5py.ExternalLink("other.h5", name)


def soft_link(file, name, _):
    file[name] = h5py.SoftLink("/test/observed")


def virtual(file, name, shape):
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource("other.h5", name, shape)
    file.create_virtual_dataset(name, layout)


def stored_outside(file, name, shape):
    size = 4 * int(np.prod(shape))
    file.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, size)])


def without_data(file, name, shape):
    file.create_dataset(name, (10**9, *shape[1:]), "f4", chunks=(16, *shape[1:]))


def hardly_any_data(file, name, shape):
    options = {"chunks": (1000, *shape[1:]), "compression": "gzip"}
    data = file.create_dataset(name, (10**9, *shape[1:]), "f4", **options)
    data[0] = 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (external_link, r"leads to another file \(other\.h5\)"),
        (soft_link, r"is a link \(/test/observed\)"),
        (virtual, "is virtual: its data lie in other files"),
        (stored_outside, "is stored outside: its data lie in other files"),
        (without_data, r"declares \d+ bytes, but the file has 0"),
        (hardly_any_data, r"declares \d+ bytes, more than 100 times as many, but the file has"),
    ],
)
@pytest.mark.parametrize("name", ["train/observed", "test/labels", "train/ids", "wavelength"])
def test_data_that_are_not_in_the_file_are_refused(survey_path, tmp_path, name, make, message):
    shutil.copy(survey_path, tmp_path / "other.h5")  # what is led to is there
    copy = shutil.copy(survey_path, tmp_path / "copy.h5")
    with h5py.File(copy, "r+") as file:
        replace(file, name, make)
    with pytest.raises(DatasetError, match=rf"copy\.h5.*'{name.split('/')[-1]}|{name}' {message}"):
        SpectraDataset.open(copy)


def test_a_group_in_another_file_is_refused(survey_path, tmp_path):
    shutil.copy(survey_path, tmp_path / "other.h5")
    copy = shutil.copy(survey_path, tmp_path / "copy.h5")
    with h5py.File(copy, "r+") as file:
        del file["train"]
        file["train"] = h5py.ExternalLink("other.h5", "train")
    with pytest.raises(DatasetError, match="'train' leads to another file"):
        SpectraDataset.open(copy)


def test_permission_denied_is_no_damage(survey_path, monkeypatch):
    def denied(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", denied)
    with pytest.raises(PermissionError, match=r"survey\.h5 may not be read: Permission denied"):
        SpectraDataset.open(survey_path)
