r"""Figure 2: predicted against catalogue labels of all test stars, from observed spectra.

Above after stage 1 (pre-trained on synthetic spectra), below after stage 2 (fine-tuned on observed
ones), each with its residuals; at the bottom the pulls of both. The picture is written as PNG and
PDF, with its caption.

    python Figure2.py --pretrained runs/laptop/evaluation/1_basemodel_synthetic_on_observed.csv \
        --finetuned runs/laptop/evaluation/2_realfinetune_firsthalf_on_observed.csv \
        --output runs/laptop/figures/Figure2.png
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from stellarperceptron.evaluation.predictions import (
    predicted_labels,
    read_predictions,
    require_same_stars,
)
from stellarperceptron.labels import label as label_named
from stellarperceptron.utils.arguments import HelpFormatter, output_picture, run_script
from stellarperceptron.utils.plotting import (
    COLORS,
    PAGE_WIDTH,
    error_bar,
    plot_predicted_against_actual,
    plot_residuals,
    save_figure,
    use_style,
)

TITLES = ("pre-trained on synthetic spectra", "fine-tuned on observed spectra")
MOST_COLUMNS = 5  # labels side by side; more go below
# Rows and spaces between them, from above, with their heights [inch].
PANELS = [("", 0.6), ("predicted", 0.93), ("", 0.05), ("residual", 0.68)]
ROWS = [
    *(*PANELS, ("", 0.3)),
    *(*PANELS, ("", 0.42)),
    *(("pull", 0.6), ("", 0.4), ("bar", 0.07), ("", 0.35)),
]
PULLS = np.linspace(-5, 5, 41)
PULL_STYLES = (
    {"histtype": "step", "color": COLORS["vermilion"], "lw": 0.9, "label": "pre-trained"},
    {"histtype": "stepfilled", "color": COLORS["sky"], "label": "fine-tuned"},
)
COMMAND = "results/real_spectra_finetune/evaluate_{}*.py, or make reproduce"
CAPTION = (
    "Figure 2. Predicted against catalogue labels of {stars:,} test stars, from observed spectra, "
    "and below each panel the residuals (predicted minus catalogue label): after pre-training on "
    "synthetic spectra (above) and after fine-tuning on observed ones (below). Points are stars, "
    "their colour is the predicted error, on one scale for each label; errors beyond the 1st and "
    "the 99th percentile have the colours of the ends. Triangles on an edge are stars beyond it, "
    "dashed lines where prediction and catalogue agree. Above the panels: median residual (bias), "
    "median absolute deviation scaled to a standard deviation (mad_std), and RMSE, of all stars. "
    "Bottom row: residuals over their errors (pulls), which are the quadrature sum of the "
    "predicted error and the catalogue's where it is known; open: pre-trained, filled: "
    "fine-tuned, dashed: Gaussian of unit width. Pulls beyond 5 are counted in the last bins."
)


def draw(tables: list[pd.DataFrame]) -> Figure:
    """Draw predictions of the same stars, two rows for each table and a column for each label.

    Where there are more than `MOST_COLUMNS` labels, the others follow below.
    """
    labels = predicted_labels(tables[0])
    use_style()
    bands = -(-len(labels) // MOST_COLUMNS)
    columns = -(-len(labels) // bands)
    size = PAGE_WIDTH * columns / MOST_COLUMNS, bands * sum(height for _, height in ROWS)
    figure = Figure(figsize=size)
    parts = [figure] if bands == 1 else figure.subfigures(bands, 1)
    for i, part in enumerate(parts):
        draw_labels(part, tables, labels[i * columns : (i + 1) * columns], columns)
    return figure


def draw_labels(
    figure: Figure | SubFigure, tables: list[pd.DataFrame], labels: list[str], columns: int
) -> None:
    """Draw some of the labels, side by side."""
    # Sizes in inches: a column is 1.38 wide, of which a panel takes 0.93.
    width = figure.bbox.width / figure.dpi
    grid = figure.add_gridspec(
        *(len(ROWS), columns),
        **{"left": 0.42 / width, "right": 1 - 0.13 / width, "bottom": 0, "top": 1},
        **{"hspace": 0, "wspace": 0.45 / 0.93, "height_ratios": [height for _, height in ROWS]},
    )
    rows = [row for row, (what, _) in enumerate(ROWS) if what]
    for column, label in enumerate(labels):
        panels = [figure.add_subplot(grid[row, column]) for row in rows]
        unit = f" [{label_named(label).unit}]" if label_named(label).unit else ""
        errors = np.concatenate([table[f"{label}_err"] for table in tables])
        norm = LogNorm(*np.nanquantile(errors, [0.01, 0.99]))
        for row, table in enumerate(tables):
            above, below = panels[2 * row : 2 * row + 2]
            values = [table[f"{label}_{what}"].to_numpy() for what in ("pred", "actual", "err")]
            options = {"label": label, "norm": norm}
            points = plot_predicted_against_actual(above, *values, **options, corner="above")
            plot_residuals(below, *values, **options, limits=above.get_xlim())
            for axis in (above.xaxis, above.yaxis, below.xaxis):
                axis.set_major_locator(MaxNLocator(3, steps=[1, 2, 4, 5, 10]))
            above.tick_params(labelbottom=False)
            above.set(xlabel="", ylabel=f"predicted{unit}")
            below.set(ylabel=f"residual{unit}")
            for axes in (above, below):
                axes.yaxis.set_label_coords(-0.34, 0.5)
            if column == 0:
                above.annotate(TITLES[row], (0, 1.46), xycoords="axes fraction", fontweight="bold")
        draw_pulls(panels[-2], tables, label)
        error_bar(figure, points, label, None, cax=panels[-1], orientation="horizontal")
        panels[-1].set_xlabel(f"predicted error{unit}")
        if column:
            panels[-2].set_ylabel("")
            panels[-2].tick_params(labelleft=False)
        panels[-2].yaxis.set_label_coords(-0.34, 0.5)


def draw_pulls(axes: Axes, tables: list[pd.DataFrame], label: str) -> None:
    """Draw histograms of the residuals over their errors, beside a Gaussian."""
    for table, style in zip(reversed(tables), reversed(PULL_STYLES), strict=True):
        residual = table[f"{label}_pred"] - table[f"{label}_actual"]
        known = table.get(f"{label}_actual_err", pd.Series(0.0, table.index)).fillna(0.0)
        pulls = (residual / np.hypot(table[f"{label}_err"], known)).dropna()
        axes.hist(pulls.clip(*PULLS[[0, -1]]), PULLS, density=True, **style)
    gaussian = np.exp(-0.5 * PULLS**2) / np.sqrt(2 * np.pi)
    axes.plot(PULLS, gaussian, color=COLORS["black"], lw=0.6, ls="--", label="Gaussian")
    axes.set(xlim=PULLS[[0, -1]], yscale="log", ylim=(1e-3, 6))
    axes.set(xlabel=f"pull of {label_named(label).symbol}", ylabel="density")


def main() -> None:
    """Arguments, predictions, figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--pretrained", type=Path, required=True, help="predictions of stage 1 (CSV)"
    )
    parser.add_argument(
        "--finetuned", type=Path, required=True, help="predictions of stage 2 (CSV)"
    )
    parser.add_argument("--output", type=output_picture, required=True, help="picture (PNG)")
    arguments = parser.parse_args()
    try:
        before = read_predictions(arguments.pretrained, COMMAND.format(1))
        labels = predicted_labels(before)
        after = read_predictions(arguments.finetuned, COMMAND.format(2), labels)
        require_same_stars({str(arguments.pretrained): before, str(arguments.finetuned): after})
        caption = CAPTION.format(stars=len(after))
        save_figure(draw([before, after]), arguments.output, caption)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    print(arguments.output)


if __name__ == "__main__":
    run_script(main)
