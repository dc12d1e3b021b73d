r"""Coverage: share of the test stars whose predicted labels are within k sigma of the catalogue's.

A panel for each label that stage 2 predicts from the first half of the observed band, and one for
[Fe/H] that stage 3 predicts from the chunk. Sigma is the predicted error alone, or with the
catalogue's added in quadrature; a dashed curve shows Gaussian errors. The picture is written as PNG
and PDF, with its caption.

    python coverage.py --finetuned runs/laptop/evaluation/2_realfinetune_firsthalf_on_observed.csv \
        --hundred runs/laptop/evaluation/3_fefinetune_chunk_fehpredictions.csv \
        --output runs/laptop/figures/coverage.png
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stellarperceptron.evaluation.metrics import coverage
from stellarperceptron.evaluation.predictions import predicted_labels, read_predictions
from stellarperceptron.labels import label as label_named
from stellarperceptron.utils.arguments import HelpFormatter, output_picture, run_script
from stellarperceptron.utils.plotting import COLORS, PAGE_WIDTH, save_figure, use_style

MOST_COLUMNS = 4  # panels side by side; more go below
SIGMAS = np.linspace(0.0, 3.0, 61)
COMMAND = "make reproduce"
CAPTION = (
    "Fraction of the test stars whose predicted label lies within a number of sigma of the "
    "catalogue's: {first:,} stars from the first half of the observed band (stage 2), {second:,} "
    "from 16,106 to 16,220 Å (stage 3, chunk). Sigma is the predicted error alone (light) or with "
    "the catalogue's added in quadrature (dark). Dashed: Gaussian errors; a curve above it is of "
    "errors that are too large, a curve below it of errors that are too small."
)


def draw_panel(axes: Axes, table: pd.DataFrame, label: str) -> None:
    """Draw the curves of one label."""
    found, actual, error = (table[f"{label}_{key}"].to_numpy() for key in ("pred", "actual", "err"))
    gaussian = [math.erf(sigma / math.sqrt(2)) for sigma in SIGMAS]
    axes.plot(SIGMAS, gaussian, color=COLORS["black"], lw=0.6, ls="--", label="Gaussian")
    curves = {"predicted error alone": (error, "sky")}
    if f"{label}_actual_err" in table:
        total = np.hypot(error, table[f"{label}_actual_err"].to_numpy())
        curves["with the catalogue's error"] = (total, "blue")
    for words, (sigma, color) in curves.items():
        known = np.isfinite(found) & np.isfinite(actual) & np.isfinite(sigma)
        share = coverage((found - actual)[known], sigma[known], SIGMAS)
        axes.plot(SIGMAS, share, color=COLORS[color], label=words)
    axes.set(xlim=(0, SIGMAS[-1]), ylim=(0, 1.02), xlabel="residual / sigma")


def draw(finetuned: pd.DataFrame, hundred: pd.DataFrame) -> Figure:
    """Draw a panel for each label of either table."""
    use_style()
    panels = [(finetuned, label, "stage 2") for label in predicted_labels(finetuned)]
    panels += [(hundred, label, "stage 3, chunk") for label in predicted_labels(hundred)]
    rows = math.ceil(len(panels) / MOST_COLUMNS)
    columns = math.ceil(len(panels) / rows)
    figure = Figure(figsize=(PAGE_WIDTH, 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (table, label, model) in zip(grid.flat, panels, strict=False):
        draw_panel(axes, table, label)
        axes.set_title(f"{label_named(label).symbol}, {model}")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("fraction of stars")
    grid[0, 0].legend(loc="lower right")
    return figure


def main() -> None:
    """Arguments, predictions, figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--finetuned", type=Path, required=True, help="predictions of stage 2 (CSV)"
    )
    parser.add_argument(
        "--hundred", type=Path, required=True, help="predictions of stage 3 from the chunk (CSV)"
    )
    parser.add_argument("--output", type=output_picture, required=True, help="picture (PNG)")
    arguments = parser.parse_args()
    try:
        finetuned = read_predictions(arguments.finetuned, COMMAND)
        hundred = read_predictions(arguments.hundred, COMMAND, ["FE_H"])
        caption = CAPTION.format(first=len(finetuned), second=len(hundred))
        save_figure(draw(finetuned, hundred), arguments.output, caption)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    print(arguments.output)


if __name__ == "__main__":
    run_script(main)
