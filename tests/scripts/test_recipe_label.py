"""The recipe "a new label" of CONTRIBUTING.md, followed to the letter at toy size."""

import numpy as np
import pandas as pd
import pytest
from apogee_files import apstar_hdus
from chain import run_here, stage

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock import observation, survey
from stellarperceptron.evaluation.evaluate import evaluation_labels
from stellarperceptron.training.profiles import DataProfile, Profile
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.training.stages import label_names

pytestmark = pytest.mark.slow

SIX = ("TEFF", "LOGG", "O_FE", "MG_FE", "FE_H", "C_FE")


@pytest.fixture(scope="module")
def carbon_survey(tmp_path_factory):
    """A survey of APOGEE with a sixth label."""
    path = tmp_path_factory.mktemp("carbon") / "survey.h5"
    with pytest.MonkeyPatch.context() as patch:  # blocks of few stars are fast
        patch.setattr(survey, "BLOCK", 60)
        patch.setattr(survey, "LSF_GROUPS", observation.LSF_GROUPS[:1])
        sizes = ("--stars", 120, "--test-stars", 60, "--workers", 1)
        message = run_here(
            "dataset/create_mock_survey.py", *sizes, "--output", path, "--labels", *SIX
        )
    assert message is None
    return path


@pytest.fixture(scope="module")
def carbon_stage(carbon_survey, tmp_path_factory):
    """Stage 1, trained on it for one epoch."""
    labels = ", ".join(f'"{name}"' for name in SIX)
    return stage(
        *(1, carbon_survey, tmp_path_factory.mktemp("run") / "1_basemodel_synthetic"),
        *("--set", f"data.labels=[{labels}]", "--set", "training.epochs=1"),
    )


def test_new_label(carbon_survey, carbon_stage, tmp_path):
    evaluate = "results/real_spectra_finetune/evaluate_1_basemodel_synthetic_epoch325.py"
    options = ("--data", carbon_survey, "--checkpoint", carbon_stage, "--output", tmp_path)
    assert run_here(evaluate, *options) is None
    path = tmp_path / "1_basemodel_synthetic_on_observed.csv"
    table = pd.read_csv(path)
    with SpectraDataset.open(carbon_survey, SIX) as dataset:
        np.testing.assert_allclose(table["C_FE_actual"], dataset.test.labels[:, 5], rtol=1e-6)
    assert np.isfinite(table[[f"{name}_pred" for name in SIX]]).all(axis=None)

    tables = ("--pretrained", path, "--finetuned", path)
    folder = "results/real_spectra_finetune"
    assert run_here(f"{folder}/Table1.py", *tables, "--output", tmp_path) is None
    head, _, ours, papers, *_ = (tmp_path / "Table1.md").read_text().splitlines()[2:]
    assert head.rstrip("| ").endswith("[C/Fe] [dex]")
    assert "/" in ours.split("|")[-2] and papers.split("|")[-2].strip() == "–"
    picture = tmp_path / "Figure2.png"
    assert run_here(f"{folder}/Figure2.py", *tables, "--output", picture) is None
    assert picture.stat().st_size > 100_000

    apstar_hdus().writeto(tmp_path / "apStar.fits")
    real = ("--checkpoint", carbon_stage, "--output", tmp_path / "real", "--shuffles", 1)
    predict = "results/real_stars/predict_real_stars.py"
    assert run_here(predict, *real, tmp_path / "apStar.fits") is None
    star = pd.read_csv(tmp_path / "real" / "predictions.csv").iloc[0]
    assert np.isfinite(star[["C_FE", "C_FE_error"]].astype(float)).all()


def test_labels_can_be_chosen(carbon_survey, carbon_stage, tmp_path):
    evaluate = "results/real_spectra_finetune/evaluate_1_basemodel_synthetic_epoch325.py"
    options = ("--data", carbon_survey, "--checkpoint", carbon_stage, "--output", tmp_path)
    assert run_here(evaluate, *options, "--labels", "[C/Fe]", "Teff") is None
    columns = pd.read_csv(tmp_path / "1_basemodel_synthetic_on_observed.csv").columns
    assert [name for name in columns if name.endswith("_pred")] == ["TEFF_pred", "C_FE_pred"]
    message = run_here(evaluate, *options, "--labels", "EU_FE")
    assert "no label 'EU_FE'; known are TEFF, LOGG, O_FE, MG_FE, FE_H, C_FE" in message


def test_a_survey_with_other_labels_than_the_checkpoint_is_refused(carbon_survey, carbon_stage):
    checkpoint = resolve_checkpoint(carbon_stage)
    model = StellarPerceptron.load(checkpoint, device="cpu")
    with SpectraDataset.open(carbon_survey) as dataset:
        assert evaluation_labels(model, checkpoint, dataset, "all") == SIX
        dataset.label_names = ("AGE", "C_FE")
        assert evaluation_labels(model, checkpoint, dataset, "all") == ("C_FE",)
        dataset.label_names = ("AGE",)
        with pytest.raises(ValueError, match=r"selected knows none of the labels of .*\.h5, AGE"):
            evaluation_labels(model, checkpoint, dataset, "all")


def test_a_profile_asks_for_all_labels_or_for_some(carbon_survey):
    def names(labels):
        with SpectraDataset.open(carbon_survey) as dataset:
            return label_names(dataset, Profile(data=DataProfile(labels=labels)))

    assert names("all") == SIX
    assert names(("C_FE", "TEFF")) == ("C_FE", "TEFF")
    words = r"survey\.h5, data\.labels of the profile: no label 'EU_FE'; known are TEFF, .*C_FE"
    with pytest.raises(ValueError, match=words):
        names(("TEFF", "EU_FE"))
