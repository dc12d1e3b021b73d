"""Figures 2 and 3 and the coverage: every star of every table is where it belongs."""

from unittest import mock

import numpy as np
import pandas as pd
import pytest
from chain import run_here
from matplotlib.image import imread

from stellarperceptron.data.dataset import draw_iron_rich
from stellarperceptron.evaluation.predictions import write_predictions
from stellarperceptron.utils import plotting

FIGURE_2 = "results/real_spectra_finetune/Figure2.py"
FIGURE_3 = "results/fe/Figure3.py"
COVERAGE = "results/real_spectra_finetune/coverage.py"
SPREAD = {"TEFF": (4800, 300), "FE_H": (-0.4, 0.4)}
MODELS = ("scratch", "pretrained", "finetuned", "hundred")


def drawn(script, *arguments):
    """The figure that a script saves."""
    figures, save = [], plotting.save_figure

    def note(figure, path, caption=""):
        save(figure, path, caption)
        figures.append(figure)

    with mock.patch.object(plotting, "save_figure", note):
        assert not run_here(script, *arguments)
    (figure,) = figures
    return figure


@pytest.fixture
def tables(tmp_path):
    """Paths of four tables of the same 60 stars, each with its own predictions and errors."""
    random, paths = np.random.default_rng(0), {}
    actual = {name: random.normal(*spread, 60) for name, spread in SPREAD.items()}
    for i, model in enumerate(MODELS):
        columns = {"ID": [f"star{i}" for i in range(60)]}
        for name, (_, width) in SPREAD.items():
            error = width * random.uniform(0.05, 0.1, 60)
            columns[f"{name}_pred"] = actual[name] + (i + 1) * random.normal(0, error)
            columns[f"{name}_err"] = error
            columns[f"{name}_actual"] = actual[name]
            columns[f"{name}_actual_err"] = np.full(60, 0.1 * width)
        paths[model] = tmp_path / f"{model}.csv"
        write_predictions(pd.DataFrame(columns), paths[model], {})
    return paths


def assert_stars(axes, table, label):
    """All stars with a label lie at their values, in the colour of their predicted error."""
    drawn_points = [
        np.column_stack([np.asarray(points.get_offsets()), np.asarray(points.get_array())])
        for points in axes.collections[:2]  # within the limits, and on their edge
    ]
    found = np.concatenate(drawn_points)
    columns = [f"{label}_{what}" for what in ("actual", "pred", "err")]
    expected = table[columns].dropna().to_numpy()
    limits = axes.get_xlim()
    assert ((expected[:, :2] > limits[0]) & (expected[:, :2] < limits[1])).mean() > 0.9
    expected[:, :2] = expected[:, :2].clip(*limits)
    assert len(found) == len(expected)
    found, expected = (values[np.lexsort(values.T)] for values in (found, expected))
    np.testing.assert_allclose(found, expected)


def test_figure_2_has_a_row_for_each_table_and_a_column_for_each_label(tables, tmp_path):
    given = ("--pretrained", tables["pretrained"], "--finetuned", tables["finetuned"])
    figure = drawn(FIGURE_2, *given, "--output", tmp_path / "Figure2.png")
    assert figure.get_size_inches()[0] <= plotting.PAGE_WIDTH
    columns = np.reshape(figure.axes, (len(SPREAD), 6))
    for panels, label in zip(columns, SPREAD, strict=True):
        for i, model in enumerate(("pretrained", "finetuned")):
            table = pd.read_csv(tables[model])
            above, below = panels[2 * i : 2 * i + 2]
            assert_stars(above, table, label)
            assert above.get_xlim() == below.get_xlim()
            residual = table[f"{label}_pred"] - table[f"{label}_actual"]
            points = np.concatenate([part.get_offsets() for part in below.collections])
            expected = residual.clip(*below.get_ylim())
            np.testing.assert_allclose(np.sort(points[:, 1]), np.sort(expected))
    assert imread(tmp_path / "Figure2.png").ndim == 3
    assert (tmp_path / "Figure2.pdf").read_bytes().startswith(b"%PDF")
    caption = (tmp_path / "Figure2.md").read_text()
    assert caption.startswith("Figure 2. Predicted against catalogue labels of 60 test stars")


def test_figure_2_counts_all_pulls(tables, tmp_path):
    given = ("--pretrained", tables["pretrained"], "--finetuned", tables["finetuned"])
    figure = drawn(FIGURE_2, *given, "--output", tmp_path / "Figure2.png")
    for number, label in enumerate(SPREAD):
        axes = figure.axes[6 * number + 4]
        finetuned, pretrained = axes.patches  # the filled one below
        for patch, model in ((finetuned, "finetuned"), (pretrained, "pretrained")):
            table = pd.read_csv(tables[model])
            total = np.hypot(table[f"{label}_err"], table[f"{label}_actual_err"])
            pulls = (table[f"{label}_pred"] - table[f"{label}_actual"]) / total
            expected = np.histogram(pulls.clip(-5, 5), np.linspace(-5, 5, 41), density=True)[0]
            outline = patch.get_xy()
            assert outline[:, 1].max() == pytest.approx(expected.max())
            centres = np.linspace(-4.875, 4.875, 40)
            corners = outline[: 2 * 40 + 1]
            heights = [corners[np.isclose(corners[:, 0], x + 0.125), 1].max() for x in centres]
            assert np.all(np.array(heights) >= expected - 1e-9)


def test_pictures_are_png(tables, tmp_path, capsys):
    given = ("--pretrained", tables["pretrained"], "--finetuned", tables["finetuned"])
    assert run_here(FIGURE_2, *given, "--output", tmp_path / "Figure2.jpg") == 2
    assert "Figure2.jpg must end in .png" in capsys.readouterr().err


@pytest.mark.slow
def test_figure_3_has_a_panel_for_each_model_and_its_training_stars(tables, tmp_path):
    random = np.random.default_rng(1)
    labels = np.append(np.zeros((900, 4)), random.normal(-0.4, 0.4, (900, 1)), axis=1)
    labels[7, 4] = np.nan
    np.save(tmp_path / "labels_train.npy", labels)
    given = [text for model in MODELS for text in (f"--{model}", tables[model])]
    given += ["--training-labels", tmp_path / "labels_train.npy"]
    figure = drawn(FIGURE_3, *given, "--output", tmp_path / "Figure3.png")
    for column, model in enumerate(MODELS):
        above, axes = figure.axes[column], figure.axes[4 + column]
        assert_stars(axes, pd.read_csv(tables[model]), "FE_H")
        few = model in ("scratch", "hundred")
        iron = labels[:, 4][draw_iron_rich(labels[:, 4])] if few else labels[:, 4]
        edges = [bar.get_x() for bar in above.patches if bar.get_width() < 0.2]
        counts = [bar.get_height() for bar in above.patches if bar.get_width() < 0.2]
        expected = np.histogram(iron[np.isfinite(iron)], [*edges, edges[-1] + 0.1])[0]
        assert counts == expected.tolist() and sum(counts) > 90


def test_coverage_is_that_of_the_tables(tables, tmp_path):
    given = ("--finetuned", tables["finetuned"], "--hundred", tables["hundred"])
    figure = drawn(COVERAGE, *given, "--output", tmp_path / "coverage.png")
    panels = [
        ("finetuned", "TEFF"),
        ("finetuned", "FE_H"),
        ("hundred", "TEFF"),
        ("hundred", "FE_H"),
    ]
    for axes, (model, label) in zip(figure.axes, panels, strict=True):
        table = pd.read_csv(tables[model])
        residual = np.abs(table[f"{label}_pred"] - table[f"{label}_actual"])
        gaussian, alone, total = axes.lines
        np.testing.assert_allclose(np.interp([1, 2], *gaussian.get_data()), [0.6827, 0.9545], 1e-4)
        for line, error in (
            (alone, table[f"{label}_err"]),
            (total, np.hypot(table[f"{label}_err"], table[f"{label}_actual_err"])),
        ):
            sigmas, shares = line.get_data()
            expected = [(residual < sigma * error).mean() for sigma in sigmas]
            np.testing.assert_allclose(shares, expected)


@pytest.mark.slow
@pytest.mark.reference
def test_figure_3_draws_from_the_papers_predictions(shared, tmp_path):
    names = {
        "scratch": "NN_pred_true_may28_4_987_138",
        "pretrained": "1_basemodel_synthetic_epoch325_fehpredictions",
        "finetuned": "2_realfinetune_firsthalf_epoch90_fehpredictions",
        "hundred": "3_fefinetune_chunk_epoch120_fehpredictions",
    }
    published = shared / "published"
    paths = {model: published / f"{name}.csv" for model, name in names.items()}
    given = [text for model in MODELS for text in (f"--{model}", paths[model])]
    given += ["--training-labels", published / "labels_train.npy"]
    figure = drawn(FIGURE_3, *given, "--output", tmp_path / "Figure3.png")
    for column, model in enumerate(MODELS):
        assert_stars(figure.axes[4 + column], pd.read_csv(paths[model]), "FE_H")
