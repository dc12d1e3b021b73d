r"""Predict [Fe/H] of all test stars from the narrow chunk around two iron lines (16,106-16,220 A).

Any number of checkpoints, of models and of the baseline. For each, OUTPUT gets the table
NAME_fehpredictions.csv with FE_H_pred, FE_H_err, FE_H_actual and FE_H_actual_err in dex. NAME is
the folder's, of the stage and, where one is given, of the epoch.

    python EvaluateFeFT.py --data runs/laptop/survey.h5 --output runs/laptop/evaluation \
        runs/laptop/basic_NN runs/laptop/2_realfinetune_firsthalf runs/laptop/3_fefinetune_chunk
"""

import sys
from pathlib import Path

import torch

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.evaluation.evaluate import (
    evaluate,
    evaluation_parser,
    load_network,
    print_metrics,
)
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import run_script


def table_name(folder: Path) -> str:
    """Name of a checkpoint's table: `stage` or `stage_epoch_5`."""
    folder = folder.absolute()
    if folder.name.startswith(("epoch_", "best", "selected")):
        return f"{folder.parent.name}_{folder.name}"
    return folder.name


def main() -> None:
    """Arguments, checkpoints, data, predictions."""
    parser = evaluation_parser(__doc__, pixels="fe_chunk")
    parser.add_argument(
        "checkpoints",
        type=Path,
        nargs="+",
        help="outputs of stages or of the baseline (their selected or last checkpoint), or "
        "checkpoints",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = [table_name(folder) for folder in arguments.checkpoints]
    if len(set(names)) < len(names):
        parser.error(f"two checkpoints have the same name: {', '.join(names)}")
    try:
        checkpoints = [resolve_checkpoint(folder) for folder in arguments.checkpoints]
        networks = [load_network(folder, arguments.device) for folder in checkpoints]
        with SpectraDataset.open(arguments.data) as dataset:
            for name, network, checkpoint in zip(names, networks, checkpoints, strict=True):
                path = arguments.output / f"{name}_fehpredictions.csv"
                table = evaluate(
                    network,
                    checkpoint,
                    dataset,
                    "observed",
                    arguments.pixels,
                    ["FE_H"],
                    path,
                    precision=arguments.precision,
                )
                print_metrics(path, table)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")


if __name__ == "__main__":
    run_script(main)
