r"""Labels of the same stars from two instruments: do they agree, and are both together better?

Stars of the mock survey that no model has seen are observed by two instruments, with noise of their
own. A model that was trained on many instruments answers from each; the two answers are averaged,
weighted by the inverse squares of the predicted errors; and, where the wavelengths of the two do
not overlap, the model perceives both spectra in one context. "If independent" is the scatter that
the weighted mean would have if the errors of the two answers were independent. Writes OUTPUT.csv
and OUTPUT.md.

    python two_instruments.py --checkpoint runs/optical/1 --output runs/optical/two_instruments
"""

import argparse
import dataclasses
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.mock.emulated import LINE_LISTS, emulated_source
from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.evaluation.metrics import label_metrics, scatter_if_independent
from stellarperceptron.instruments import APOGEE, GALAH, MOONS_H
from stellarperceptron.instruments.spectrograph import Instrument, some_chips
from stellarperceptron.labels import label as label_named
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import HelpFormatter, positive, positive_float, run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.document import markdown_table

PAIRS = {
    "GALAH": [
        (
            some_chips(GALAH, ("blue", "green"), "blue and green, R = 28,000", 28_000.0),
            some_chips(GALAH, ("red", "infrared"), "red and infrared, R = 11,500", 11_500.0),
        ),
        (
            some_chips(GALAH, ("blue", "green"), "blue and green, R = 1,800", 1_800.0),
            some_chips(GALAH, ("red", "infrared"), "red and infrared, R = 45,000", 45_000.0),
        ),
    ],
    "APOGEE": [
        (
            some_chips(APOGEE, ("blue",), "blue chip, R = 22,500", 22_500.0),
            some_chips(APOGEE, ("green", "red"), "green and red chip, R = 6,300", 6_300.0),
        ),
        (dataclasses.replace(APOGEE, name="APOGEE's pixels"), MOONS_H),
    ],
}
"""Pairs of instruments by the model's own instrument."""


def asked(
    model: StellarPerceptron,
    flux: np.ndarray,
    wavelength: np.ndarray,
    power: np.ndarray,
    labels: list[str],
    snr: float,
) -> pd.DataFrame:
    """The model's answers, without warnings of flags."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(flagged|left out)")
        return model.predict(
            flux, wavelength, labels, snr=snr, resolving_power=power, progress=False
        )


def compare(
    model: StellarPerceptron,
    pair: tuple[Instrument, Instrument],
    spectra: list[np.ndarray],
    true: pd.DataFrame,
    snr: float,
) -> pd.DataFrame:
    """Agreement and errors of the answers from a pair of instruments, a row a label."""
    labels = list(true)
    powers = [np.full(len(one), one.resolving_power) for one in pair]
    answers = [
        asked(model, flux, one.wavelength, power, labels, snr)
        for flux, one, power in zip(spectra, pair, powers, strict=True)
    ]
    together = None
    if pair[0].wavelength[-1] < pair[1].wavelength[0]:
        wavelength = np.concatenate([one.wavelength for one in pair])
        both = np.concatenate(spectra, axis=1)
        together = asked(model, both, wavelength, np.concatenate(powers), labels, snr)
    rows = []
    for label in labels:
        value = np.array([answer[label] for answer in answers])
        variance = np.array([answer[f"{label}_error"] for answer in answers]) ** 2
        actual = true[label].to_numpy()
        known = np.isfinite(value).all(axis=0) & np.isfinite(actual)
        difference, total = (value[0] - value[1])[known], variance.sum(axis=0)[known]
        mean = (value / variance).sum(axis=0) / (1 / variance).sum(axis=0)
        row = {"first": pair[0].name, "second": pair[1].name, "label": label}
        row["offset"] = float(np.median(difference) / np.median(np.sqrt(total)))
        row["chi_squared"] = float(np.mean(difference**2 / total))
        answered = {"first": value[0], "second": value[1], "mean": mean}
        if together is not None:
            answered["one_context"] = together[label].to_numpy()
        for name, values in answered.items():
            metrics = label_metrics(values[known], actual[known])
            row |= {f"{name}_rmse": metrics["rmse"], f"{name}_mad_std": metrics["mad_std"]}
        rows.append(row)
    return pd.DataFrame(rows)


def text_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table for readers, mad_std of each answer."""
    rows = []
    for row in table.to_dict("records"):
        entry = label_named(row["label"])
        cells = {
            "instruments": f"{row['first']}; {row['second']}",
            "label": f"{entry.plain} [{entry.unit}]",
            "offset": f"{row['offset']:+.2f}",
            "chi-squared": f"{row['chi_squared']:.2f}",
        }
        each = [row["first_mad_std"], row["second_mad_std"]]
        for heading, value in (
            ("from the first", each[0]),
            ("from the second", each[1]),
            ("if independent", scatter_if_independent(each)),
            ("weighted mean", row["mean_mad_std"]),
            ("in one context", row.get("one_context_mad_std", np.nan)),
        ):
            cells[heading] = entry.format_residual(value)
            if not heading.startswith("from") and np.isfinite(value):
                cells[heading] += f" ({100 * (value / min(each) - 1):+.0f} %)"
        rows.append(cells)
    return pd.DataFrame(rows)


def main() -> None:
    """Arguments, model, stars, answers, tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of a stage, or a checkpoint"
    )
    parser.add_argument("--stars", type=positive, default=1000, help="number of test stars")
    parser.add_argument("--seed", type=int, default=2, help="of the stars; not that of training")
    parser.add_argument("--snr", type=positive_float, default=100.0, help="a pixel")
    parser.add_argument(
        "--line-lists", choices=LINE_LISTS, default="nominal", help="of the stars' spectra"
    )
    parser.add_argument("--output", type=Path, required=True, help="of the files, without .csv")
    arguments = parser.parse_args()
    stem, seed = arguments.output, arguments.seed
    try:
        model = StellarPerceptron.load(resolve_checkpoint(arguments.checkpoint), device="cpu")
        if model.drawn is None or model.instrument.name not in PAIRS:
            raise ValueError(
                "the model was not trained on many instruments of the H band or the windows of "
                "HERMES"
            )
        source = emulated_source(
            arguments.stars,
            seed,
            any_instrument=True,
            instrument=model.instrument,
            line_lists=arguments.line_lists,
        )
        columns, noise = source.splits["train"], Augmentation(snr=(arguments.snr,) * 2)
        true = pd.DataFrame(columns["labels"], columns=list(source.label_names))
        tables = []
        for number, pair in enumerate(PAIRS[model.instrument.name]):
            generator = torch.Generator().manual_seed(100 * seed + number)
            recipe, spectra = columns["synthetic"], []
            for one in pair:
                parts = [
                    noise(recipe.seen_by(some, one), generator, instrument=one).numpy()
                    for some in recipe.coefficients.split(500)
                ]
                spectra.append(np.concatenate(parts))
            tables.append(compare(model, pair, spectra, true, arguments.snr))
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    table = pd.concat(tables, ignore_index=True)
    stem.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(stem.with_name(f"{stem.name}.csv")) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    text = markdown_table(text_table(table))
    with atomic_output(stem.with_name(f"{stem.name}.md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    run_script(main)
