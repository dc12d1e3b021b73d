"""Stage 1 on stars of the emulator: no survey file, and an interruption changes nothing."""

import os
import signal
from unittest import mock

import numpy as np
import pytest
import torch
from chain import STAGES, run_here

from stellarperceptron import StellarPerceptron
from stellarperceptron.instruments import GALAH, LOW_RESOLUTION
from stellarperceptron.training.profiles import read_profile
from stellarperceptron.training.run import surveys
from stellarperceptron.training.step import Trainer

pytestmark = pytest.mark.slow

SCRIPT = f"training/{STAGES[1]}"
EMULATED = ("--profile", "smoke", "--set", "data.source=emulator")


def train(output, *arguments):
    entries = ("data.stars=150", "training.epochs=2", "training.checkpoint_every_n_epochs=1")
    chosen = [word for entry in entries for word in ("--set", entry)]
    return run_here(SCRIPT, *EMULATED, *chosen, "--output", output, *arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("emulated")
    assert not train(output)
    return output


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)["model_state_dict"]


def test_it_needs_no_survey(trained):
    assert (trained / "complete").exists()
    model = StellarPerceptron.load(trained / "selected", device="cpu")
    assert model.vocab_size == 7519 and model.reference is not None
    assert set(model.calibration.factors) == set(model.label_names)


def test_its_stars_are_drawn_by_the_seed(tmp_path):
    refusal = ValueError("as asked")
    with mock.patch.object(surveys, "emulated_source", side_effect=refusal) as source:
        assert "as asked" in train(tmp_path, "--seed", 7)
    assert source.call_args.args[:2] == (150, 7)


def test_interrupted_and_resumed_equals_uninterrupted(trained, tmp_path):
    batches = 0
    train_batch = Trainer.train_batch

    def terminated(self, batch):
        nonlocal batches
        batches += 1
        if batches == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_batch(self, batch)

    with mock.patch.object(Trainer, "train_batch", terminated):
        train(tmp_path)
    assert (tmp_path / "interrupted").is_dir() and not (tmp_path / "complete").exists()
    assert not train(tmp_path)
    whole = weights(trained / "epoch_2")
    for name, tensor in weights(tmp_path / "epoch_2").items():
        assert torch.equal(tensor, whole[name]), name


def test_without_stars_or_survey_it_is_refused(tmp_path, capsys):
    assert run_here(SCRIPT, *EMULATED, "--output", tmp_path / "1") == 2
    assert "needs data.stars" in capsys.readouterr().err
    assert run_here(SCRIPT, "--profile", "smoke", "--output", tmp_path / "1") == 2
    assert "--data is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "entries", "message"),
    [
        ("stage_1", ['data.kind="observed"', "data.stars=9"], "synthetic spectra only"),
        ("stage_3", ['data.kind="synthetic"', "data.stars=9"], "is for stage 1"),
    ],
)
def test_only_stage_1_has_emulated_spectra(tmp_path, stage, entries, message):
    (tmp_path / "own.toml").write_text(f"[{stage}.training]\nepochs = 1\n")
    with pytest.raises(ValueError, match=message):
        read_profile(tmp_path / "own.toml", stage, ["data.source=emulator", *entries])


@pytest.mark.parametrize(
    ("profile", "instrument", "powers"),
    [
        ("optical", GALAH, (1_500.0, 60_000.0)),
        ("low_resolution", LOW_RESOLUTION, (1_500.0, 6_000.0)),
    ],
)
def test_one_model_for_optical_spectra_of_many_resolving_powers(
    tmp_path, profile, instrument, powers
):
    sizes = ("data.stars=150", "training.epochs=1", "data.line_lists=nominal")
    chosen = [word for entry in sizes for word in ("--set", entry)]
    assert not run_here(SCRIPT, "--profile", profile, *chosen, "--output", tmp_path)
    model = StellarPerceptron.load(tmp_path / "selected", device="cpu")
    assert model.instrument == instrument
    assert model.drawn.resolving_power == powers
    inside = (LOW_RESOLUTION.wavelength > 4720) & (LOW_RESOLUTION.wavelength < 7880)
    wavelength = LOW_RESOLUTION.wavelength[inside]
    flux = np.tile(1 + 1e-3 * np.sin(wavelength), (2, 1))  # constant flux is no measurement
    found = model.predict(flux, wavelength, ["TEFF"], resolving_power=1_800.0, progress=False)
    assert np.isfinite(found["TEFF"]).all()
