"""Baselines, comparison, learning curve and few real stars, as scripts at toy size."""

import importlib.util
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from chain import ROOT, run_here, script
from conftest import LABELS
from matplotlib.image import imread

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.apogee.grid import FULL_WAVELENGTH
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.evaluation.predictions import read_predictions
from stellarperceptron.instruments.drawn import DrawnInstruments
from stellarperceptron.training.stages import draw_stars

BASELINES = "results/baselines"
FEW_LABELS = "results/real_stars/few_labels.py"
SMALL = {
    "context_length": 16,
    "embedding_dim": 16,
    "encoder_head_num": 4,
    "encoder_dense_num": 32,
    "decoder_head_num": 4,
    "decoder_dense_num": 32,
}
CHEAP = ("--pixels", "0:512", "--baselines", "quadratic_regression")


@pytest.fixture(scope="module")
def trained(survey, tmp_path_factory):
    """A folder with the predictions of a regression and of a network."""
    folder = tmp_path_factory.mktemp("baselines")
    arguments = ("--data", survey, "--output", folder, "--pixels", "0:64", "--stars", 60)
    names = ("--baselines", "quadratic_regression", "convolutional_network")
    assert not run_here(f"{BASELINES}/train_baselines.py", *arguments, *names)
    return folder


def test_baselines_predict_all_test_stars(trained, survey):
    for name in ("quadratic_regression", "convolutional_network"):
        table = read_predictions(trained / f"{name}.csv", "")
        about = json.loads((trained / f"{name}.json").read_text())
        with SpectraDataset.open(survey) as dataset:
            assert table["ID"].tolist() == dataset.test.ids.tolist()
            assert table.filter(like="_pred").shape[1] == len(dataset.label_names)
        assert (about["stars"], about["seed"], about["pixels"]) == (60, 0, [0, 64])
        assert about["cpu_seconds"]["fit"] > 0


def test_what_is_there_is_not_trained_again(trained, survey, capsys):
    path = trained / "quadratic_regression.csv"
    before = path.stat().st_mtime_ns
    arguments = ("--data", survey, "--output", trained, "--pixels", "0:64")
    arguments += ("--baselines", "quadratic_regression")
    assert not run_here(f"{BASELINES}/train_baselines.py", *arguments, "--stars", 60)
    assert path.stat().st_mtime_ns == before and "nothing to do" in capsys.readouterr().out
    message = run_here(f"{BASELINES}/train_baselines.py", *arguments, "--stars", 70)
    assert "other settings (stars: 60, not 70)" in message


def test_comparison_marks_the_best(trained, tmp_path):
    tables = sorted(trained.glob("*.csv"))
    output = tmp_path / "tables/baselines"
    assert not run_here(f"{BASELINES}/compare.py", *tables, "--output", output)
    result = pd.read_csv(f"{output}.csv")
    assert result["method"].unique().tolist() == ["convolutional network", "quadratic regression"]
    assert (result.groupby("label")["best_rmse"].sum() == 1).all()
    assert (tmp_path / "tables/baselines.md").read_text().count("**") == 2 * 2 * 5
    message = run_here(
        *(f"{BASELINES}/compare.py", tables[0], "--seconds", "ours=3", "--output", output)
    )
    assert "no table is called 'ours'" in message


def test_learning_curve_goes_on_where_it_ended(survey, chain, tmp_path, monkeypatch):
    true_run = subprocess.run

    def run(command, **options):
        if command[0] != sys.executable:  # git
            return true_run(command, **options)
        done = script(*command[1:])
        print(done.stdout, done.stderr)
        done.check_returncode()
        return done

    if sys.platform == "linux":  # processes that need not import PyTorch first
        monkeypatch.setattr("subprocess.run", run)
    arguments = ("--data", survey, "--output", tmp_path, *CHEAP, "--checkpoint", chain / "1")
    arguments += ("--profile", "smoke", "--least-steps", 1, "--set", "training.epochs=1")
    assert not run_here(f"{BASELINES}/learning_curve.py", *arguments, "--stars", 30)
    first = tmp_path / "30/2_realfinetune_firsthalf_on_observed.csv"
    before = first.stat().st_mtime_ns
    assert not run_here(f"{BASELINES}/learning_curve.py", *arguments, "--stars", 30, 90)
    assert first.stat().st_mtime_ns == before
    table = pd.read_csv(tmp_path / "learning_curve.csv")
    assert len(table) == 2 * 2 * 5 and (table["cpu_seconds"] > 0).all()
    assert set(table["labelled_stars"]) == {30, 90}
    assert imread(tmp_path / "learning_curve.png").ndim == 3
    # Model and baselines have learned from the same stars.
    configuration = json.loads((tmp_path / "30/fine_tuned/configuration.json").read_text())
    assert configuration["profile"]["data"]["stars"] == 30


def test_fewer_stars_are_part_of_more(survey):
    with SpectraDataset.open(survey) as dataset:
        few, more = (draw_stars(dataset, [0], number, seed=2) for number in (20, 50))
        np.testing.assert_array_equal(few, more[:20])
        with pytest.raises(ValueError, match=r"240 training stars with a label, not 300"):
            draw_stars(dataset, [0], 300, seed=2)


@pytest.fixture
def stars_file(tmp_path):
    """Sixty giants whose labels are linear in 100 noisy fluxes."""
    random = np.random.default_rng(0)
    place = random.normal(size=(60, 3))
    flux = 0.9 + 0.03 * place @ random.normal(size=(3, 100)) + 0.002 * random.normal(size=(60, 100))
    bad = random.random(flux.shape) < 0.01
    flux[bad] = 15.0
    path = tmp_path / "stars.npz"
    np.savez(
        path,
        wavelength=FULL_WAVELENGTH[322:422],
        flux=flux.astype(np.float32),
        error=np.full(flux.shape, 0.002, np.float32),
        bad=bad,
        labels=[4500, 2.5, -0.2] + place * [300, 0.6, 0.3],
        label_names=np.array(["TEFF", "LOGG", "M_H"]),
    )
    return path


def test_few_labels(stars_file, chain, tmp_path):
    arguments = ("--stars-file", stars_file, "--output", tmp_path / "few", "--splits", 1)
    arguments += ("--checkpoint", chain / "1", "--steps", 20)
    assert not run_here(FEW_LABELS, *arguments, "--stars", 20)
    assert not run_here(FEW_LABELS, *arguments, "--stars", 20, 40)
    table = pd.read_csv(tmp_path / "few/few_labels.csv")
    assert len(table) == 2 * 5 * 3 and np.isfinite(table["mad_std"]).all()
    found = table.set_index(["method", "labelled_stars", "label"])["mad_std"]
    for method in ("ridge regression", "quadratic regression"):
        assert found[method, 40, "TEFF"] < 20 and found[method, 40, "M_H"] < 0.02
    text = (tmp_path / "few/few_labels.md").read_text()
    assert len(re.findall(r"\*\*[\d.]+\*\*", text)) >= 2 * 3
    assert imread(tmp_path / "few/few_labels.png").ndim == 3


@pytest.fixture(scope="module")
def few_labels():
    """The script as a module."""
    specification = importlib.util.spec_from_file_location("few_labels", ROOT / FEW_LABELS)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # for its dataclasses
    specification.loader.exec_module(module)
    return module


def test_flags_of_bad_pixels_may_be_integers(few_labels, stars_file):
    content = dict(np.load(stars_file))
    np.savez(stars_file, **{**content, "bad": content["bad"].astype(np.uint8)})
    assert np.array_equal(np.isnan(few_labels.read_stars(stars_file).flux), content["bad"])


def test_fluxes_are_brought_to_the_scale_of_the_package(few_labels, stars_file):
    content = np.load(stars_file)
    expected = np.where(content["bad"], np.nan, content["flux"]) / 0.958
    np.testing.assert_allclose(few_labels.read_stars(stars_file).flux, expected, rtol=1e-6)


def test_stars_are_learned_from_or_tested_on_and_a_run_is_continued(
    few_labels, stars_file, tmp_path
):
    splits = []

    def method(stars, train, test, seed):
        splits.append((train, test))
        return stars.labels[test]

    def run(**changes):
        given = {"output": tmp_path, "stars": [20], "splits": 2, "seed": 0, "steps": 1}
        arguments = SimpleNamespace(checkpoint=None, train="auto", **(given | changes))
        return few_labels.run(arguments, few_labels.read_stars(stars_file), {"truth": method})

    run()
    for train, test in splits:
        assert len(train) == 20 and sorted([*train, *test]) == list(range(60))
    table = run(splits=3)
    assert len(splits) == 3 and len(table) == 3 * 3
    assert len({tuple(train) for train, _ in splits}) == 3
    with pytest.raises(ValueError, match="was made with other settings"):
        run(seed=1)


def test_fine_tuning_takes_the_steps_that_it_is_told_to(
    few_labels, stars_file, tmp_path, monkeypatch
):
    stars, taken, step = few_labels.read_stars(stars_file), [], torch.optim.AdamW.step
    names = [*few_labels.APOGEE.pixel_names(stars.wavelength), *LABELS]
    model = StellarPerceptron(names, device="cpu", instrument=few_labels.APOGEE, **SMALL)
    model.fit_standardization(np.hstack([stars.flux, stars.labels]), names)
    model.save(tmp_path / "model")

    def counted(self, *arguments, **options):
        taken.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    method = few_labels.fine_tuned(tmp_path / "model", 20, "all")
    answers = method(stars, np.arange(40), np.arange(40, 60), 0)
    assert 20 <= len(taken) < 23  # three batches an epoch
    assert np.isfinite(answers).all() and answers.shape == (20, 3)


def test_fine_tuning_takes_spectra_of_another_instrument(few_labels, tmp_path):
    apogee, random = few_labels.APOGEE, np.random.default_rng(0)
    names = [*apogee.pixel_names(), *LABELS]
    sizes = {**SMALL, "context_length": 64, "pixels_per_token": 128, "conditions": True}
    model = StellarPerceptron(names, device="cpu", instrument=apogee, **sizes)
    model.drawn = DrawnInstruments(share=0.5)
    values = random.normal(0, 1, (30, len(names)))
    values[:, : len(apogee)] = 1 + 0.05 * values[:, : len(apogee)]
    model.fit_standardization(values, names)
    model.save(tmp_path / "model")
    wavelength = 15_400 * np.exp(np.arange(1500) / 28_000)
    wavelength = np.delete(wavelength, slice(700, 800))
    metals = np.linspace(-1, 1, 30)
    flux = 1 + 0.05 * metals[:, None]
    flux = flux + random.normal(0, 0.005, (30, len(wavelength)))
    labels = np.stack([metals, metals, metals], axis=1)
    stars = few_labels.Stars(wavelength, flux.astype(np.float32), labels, LABELS, 10_000.0)
    assert len(few_labels.instrument_of(stars).chips) == 2
    answers = few_labels.fine_tuned(tmp_path / "model", 60, "embeddings")(
        stars, np.arange(0, 30, 2), np.arange(1, 30, 2), 0
    )
    assert answers.shape == (15, 3) and np.isfinite(answers).all()
    assert (answers.std(axis=0) > 0).all()


def test_few_labels_refuses_other_files(stars_file, tmp_path):
    content = dict(np.load(stars_file))
    np.savez(tmp_path / "shifted.npz", **{**content, "wavelength": content["wavelength"] + 2000})
    arguments = ("--output", tmp_path / "few", "--stars", 20)
    message = run_here(FEW_LABELS, "--stars-file", tmp_path / "shifted.npz", *arguments)
    assert "on no APOGEE pixel" in message
    (tmp_path / "text.npz").write_text("no archive")
    message = run_here(FEW_LABELS, "--stars-file", tmp_path / "text.npz", *arguments)
    assert "text.npz" in message
    del content["bad"]
    np.savez(tmp_path / "less.npz", **content)
    assert "lacks bad" in run_here(FEW_LABELS, "--stars-file", tmp_path / "less.npz", *arguments)
    message = run_here(FEW_LABELS, "--stars-file", stars_file, "--output", tmp_path / "few")
    assert "too few to learn from 300" in message
