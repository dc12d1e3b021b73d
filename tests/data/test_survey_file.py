"""Writing surveys."""

import dataclasses
import hashlib
import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.utils.masked import Masked
from small_survey import COUNTS, N_PIXELS, make_arrays, write_survey

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.sources import DatasetError
from stellarperceptron.data.survey_file import SurveyWriter
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument

SPOT = Instrument("SPOT", np.linspace(8460.0, 8470.0, N_PIXELS), ranges={"middle": (10, 20)})


def test_same_input_gives_the_same_bytes(tmp_path):
    first, second = (write_survey(tmp_path / name).read_bytes() for name in ("a.h5", "b.h5"))
    assert first == second


@pytest.mark.parametrize(
    ("format_version", "digest"),
    [
        (1, "52d3328e293f17d7b7c5dabb5d7cba46d689297a6cfdcb44175b49900b8af82b"),
        (2, "9e7b55b529c79bc00527b36998d5e9e78be7b8c090b055b101319d5a02af1933"),
    ],
)
def test_bytes_are_pinned(tmp_path, format_version, digest):
    """The same arrays give the same file on every machine, in the old format and the new one."""
    options = {"wavelength": APOGEE_WAVELENGTH[:N_PIXELS].round(2), "provenance": {"seed": 1}}
    path = tmp_path / "a.h5"
    with SurveyWriter(
        path, counts=COUNTS, kinds=["observed"], format_version=format_version, **options
    ) as writer:
        for split, count in COUNTS.items():
            flux = np.arange(count * N_PIXELS).reshape(count, N_PIXELS) / 4096
            labels = np.arange(count * 5).reshape(count, 5) / 8
            ids = [f"{split}{i}" for i in range(count)]
            writer.append(split, ids=ids, observed=flux, labels=labels, label_errors=labels / 16)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_formats_hold_the_same_arrays(tmp_path):
    with (
        h5py.File(write_survey(tmp_path / "1.h5", format_version=1)) as old,
        h5py.File(write_survey(tmp_path / "2.h5")) as new,
    ):
        assert set(new.attrs) - set(old.attrs) == {"instrument", "label_units"}
        for name in ("wavelength", "train/observed", "train/labels", "test/ids"):
            np.testing.assert_array_equal(old[name], new[name])


def test_files_of_format_1_are_apogees(tmp_path):
    with SpectraDataset.open(write_survey(tmp_path / "a.h5", format_version=1)) as opened:
        assert opened.instrument is APOGEE
        assert opened.label_units == ("K", "dex", "dex", "dex", "dex")


def test_format_1_holds_no_other_instrument(tmp_path):
    with pytest.raises(ValueError, match=r"format 1 holds APOGEE .*, not SPOT"):
        write_survey(tmp_path / "a.h5", format_version=1, instrument=SPOT, wavelength=None)


@pytest.mark.parametrize(
    "one",
    [SPOT, dataclasses.replace(SPOT, resolving_power=np.full(N_PIXELS, 20_000.0))],
    ids=["a number", "a number for each pixel"],
)
def test_a_file_holds_its_instrument(tmp_path, one):
    path = write_survey(tmp_path / "a.h5", instrument=one, wavelength=None)
    with SpectraDataset.open(path) as opened:
        assert opened.instrument == opened.train.instrument == one
        np.testing.assert_array_equal(opened.wavelength, one.wavelength)
        np.testing.assert_array_equal(
            opened.test.read("observed", pixels="middle"), opened.test.read("observed")[:, 10:20]
        )


def test_units_of_labels_are_kept(tmp_path):
    names, units = ["TEFF", "FE_H", "AGE", "VSINI", "X"], ["K", "dex", "Gyr", "km/s", ""]
    path = write_survey(tmp_path / "a.h5", label_names=names, label_units=units)
    with SpectraDataset.open(path) as opened:
        assert opened.label_units == tuple(units)
    with pytest.raises(ValueError, match="1 units do not belong to 5 labels"):
        write_survey(tmp_path / "b.h5", label_units=["K"])


def test_wavelengths_of_another_instrument_are_refused(tmp_path):
    with pytest.raises(ValueError, match="on no SPOT pixel"):
        write_survey(tmp_path / "a.h5", instrument=SPOT)


def edited(path, **attributes):
    with h5py.File(path, "r+") as file:
        for name, value in attributes.items():
            file.attrs[name] = value
    return path


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"instrument": '{"name": "SPOT", "pixels": 50}'}, "unknown instrument 'SPOT'.*APOGEE"),
        ({"instrument": '{"name": "SPOT"'}, "instrument that cannot be used"),
        ({"instrument": '{"name": "", "wavelength": [1, 2]}'}, "needs a name"),
        ({"instrument": json.dumps(SPOT.to_dict())}, r"differs by up to .* pixels of SPOT \(50"),
        ({"label_units": ["K", "dex"]}, "2 label_units for 5 labels"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path, attributes, message):
    path = edited(write_survey(tmp_path / "a.h5"), **attributes)
    with pytest.raises(DatasetError, match=rf"a\.h5.*{message}"):
        SpectraDataset.open(path)


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
    with pytest.raises(OSError, match=r"a\.h5 needs 33\.04 MB"):
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


def test_masked_and_swapped_arrays_are_written_as_what_they_mean(tmp_path):
    arrays = make_arrays("train")
    hidden = {name: np.random.default_rng(0).random(a.shape) < 0.2 for name, a in arrays.items()}
    containers = {
        "synthetic": lambda a, m: np.ma.array(np.where(m, -9999, a), mask=m),
        "observed": lambda a, m: Masked(np.where(m, 0.0, a), mask=m),
        "labels": lambda a, m: pd.DataFrame(a).astype("Float64").mask(pd.DataFrame(m)),
        "label_errors": lambda a, m: np.where(m, np.nan, a).astype(">f8"),
    }
    options = {"wavelength": (APOGEE_WAVELENGTH[:N_PIXELS] * u.AA).to(u.nm), "provenance": {}}
    with SurveyWriter(tmp_path / "s.h5", counts={"train": 40, "test": 40}, **options) as writer:
        for split in ("train", "test"):
            given = {name: containers[name](a, hidden[name]) for name, a in arrays.items()}
            writer.append(split, ids=list(map(str, range(40))), **given)
    with SpectraDataset.open(tmp_path / "s.h5") as dataset:
        np.testing.assert_allclose(dataset.wavelength, APOGEE_WAVELENGTH[:N_PIXELS], rtol=1e-12)
        for name, values in arrays.items():
            kinds = ("synthetic", "observed")
            read = dataset.train.read(name) if name in kinds else getattr(dataset.train, name)
            np.testing.assert_array_equal(read, np.where(hidden[name], np.nan, values))
