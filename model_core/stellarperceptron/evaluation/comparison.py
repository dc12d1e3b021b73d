"""Predictions of several methods in one table: how well each tells each label, and at what cost."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from stellarperceptron.evaluation.metrics import subsets
from stellarperceptron.evaluation.paper_tables import format_value, label_heading
from stellarperceptron.evaluation.predictions import (
    about_predictions,
    actual_labels,
    metrics_of_predictions,
    predicted_labels,
    read_predictions,
    require_same_stars,
)

__all__ = ["compare_predictions", "comparison_text"]

METRICS = ("mad_std", "rmse")


def compare_predictions(
    files: Mapping[str, Path], seconds: Mapping[str, float] | None = None, subset: str = "all"
) -> pd.DataFrame:
    """Metrics of several tables of predictions of the same stars.

    Parameters
    ----------
    files
        Tables (see `evaluation.predictions`) by the names that their methods have in the result.
        Only stars that all methods give every label of count.
    seconds
        CPU seconds of training and prediction by method; where there are none, those in the JSON
        file beside the table (`cpu_seconds`) count.
    subset
        A name of `evaluation.metrics.subsets`.

    Returns
    -------
    DataFrame
        A row for each method and label: method, cpu_seconds (NaN where unknown), label, stars,
        mad_std, rmse, and best_mad_std, best_rmse (whether no other method is better).

    Raises
    ------
    FileNotFoundError, ValueError
        A file is missing or no such table; tables of other stars; no label in common; an unknown
        subset.
    """
    command = "results/baselines/train_baselines.py or an evaluation script"
    tables = {name: read_predictions(Path(path), command) for name, path in files.items()}
    require_same_stars({f"{name} ({files[name]})": table for name, table in tables.items()})
    labels = [
        label
        for label in predicted_labels(next(iter(tables.values())))
        if all(label in predicted_labels(table) for table in tables.values())
    ]
    if not labels:
        raise ValueError(f"{', '.join(map(str, files.values()))} have no label in common")
    masks = subsets(actual_labels(next(iter(tables.values()))))
    if subset not in masks:
        raise ValueError(f"there is no subset '{subset}', only {', '.join(masks)}")
    columns = [f"{label}_pred" for label in labels]
    common = pd.concat([table[columns].notna().all(axis=1) for table in tables.values()], axis=1)
    chosen = common.all(axis=1).to_numpy() & masks[subset]
    rows = []
    for name, table in tables.items():
        metrics = metrics_of_predictions(table[chosen], labels).query("subset == 'all'")
        cost = (seconds or {}).get(name, _cpu_seconds(Path(files[name])))
        rows += [
            {"method": name, "cpu_seconds": cost, **row}
            for row in metrics[["label", "stars", *METRICS]].to_dict("records")
        ]
    result = pd.DataFrame(rows)
    for metric in METRICS:
        least = result.groupby("label")[metric].transform("min")
        result[f"best_{metric}"] = result[metric] == least
    return result


def _cpu_seconds(path: Path) -> float:
    """CPU seconds of fit and prediction that are written down beside a table."""
    parts = about_predictions(path).get("cpu_seconds", {})
    return float(sum(parts.values())) if parts else float("nan")


def comparison_text(comparison: pd.DataFrame) -> pd.DataFrame:
    """The same as texts, a row for each method: `mad_std / RMSE` of each label, the best in bold.

    Parameters
    ----------
    comparison
        As from `compare_predictions`.
    """
    rows = []
    for method, part in comparison.groupby("method", sort=False):
        seconds = part["cpu_seconds"].iloc[0]
        row = {"mad_std / RMSE": method, "CPU s": "–" if pd.isna(seconds) else f"{seconds:.0f}"}
        for entry in part.to_dict("records"):
            texts = [format_value(entry[metric], entry["label"]) for metric in METRICS]
            best = [entry[f"best_{metric}"] for metric in METRICS]
            row[label_heading(entry["label"])] = " / ".join(
                f"**{text}**" if bold else text for text, bold in zip(texts, best, strict=True)
            )
        rows.append(row)
    return pd.DataFrame(rows)
