"""Shared parts of the evaluation scripts: arguments, and predictions of all test stars."""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.survey_file import ERRORS
from stellarperceptron.evaluation.predictions import (
    metrics_of_predictions,
    predictions_table,
    write_predictions,
)
from stellarperceptron.labels import label, resolve_label_names
from stellarperceptron.model import StellarPerceptron
from stellarperceptron.network.baselines.published import BaselineNetwork
from stellarperceptron.training.stages import require_labels, require_same_instrument
from stellarperceptron.utils.arguments import HelpFormatter, computing_arguments, output_folder
from stellarperceptron.utils.data_utils import written_by

__all__ = ["evaluate", "evaluation_labels", "evaluation_parser", "load_network", "print_metrics"]


def evaluation_parser(
    description: str, pixels: str, *, any_labels: bool = False
) -> argparse.ArgumentParser:
    """Arguments of all evaluation scripts.

    Parameters
    ----------
    description
        Description of the script.
    pixels
        Default range of pixels.
    any_labels
        Whether the labels can be chosen; see `evaluation_labels`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="survey file or folder of published arrays"
    )
    parser.add_argument("--output", type=output_folder, required=True, help="folder of the tables")
    parser.add_argument(
        "--pixels",
        default=pixels,
        help="full, another range of the instrument's pixels (APOGEE: first_half, fe_chunk), or "
        "start:stop",
    )
    if any_labels:
        parser.add_argument(
            "--labels",
            nargs="+",
            metavar="LABEL",
            default=["all"],
            help="labels to predict (default: all that both checkpoint and survey have)",
        )
    parser.add_argument(
        "--precision", default="float32", help="float32, bfloat16 or float16 (on GPUs)"
    )
    computing_arguments(parser)
    return parser


def load_network(checkpoint: Path, device: str = "auto") -> StellarPerceptron | BaselineNetwork:
    """Load a checkpoint of a model, or of the baseline.

    Raises
    ------
    FileNotFoundError, ValueError
        The folder is no checkpoint, or a damaged one.
    """
    path = checkpoint / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    if isinstance(content, dict) and content.get("network") == "baseline":
        return BaselineNetwork.load(checkpoint)
    return StellarPerceptron.load(checkpoint, device=device)


def evaluation_labels(
    model: StellarPerceptron, checkpoint: Path, dataset: SpectraDataset, wanted: Iterable[str]
) -> tuple[str, ...]:
    """Labels to predict: those that both a model and a survey have.

    Parameters
    ----------
    model, checkpoint
        Model, and the folder that it was loaded from, for the message.
    dataset
        The survey.
    wanted
        Names of labels, or "all"; see `resolve_label_names`.

    Raises
    ------
    ValueError
        They have no label in common, or one of them lacks a wanted label. The message names both
        and the labels in common.
    """
    both = [name for name in dataset.label_names if name in model.vocabs]
    if not both:
        raise ValueError(
            f"{checkpoint} knows none of the labels of {dataset.path}, "
            f"{', '.join(dataset.label_names)}"
        )
    try:
        return resolve_label_names(wanted, both)
    except ValueError as error:
        raise ValueError(f"labels of both {checkpoint} and {dataset.path}: {error}") from error


def evaluate(
    network: StellarPerceptron | BaselineNetwork,
    checkpoint: Path,
    dataset: SpectraDataset,
    kind: str,
    pixels: str,
    labels: Sequence[str],
    path: Path,
    *,
    precision: str = "float32",
) -> pd.DataFrame:
    """Predict labels of all test stars and write the table.

    Parameters
    ----------
    network, checkpoint
        Network, and the folder that it was loaded from, which is recorded.
    dataset, kind, pixels
        Survey, kind of spectra ("observed" or "synthetic"), range of pixels.
    labels
        Names of the labels.
    path
        Table to write; see `stellarperceptron.evaluation.predictions`.
    precision
        See `StellarPerceptron.predict`.

    Raises
    ------
    ValueError
        The network is for another instrument, or does not know the pixels or a label; or the
        survey lacks a label.
    """
    begin = time.perf_counter()
    part = dataset.test.pixel_range(pixels)
    absent = [label for label in labels if label not in dataset.label_names]
    if absent:
        raise ValueError(
            f"{dataset.path} has no labels {', '.join(absent)}, only "
            f"{', '.join(dataset.label_names)}"
        )
    if not isinstance(network, BaselineNetwork):
        require_same_instrument(network, dataset)
        require_labels(network, labels)
    spectra = dataset.test.read(kind, pixels=part)
    if isinstance(network, BaselineNetwork):
        if list(labels) != [network.label] or spectra.shape[1] != network.flux_statistics.shape[1]:
            raise ValueError(
                f"the baseline in {checkpoint} gives {network.label} from "
                f"{network.flux_statistics.shape[1]} pixels, not {', '.join(labels)} from "
                f"{spectra.shape[1]}"
            )
        predicted, epoch = network.predict(spectra), None
    else:
        wavelength, errors = dataset.wavelength[part], None
        if network.config.conditions and dataset.test.has_errors and kind == "observed":
            errors = dataset.test.read(ERRORS, pixels=part)  # which training has told it as well
        predicted = network.predict(spectra, wavelength, labels, errors=errors, precision=precision)
        epoch = network.epoch
    seconds = time.perf_counter() - begin
    about = {
        "checkpoint": str(checkpoint),
        "epoch": epoch,
        "spectra": kind,
        "pixels": [part.start, part.stop],
        "data": {"path": str(dataset.path), **dataset.identity},
        "seconds": round(seconds, 2),
        "stars_per_s": round(len(spectra) / seconds, 1),
        "units": {name: label(name).unit for name in labels},
        **written_by(),
        "torch": torch.__version__,
    }
    table = predictions_table(predicted, dataset.test)
    write_predictions(table, path, about)
    return table


def print_metrics(path: Path, table: pd.DataFrame) -> None:
    """Print the metrics of a table of predictions."""
    columns = ["subset", "label", "stars", "bias", "mad_std", "rmse", "pull_std"]
    metrics = metrics_of_predictions(table)[columns]
    print(f"{path}\n{metrics.to_string(index=False, float_format='{:.4g}'.format)}")
