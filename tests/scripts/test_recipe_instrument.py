"""The recipe "a new instrument" of CONTRIBUTING.md, by the numbered scripts alone."""

import re

import numpy as np
import pandas as pd
import pytest
from chain import ROOT, run_here, stage

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.survey_file import SurveyWriter
from stellarperceptron.instruments.spectrograph import Instrument

pytestmark = pytest.mark.slow

EVALUATION = "results/real_spectra_finetune/evaluate_1_basemodel_synthetic_epoch325.py"

SPOT = Instrument(
    "SPOT",
    np.linspace(8460.0, 8700.0, 2401),
    ranges={"triplet": (350, 2150)},
    resolving_power=20_000.0,
)
SPOT_LABELS = ("TEFF", "FE_H", "C_FE")


def lines(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Spectra (N, 2401) with lines of every label (N, 3), and noise."""
    teff, iron, carbon = labels.T[..., None]
    flux = np.ones((len(labels), len(SPOT)))
    for center, depth in (
        (8500.4, 0.6 - (teff - 4800) / 4000),  # the calcium triplet, in vacuum
        (8544.4, 0.6 - (teff - 4800) / 4000),
        (8664.5, 0.6 - (teff - 4800) / 4000),
        (8580.0, 0.4 + 0.3 * iron),
        (8620.0, 0.4 + 0.3 * iron),
        (8470.0, 0.3 + 0.4 * carbon),
    ):
        flux -= depth * np.exp(-0.5 * ((SPOT.wavelength - center) / 1.5) ** 2)
    return flux + 0.005 * rng.standard_normal(flux.shape)


@pytest.fixture(scope="module")
def spot_survey(tmp_path_factory):
    """A survey of a new instrument: all that there is of it is in the file."""
    path = tmp_path_factory.mktemp("spot") / "spot.h5"
    counts, rng = {"train": 160, "test": 20}, np.random.default_rng(1)
    with SurveyWriter(
        path,
        counts=counts,
        provenance={"generator": "tests"},
        instrument=SPOT,
        label_names=SPOT_LABELS,
        label_units=("K", "dex", "dex"),
        kinds=["synthetic"],
    ) as writer:
        for split, count in counts.items():
            labels = rng.uniform([4000, -0.8, -0.3], [5600, 0.4, 0.3], (count, 3))
            writer.append(
                split,
                ids=[f"{split}-{i}" for i in range(count)],
                synthetic=lines(labels, rng),
                labels=labels,
                label_errors=np.full_like(labels, 0.01),
            )
    return path


@pytest.fixture(scope="module")
def spot_stage(spot_survey, tmp_path_factory):
    """Stage 1 on it."""
    few = ("--set", "training.epochs=1", "--set", f"data.labels={list(SPOT_LABELS)}")
    return stage(1, spot_survey, tmp_path_factory.mktemp("spot") / "1", *few)


def test_new_instrument(spot_survey, spot_stage, tmp_path):
    common = ("--data", spot_survey, "--checkpoint", spot_stage, "--output", tmp_path)
    assert not run_here(EVALUATION, *common, "--pixels", "triplet")
    table = pd.read_csv(tmp_path / "1_basemodel_synthetic_on_synthetic.csv")
    model = StellarPerceptron.load(spot_stage / "epoch_1", device="cpu")
    assert model.instrument == SPOT
    assert model.config.wavelength_range == (8400.0, 8700.0)
    assert model.label_names == list(SPOT_LABELS)
    with SpectraDataset.open(spot_survey) as dataset:
        assert dataset.instrument == SPOT
        assert dataset.label_units == ("K", "dex", "dex")
        flux = dataset.test.read("synthetic", pixels="triplet")
    predicted = model.predict(flux, SPOT.wavelength[350:2150], SPOT_LABELS)
    for label in SPOT_LABELS:
        assert np.isfinite(predicted[label]).all()
        np.testing.assert_allclose(table[f"{label}_pred"], predicted[label], rtol=1e-4, atol=1e-5)


def test_from_arrays_to_labels(tmp_path, monkeypatch, capsys):
    """The Python code of dataset/README.md, as it stands there but for the number of epochs."""
    text = (ROOT / "dataset" / "README.md").read_text(encoding="utf-8")
    code = text.split("## Another instrument, from arrays to labels")[1].split("```python")[1]
    code = code.split("```")[0]
    assert code.count("epochs=40") == 1 and len(code.strip().splitlines()) < 26
    rng = np.random.default_rng(5)
    labels = rng.uniform([4000, -0.8, 0.0], [5600, 0.4, 0.0], (240, 3))
    names = np.array([f"star-{i}" for i in range(240)])
    flux = lines(labels, rng)
    arrays = {"wavelength": SPOT.wavelength, "flux": flux, "labels": labels[:, :2], "names": names}
    monkeypatch.chdir(tmp_path)
    arrays["errors"] = np.full((240, 2), 0.01)
    exec(code.replace("epochs=40", "epochs=12"), arrays)
    assert "TEFF_error" in capsys.readouterr().out
    predicted = arrays["model"].predict(flux[:24], SPOT.wavelength, ["TEFF", "FE_H"])
    for column, name in enumerate(("TEFF", "FE_H")):
        assert np.corrcoef(predicted[name], labels[:24, column])[0, 1] > 0.8
    with SpectraDataset.open(tmp_path / "spot.h5") as survey:
        assert len(survey.test) == 24 and survey.instrument.name == "SPOT"


def test_survey_and_checkpoint_of_two_instruments(spot_survey, spot_stage, chain, survey, tmp_path):
    for data, checkpoint, message in (
        (survey, spot_stage, r"spectra of APOGEE .* checkpoint is for SPOT \(2401 pixels"),
        (spot_survey, chain / "1", r"spectra of SPOT .* checkpoint is for APOGEE \(7514 pixels"),
    ):
        arguments = ("--data", data, "--checkpoint", checkpoint, "--output", tmp_path / "out")
        said = run_here(EVALUATION, *arguments, "--pixels", "full")
        assert re.search(message, said)
    assert not (tmp_path / "out").exists()
