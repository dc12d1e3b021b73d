"""The regression of stage 2: its shares, and where there is none."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from conftest import make_model
from small_survey import N_PIXELS, write_survey

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.survey_file import SurveyWriter
from stellarperceptron.instruments import APOGEE
from stellarperceptron.training.profiles import DataProfile, Profile, TrainingOptions
from stellarperceptron.training.run.regression import (
    add_regression,
    require_regression_possible,
)
from stellarperceptron.training.run.script import resolve_checkpoint

PROFILE = Profile(
    data=DataProfile(kind="observed", labels=("TEFF",), validation_split=0.2, regression=True),
    training=TrainingOptions(seed=1),
)
PIXELS = 240  # fewer are flagged
TOLD = {"pixels": PIXELS, "labels": ["TEFF"], "pixels_per_token": 8, "conditions": True}


@pytest.fixture
def linear_survey(tmp_path):
    """120 stars with signal-to-noise ratios of about 100 whose Teff is linear in the flux."""
    random = np.random.default_rng(0)
    teff = random.normal(size=(120, 1))
    flux = 0.95 + 0.03 * teff * np.sin(np.arange(PIXELS)) + 0.01 * random.normal(size=(120, PIXELS))
    path = tmp_path / "survey.h5"
    arrays = {
        "synthetic": flux,
        "observed": flux,
        "observed_errors": np.full_like(flux, 0.01),
        "labels": 1 + 0.05 * teff,
        "label_errors": np.full_like(teff, 0.001),
    }
    with SurveyWriter(
        path,
        counts={"train": 120, "test": 120},
        label_names=("TEFF",),
        wavelength=APOGEE.wavelength[:PIXELS],
        errors=True,
        provenance={},
    ) as writer:
        for split in ("train", "test"):
            ids = [f"star{i}" for i in range(120)]
            writer.append(split, ids=ids, **{k: v.astype(np.float32) for k, v in arrays.items()})
    with SpectraDataset.open(path) as dataset:
        yield dataset


def test_a_network_that_knows_nothing_leaves_the_answers_to_the_regression(linear_survey):
    model = make_model(**TOLD)
    rows = np.arange(120)
    add_regression(model, linear_survey, PROFILE, np.append(rows[:90], rows[:5]), rows[90:])
    regression = model.regression
    assert (np.diff(regression.snr) < 0).all() and regression.snr[-1] == 0
    assert 70 < regression.snr[0] < 140  # of the spectra as they are
    assert regression.shares[0, 0] > 0.9
    np.testing.assert_array_equal(regression.shares[-1], regression.shares[-2])  # unknown ratio
    answers = model.predict(
        linear_survey.test.read("observed"),
        linear_survey.wavelength,
        "TEFF",
        errors=linear_survey.test.read("observed_errors"),
        progress=False,
    )
    clean = answers["flags"] == 0
    residual = (answers["TEFF"] - linear_survey.test.labels[:, 0])[clean]
    assert clean.sum() > 60 and residual.std() < 0.3 * linear_survey.test.labels[:, 0].std()


def test_a_survey_without_errors_gets_no_regression(tmp_path):
    model = make_model(pixels=N_PIXELS, pixels_per_token=8, conditions=True)
    path = write_survey(tmp_path / "survey.h5")
    warns = pytest.warns(UserWarning, match="averaged with no regression")
    with SpectraDataset.open(path) as dataset, warns:
        add_regression(model, dataset, PROFILE, np.arange(30), np.arange(30, 40))
    assert model.regression is None


@pytest.mark.parametrize(
    "surveys, data, conditions, message",
    [
        (2, {}, True, "one survey"),
        (1, {"validation_split": 0.0}, True, "needs validation stars"),
        (1, {}, False, "model.conditions = true"),
    ],
)
def test_a_regression_without_shares_is_refused(surveys, data, conditions, message):
    profile = dataclasses.replace(PROFILE, data=dataclasses.replace(PROFILE.data, **data))
    model = make_model(pixels_per_token=8, conditions=conditions)
    with pytest.raises(ValueError, match=message):
        require_regression_possible(model, profile, surveys)
    off = dataclasses.replace(profile, data=dataclasses.replace(profile.data, regression=False))
    require_regression_possible(model, off, surveys)


def test_stage_2_ends_with_a_regression(chain, evaluated):
    """The tables of predictions hold the mean, and the network alone."""
    model = StellarPerceptron.load(resolve_checkpoint(chain / "2"), device="cpu")
    assert len(model.regression.snr) > 1 and model.regression.shares.max() > 0
    assert StellarPerceptron.load(resolve_checkpoint(chain / "3"), device="cpu").regression is None
    mean, network = (
        pd.read_csv(evaluated / f"evaluation/2_realfinetune_firsthalf_{name}on_observed.csv")
        for name in ("", "network_")
    )
    assert (mean["TEFF_actual"] == network["TEFF_actual"]).all()
    assert (mean["TEFF_pred"] != network["TEFF_pred"]).mean() > 0.5
