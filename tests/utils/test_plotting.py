"""Parts of figures: what is drawn, and what is written beside it."""

import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from stellarperceptron.evaluation.metrics import label_metrics
from stellarperceptron.utils.plotting import (
    axis_label,
    chip_axes,
    error_bar,
    mark_gaps,
    metrics_text,
    plot_predicted_against_actual,
    plot_residuals,
    save_figure,
    use_style,
)


def test_metrics_are_written_in_the_labels_unit():
    metrics = label_metrics([4000.0, 4200.0], [4100.0, 4300.0])
    assert metrics_text(metrics, "TEFF").splitlines()[0] == "bias −100.0 K"
    assert "RMSE 100.000 dex" in metrics_text(metrics, "FE_H")
    assert metrics_text(metrics, "VMICRO").splitlines()[1] == "mad_std 0.00 km/s"
    assert metrics_text(metrics, "AGE").splitlines()[2] == "RMSE 100.000"


def test_labels_of_axes_have_units():
    assert axis_label("TEFF", "catalogue").endswith("[K]")
    assert axis_label("C_FE", "catalogue") == "catalogue [C/Fe] [dex]"
    assert axis_label("NEW_LABEL") == "NEW_LABEL"


def test_axes_end_where_a_label_makes_no_sense():
    values = np.append(np.linspace(-0.5, 0.5, 50), 40.0)  # one that went wrong
    for name, end in (("C_FE", 1.5), ("NEW_LABEL", 42)):
        axes = Figure().subplots()
        plot_predicted_against_actual(axes, values, values, label=name)
        assert axes.get_xlim()[1] == pytest.approx(end, rel=0.02)


def test_every_known_star_is_drawn():
    actual = np.append(np.linspace(-1, 0, 50), [np.nan, -0.5])
    predicted = np.append(np.linspace(-1, 0, 50), [0.0, 7.0])
    axes = Figure().subplots()
    points = plot_predicted_against_actual(axes, predicted, actual, label="FE_H", limits=(-2, 1))
    inside, outside = axes.collections
    assert points is inside
    assert (len(inside.get_offsets()), len(outside.get_offsets())) == (50, 1)
    np.testing.assert_allclose(outside.get_offsets(), [[-0.5, 1.0]])
    assert axes.get_xlim() == axes.get_ylim() == (-2, 1)


def test_colour_is_the_predicted_error():
    values, error = np.linspace(-1, 0, 100), np.linspace(0.01, 0.2, 100)
    axes = Figure().subplots()
    points = plot_predicted_against_actual(axes, values, values, error, label="FE_H")
    np.testing.assert_allclose(points.get_array(), error)
    assert points.norm.vmin == pytest.approx(np.quantile(error, 0.02))


def test_no_known_star_gives_an_empty_panel(tmp_path):
    figure = Figure()
    plot_predicted_against_actual(figure.subplots(), [1.0], [np.nan], [0.1], label="FE_H")
    save_figure(figure, tmp_path / "empty.png")
    assert (tmp_path / "empty.png").read_bytes().startswith(b"\x89PNG")


def test_chips_are_as_wide_as_their_wavelength_ranges():
    figure = Figure()
    axes = chip_axes(figure, rows=2)
    assert axes.shape == (2, 3)
    per_angstrom = [axis.get_position().width / np.ptp(axis.get_xlim()) for axis in axes[0]]
    assert per_angstrom == pytest.approx([per_angstrom[0]] * 3, rel=1e-6)


def test_chips_are_clipped_to_what_is_shown():
    axes = chip_axes(Figure(), between=(15700.0, 16000.0))
    assert axes.shape == (1, 2)  # blue and green
    assert axes[0, 0].get_xlim()[0] == 15700
    assert axes[0, 1].get_xlim()[1] == 16000


def test_gaps_between_chips_are_marked():
    broken = chip_axes(Figure())[0]
    strokes = [sum(line.get_label() == "_gap" for line in axes.lines) for axes in broken]
    assert strokes == [1, 2, 1]
    axes = Figure().subplots()
    axes.set_xlim(15000, 17000)
    mark_gaps(axes)
    assert axes.get_xlim() == (15000, 17000)
    gaps = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    np.testing.assert_allclose(gaps, [(15799.55, 15868.03), (16424.25, 16484.07)], atol=3)


def test_every_residual_is_drawn():
    actual = np.append(np.linspace(-1, 0, 400), [-3.0, np.nan])
    predicted = actual + np.append(np.full(400, 0.1), [0.1, 0.1])
    predicted[7] += 5
    axes = Figure().subplots()
    plot_residuals(axes, predicted, actual, label="FE_H", limits=(-2, 1))
    inside, outside = axes.collections
    assert (len(inside.get_offsets()), len(outside.get_offsets())) == (399, 2)
    low, high = axes.get_ylim()
    assert -0.1 < low < 0 and 0.1 < high < 0.2
    np.testing.assert_allclose(outside.get_offsets(), [[actual[7], high], [-2, 0.1]])


def test_colours_are_seen_on_white():
    use_style()
    for color in matplotlib.colormaps[matplotlib.rcParams["image.cmap"]](np.linspace(0, 1, 50)):
        linear = np.where(color[:3] < 0.04, color[:3] / 12.92, ((color[:3] + 0.055) / 1.055) ** 2.4)
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        assert 1.05 / (luminance + 0.05) > 2  # contrast ratio (WCAG 2) with white; 1.07 of yellow


def test_colour_bars_have_ticks_that_do_not_touch():
    for low, high in ((0.008, 0.12), (5, 120), (0.02, 0.2), (1e-3, 1.0), (0.31, 0.33)):
        figure = Figure(figsize=(0.95, 2), layout="constrained")
        use_style()
        axes = figure.subplots()
        points = axes.scatter([0, 1], [0, 1], c=[low, high], norm=LogNorm(low, high))
        bar = error_bar(figure, points, "FE_H", axes, location="bottom")
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in bar.ax.get_xticklabels()]
        assert len(boxes) >= 2
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes)), (low, high)


def test_the_same_figure_is_the_same_bytes(tmp_path):
    for name in "ab":
        figure = Figure()
        figure.subplots().plot([1, 2])
        save_figure(figure, tmp_path / f"{name}.png", "A line.")
    for kind in ("png", "pdf", "md"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert (tmp_path / "a.md").read_text() == "A line.\n"
    with pytest.raises(ValueError, match=r"must end in \.png"):
        save_figure(figure, tmp_path / "a.jpg")
