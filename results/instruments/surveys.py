r"""One model for the instruments of several surveys: errors from each, and from several at once.

The model predicts the labels of the test stars that all surveys have seen, from the spectrum of
each instrument, and from those of two or more in one context. These answers are compared with the
mean of the answers from each instrument, weighted by the inverse squares of their predicted errors,
and with the scatter that it would have if their errors were independent ("if independent").
Specialists, models of one survey each, are asked about the same stars.
Writes OUTPUT.csv, OUTPUT_alone.md, OUTPUT_together.md and OUTPUT.png (with PDF and caption).

    python surveys.py --checkpoint runs/surveys/2 --output runs/surveys/tables/surveys \
        --data runs/surveys/APOGEE.h5 runs/surveys/GALAH.h5 runs/surveys/GAIA_RVS.h5 \
        --specialists runs/full/2
"""

import argparse
import functools
import itertools
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.evaluation.metrics import label_metrics, scatter_if_independent
from stellarperceptron.labels import label as label_named
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.training.stages import require_labels, require_same_instrument
from stellarperceptron.utils.arguments import HelpFormatter, positive, run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.document import markdown_table
from stellarperceptron.utils.plotting import COLORS, PAGE_WIDTH, axis_label, save_figure, use_style

CAPTION = (
    "Scatter (mad_std) of predicted labels of {stars:,} test stars from the spectrum of one "
    "instrument, from those of several in one context, and of the mean of the answers from each, "
    "weighted by the inverse squares of their predicted errors, on logarithmic axes."
)


def common_stars(datasets: list[SpectraDataset], stars: int) -> list[np.ndarray]:
    """Rows (n,) of the first test stars that all surveys have seen, in the same order.

    Raises
    ------
    ValueError
        There is none.
    """
    names = [dataset.test.ids for dataset in datasets]
    common = functools.reduce(np.intersect1d, names)[:stars]
    if not len(common):
        raise ValueError("the surveys have no test star in common, by their ids")
    return [pd.Index(own).get_indexer(common) for own in names]


def answers(
    model: StellarPerceptron,
    spectra: dict[str, tuple[np.ndarray, np.ndarray]],
    instruments: tuple[str, ...],
    labels: list[str],
) -> pd.DataFrame:
    """The model's answers from the spectra of some instruments in one context."""
    flux, wavelengths = zip(*(spectra[name] for name in instruments), strict=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(flagged|any valid value)")
        return model.predict(
            np.concatenate(flux, axis=1), np.concatenate(wavelengths), labels, progress=False
        )


def errors(
    model: StellarPerceptron,
    spectra: dict[str, tuple[np.ndarray, np.ndarray]],
    true: pd.DataFrame,
) -> pd.DataFrame:
    """Errors from each instrument and each combination of them, a row for each label."""
    labels, alone, rows = list(true), {}, []
    for size in range(1, len(spectra) + 1):
        for some in itertools.combinations(spectra, size):
            found = answers(model, spectra, some, labels)
            if size == 1:
                alone[some[0]] = found
            for label in labels:
                actual = true[label].to_numpy()
                row = {"instruments": " + ".join(some), "number": size, "label": label}
                row |= label_metrics(
                    found[label].to_numpy(), actual, found[f"{label}_error"].to_numpy()
                )
                row["flagged"] = float((found["flags"] > 0).mean())
                value = np.array([alone[name][label] for name in some])
                variance = np.array([alone[name][f"{label}_error"] for name in some]) ** 2
                mean = (value / variance).sum(axis=0) / (1 / variance).sum(axis=0)
                row["mean_mad_std"] = label_metrics(mean, actual)["mad_std"]
                if size == 2:
                    difference, total = value[0] - value[1], variance.sum(axis=0)
                    row["offset"] = float(np.nanmedian(difference) / np.nanmedian(np.sqrt(total)))
                    row["chi_squared"] = float(np.nanmean(difference**2 / total))
                rows.append(row)
    return pd.DataFrame(rows)


def specialist_errors(
    folder: Path,
    datasets: list[SpectraDataset],
    spectra: dict[str, tuple[np.ndarray, np.ndarray]],
    true: pd.DataFrame,
) -> pd.DataFrame:
    """Errors of a model that was trained on one of the surveys only, a row for each label.

    Raises
    ------
    ValueError
        The model is for none of the surveys, or lacks a label.
    """
    model = StellarPerceptron.load(resolve_checkpoint(folder), device="cpu")
    own = [d.instrument.name for d in datasets if d.instrument == model.instrument]
    if not own:
        names = ", ".join(spectra)
        raise ValueError(
            f"{folder} is a model for {model.instrument}, none of the surveys: {names}"
        )
    require_labels(model, list(true))
    table = errors(model, {own[0]: spectra[own[0]]}, true)
    return table.assign(instruments=f"{own[0]}, its specialist", number=0)


def table_alone(table: pd.DataFrame) -> pd.DataFrame:
    """Errors from each instrument, and of specialists, for readers."""
    rows = []
    for row in table[table["number"] <= 1].to_dict("records"):
        entry = label_named(row["label"])
        rows.append(
            {
                "instrument": row["instruments"],
                "label": entry.heading,
                "mad_std": entry.format_residual(row["mad_std"]),
                "bias": entry.format_residual(row["bias"], "+"),
                "RMSE": entry.format_residual(row["rmse"]),
                "sd of pulls": f"{row['pull_std']:.2f}",
                "within 1 sigma": f"{100 * row['within_1_sigma']:.0f} %",
                "flagged": f"{100 * row['flagged']:.1f} %",
            }
        )
    return pd.DataFrame(rows)


def table_together(table: pd.DataFrame) -> pd.DataFrame:
    """Several instruments beside the best of them alone, for readers."""
    alone = table[table["number"] == 1].set_index(["instruments", "label"])["mad_std"]
    rows = []
    for row in table[table["number"] > 1].to_dict("records"):
        entry = label_named(row["label"])
        each = [alone[name, row["label"]] for name in row["instruments"].split(" + ")]
        cells = {"instruments": row["instruments"], "label": entry.heading}
        cells["best alone"] = entry.format_residual(min(each))
        for heading, value in (
            ("if independent", scatter_if_independent(each)),
            ("weighted mean", row["mean_mad_std"]),
            ("one context", row["mad_std"]),
        ):
            change = 100 * (value / min(each) - 1)
            cells[heading] = f"{entry.format_residual(value)} ({round(change):+d} %)"
        cells["sd of pulls"] = f"{row['pull_std']:.2f}"
        cells["offset"] = f"{row['offset']:+.2f}" if row["number"] == 2 else "–"
        cells["chi-squared"] = f"{row['chi_squared']:.2f}" if row["number"] == 2 else "–"
        rows.append(cells)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the scatter by combination of instruments, a panel for each label."""
    use_style()
    table = table[table["number"] > 0]
    labels, names = table["label"].unique(), table["instruments"].unique()
    figure = Figure(figsize=(PAGE_WIDTH, 0.7 + 0.22 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    place = np.arange(len(names))
    for axes, label in zip(panels, labels, strict=True):
        part = table[table["label"] == label].set_index("instruments").loc[names]
        several = (part["number"] > 1).to_numpy()
        for chosen, color, name in (
            (~several, "blue", "one instrument"),
            (several, "orange", "one context"),
        ):
            values = part["mad_std"][chosen]
            axes.plot(values, place[chosen], "o", color=COLORS[color], ms=4, label=name)
        means, open_circle = part["mean_mad_std"][several], {"mfc": "none", "ms": 6}
        axes.plot(
            means, place[several], "o", color=COLORS["grey"], label="weighted mean", **open_circle
        )
        axes.set_xscale("log")
        lowest = min(part["mad_std"].min(), part["mean_mad_std"].min())
        axes.set_xlim(lowest / 1.3, 1.3 * part["mad_std"].max())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(axis_label(label))
        axes.grid(axis="y", lw=0.3)
    panels[0].set_yticks(place, names)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.supxlabel("scatter of predicted minus true labels")
    return figure


def main() -> None:
    """Arguments, model, stars, answers, tables, figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of a stage, or a checkpoint"
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="SURVEY", help="survey files"
    )
    parser.add_argument(
        "--specialists",
        type=Path,
        nargs="*",
        default=[],
        metavar="CHECKPOINT",
        help="models of one survey each",
    )
    parser.add_argument(
        "--kind", choices=("observed", "synthetic"), default="observed", help="of the spectra"
    )
    parser.add_argument("--stars", type=positive, default=5000, help="most test stars to ask about")
    parser.add_argument("--output", type=Path, required=True, help="of the files, without .csv")
    arguments = parser.parse_args()
    try:
        model = StellarPerceptron.load(resolve_checkpoint(arguments.checkpoint), device="cpu")
        with ExitStack() as stack:
            datasets = [stack.enter_context(SpectraDataset.open(path)) for path in arguments.data]
            for dataset in datasets:
                require_same_instrument(model, dataset)
            first, rows = datasets[0], common_stars(datasets, arguments.stars)
            require_labels(model, first.label_names)
            spectra = {
                dataset.instrument.name: (
                    dataset.test.read(arguments.kind, some),
                    dataset.wavelength,
                )
                for dataset, some in zip(datasets, rows, strict=True)
            }
            true = first.test.labels if first.test.true_labels is None else first.test.true_labels
            if arguments.kind == "synthetic":
                true = first.test.labels  # from which they are made
            known = pd.DataFrame(true[rows[0]], columns=list(first.label_names))
        tables = [
            specialist_errors(folder, datasets, spectra, known) for folder in arguments.specialists
        ]
        table = pd.concat([errors(model, spectra, known), *tables], ignore_index=True)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    stem = arguments.output
    stem.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(stem.with_name(f"{stem.name}.csv")) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    for name, text in (("alone", table_alone(table)), ("together", table_together(table))):
        with atomic_output(stem.with_name(f"{stem.name}_{name}.md")) as temporary:
            temporary.write_text(markdown_table(text), encoding="utf-8")
        print(markdown_table(text))
    caption = CAPTION.format(stars=len(known))
    save_figure(draw(table), stem.with_name(f"{stem.name}.png"), caption)


if __name__ == "__main__":
    run_script(main)
