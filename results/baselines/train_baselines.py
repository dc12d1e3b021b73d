r"""Train the baselines on a survey's training stars and predict its test stars.

A quadratic regression in principal components, a plain network on all pixels and a convolutional
network (`stellarperceptron.evaluation.baselines`). Each holds out a tenth of the stars that it is
given for its choices. OUTPUT gets, for each of them,

NAME.csv    predictions of the test stars: <LABEL>_pred, <LABEL>_err, <LABEL>_actual, ...
NAME.json   CPU seconds of fit and prediction, stars, seed, pixels, survey

What is there is not trained again.

    python train_baselines.py --data runs/laptop/survey.h5 --output runs/laptop/baselines
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from stellarperceptron.data.apogee.grid import pixel_range
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.evaluation.baselines import BASELINES
from stellarperceptron.evaluation.evaluate import print_metrics
from stellarperceptron.evaluation.predictions import (
    about_predictions,
    predictions_table,
    write_predictions,
)
from stellarperceptron.labels import label as label_named
from stellarperceptron.training.stages import draw_stars
from stellarperceptron.utils.arguments import HelpFormatter, output_folder, positive, run_script
from stellarperceptron.utils.data_utils import written_by


def parse_arguments() -> argparse.Namespace:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="survey file or folder of published arrays"
    )
    parser.add_argument("--output", type=output_folder, required=True, help="folder of the tables")
    parser.add_argument(
        "--pixels", default="first_half", help="full, first_half, fe_chunk or start:stop (of 7,514)"
    )
    parser.add_argument(
        "--kind", default="observed", choices=("observed", "synthetic"), help="which spectra"
    )
    parser.add_argument(
        "--stars", type=int, default=0, help="train on so many, drawn by the seed; 0: on all"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of stars, held-out stars, weights and batches"
    )
    parser.add_argument(
        "--baselines", nargs="+", choices=list(BASELINES), default=list(BASELINES), metavar="NAME"
    )
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads")
    return parser.parse_args()


def main() -> None:
    """Survey, stars, then one baseline after the other."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    try:
        with SpectraDataset.open(arguments.data, label_names=None) as dataset:
            train_all(arguments, dataset)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")


def train_all(arguments: argparse.Namespace, dataset: SpectraDataset) -> None:
    """Train and evaluate the baselines that have no results yet."""
    part = pixel_range(arguments.pixels, dataset.train.n_pixels)
    columns = list(range(len(dataset.label_names)))
    rows = np.sort(draw_stars(dataset, columns, arguments.stars, arguments.seed))
    settings = {
        "spectra": arguments.kind,
        "pixels": [part.start, part.stop],
        "stars": len(rows),
        "seed": arguments.seed,
        "data": {"path": str(dataset.path), **dataset.identity},
    }
    missing = []
    for name in arguments.baselines:
        path = arguments.output / f"{name}.csv"
        if not path.is_file():
            missing.append((name, path))
            continue
        require_settings(path, settings)
        print(f"{path} is there: nothing to do")
    if not missing:
        return
    flux = dataset.train.read(arguments.kind, rows, part)
    labels, errors = dataset.train.labels[rows], dataset.train.label_errors[rows]
    test = dataset.test.read(arguments.kind, pixels=part)
    for name, path in missing:
        baseline = BASELINES[name]().fit(flux, labels, errors, dataset.label_names, arguments.seed)
        table = predictions_table(baseline.predict(test), dataset.test)
        about = {
            "baseline": name,
            **settings,
            "cpu_seconds": {
                "fit": round(baseline.fit_seconds, 2),
                "predict": round(baseline.predict_seconds, 2),
            },
            "units": {label: label_named(label).unit for label in dataset.label_names},
            **written_by(),
            "torch": torch.__version__,
        }
        write_predictions(table, path, about)
        print_metrics(path, table)


def require_settings(path: Path, settings: dict) -> None:
    """Refuse a table that was made with other settings; the path of the survey may differ."""
    found, settings = about_predictions(path), json.loads(json.dumps(settings))
    for key, expected in settings.items():
        value = found.get(key)
        if key == "data":
            value, expected = (
                {k: v for k, v in (d or {}).items() if k != "path"} for d in (value, expected)
            )
        if value != expected:
            raise ValueError(
                f"{path} was made with other settings ({key}: {value}, not {expected}): give "
                "another --output, or remove it"
            )


if __name__ == "__main__":
    run_script(main)
