"""Evaluations, figures, tables and the report, as scripts, on stages trained at toy size."""

import itertools
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from astropy.stats import mad_std
from chain import run_here
from matplotlib.image import imread

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.evaluation.predictions import metrics_of_predictions, write_predictions
from stellarperceptron.evaluation.summary import attention_text, claims_table
from stellarperceptron.network.baselines.published import BaselineNetwork
from stellarperceptron.training.run.script import resolve_checkpoint

pytestmark = pytest.mark.slow

FINETUNE = "results/real_spectra_finetune"
OBSERVED = {
    "--pretrained": "1_basemodel_synthetic_on_observed",
    "--finetuned": "2_realfinetune_firsthalf_on_observed",
}
CHUNK = {
    "--scratch": "basic_NN",
    "--pretrained": "1_basemodel_synthetic",
    "--finetuned": "2_realfinetune_firsthalf",
    "--hundred": "3_fefinetune_chunk",
}
BY_RANGE = f"{FINETUNE}/errors_by_range.py"
ATTENTION_FIGURES = ("attention/Figure4", "attention/sensitivity")


def table(run, name):
    return pd.read_csv(run / "evaluation" / f"{name}.csv", dtype={"ID": str})


def observed(run):
    return [x for k, v in OBSERVED.items() for x in (k, run / "evaluation" / f"{v}.csv")]


def chunk(folder, names=CHUNK, end="_fehpredictions.csv"):
    return [x for key, name in names.items() for x in (key, folder / f"{name}{end}")]


def copy_of(run, path):
    """A run's folder with tables of its own, so that they can be changed."""
    path.mkdir()
    for name in run.iterdir():
        if name.name != "evaluation":
            (path / name.name).symlink_to(name)
    shutil.copytree(run / "evaluation", path / "evaluation")
    return path


# --- evaluations ------------------------------------------------------------------------------


def test_every_test_star_is_predicted(evaluated, survey):
    with SpectraDataset.open(survey) as dataset:
        for name in [*OBSERVED.values(), "1_basemodel_synthetic_on_synthetic"]:
            predicted = table(evaluated, name)
            assert predicted["ID"].tolist() == dataset.test.ids.tolist()
            for column, label in enumerate(dataset.label_names):
                actual = dataset.test.labels[:, column]
                np.testing.assert_allclose(predicted[f"{label}_actual"], actual, rtol=1e-6)
                assert (predicted[f"{label}_err"] > 0).all()


def test_predictions_are_the_models(evaluated, survey):
    model = StellarPerceptron.load(
        resolve_checkpoint(evaluated / "2_realfinetune_firsthalf"), device="cpu"
    )
    with SpectraDataset.open(survey) as dataset:
        flux, errors = (
            dataset.test.read(kind, pixels="first_half") for kind in ("observed", "observed_errors")
        )
        expected = model.predict(flux, dataset.wavelength[:3757], ["TEFF", "O_FE"], errors=errors)
    predicted = table(evaluated, OBSERVED["--finetuned"])
    np.testing.assert_allclose(predicted["TEFF_pred"], expected["TEFF"], rtol=1e-5)
    np.testing.assert_allclose(predicted["O_FE_err"], expected["O_FE_error"], rtol=1e-5)


def test_errors_by_range_are_those_of_the_predictions(evaluated, survey, tmp_path):
    arguments = ("--data", survey, "--output", tmp_path, "--stars", 1000)
    checkpoint = evaluated / "2_realfinetune_firsthalf"
    assert not run_here(BY_RANGE, *arguments, "--checkpoint", checkpoint)
    measured = pd.read_csv(tmp_path / "errors_by_range.csv").set_index(["label", "share"])
    assert measured.groupby("label").size().tolist() == 5 * [6 + 4]
    predicted = table(evaluated, OBSERVED["--finetuned"])
    whole = measured.loc["MG_FE", 1.0].set_index("noise_snr")
    residual = predicted["MG_FE_pred"] - predicted["MG_FE_actual"]
    assert whole.loc[np.inf, "mad_std"] == pytest.approx(
        mad_std(residual, ignore_nan=True), rel=1e-4
    )
    assert imread(tmp_path / "errors_by_range.png").ndim == 3


def test_the_chunk_is_predicted_by_models_and_baseline(evaluated, survey):
    with SpectraDataset.open(survey) as dataset:
        flux = dataset.test.read("observed", pixels="fe_chunk")
    expected = BaselineNetwork.load(evaluated / "basic_NN" / "selected").predict(flux)
    predicted = table(evaluated, "basic_NN_fehpredictions")
    np.testing.assert_allclose(predicted["FE_H_pred"], expected["FE_H"], rtol=1e-4, atol=1e-6)
    columns = {"ID", "LOGG_actual", "FE_H_pred", "FE_H_err", "FE_H_actual", "FE_H_actual_err"}
    for name in CHUNK.values():
        assert columns <= set(table(evaluated, f"{name}_fehpredictions"))


def test_tables_say_how_they_were_made(evaluated, survey):
    path = evaluated / "evaluation" / "1_basemodel_synthetic_on_observed.json"
    about = json.loads(path.read_text())
    assert (about["spectra"], about["pixels"], about["epoch"]) == ("observed", [0, 3757], 1)
    with SpectraDataset.open(survey) as dataset:
        assert about["data"]["provenance"] == dataset.provenance


def test_missing_checkpoint_and_data_name_the_command(evaluated, survey, tmp_path):
    path, output = f"{FINETUNE}/evaluate_1_basemodel_synthetic_epoch325.py", tmp_path / "out"
    message = run_here(path, "--data", survey, "--checkpoint", tmp_path, "--output", output)
    assert "make reproduce" in message
    stage_1 = evaluated / "1_basemodel_synthetic"
    message = run_here(
        path, "--data", tmp_path / "a.h5", "--checkpoint", stage_1, "--output", output
    )
    assert "create_mock_survey.py" in message and "a.h5" in message
    assert not output.exists()


def test_the_baseline_knows_its_pixels(evaluated, survey, tmp_path):
    message = run_here(
        "results/fe/EvaluateFeFT.py",
        *("--data", survey, "--output", tmp_path, "--pixels", "0:100", evaluated / "basic_NN"),
    )
    assert "gives FE_H from 512 pixels, not FE_H from 100" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(evaluated, survey, tmp_path):
    message = run_here(
        "results/fe/EvaluateFeFT.py",
        *("--data", survey, "--output", tmp_path, "--device", "cuda"),
        evaluated / "2_realfinetune_firsthalf",
    )
    assert "device cuda: PyTorch finds no GPU" in message


# --- figures and tables -----------------------------------------------------------------------


def test_table_1_has_the_metrics_of_the_predictions(evaluated, tmp_path):
    assert not run_here(f"{FINETUNE}/Table1.py", *observed(evaluated), "--output", tmp_path)
    found = pd.read_csv(tmp_path / "Table1.csv").set_index(["model", "label"])
    metrics = metrics_of_predictions(table(evaluated, OBSERVED["--finetuned"]))
    giants = metrics[metrics["subset"] == "giants"].set_index("label")
    for label in giants.index:
        for metric in ("stars", "bias", "mad_std", "rmse"):
            expected = pytest.approx(giants.loc[label, metric], rel=1e-5)
            assert found.loc[("finetuned", label), metric] == expected
    assert "| fine-tuned, first half, paper | 19.1 / 37.7 |" in (tmp_path / "Table1.md").read_text()


def test_figures_of_other_stars_are_refused(evaluated, survey, tmp_path):
    run = copy_of(evaluated, tmp_path / "run")
    path = run / "evaluation" / f"{OBSERVED['--finetuned']}.csv"
    table(run, OBSERVED["--finetuned"])[1:].to_csv(path, index=False)
    for name, output in (("Figure2", "out/Figure2.png"), ("Table1", "out")):
        message = run_here(f"{FINETUNE}/{name}.py", *observed(run), "--output", tmp_path / output)
        assert "not predictions of the same stars: 40 against 39" in message
    assert not (tmp_path / "out").exists()


def test_missing_predictions_name_the_command(evaluated, tmp_path):
    message = run_here(
        "results/fe/Figure3.py",
        *chunk(tmp_path),
        *("--training-labels", evaluated / "survey.h5", "--output", tmp_path / "Figure3.png"),
    )
    assert "results/fe/EvaluateFeFT.py, or make reproduce" in message


# --- report -----------------------------------------------------------------------------------


def report(run, survey):
    return run_here("results/report.py", run, "--profile", "smoke", "--data", survey)


def test_report_says_what_is_missing(evaluated, survey, tmp_path):
    run = copy_of(evaluated, tmp_path / "run")
    (run / "evaluation" / f"{OBSERVED['--finetuned']}.csv").unlink()
    assert not report(run, survey)
    text = (run / "report.md").read_text()
    missing = re.findall(r"\*\*Missing:\*\* (\S+)", text)
    assert {"figures/Figure2.png,", "attention/Figure4.png,"} <= set(missing)
    assert "evaluate_*.py" in text and "Table 1" not in text


def test_report_holds_everything(evaluated, survey, tmp_path):
    run = copy_of(evaluated, tmp_path / "run")
    figures = ("figures/Figure2", "figures/Figure3", "figures/coverage", *ATTENTION_FIGURES)
    figures += ("figures/errors_by_range", "real_stars/2M0")
    for name in figures:
        path = run / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(run / "1_basemodel_synthetic" / "loss.png", path)
        path.with_suffix(".md").write_text(f"All about {path.stem}.\n")
    make_shares().to_csv(run / "attention/attention_shares.csv", index=False)
    make_masking().to_csv(run / "attention/masking.csv", index=False)
    make_stars().to_csv(run / "real_stars/predictions.csv", index=False)
    make_baseline(run, 0.5)
    (run / "timings.csv").write_text("survey.h5,3\n1_basemodel_synthetic,5\n")
    assert not report(run, survey)
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert "Missing" not in text
    assert "Toy size: nothing is expected to hold" in text
    # Seven figures, and the losses of three stages; no other file and no network.
    assert page.count('<img src="data:image/webp;base64,') == len(figures) + 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    links = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(links) == len(figures) + 3 and all((run / link).is_file() for link in links)
    for words in (
        "All about Figure2.",
        "[Fe/H], all",
        "astroNN catalogue, paper",
        "| sum | 8 |",
        "Provenance",
        '"seed"',
    ):
        assert words in text
    # The baseline has half of the errors of stage 2.
    assert "Stage 2 is better than every baseline in 0 of 5 labels by mad_std" in text
    assert "| quadratic regression | 13 |" in text and " (wall) |" in text
    assert "| [Mg/Fe] | × 1.50 | yes |" in text


def test_report_refuses_baselines_of_other_pixels(evaluated, survey, tmp_path):
    run = copy_of(evaluated, tmp_path / "run")
    make_baseline(run, 2.0, pixels=[0, 100])
    message = report(run, survey)
    assert "quadratic_regression.csv is of the pixels [0, 100], not [0, 3757]" in message


def test_report_refuses_predictions_of_other_stars(evaluated, survey, tmp_path):
    run = copy_of(evaluated, tmp_path / "run")
    path = run / "evaluation" / "basic_NN_fehpredictions.csv"
    changed = table(run, "basic_NN_fehpredictions")
    changed.loc[7, "ID"] = "another"
    changed.to_csv(path, index=False)
    message = report(run, survey)
    assert "basic_NN_fehpredictions.csv holds predictions of other stars" in message
    assert "row 9" in message and not (run / "report.html").exists()


def test_figures_are_published_with_captions(evaluated, survey, tmp_path):
    run = copy_of(evaluated, tmp_path / "run")
    arguments = (run, "--profile", "smoke", "--data", survey, "--output", tmp_path / "out")
    assert run_here("results/publish_figures.py", *arguments) == 2  # nothing drawn yet
    for name in ("figures/Figure2", "figures/Figure3", *ATTENTION_FIGURES):
        (run / name).parent.mkdir(exist_ok=True)
        shutil.copy(run / "1_basemodel_synthetic" / "loss.png", run / f"{name}.png")
        (run / f"{name}.md").write_text("What is shown.\n")
    assert not run_here("results/publish_figures.py", *arguments)
    assert (tmp_path / "out/fe/Figure3.png").is_file()
    caption = (tmp_path / "out/attention/Figure4.md").read_text()
    assert re.fullmatch(
        r"What is shown\.\n\nProfile smoke, .* 20\d\d\. Mock survey, 240 training and 40 test "
        r"stars, seed 3\.\n",
        caption,
    )


def test_checkpoints_are_published_with_a_card(evaluated, survey, tmp_path):
    predictions = evaluated / "evaluation/2_realfinetune_firsthalf_on_observed.csv"
    arguments = ["--checkpoint", evaluated / "2_realfinetune_firsthalf", "--data", survey]
    arguments += ["--predictions", predictions, "--output", tmp_path / "tiny"]
    assert not run_here("results/publish_checkpoint.py", *arguments)
    tiny = StellarPerceptron.load(tmp_path / "tiny", device="cpu")
    pinned = json.loads((tmp_path / "tiny" / "pinned.json").read_text())
    assert list(pinned["fe_chunk"]) == [*tiny.labels, *(f"{label}_error" for label in tiny.labels)]
    assert np.isfinite(pinned["full"]["TEFF"]).all() and len(pinned["full"]["TEFF"]) == 6
    card = tiny.card
    assert card.startswith("# Model card: tiny") and "240 training and 40 test stars" in card
    table = pd.read_csv(predictions)
    scatter = mad_std(table["TEFF_pred"] - table["TEFF_actual"], ignore_nan=True)
    assert re.search(rf"Teff \[K\] \| \d+ to \d+ \| {scatter:.1f} \|", card)


# --- claims -----------------------------------------------------------------------------------


def make_predictions(error, poor_error=None, labels=("TEFF", "FE_H")):
    iron = np.linspace(-2, 0.4, 50)
    off = np.where(iron < -1, error if poor_error is None else poor_error, error)
    columns = {"FE_H_actual": iron, "TEFF_actual": 4000 + 100 * iron}
    for label in labels:
        columns[f"{label}_pred"] = columns[f"{label}_actual"] + off
        columns[f"{label}_err"] = np.full(50, 0.1)
    return pd.DataFrame(columns)


def make_shares(sensitivity=3.5):
    """Each row has a value of its own; [Fe/H] and [Mg/Fe] of all stars have the one given."""
    names = ["pixels", "group", "measure", "ranked_by", "label", "top", "ratio"]
    rows = []
    for pixels, group, measure, ranking, label, top in itertools.product(
        ("0:7514", "0:3757"),
        ("giants", "all"),
        ("attention", "sensitivity"),
        ("response", "information"),
        ("TEFF", "FE_H", "MG_FE"),
        (0.02, 0.05),
    ):
        given = (pixels, group, measure, top) == ("0:3757", "all", "sensitivity", 0.05)
        ratio = sensitivity if given and label != "TEFF" else 0.1 + 0.01 * len(rows)
        rows.append((pixels, group, measure, ranking, label, top, ratio))
    return pd.DataFrame(rows, columns=names).assign(ratio_of_best=4.0)


def make_masking():
    row = {"masked": "MG_FE", "pixels": 188, "label": "MG_FE", "stars": 40, "growth": 1.5}
    return pd.DataFrame([row])


def make_baseline(run, factor, pixels=(0, 3757)):
    """Predictions of a baseline whose errors are those of stage 2 by a factor."""
    values = table(run, OBSERVED["--finetuned"])
    for column in values.filter(like="_pred"):
        actual = values[f"{column[:-5]}_actual"]
        values[column] = actual + factor * (values[column] - actual)
    about = {"spectra": "observed", "pixels": pixels, "stars": 240}
    about |= {"cpu_seconds": {"fit": 12.0, "predict": 1.0}}
    write_predictions(values, run / "baselines/quadratic_regression.csv", about)


def make_stars(teff=3900.0, kind="giant"):
    row = {"star": "2M0", "kind": "apStar", "snr": 150.0, "TEFF": teff, "TEFF_error": 80.0}
    row |= {"class": kind, "rv_TEFF": 3700.0, "rv_class": "giant"}
    return pd.DataFrame([row])


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({}, []),
        ({"finetuned": 0.6}, [0]),
        ({"hundred": 0.5}, [1, 2]),
        ({"hundred_poor": 0.25}, [2]),
        ({"teff": 4100.0}, [3]),
        ({"class": "dwarf"}, [4]),
    ],
)
def test_claims_hold_or_not(changes, failing):
    finetuned, hundred = changes.get("finetuned", 0.2), changes.get("hundred", 0.1)
    observed = {k: make_predictions(v) for k, v in (("pretrained", 0.5), ("finetuned", finetuned))}
    chunk = {
        "scratch": make_predictions(0.3, labels=("FE_H",)),
        "hundred": make_predictions(hundred, changes.get("hundred_poor"), labels=("FE_H",)),
    }
    stars = make_stars(changes.get("teff", 3900.0), changes.get("class", "giant"))
    claims = claims_table(observed, chunk, stars)
    assert claims["holds"].tolist() == ["no" if i in failing else "yes" for i in range(5)]


def test_shares_of_an_older_version_are_refused():
    with pytest.raises(ValueError, match=r"run extract_attention\.py"):
        attention_text(make_shares().drop(columns="ratio_of_best"))


def test_shares_are_shown_by_ranking():
    tables = attention_text(make_shares(sensitivity=3.3))
    assert list(tables) == ["respond most to a label", "constrain a label best"]
    table = tables["constrain a label best"].set_index("")
    assert table.loc["[Fe/H], all", "sensitivity"] == "3.30"
    assert table.loc["[Fe/H], all", "best linear, tokens"] == "4.00"


def test_claims_need_their_predictions():
    assert claims_table({}, {}, None).empty
