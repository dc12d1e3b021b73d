"""Tables of results: our values and those of the paper, and comparisons of methods.

The paper is Koblischke & Bovy (2024), arXiv:2411.04750. Its values are from its Table 1, or were
computed by `metrics` from the [Fe/H] predictions in its repository. All are for stars of APOGEE
DR17.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from stellarperceptron.evaluation.metrics import binned_rmse, subsets
from stellarperceptron.evaluation.predictions import (
    about_predictions,
    actual_labels,
    metrics_of_predictions,
    predicted_labels,
    read_predictions,
    require_same_stars,
)
from stellarperceptron.labels import PUBLISHED_LABELS
from stellarperceptron.labels import label as label_named

__all__ = [
    "METAL_POOR",
    "MODELS",
    "PAPER_CATALOGUE_ERROR",
    "PAPER_FE_H",
    "PAPER_TABLE_1",
    "compare_predictions",
    "comparison_text",
    "format_value",
    "giants_table",
    "giants_text",
    "iron_bins_text",
    "iron_table",
    "iron_text",
    "label_heading",
    "labels_text",
]

MODELS = {
    "scratch": "network from scratch, 100 stars",
    "pretrained": "pre-trained on synthetic",
    "finetuned": "fine-tuned, first half",
    "hundred": "fine-tuned on 100 stars",
}
"""The models of Figure 3 and how they are called."""

METAL_POOR = "[Fe/H] < -1"
IRON_EDGES = np.arange(-2.5, 0.51, 0.5)  # bins of [Fe/H] [dex]


def label_heading(label: str) -> str:
    """A label's symbol and unit in plain text."""
    return label_named(label).heading


def format_value(value: float, label: str = "FE_H", sign: str = "") -> str:
    """A residual or an error with the digits of its label; a dash where there is none.

    Examples
    --------
    >>> format_value(12.34, "TEFF"), format_value(0.01234), format_value(float("nan"))
    ('12.3', '0.012', '–')
    """
    return label_named(label).format_residual(value, sign)


# --- the paper ----------------------------------------------------------------------------------


def _by_label(mad_std: tuple[float, ...], rmse: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """Statistics of the published labels: Teff [K], log g, [O/Fe], [Mg/Fe], [Fe/H] [dex]."""
    return {
        label: {"mad_std": scatter, "rmse": error}
        for label, scatter, error in zip(PUBLISHED_LABELS, mad_std, rmse, strict=True)
    }


PAPER_TABLE_1 = {
    "astroNN": _by_label((10.2, 0.037, 0.020, 0.015, 0.011), (31.1, 0.076, 0.037, 0.028, 0.029)),
    "pretrained": _by_label(
        (182.9, 0.326, 0.038, 0.034, 0.048), (328.8, 0.504, 0.054, 0.052, 0.087)
    ),
    "finetuned": _by_label((19.1, 0.056, 0.021, 0.019, 0.019), (37.7, 0.092, 0.039, 0.030, 0.039)),
}
"""Giants (1 < log g < 3.5) [K and dex]: the astroNN catalogue of DR17, and SpectraFM after stages
1 and 2 from the first half of the observed band."""

PAPER_CATALOGUE_ERROR = {
    "TEFF": 7.5,
    "LOGG": 0.023,
    "O_FE": 0.0144,
    "MG_FE": 0.0113,
    "FE_H": 0.0076,
}
"""Median error of the ASPCAP labels of these giants [K and dex]."""

PAPER_FE_H = {
    "scratch": {"rmse": 0.158, "mad_std": 0.072, "metal_poor_rmse": 0.763, "pull_std": 1.15},
    "pretrained": {"rmse": 0.254, "mad_std": 0.206, "metal_poor_rmse": 0.902, "pull_std": 3.75},
    "finetuned": {"rmse": 0.210, "mad_std": 0.135, "metal_poor_rmse": 0.510, "pull_std": 2.25},
    "hundred": {"rmse": 0.094, "mad_std": 0.056, "metal_poor_rmse": 0.232, "pull_std": 1.43},
}
"""[Fe/H] from 1.611 to 1.622 um [dex], 25,516 stars, 594 of them below -1: a network trained from
scratch on 100 stars, SpectraFM after stages 1 and 2, and after stage 3 on the same 100 stars."""

# --- Table 1 -----------------------------------------------------------------------------------


def giants_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Table 1: giants (1.0 < log g < 3.5), from predictions of the same stars.

    Parameters
    ----------
    tables
        Tables of predictions by model, of `MODELS`.

    Returns
    -------
    DataFrame
        A row for each model and label: metrics with 68 % bootstrap intervals (`rmse_low`,
        `rmse_high`, ...), `catalogue_error` (median error of the catalogue's labels of the same
        stars), `paper_mad_std`, `paper_rmse`, `paper_catalogue_error`; K and dex.

    Raises
    ------
    ValueError
        The stars differ.
    """
    require_same_stars(tables)
    rows = []
    for model, table in tables.items():
        giants = table[subsets(actual_labels(table))["giants"]]
        metrics = metrics_of_predictions(giants, intervals=True)
        for row in metrics[metrics["subset"] == "all"].drop(columns="subset").to_dict("records"):
            label = row["label"]
            errors = giants.get(f"{label}_actual_err", pd.Series(dtype=float))
            paper = PAPER_TABLE_1.get(model, {}).get(label, {})
            rows.append(
                {
                    "model": model,
                    **row,
                    "catalogue_error": errors.median(),
                    "paper_mad_std": paper.get("mad_std", np.nan),
                    "paper_rmse": paper.get("rmse", np.nan),
                    "paper_catalogue_error": PAPER_CATALOGUE_ERROR.get(label, np.nan),
                }
            )
    return pd.DataFrame(rows)


def giants_text(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 as text: `mad_std / RMSE`, a column for each label, the paper's values below ours.

    A dash marks values that the paper does not give; rows without any value are left out.
    """
    labels = list(dict.fromkeys(table["label"]))
    rows = []

    def add(title: str, cells) -> None:
        rows.append({"": title} | dict(zip(map(label_heading, labels), cells, strict=True)))

    def pair(label: str, values: Mapping[str, float]) -> str:
        if not values:
            return format_value(np.nan)
        return " / ".join(format_value(values[key], label) for key in ("mad_std", "rmse"))

    def add_paper(title: str, values: Mapping[str, Mapping[str, float]]) -> None:
        if set(labels) & set(values):
            add(f"{title}, paper", [pair(label, values.get(label, {})) for label in labels])

    for model in dict.fromkeys(table["model"]):
        ours = table[table["model"] == model].set_index("label").to_dict("index")
        add(f"{MODELS[model]}, here", [pair(label, ours.get(label, {})) for label in labels])
        add_paper(MODELS[model], PAPER_TABLE_1.get(model, {}))
    add_paper("astroNN catalogue", PAPER_TABLE_1["astroNN"])
    for source, key in (("here", "catalogue_error"), ("paper", "paper_catalogue_error")):
        median = table.groupby("label")[key].first()
        if median.notna().any():
            cells = [format_value(median[label], label) for label in labels]
            add(f"median error of the labels, {source}", cells)
    return pd.DataFrame(rows)


# --- [Fe/H] from the chunk ----------------------------------------------------------------------


def iron_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Metrics of Figure 3's [Fe/H]: a row for each model, of `MODELS`, and each subset.

    Columns as from `summarize` with intervals, and `paper_rmse`, `paper_mad_std`,
    `paper_pull_std` where the paper's predictions give them [dex].

    Raises
    ------
    ValueError
        The stars differ.
    """
    require_same_stars(tables)
    rows = []
    for model, table in tables.items():
        metrics = metrics_of_predictions(table, ["FE_H"], intervals=True)
        for row in metrics.to_dict("records"):
            paper = PAPER_FE_H[model]
            keys = {"all": {key: key for key in ("rmse", "mad_std", "pull_std")}}
            keys[METAL_POOR] = {"rmse": "metal_poor_rmse"}
            known = {f"paper_{k}": paper[v] for k, v in keys.get(row["subset"], {}).items()}
            rows.append({"model": model, **row, **known})
    return pd.DataFrame(rows)


def iron_text(table: pd.DataFrame) -> pd.DataFrame:
    """Metrics of Figure 3's [Fe/H] as text [dex]: ours with intervals, and the paper's."""
    rows = []
    for model in dict.fromkeys(table["model"]):
        part = table[table["model"] == model].set_index("subset")
        everyone, poor = part.loc["all"], part.loc[METAL_POOR]
        rows.append(
            {
                "": MODELS[model],
                "RMSE": _with_interval(everyone, "rmse"),
                "RMSE, paper": format_value(everyone["paper_rmse"]),
                "at [Fe/H] < −1": _with_interval(poor, "rmse"),
                "at [Fe/H] < −1, paper": format_value(poor["paper_rmse"]),
                "mad_std": format_value(everyone["mad_std"]),
                "mad_std, paper": format_value(everyone["paper_mad_std"]),
                "std of pulls": f"{everyone['pull_std']:.2f}",
                "std of pulls, paper": f"{everyone['paper_pull_std']:.2f}",
            }
        )
    return pd.DataFrame(rows)


def iron_bins_text(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """RMSE [dex] in bins of catalogue [Fe/H], as text, with the lowest of each bin in bold.

    Parameters
    ----------
    tables
        Tables of predictions of the same stars by model, of `MODELS`.
    """
    bins = {
        model: binned_rmse(table["FE_H_pred"], table["FE_H_actual"], IRON_EDGES)
        for model, table in tables.items()
    }
    rows = []
    for parts in zip(*(table.to_dict("records") for table in bins.values()), strict=True):
        ends = "{low:+.1f} to {high:+.1f}".format(**parts[0]).replace("-", "−")
        least = min(part["rmse"] for part in parts)
        cells = [_bold_if(format_value(p["rmse"]), p["rmse"] == least) for p in parts]
        rows.append([ends, parts[0]["stars"], *cells])
    return pd.DataFrame(rows, columns=["[Fe/H]", "stars", *(MODELS[model] for model in bins)])


def _bold_if(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _with_interval(row: Mapping[str, float], metric: str, label: str = "FE_H") -> str:
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return (
        f"{format_value(row[metric], label)} ({format_value(low, label)}–"
        f"{format_value(high, label)})"
    )


# --- all labels ---------------------------------------------------------------------------------


def labels_text(table: pd.DataFrame, subset: str = "all") -> pd.DataFrame:
    """Bias, scatter, RMSE and calibration of the labels of one table, as text."""
    metrics = metrics_of_predictions(table, predicted_labels(table), intervals=True)
    rows = []
    for row in metrics[metrics["subset"] == subset].to_dict("records"):
        label = row["label"]
        rows.append(
            {
                "": label_heading(label),
                "stars": row["stars"],
                "bias": format_value(row["bias"], label, "+"),
                "mad_std": _with_interval(row, "mad_std", label),
                "RMSE": _with_interval(row, "rmse", label),
                "std of pulls (1)": f"{row['pull_std']:.2f}",
                "within 1σ (0.683)": f"{row['within_1_sigma']:.3f}",
                "within 2σ (0.954)": f"{row['within_2_sigma']:.3f}",
            }
        )
    return pd.DataFrame(rows)


# --- methods beside each other --------------------------------------------------------------------

COMPARED = ("mad_std", "rmse")


def compare_predictions(
    files: Mapping[str, Path], seconds: Mapping[str, float] | None = None, subset: str = "all"
) -> pd.DataFrame:
    """Metrics of several tables of predictions of the same stars.

    Parameters
    ----------
    files
        Tables (see `evaluation.predictions`) by name of the method. Only stars for which all
        methods predict all labels are used.
    seconds
        CPU seconds of training and prediction by method. By default they are read from the JSON
        file beside the table (`cpu_seconds`).
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
            for row in metrics[["label", "stars", *COMPARED]].to_dict("records")
        ]
    result = pd.DataFrame(rows)
    for metric in COMPARED:
        least = result.groupby("label")[metric].transform("min")
        result[f"best_{metric}"] = result[metric] == least
    return result


def _cpu_seconds(path: Path) -> float:
    """CPU seconds of fit and prediction in the JSON file beside a table."""
    parts = about_predictions(path).get("cpu_seconds", {})
    return float(sum(parts.values())) if parts else float("nan")


def comparison_text(comparison: pd.DataFrame, wall: Collection[str] = ()) -> pd.DataFrame:
    """The comparison as text: `mad_std / RMSE` of each method and label, the best in bold.

    Parameters
    ----------
    comparison
        As from `compare_predictions`.
    wall
        Methods whose seconds are wall time; the text marks them.
    """
    rows = []
    for method, part in comparison.groupby("method", sort=False):
        seconds = part["cpu_seconds"].iloc[0]
        unit = " (wall)" if method in wall else ""
        time = format_value(np.nan) if pd.isna(seconds) else f"{seconds:.0f}{unit}"
        row = {"mad_std / RMSE": method, "CPU s": time}
        for entry in part.to_dict("records"):
            texts = [format_value(entry[metric], entry["label"]) for metric in COMPARED]
            best = [entry[f"best_{metric}"] for metric in COMPARED]
            row[label_heading(entry["label"])] = " / ".join(
                _bold_if(text, bold) for text, bold in zip(texts, best, strict=True)
            )
        rows.append(row)
    return pd.DataFrame(rows)
