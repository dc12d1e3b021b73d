r"""Predict labels of all test stars with the model of stage 2, fine-tuned on observed spectra.

From the first half of the observed band. The table OUTPUT/2_realfinetune_firsthalf_on_observed.csv
holds <LABEL>_pred, <LABEL>_err, <LABEL>_actual and <LABEL>_actual_err in K (TEFF) and dex. If the
checkpoint has a regression, whose answers are averaged with those of the network, the table
OUTPUT/2_realfinetune_firsthalf_network_on_observed.csv holds those of the network alone.

    python evaluate_2_realfinetune_firsthalf_epoch_10.py --data runs/laptop/survey.h5 \
        --checkpoint runs/laptop/2_realfinetune_firsthalf --output runs/laptop/evaluation
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
        "--checkpoint", type=Path, required=True, help="output of stage 2, or a checkpoint"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        checkpoint = resolve_checkpoint(arguments.checkpoint)
        with SpectraDataset.open(arguments.data) as dataset:
            model = StellarPerceptron.load(checkpoint, device=arguments.device)
            labels = evaluation_labels(model, checkpoint, dataset, arguments.labels)
            names = ["2_realfinetune_firsthalf_on_observed.csv"]
            if model.regression is not None:
                names.insert(0, "2_realfinetune_firsthalf_network_on_observed.csv")
            regression = model.regression
            for name in names:
                model.regression = regression if name == names[-1] else None
                table = evaluate(
                    model,
                    checkpoint,
                    dataset,
                    "observed",
                    arguments.pixels,
                    labels,
                    arguments.output / name,
                    precision=arguments.precision,
                )
                print_metrics(arguments.output / name, table)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")


if __name__ == "__main__":
    run_script(main)
