r"""Figure 2: predicted against catalogue labels of all test stars, from observed spectra.

Above after stage 1 (pre-trained on synthetic spectra), below after stage 2 (fine-tuned on observed
ones); coloured by predicted error, on one scale for each label; bias (median), mad_std and RMSE in
each panel. Triangles on the edge are stars beyond it.

    python Figure2.py --pretrained runs/laptop/evaluation/1_basemodel_synthetic_on_observed.csv \
        --finetuned runs/laptop/evaluation/2_realfinetune_firsthalf_on_observed.csv \
        --output runs/laptop/figures/Figure2.png
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure

from stellarperceptron.evaluation.predictions import (
    predicted_labels,
    read_predictions,
    require_same_stars,
)
from stellarperceptron.utils.arguments import HelpFormatter, output_file, run_script
from stellarperceptron.utils.plotting import (
    error_bar,
    plot_predicted_against_actual,
    save_figure,
    use_style,
)

TITLES = ("pre-trained on synthetic spectra", "fine-tuned on observed spectra")
MOST_COLUMNS = 6  # labels side by side; more go below
COMMAND = "results/real_spectra_finetune/evaluate_{}*.py, or make reproduce"


def draw(tables: list[pd.DataFrame]) -> Figure:
    """Draw predictions of the same stars, a row for each table and a column for each label.

    Where there are more than `MOST_COLUMNS` labels, the others follow below.
    """
    labels = predicted_labels(tables[0])
    use_style()
    bands = -(-len(labels) // MOST_COLUMNS)
    columns = -(-len(labels) // bands)
    figure = Figure(figsize=(3.0 * columns, 6.9 * bands), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    parts = [figure] if bands == 1 else figure.subfigures(bands, 1)
    for i, part in enumerate(parts):
        draw_labels(part, tables, labels[i * columns : (i + 1) * columns], columns)
    return figure


def draw_labels(
    figure: Figure | SubFigure, tables: list[pd.DataFrame], labels: list[str], columns: int
) -> None:
    """Draw some of the labels, side by side."""
    panels = figure.subplots(len(tables), columns, squeeze=False)
    for axes in panels[:, len(labels) :].flat:
        axes.set_axis_off()
    for column, label in enumerate(labels):
        errors = np.concatenate([table[f"{label}_err"] for table in tables])
        norm = LogNorm(*np.nanquantile(errors, [0.01, 0.99]))
        for row, table in enumerate(tables):
            axes = panels[row, column]
            values = (table[f"{label}_{what}"].to_numpy() for what in ("pred", "actual", "err"))
            points = plot_predicted_against_actual(axes, *values, label=label, norm=norm)
            if row < len(tables) - 1:
                axes.set_xlabel("")
            if column == 0:
                axes.set_title(TITLES[row], loc="left", fontweight="bold")
        bar = {"location": "bottom", "shrink": 0.9, "aspect": 25, "pad": 0.02}
        error_bar(figure, points, label, panels[:, column], **bar)


def main() -> None:
    """Arguments, predictions, figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--pretrained", type=Path, required=True, help="predictions of stage 1 (CSV)"
    )
    parser.add_argument(
        "--finetuned", type=Path, required=True, help="predictions of stage 2 (CSV)"
    )
    parser.add_argument("--output", type=output_file, required=True, help="picture to write (PNG)")
    arguments = parser.parse_args()
    try:
        before = read_predictions(arguments.pretrained, COMMAND.format(1))
        labels = predicted_labels(before)
        after = read_predictions(arguments.finetuned, COMMAND.format(2), labels)
        require_same_stars({str(arguments.pretrained): before, str(arguments.finetuned): after})
        save_figure(draw([before, after]), arguments.output)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    print(arguments.output)


if __name__ == "__main__":
    run_script(main)
