r"""Predict labels of all test stars with the model of stage 1, pre-trained on synthetic spectra.

From observed spectra (what theory alone is worth on the real sky) and from synthetic ones (what it
has learned), of the first half of the band. Tables are written to OUTPUT:
1_basemodel_synthetic_on_observed.csv and ..._on_synthetic.csv with <LABEL>_pred, <LABEL>_err,
<LABEL>_actual and <LABEL>_actual_err in K (TEFF) and dex.

    python evaluate_1_basemodel_synthetic_epoch325.py --data runs/laptop/survey.h5 \
        --checkpoint runs/laptop/1_basemodel_synthetic --output runs/laptop/evaluation
"""

import sys
from pathlib import Path

import torch

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.evaluation.evaluate import (
    evaluate,
    evaluation_labels,
    evaluation_parser,
    print_metrics,
)
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import run_script


def main() -> None:
    """Arguments, data, model, predictions."""
    parser = evaluation_parser(__doc__, pixels="first_half", any_labels=True)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of stage 1, or a checkpoint"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        checkpoint = resolve_checkpoint(arguments.checkpoint)
        with SpectraDataset.open(arguments.data) as dataset:
            model = StellarPerceptron.load(checkpoint, device=arguments.device)
            labels = evaluation_labels(model, checkpoint, dataset, arguments.labels)
            for kind in dataset.test.kinds:
                path = arguments.output / f"1_basemodel_synthetic_on_{kind}.csv"
                table = evaluate(
                    model,
                    checkpoint,
                    dataset,
                    kind,
                    arguments.pixels,
                    labels,
                    path,
                    precision=arguments.precision,
                )
                print_metrics(path, table)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")


if __name__ == "__main__":
    run_script(main)
