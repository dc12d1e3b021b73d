"""Stages 1 and 2 on two surveys: one model of both instruments, and what is refused."""

import os
import signal
from unittest import mock

import numpy as np
import pytest
import torch
from two_surveys import BLUE, LABELS, RED, spectra, train, write

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.flags import Flag
from stellarperceptron.instruments.combined import combined
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.model_core import Calibration
from stellarperceptron.training.step import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def surveys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surveys")
    return [
        write(folder / "blue.h5", BLUE, LABELS["BLUE"], 0),
        write(folder / "red.h5", RED, LABELS["RED"], 40),
    ]


@pytest.fixture(scope="module")
def trained(surveys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert not train(1, surveys, folder / "1")
    assert not train(2, surveys, folder / "2", checkpoint=folder / "1")
    return folder


@pytest.fixture(scope="module", params=["1", "2"])
def model(trained, request):
    return StellarPerceptron.load(trained / request.param / "selected", device="cpu")


def test_the_model_knows_the_pixels_and_labels_of_both(model):
    assert model.instrument == combined([BLUE, RED])
    assert model.label_names == ["TEFF", "FE_H", "LOGG"]
    assert model.config.wavelength_range == (5000.0, 8100.0)
    assert set(model.trained_on) == {"BLUE", "RED"}
    known = {name: set(part.factors) for name, part in model.calibration.parts.items()}
    assert known == {name: set(labels) for name, labels in LABELS.items()}


def test_each_instrument_has_its_own_standardization(model, surveys):
    for path in surveys:
        with SpectraDataset.open(path) as dataset:
            tokens = model.tokenize(model.instrument.pixel_names(dataset.wavelength))
            flux = dataset.train.read("synthetic")
        center = model.standardizer.center[tokens]
        np.testing.assert_allclose(center, np.median(flux, axis=0), atol=1e-6)


def test_it_answers_from_each_instrument_and_from_both(model):
    z = np.random.default_rng(2).uniform(-1, 1, (300, 3))
    flux = [spectra(one, z, np.random.default_rng(3)) for one in (BLUE, RED)]
    wavelengths = [BLUE.wavelength, RED.wavelength]
    seen = [*zip(flux, wavelengths, strict=True), (np.hstack(flux), np.hstack(wavelengths))]
    for values, at in seen:
        answers = model.predict(values, at, progress=False)
        assert np.corrcoef(answers["FE_H"], z[:, 2])[0, 1] > 0.5
        assert (answers["flags"] & int(Flag.UNLIKE_TRAINING) > 0).mean() < 0.2
    # Red pixels before blue ones: the order does not matter.
    swapped = model.predict(np.hstack(flux[::-1]), np.hstack(wavelengths[::-1]), progress=False)
    np.testing.assert_allclose(swapped["TEFF"], answers["TEFF"], rtol=1e-4)


def test_errors_are_calibrated_by_instrument(trained):
    model = StellarPerceptron.load(trained / "1" / "selected", device="cpu")
    z = np.random.default_rng(2).uniform(-1, 1, (5, 3))
    flux = [spectra(one, z, np.random.default_rng(3)) for one in (BLUE, RED)]
    seen = [*zip(flux, (BLUE, RED), strict=True), (np.hstack(flux), model.instrument)]

    def errors():
        for values, one in seen:
            told = model.predict(values, one.wavelength, ["TEFF"], progress=False)["TEFF_error"]
            model.perceive(values, model.instrument.pixel_names(one.wavelength), one.wavelength)
            np.testing.assert_allclose(model.request(["TEFF"])["TEFF_error"], told, rtol=1e-5)
            yield told.to_numpy()

    model.calibration = Calibration()
    before = list(errors())
    factors = {"BLUE": {"TEFF": (np.log(2), 0)}, "RED": {"TEFF": (np.log(8), 0)}}
    model.calibration = Calibration(factors)
    ratios = [after / old for after, old in zip(errors(), before, strict=True)]
    np.testing.assert_allclose(np.transpose(ratios), np.tile([2.0, 8.0, 4.0], (5, 1)), rtol=1e-5)


def test_each_instrument_is_flagged_by_its_own_spectra(model, tmp_path):
    assert set(model.references) == {"BLUE", "RED"} and model.reference is None
    model.save(tmp_path / "again")
    again = StellarPerceptron.load(tmp_path / "again", device="cpu")
    grown = StellarPerceptron.load_for_finetuning(tmp_path / "again", ["NEW"], device="cpu")
    z = np.random.default_rng(2).uniform(-1, 1, (40, 3))
    strange = [spectra(one, z, np.random.default_rng(3)) for one in (BLUE, RED)]
    strange[1] = np.roll(strange[1], 15, axis=1)
    for one in (model, again, grown):
        flags = [
            one.predict(flux, at.wavelength, ["TEFF"], progress=False)["flags"].to_numpy()
            for flux, at in zip(strange, (BLUE, RED), strict=True)
        ]
        unlike = [(part & Flag.UNLIKE_TRAINING > 0).mean() for part in flags]
        assert unlike[0] < 0.2 and unlike[1] > 0.9
        both = one.predict(
            np.hstack(strange), model.instrument.wavelength, ["TEFF"], progress=False
        )
        assert (both["flags"] & int(Flag.UNLIKE_TRAINING) > 0).mean() > 0.9


def test_another_instrument_is_refused(model):
    with pytest.raises(ValueError, match="are on no BLUE\\+RED pixel"):
        model.predict(np.ones((2, 50)), np.linspace(9000, 9010, 50))


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)["model_state_dict"]


@pytest.mark.parametrize("stop", [3, 17, 27])
def test_interrupted_and_resumed_equals_uninterrupted(trained, surveys, tmp_path, stop):
    batches = 0
    train_batch = Trainer.train_batch

    def terminated(self, batch):
        nonlocal batches
        batches += 1
        if batches == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_batch(self, batch)

    with mock.patch.object(Trainer, "train_batch", terminated):
        train(1, surveys, tmp_path)
    assert (tmp_path / "interrupted").is_dir() and not (tmp_path / "complete").exists()
    assert not train(1, surveys, tmp_path)
    whole = weights(trained / "1" / "epoch_3")
    for name, tensor in weights(tmp_path / "epoch_3").items():
        assert torch.equal(tensor, whole[name]), name


def test_one_of_the_surveys_is_enough_for_stage_2(trained, surveys, tmp_path):
    alone = ("data.combined_share=0.0", "training.epochs=1")
    assert not train(2, surveys[1:], tmp_path, *alone, checkpoint=trained / "1")
    model = StellarPerceptron.load(tmp_path / "selected", device="cpu")
    assert model.instrument == combined([BLUE, RED]) and set(model.references) == {"RED"}


@pytest.mark.parametrize(
    ("files", "entry", "message"),
    [
        ("blue blue", "training.epochs=1", "blue.h5 is given twice"),
        ("blue copy", "training.epochs=1", r"BLUE (600 pixels"),
        ("blue red", "data.weights=[1.0]", "are for 1 surveys, but --data names 2"),
        ("blue red", "data.weights=[1.0, -1.0]", "are not 0 or more"),
        ("blue red", "data.weights=[0.0, 0.0]", "at least one of them above 0"),
        ("blue red", "data.combined_share=1.0", "is not in [0, 1)"),
        ("blue red", "data.labels=['C_FE']", "no label 'C_FE'; known are TEFF, FE_H, LOGG"),
        ("blue red", "data.labels=['LOGG']", "blue.h5 has none of the labels LOGG, only TEFF"),
        ("blue red", "data.pixels=one", "unknown RED pixel range 'one'"),
        (
            "blue red",
            "model.context_length=40",
            "shows all 63 tokens of the surveys in one context, but model.context_length is 40",
        ),
        ("blue", "data.combined_share=0.1", "needs several surveys: --data names one"),
        ("blue red", "data.source=emulator", "no --data"),
    ],
)
def test_bad_input_is_refused_before_any_work(surveys, tmp_path, capsys, files, entry, message):
    known = {"blue": surveys[0], "red": surveys[1], "copy": tmp_path / "copy.h5"}
    if "copy" in files:
        write(known["copy"], BLUE, LABELS["BLUE"], 3)
    entries = (entry, "data.stars=9") if "emulator" in entry else (entry,)
    ended = train(1, [known[name] for name in files.split()], tmp_path / "1", *entries)
    said = ended if isinstance(ended, str) else capsys.readouterr().err
    assert message in said and not list((tmp_path / "1").glob("epoch_*"))


def test_an_instrument_that_the_checkpoint_lacks_is_refused(trained, surveys, tmp_path):
    other = Instrument("GREEN", np.linspace(6000.0, 6100.0, 400))
    files = [*surveys, write(tmp_path / "green.h5", other, LABELS["RED"], 5)]
    ended = train(2, files, tmp_path / "2", checkpoint=trained / "1")
    assert "green.h5 holds spectra of GREEN" in ended and "BLUE+RED" in ended
    assert not list((tmp_path / "2").glob("epoch_*"))
