"""Summary of a run: expectations that are met or not, stages, timings, machine."""

import json
import os
import platform
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.flags import flag_names
from stellarperceptron.evaluation.metrics import label_metrics
from stellarperceptron.evaluation.predictions import metrics_of_predictions, predicted_labels
from stellarperceptron.evaluation.tables import (
    METAL_POOR,
    PAPER_FE_H,
    PAPER_TABLE_1,
    format_value,
    label_heading,
)
from stellarperceptron.labels import label as label_named
from stellarperceptron.utils.data_utils import written_by

__all__ = [
    "attention_text",
    "claims_table",
    "comparison_sentence",
    "configurations",
    "describe_survey",
    "errors_text",
    "machine_table",
    "masking_text",
    "real_stars_text",
    "stage_folders",
    "stages_table",
    "timings_table",
    "training_seconds",
]

PACKAGES = ("stellarperceptron", "torch", "numpy", "pandas", "astropy", "h5py", "matplotlib")
HEADER_TOLERANCE = 300.0  # K, of Teff against the radial-velocity pipeline's
RANKINGS = {"response": "respond most to a label", "information": "constrain a label best"}
# Subset, entry of PAPER_FE_H, and what the ratio of RMSE, 100 stars over network from scratch,
# must stay below, in words and as a number.
CHUNK_GOALS = (
    ("all", "rmse", ": below 1", 1.0),
    (METAL_POOR, "metal_poor_rmse", ", at [Fe/H] < −1: below two thirds", 2 / 3),
)


def describe_survey(dataset: SpectraDataset) -> str:
    """Describe a survey in a sentence."""
    made = dataset.provenance
    counts = f"{len(dataset.train):,} training and {len(dataset.test):,} test stars"
    if made.get("generator") == "create_mock_survey.py":
        return f"Mock survey, {counts}, seed {made.get('seed')}."
    return f"Survey made by {made.get('generator', 'an unknown program')}, {counts}."


# --- claims ---------------------------------------------------------------------------------------


def claims_table(
    observed: Mapping[str, pd.DataFrame],
    chunk: Mapping[str, pd.DataFrame],
    stars: pd.DataFrame | None,
) -> pd.DataFrame:
    """Claims of the paper, and expectations of a good model, compared with this run.

    Parameters
    ----------
    observed, chunk
        Tables of predictions by model, of `stellarperceptron.evaluation.tables.MODELS`.
    stars
        Table of `predict_real_stars.py`, if there is one.

    Returns
    -------
    DataFrame
        Columns claim, here, paper, holds. Claims without predictions are left out.
    """
    rows = []

    def add(claim: str, here: str, paper: str, holds: bool) -> None:
        rows.append({"": claim, "here": here, "paper": paper, "holds": "yes" if holds else "no"})

    if {"pretrained", "finetuned"} <= set(observed):
        before, after = (_rmse(observed[key], "all") for key in ("pretrained", "finetuned"))
        labels = [label for label in before if label in after]
        better = [label for label in labels if after[label] < before[label]]
        worse = [_symbol(label) for label in labels if label not in better]
        here = f"{len(better)} of {len(labels)}" + (f"; not {', '.join(worse)}" if worse else "")
        claim = "fine-tuning on the first half lowers the RMSE of every label on observed spectra"
        known = PAPER_TABLE_1["finetuned"]
        lower = sum(known[k]["rmse"] < PAPER_TABLE_1["pretrained"][k]["rmse"] for k in known)
        add(claim, here, f"{lower} of {len(known)}", not worse)
    if {"scratch", "hundred"} <= set(chunk):
        for subset, key, words, goal in CHUNK_GOALS:
            scratch, hundred = (_rmse(chunk[k], subset)["FE_H"] for k in ("scratch", "hundred"))
            paper = PAPER_FE_H["hundred"][key] / PAPER_FE_H["scratch"][key]
            ratio = _number(hundred / scratch, 2)
            add(
                f"[Fe/H] from 100 stars: RMSE over that of a network from scratch{words}",
                f"{format_value(hundred)} / {format_value(scratch)} = {ratio}",
                f"{paper:.2f}",
                bool(hundred / scratch < goal),
            )
    if stars is not None and len(stars):
        combined = stars[(stars["kind"] == "apStar") & stars["rv_TEFF"].notna()]
        if len(combined) and "TEFF" in stars:
            difference = (combined["TEFF"] - combined["rv_TEFF"]).to_numpy()
            add(
                "real stars: Teff within 300 K of the header's, combined spectra",
                ", ".join(f"{value:+.0f} K".replace("-", "−") for value in difference),
                "–",
                bool((np.abs(difference) <= HEADER_TOLERANCE).all()),
            )
        known = stars[stars["rv_class"].notna()]
        if len(known):
            right = int((known["class"] == known["rv_class"]).sum())
            claim = "real stars: giants are called giants, dwarfs dwarfs"
            add(claim, f"{right} of {len(known)}", "–", right == len(known))
    return pd.DataFrame(rows, columns=["", "here", "paper", "holds"])


def _rmse(table: pd.DataFrame, subset: str) -> dict[str, float]:
    metrics = metrics_of_predictions(table)
    return metrics[metrics["subset"] == subset].set_index("label")["rmse"].to_dict()


def _symbol(label: str) -> str:
    return label_named(label).plain


def _five_per_cent(shares: pd.DataFrame) -> pd.DataFrame:
    """Rows of 5 % of the tokens or pixels, of the last range of pixels in the table."""
    return shares[(shares["pixels"] == shares["pixels"].iloc[-1]) & (shares["top"] == 0.05)]


def comparison_sentence(comparison: pd.DataFrame, method: str, others: Collection[str]) -> str:
    """Say in how many labels a method is better than all of some others.

    Parameters
    ----------
    comparison
        As from `stellarperceptron.evaluation.tables.compare_predictions`.
    method, others
        Names of methods in it.
    """
    counts = []
    for metric in ("mad_std", "rmse"):
        values = comparison.pivot(index="label", columns="method", values=metric)
        better = int((values[method] < values[list(others)].min(axis=1)).sum())
        counts.append(f"in {better} of {len(values)} labels by {metric.replace('rmse', 'RMSE')}")
    return f"{method} is better than every baseline {' and '.join(counts)}."


# --- predicted errors -----------------------------------------------------------------------------


def errors_text(table: pd.DataFrame) -> pd.DataFrame:
    """Calibration of the predicted errors of a table of predictions, as text.

    Pulls and coverage for the predicted error alone, and for its quadrature sum with the
    catalogue's; dashes if the table has no catalogue errors.
    """
    rows = []
    for label in predicted_labels(table):
        found, error, true = (table[f"{label}_{key}"] for key in ("pred", "err", "actual"))
        catalogue = table.get(f"{label}_actual_err", pd.Series(np.nan, table.index))
        metrics = label_metrics(*(v.to_numpy() for v in (found, true, error, catalogue)))
        row = {
            "": label_heading(label),
            "median error, predicted": format_value(error.median(), label),
            "of the catalogue": format_value(catalogue.median(), label),
        }
        for words, key in (("predicted error alone", ""), ("with the catalogue's", "total_")):
            row |= {
                f"std of pulls, {words}": _number(metrics[f"{key}pull_std"], 2),
                f"within 1σ, {words}": _percent(metrics[f"{key}within_1_sigma"]),
                f"within 2σ, {words}": _percent(metrics[f"{key}within_2_sigma"]),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _percent(share: float) -> str:
    return "–" if pd.isna(share) else f"{100 * share:.1f} %"


# --- tables of other scripts ----------------------------------------------------------------------


def attention_text(shares: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Attention and sensitivity relative to a uniform distribution: a table for each ranking.

    Raises
    ------
    ValueError
        The table was written by an older version.
    """
    known = {"ranked_by", "ratio_of_best"} <= set(shares) and "attention" in set(shares["measure"])
    if not known:
        raise ValueError("attention_shares.csv is of an older version: run extract_attention.py")
    tables = {}
    for ranking, words in RANKINGS.items():
        part = _five_per_cent(shares)
        part = part[part["ranked_by"] == ranking]
        table = part.pivot_table("ratio", ["group", "label"], "measure", sort=False)
        best = part.pivot_table("ratio_of_best", ["group", "label"], "measure", sort=False)
        columns = {
            "attention": table["attention"],
            "best linear, tokens": best["attention"],
            "sensitivity": table["sensitivity"],
            "best linear, pixels": best["sensitivity"],
        }
        text = {name: [_number(v, 2) for v in values] for name, values in columns.items()}
        names = [f"{_symbol(label)}, {group}" for group, label in table.index]
        tables[words] = pd.DataFrame({"": names, **text})
    return tables


def masking_text(masking: pd.DataFrame) -> pd.DataFrame:
    """Growth of each label's RMSE without some pixels, as text: a row for each mask.

    Parameters
    ----------
    masking
        Table of `stellarperceptron.evaluation.attention.masking_test`. The last column says whether
        the error of the element whose pixels are missing grows, and more than any other label's,
        to the two decimals that are shown; a dash for pixels that are no label's.
    """
    growth = masking.pivot_table("growth", "masked", "label", sort=False).round(2)
    rows = []
    for masked, values in growth.iterrows():
        own = values.get(masked, np.nan)
        others = values.drop(masked, errors="ignore")
        most = "yes" if own > max(1.0, others.max()) else "no"
        cells = {_symbol(label): f"× {_number(value, 2)}" for label, value in values.items()}
        known = masked in values
        name = _symbol(masked) if known else masked
        rows.append({"without pixels of": name, **cells, "own grows most": most if known else "–"})
    return pd.DataFrame(rows)


def real_stars_text(stars: pd.DataFrame) -> pd.DataFrame:
    """Predictions for real stars as text, with the labels of their headers in brackets."""
    rows = []
    for row in stars.to_dict("records"):
        cells = {"": row["star"], "file": row["kind"], "S/N": _number(row["snr"], 0)}
        for label in [label_named(name) for name in stars if f"{name}_error" in stars]:
            text = label.format_value(row[label.name], row[f"{label.name}_error"])
            if f"rv_{label.name}" in row:
                text += f" ({label.format_value(row[f'rv_{label.name}'])})"
            cells[label.heading] = text
        known = isinstance(row["rv_class"], str)
        cells["class"] = f"{row['class']} ({row['rv_class'] if known else '–'})"
        if "flags" in row:
            cells["flags"] = flag_names(row["flags"]) or "–"
        rows.append(cells)
    return pd.DataFrame(rows)


def _number(value: float, digits: int) -> str:
    return "–" if pd.isna(value) else f"{value:.{digits}f}".replace("-", "−")


# --- stages ---------------------------------------------------------------------------------------


def stage_folders(run: Path) -> dict[str, Path]:
    """Folders of the trainings of a run, by stage."""
    third = run / "3_fefinetune_chunk"
    folders = {
        "stage 1": run / "1_basemodel_synthetic",
        "stage 2": run / "2_realfinetune_firsthalf",
        "stage 3": third / "all_hundred" if (third / "all_hundred").is_dir() else third,
    }
    return {name: f for name, f in folders.items() if (f / "training_metrics.csv").is_file()}


def training_seconds(run: Path, stage: str) -> float:
    """Wall time of the training of a stage of a run [s]; NaN if unknown."""
    folder = stage_folders(run).get(stage)
    if folder is None:
        return float("nan")
    return float(pd.read_csv(folder / "training_metrics.csv")["time"].sum())


def stages_table(run: Path) -> pd.DataFrame:
    """Text that says how each model was trained."""
    rows = []
    for stage, folder in stage_folders(run).items():
        metrics = pd.read_csv(folder / "training_metrics.csv")
        profile = json.loads((folder / "configuration.json").read_text(encoding="utf-8-sig"))[
            "profile"
        ]
        system = _system_info(folder)
        last = metrics.iloc[-1]
        rows.append(
            {
                "": stage,
                "spectra": f"{profile['data']['kind']}, {profile['data']['pixels']}",
                "epochs": len(metrics),
                "time [s]": f"{training_seconds(run, stage):.0f}",
                "stars/s": f"{metrics['stars_per_s'].median():.0f}",
                "loss": f"{last['loss']:.3f}",
                "validation": "–" if pd.isna(last["val_loss"]) else f"{last['val_loss']:.3f}",
                "seed": profile["training"]["seed"],
                "device": system.get("gpus", "none").replace("none", "CPU"),
                "threads": system.get("threads", "–"),
            }
        )
    return pd.DataFrame(rows)


def configurations(run: Path) -> dict[str, str]:
    """Resolved configuration of each stage, and the epochs that were selected, as JSON."""
    texts = {
        name: (folder / "configuration.json").read_text(encoding="utf-8-sig")
        for name, folder in stage_folders(run).items()
    }
    baseline = run / "basic_NN" / "all_hundred" / "configuration.json"
    if baseline.is_file():
        texts["network from scratch"] = baseline.read_text(encoding="utf-8")
    for name, stage in (("stage 3", "3_fefinetune_chunk"), ("network from scratch", "basic_NN")):
        file = run / stage / "selection.json"
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8-sig"))
            plain = {key: value for key, value in content.items() if not isinstance(value, list)}
            texts[f"{name}, selected epoch"] = json.dumps(plain)
    return texts


def _system_info(folder: Path) -> dict[str, str]:
    file = folder / "training_system_info.log"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return dict(line.split(": ", 1) for line in lines if ": " in line)


# --- timings and machine --------------------------------------------------------------------------


def timings_table(run: Path) -> pd.DataFrame | None:
    """Seconds that each step took, start-up included, to be read; None where none are kept.

    `make reproduce` appends a line `step,seconds` to `timings.csv`; those of a step that was
    interrupted and went on are added up.
    """
    file = run / "timings.csv"
    if not file.is_file():
        return None
    timings = pd.read_csv(file, names=["step", "seconds"])
    seconds = timings.groupby("step", sort=False)["seconds"].sum()
    names, values = [*seconds.index, "sum"], [*seconds, seconds.sum()]
    return pd.DataFrame({"": names, "time [s]": values})


def machine_table() -> pd.DataFrame:
    """Hardware of this machine and versions of what runs on it, to be read."""
    rows = {"processor": _processor(), "cores": str(os.cpu_count())}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        rows["memory"] = f"{memory:.1f} GiB"
    rows |= {"system": platform.system(), "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            rows[package] = version(package)
        except PackageNotFoundError:
            continue
    rows["commit"] = written_by().get("commit", "none: installed package")
    return pd.DataFrame({"": rows.keys(), "this machine": rows.values()})


def _processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
