r"""Figure 3: [Fe/H] of all test stars from the narrow chunk around two iron lines, 16,106-16,220 A.

Four panels: a network trained from scratch on 100 stars with [Fe/H] > -1, and SpectraFM pre-trained
on synthetic spectra, fine-tuned on the first half of the observed band, and then fine-tuned on the
same 100 stars. Above, the [Fe/H] of the stars that each was trained on. The picture is
written as PNG and PDF, with its caption. The script also reads the published predictions:

    python Figure3.py --scratch NN_pred_true_may28_4_987_138.csv \
        --pretrained 1_basemodel_synthetic_epoch325_fehpredictions.csv \
        --finetuned 2_realfinetune_firsthalf_epoch90_fehpredictions.csv \
        --hundred 3_fefinetune_chunk_epoch120_fehpredictions.csv \
        --training-labels labels_train.npy --output Figure3.png
"""

import argparse
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from stellarperceptron.data.dataset import SpectraDataset, draw_iron_rich
from stellarperceptron.evaluation.metrics import label_metrics
from stellarperceptron.evaluation.predictions import read_predictions, require_same_stars
from stellarperceptron.evaluation.tables import format_value
from stellarperceptron.labels import PUBLISHED_LABELS
from stellarperceptron.utils.arguments import HelpFormatter, output_picture, run_script
from stellarperceptron.utils.plotting import (
    COLORS,
    PAGE_WIDTH,
    SHADE,
    error_bar,
    plot_predicted_against_actual,
    save_figure,
    use_style,
)

COMMAND = "results/fe/EvaluateFeFT.py, or make reproduce"
# Options, titles, and which stars were last trained on.
PANELS = {
    "scratch": ("network from scratch, 100 stars", "hundred"),
    "pretrained": ("pre-trained on synthetic spectra", "all"),
    "finetuned": ("fine-tuned on the first half", "all"),
    "hundred": ("fine-tuned on 100 stars", "hundred"),
}
METAL_POOR = -1.0
CAPTION = (
    "Figure 3. [Fe/H] of {stars:,} test stars, predicted from 16,106 to 16,220 Å (vacuum), against "
    "the catalogue's: by a network trained from scratch on 100 stars, and by the model pre-trained "
    "on synthetic spectra, then fine-tuned on the first half of the observed band, then on the "
    "same 100 stars. Points are stars, their colour is the predicted error; errors beyond the 1st "
    "and the 99th percentile have the colours of the ends. Triangles on an edge are stars beyond "
    "it; on the dashed line prediction and catalogue agree. Shaded: [Fe/H] < −1, where none of the "
    "100 stars lies. RMSE: of all stars, and of those in the shaded range. "
    "The histograms show the [Fe/H] of the stars that each was last trained on."
)


def read_training_stars(path: Path) -> dict[str, np.ndarray]:
    """[Fe/H] of all training stars with a label and of the hundred drawn from them.

    Parameters
    ----------
    path
        Survey, or `labels_train.npy` (N, 5) as published.

    Raises
    ------
    OSError, ValueError
        There is no such file, or it is neither.
    """
    if path.suffix == ".npy":
        labels = np.load(path, allow_pickle=False)
        if labels.ndim != 2 or labels.shape[1] != len(PUBLISHED_LABELS):
            raise ValueError(f"{path} has the shape {labels.shape}, not (stars, 5) of labels")
        iron = labels[:, PUBLISHED_LABELS.index("FE_H")]
    else:
        with SpectraDataset.open(path, ["FE_H"]) as dataset:
            iron = dataset.train.labels[:, dataset.label_names.index("FE_H")]
    try:
        hundred = iron[draw_iron_rich(iron)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {"all": iron[np.isfinite(iron)], "hundred": hundred}


def draw_panel(
    axes: Axes, above: Axes, table: pd.DataFrame, trained_on: np.ndarray, bins, limits, norm
):
    """Draw predicted against catalogue values and, above, a histogram of the training stars."""
    predicted, actual, error = (table[f"FE_H_{k}"].to_numpy() for k in ("pred", "actual", "err"))
    poor = actual < METAL_POOR
    every, few = (label_metrics(predicted[k], actual[k])["rmse"] for k in (slice(None), poor))
    text = f"RMSE {format_value(every)} dex\nshaded: {format_value(few)} dex"
    options = {"limits": limits, "norm": norm, "text": text, "corner": "lower right"}
    points = plot_predicted_against_actual(axes, predicted, actual, error, label="FE_H", **options)
    counts, *_ = above.hist(trained_on, bins=bins, color=COLORS["sky"], edgecolor="white", lw=0.2)
    for shaded in (axes, above):
        shaded.axvspan(limits[0], METAL_POOR, color=SHADE, lw=0, zorder=0)
    top = max(above.get_ylim()[1], 2 * counts.max(), 2e4)  # of all panels
    above.set(yscale="log", ylim=(0.7, top), xlim=limits)
    above.tick_params(axis="x", labelbottom=False)
    above.annotate(
        *(f"{len(trained_on):,} training stars", (0.04, 0.95)),
        xycoords="axes fraction",
        va="top",
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
    )
    return points


def draw(tables: dict[str, pd.DataFrame], trained_on: dict[str, np.ndarray]) -> Figure:
    """Draw the four panels from predictions of the same stars."""
    use_style()
    figure = Figure(figsize=(PAGE_WIDTH, 2.75), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    grid = figure.subplots(
        *(2, len(PANELS)), height_ratios=[1, 2.6], sharex="col", sharey="row", squeeze=False
    )
    actual = tables["scratch"]["FE_H_actual"]
    low, high = np.nanquantile(actual, [0.0005, 0.9995])
    limits = float(low) - 0.15, float(high) + 0.15
    bins = np.arange(np.floor(10 * limits[0]) / 10, limits[1] + 0.1, 0.1)
    errors = np.concatenate([table["FE_H_err"] for table in tables.values()])
    norm = LogNorm(*np.quantile(errors, [0.01, 0.99]))
    for column, (key, (title, stars)) in enumerate(PANELS.items()):
        above, axes = grid[:, column]
        points = draw_panel(axes, above, tables[key], trained_on[stars], bins, limits, norm)
        above.set_title(textwrap.fill(title, 20), fontweight="bold")
        if column:
            axes.set_ylabel("")
        else:
            above.set_ylabel("stars")
    error_bar(figure, points, "FE_H", grid[1, :], location="right", aspect=22, pad=0.01)
    return figure


def main() -> None:
    """Arguments, predictions, training stars, figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    for key, (title, _) in PANELS.items():
        parser.add_argument(
            f"--{key}", type=Path, required=True, help=f"predictions (CSV): {title}"
        )
    parser.add_argument(
        "--training-labels",
        type=Path,
        required=True,
        help="survey file or folder, or labels_train.npy as published",
    )
    parser.add_argument("--output", type=output_picture, required=True, help="picture (PNG)")
    arguments = parser.parse_args()
    try:
        paths = {key: getattr(arguments, key) for key in PANELS}
        tables = {key: read_predictions(path, COMMAND, ["FE_H"]) for key, path in paths.items()}
        require_same_stars({str(paths[key]): table for key, table in tables.items()})
        trained_on = read_training_stars(arguments.training_labels)
        caption = CAPTION.format(stars=len(tables["scratch"]))
        save_figure(draw(tables, trained_on), arguments.output, caption)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    print(arguments.output)


if __name__ == "__main__":
    run_script(main)
