r"""Table 1: how well the labels of giants (1.0 < log g < 3.5) are predicted from observed spectra.

Scatter (mad_std) and RMSE of predicted minus catalogue label after stages 1 and 2, beside the
paper's. OUTPUT gets Table1.csv, with bias, 68 % bootstrap intervals and calibration in K (TEFF)
and dex, and Table1.md, to be read.

    python Table1.py --pretrained runs/laptop/evaluation/1_basemodel_synthetic_on_observed.csv \
        --finetuned runs/laptop/evaluation/2_realfinetune_firsthalf_on_observed.csv \
        --output runs/laptop/tables
"""

import argparse
import sys
from pathlib import Path

from stellarperceptron.evaluation.predictions import read_predictions
from stellarperceptron.evaluation.tables import giants_table, giants_text
from stellarperceptron.utils.arguments import HelpFormatter, output_folder, run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.document import markdown_table

CAPTION = "Giants (1.0 < log g < 3.5), predicted minus catalogue labels: mad_std / RMSE.\n\n"
COMMAND = "results/real_spectra_finetune/evaluate_{}*.py, or make reproduce"


def main() -> None:
    """Arguments, predictions, metrics, tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--pretrained", type=Path, required=True, help="predictions of stage 1 (CSV)"
    )
    parser.add_argument(
        "--finetuned", type=Path, required=True, help="predictions of stage 2 (CSV)"
    )
    parser.add_argument(
        "--output", type=output_folder, required=True, help="folder of the two files"
    )
    arguments = parser.parse_args()
    try:
        table = giants_table(
            {
                "pretrained": read_predictions(arguments.pretrained, COMMAND.format(1), ["LOGG"]),
                "finetuned": read_predictions(arguments.finetuned, COMMAND.format(2), ["LOGG"]),
            }
        )
        with atomic_output(arguments.output / "Table1.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
        text = CAPTION + markdown_table(giants_text(table))
        with atomic_output(arguments.output / "Table1.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    print(text, end="")


if __name__ == "__main__":
    run_script(main)
