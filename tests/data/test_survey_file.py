"""Writing surveys."""

import shutil

import numpy as np
import pytest
from small_survey import COUNTS, N_PIXELS, make_arrays, write_survey

from stellarperceptron.data.apogee.spectra import APOGEE_WAVELENGTH
from stellarperceptron.data.dataset import SpectraDataset, SurveyWriter


def test_same_input_gives_the_same_bytes(tmp_path):
    first, second = (write_survey(tmp_path / name).read_bytes() for name in ("a.h5", "b.h5"))
    assert first == second


def test_blocks_do_not_matter(tmp_path):
    with (
        SpectraDataset.open(write_survey(tmp_path / "a.h5", block=1)) as ones,
        SpectraDataset.open(write_survey(tmp_path / "b.h5", block=40)) as whole,
    ):
        np.testing.assert_array_equal(ones.train.read("observed"), whole.train.read("observed"))


@pytest.mark.parametrize("names", [(), ("TEFF", "FE_H", "TEFF")])
def test_labels_must_be_told_apart(tmp_path, names):
    with pytest.raises(ValueError, match=r"label_names is .* give one or more, each once"):
        SurveyWriter(tmp_path / "a.h5", counts=COUNTS, provenance={}, label_names=names)


def test_survey_of_one_kind(tmp_path):
    arrays = {split: make_arrays(split) for split in COUNTS}
    options = {"wavelength": APOGEE_WAVELENGTH[:N_PIXELS], "provenance": {}, "kinds": ["observed"]}
    with SurveyWriter(tmp_path / "a.h5", counts=COUNTS, **options) as writer:
        for split, parts in arrays.items():
            del parts["synthetic"]
            writer.append(split, ids=range(COUNTS[split]), **parts)
    with SpectraDataset.open(tmp_path / "a.h5") as opened:
        assert opened.test.kinds == ("observed",)


def test_long_provenance_is_kept(tmp_path):
    provenance = {"arguments": {"é": "x" * 100_000}}
    write_survey(tmp_path / "a.h5", provenance=provenance)
    with SpectraDataset.open(tmp_path / "a.h5") as opened:
        assert opened.provenance == provenance


def test_announced_size_is_enough(tmp_path):
    wavelength = APOGEE_WAVELENGTH[:N_PIXELS]
    writer = SurveyWriter(
        tmp_path / "a.h5", counts=COUNTS, provenance={}, wavelength=wavelength, true_labels=True
    )
    assert write_survey(tmp_path / "a.h5").stat().st_size <= writer.n_bytes


def test_missing_stars_leave_no_file(tmp_path):
    with (
        pytest.raises(ValueError, match=r"a\.h5 is not complete"),
        SurveyWriter(tmp_path / "a.h5", counts=COUNTS, provenance={}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_the_previous_file(tmp_path):
    path = write_survey(tmp_path / "a.h5")
    before = path.read_bytes()
    with (
        pytest.raises(KeyboardInterrupt),
        SurveyWriter(path, counts=COUNTS, provenance={}),
    ):
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("full_at_call", [0, 1, 3])
def test_full_disk_leaves_no_file_and_says_how_much_is_needed(tmp_path, monkeypatch, full_at_call):
    calls = iter(range(1000))
    usage = shutil.disk_usage(tmp_path)

    def disk_usage(_):
        return usage._replace(free=10**12 if next(calls) < full_at_call else 1000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(OSError, match=r"a\.h5 needs 0\.03 GB"):
        write_survey(tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


def narrow(arrays):
    arrays["observed"] = arrays["observed"][:, 1:]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda arrays: arrays.pop("observed"), "the file has"),
        (lambda arrays: arrays.update(true_labels=arrays["labels"]), "the file has"),
        (narrow, r"observed has the shape \(12, 49\)"),
        (lambda arrays: arrays.update(ids=["x" * 33] * 12), "longer than 32 bytes"),
        (lambda arrays: arrays.update(ids=["x"] * 13), "12 stars, more"),
        (lambda arrays: arrays.update(split="dev"), "split is 'dev'"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, edit, message):
    arrays = {"split": "test", "ids": ["x"] * 12, **make_arrays("test")}
    edit(arrays)
    wavelength = APOGEE_WAVELENGTH[:N_PIXELS]
    with (
        pytest.raises(ValueError, match=message),
        SurveyWriter(
            tmp_path / "a.h5", counts=COUNTS, provenance={}, wavelength=wavelength
        ) as writer,
    ):
        writer.append(**arrays)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [{"counts": {"train": 1}}, {"counts": {"train": 1, "test": 0}}, {"kinds": ["imagined"]}],
)
def test_impossible_surveys_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"counts is|kinds is"):
        SurveyWriter(tmp_path / "a.h5", **{"counts": COUNTS, "provenance": {}, **options})


def test_error_spectra_may_be_kept(tmp_path):
    arrays = {split: make_arrays(split) for split in COUNTS}
    options = {"wavelength": APOGEE_WAVELENGTH[:N_PIXELS], "provenance": {}, "errors": True}
    with SurveyWriter(tmp_path / "a.h5", counts=COUNTS, **options) as writer:
        for split, parts in arrays.items():
            parts["observed_errors"] = parts["observed"] / 100
            writer.append(split, ids=map(str, range(COUNTS[split])), **parts)
    with SpectraDataset.open(tmp_path / "a.h5") as opened:
        assert opened.train.kinds == ("synthetic", "observed")
        errors = opened.train.read("observed_errors", slice(2, 9))
        np.testing.assert_array_equal(errors, arrays["train"]["observed_errors"][2:9])
    with SpectraDataset.open(write_survey(tmp_path / "b.h5")) as without:
        assert not without.train.has_errors
        with pytest.raises(ValueError, match="has no 'observed_errors' spectra"):
            without.train.read("observed_errors")
