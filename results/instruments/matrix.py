r"""Errors of several models on several instruments: who was trained on what, and tested on what.

The same stars of the mock survey, which no model has seen, are observed by APOGEE, by MOONS in the
H band, and by three made-up instruments; or, for models of the windows of HERMES, by GALAH, by its
third window alone, and by two made-up instruments. A model that was trained on many instruments
reads the spectra as they are and is told resolving power and signal-to-noise ratio; for a model of
one instrument they are interpolated onto its pixels. Writes OUTPUT.csv, OUTPUT_table.md and
OUTPUT.png (with PDF and caption).

    python matrix.py drawn=runs/instruments/1_basemodel_synthetic \
        APOGEE=runs/laptop/1_basemodel_synthetic --output runs/instruments/tables/instruments
    python matrix.py drawn=runs/optical/1 --line-lists mixed --output runs/optical/matrix
"""

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.mock.emulated import LINE_LISTS, emulated_source
from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.evaluation.evaluate import load_network
from stellarperceptron.evaluation.metrics import label_metrics
from stellarperceptron.instruments import APOGEE, GALAH, MOONS_H
from stellarperceptron.instruments import instrument as instrument_named
from stellarperceptron.instruments.spectrograph import Instrument, some_chips
from stellarperceptron.labels import label as label_named
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import HelpFormatter, positive, positive_float, run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.document import markdown_table
from stellarperceptron.utils.plotting import PAGE_WIDTH, save_figure, use_style

SHOWN = ("TEFF", "LOGG", "FE_H")  # a panel each
WORST = 4.0  # ratio of errors at the end of the colours
CAPTION = (
    "Scatter (mad_std) and, in brackets, bias (median) of predicted labels of {stars:,} stars at a "
    "signal-to-noise ratio of {snr:g} a pixel. Rows: what a model was trained on. Columns: the "
    "instrument that observed the stars. Colours: the scatter over the smallest of its column, up "
    "to {worst:g}. "
    "Empty: the model refuses the instrument."
)


def even(name: str, power: float, step: float) -> Instrument:
    """An instrument with pixels of equal width [Angstrom] all over the H band."""
    return dataclasses.replace(
        MOONS_H,
        name=name,
        wavelength=np.arange(15_160.0, 16_940.0, step),
        chips={},
        ranges={},
        grid_index=None,
        pixel_prefix="",
        resolving_power=power,
    )


WINDOWS = tuple(GALAH.chips)
INSTRUMENTS = {
    "APOGEE": {
        "APOGEE": APOGEE,
        "MOONS": MOONS_H,
        "R 11,500": even("R 11,500", 11_500.0, 0.5),
        "R 6,300": even("R 6,300", 6_300.0, 1.0),
        "R 38,000": even("R 38,000", 38_000.0, 0.15),
    },
    "GALAH": {
        "GALAH": GALAH,
        "third window": some_chips(GALAH, ("red",), "third window"),
        "R 11,500": some_chips(GALAH, WINDOWS, "R 11,500", 11_500.0),
        "R 45,000": some_chips(GALAH, WINDOWS, "R 45,000", 45_000.0),
    },
}
"""Instruments that observe the stars, by the instrument whose emulators make their spectra."""


def observe(
    stars: int, seed: int, snr: float, of: str = "APOGEE", line_lists: str = "nominal"
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Spectra (N, n) of the same stars by `INSTRUMENTS` of one, and their labels (N, Q)."""
    source = emulated_source(
        stars, seed, any_instrument=True, instrument=instrument_named(of), line_lists=line_lists
    )
    columns = source.splits["train"]
    recipe, noise = columns["synthetic"], Augmentation(snr=(snr, snr))
    spectra = {}
    for name, instrument in INSTRUMENTS[of].items():
        generator = torch.Generator().manual_seed(seed)
        parts = [
            noise(recipe.seen_by(some, instrument), generator, instrument=instrument).numpy()
            for some in recipe.coefficients.split(500)
        ]
        spectra[name] = np.concatenate(parts)
    # Synthetic spectra are made from the catalogue's labels, which are exact for them.
    return spectra, pd.DataFrame(columns["labels"], columns=list(source.label_names))


def onto_pixels(
    instrument: Instrument, wavelength: np.ndarray, flux: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flux (N, m) interpolated at an instrument's pixels (m,) within the range of the spectra.

    A pixel in a gap of the spectra, wider than three of theirs, is NaN.
    """
    inside = (instrument.wavelength >= wavelength[0]) & (instrument.wavelength <= wavelength[-1])
    pixels = instrument.wavelength[inside]
    right = np.searchsorted(wavelength, pixels).clip(1, len(wavelength) - 1)
    step = wavelength[right] - wavelength[right - 1]
    weight = ((pixels - wavelength[right - 1]) / step).astype(np.float32)
    flux = (1 - weight) * flux[:, right - 1] + weight * flux[:, right]
    return np.where(step < 3 * np.median(step), flux, np.float32(np.nan)), pixels


def answers(
    model: StellarPerceptron,
    instrument: Instrument,
    flux: np.ndarray,
    labels: list[str],
    snr: float,
) -> pd.DataFrame:
    """A model's answers for spectra (N, n) of an instrument.

    Raises
    ------
    ValueError
        The model refuses the instrument.
    """
    told: dict[str, float] = {"snr": snr} if model.config.conditions else {}
    wavelength = instrument.wavelength
    if model.drawn is not None:
        told["resolving_power"] = instrument.resolving_power
    else:
        flux, wavelength = onto_pixels(model.instrument, wavelength, flux)
        if not len(wavelength):
            raise ValueError("the model's instrument has no pixel in this range")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(flagged|left out)")
        return model.predict(flux, wavelength, labels, progress=False, **told)


def emulated(models: Mapping[str, StellarPerceptron]) -> str:
    """The key of `INSTRUMENTS` that all models belong to.

    Raises
    ------
    ValueError
        There is none, or they belong to different ones.
    """
    found = {str(model.instrument and model.instrument.name) for model in models.values()}
    if len(found) > 1 or not found <= set(INSTRUMENTS):
        raise ValueError(
            f"the models are for {', '.join(sorted(found))}: give models of one instrument, "
            f"{' or '.join(INSTRUMENTS)}"
        )
    return found.pop()


def matrix(
    models: Mapping[str, StellarPerceptron],
    instruments: Mapping[str, Instrument],
    spectra: Mapping[str, np.ndarray],
    labels: pd.DataFrame,
    snr: float,
) -> pd.DataFrame:
    """Errors of every model, instrument and label, a row each."""
    rows = []
    for name, model in models.items():
        known = [label for label in labels if label in model.label_names]
        for instrument, flux in spectra.items():
            try:
                found = answers(model, instruments[instrument], flux, known, snr)
            except ValueError as error:
                print(f"{name} on {instrument}: {error}", file=sys.stderr)
                continue
            for label in known:
                metrics = label_metrics(
                    found[label].to_numpy(),
                    labels[label].to_numpy(),
                    found[f"{label}_error"].to_numpy(),
                )
                rows.append(
                    {"trained on": name, "tested on": instrument, "label": label, **metrics}
                )
    if not rows:
        raise ValueError("no model reads any of the instruments")
    return pd.DataFrame(rows)


def text_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table for readers: scatter and, in brackets, bias; a column for each instrument."""
    cells = [
        f"{label_named(row.label).format_residual(row.mad_std)} "
        f"({label_named(row.label).format_residual(row.bias, '+')})"
        for row in table.itertuples()
    ]
    keys = ["label", "trained on"]
    wide = table.assign(cell=cells).pivot_table(
        index=keys, columns="tested on", values="cell", aggfunc="first", sort=False
    )
    return wide.reindex(columns=table["tested on"].unique()).fillna("").reset_index()


def draw(table: pd.DataFrame) -> Figure:
    """Draw a panel for each of `SHOWN` that is known: models by instruments."""
    use_style()
    shown = [label for label in SHOWN if label in set(table["label"])]
    models, instruments = table["trained on"].unique(), table["tested on"].unique()
    figure = Figure(
        figsize=(PAGE_WIDTH, len(shown) * (0.5 + 0.25 * len(models))), layout="constrained"
    )
    for axes, label in zip(figure.subplots(len(shown), squeeze=False).flat, shown, strict=True):
        entry, part = label_named(label), table[table["label"] == label]
        by = {"index": "trained on", "columns": "tested on"}
        scatter, bias = (
            part.pivot_table(values=what, **by).reindex(index=models, columns=instruments)
            for what in ("mad_std", "bias")
        )
        image = axes.imshow(
            scatter / scatter.min(), norm=LogNorm(1, WORST), cmap="Blues", aspect="auto"
        )
        for (row, column), value in np.ndenumerate(scatter.to_numpy()):
            if np.isfinite(value):
                dark = value > WORST**0.6 * scatter.min().iloc[column]
                axes.text(
                    column,
                    row,
                    f"{entry.format_residual(value)} "
                    f"({entry.format_residual(bias.iloc[row, column], '+')})",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                )
        axes.set_xticks(range(len(instruments)), instruments)
        axes.set_yticks(range(len(models)), models)
        axes.set_title(f"{entry.symbol} [{entry.unit}]")
        axes.tick_params(length=0)
        bar = figure.colorbar(
            image, ax=axes, label="over the best", ticks=[1, 2, 4], format="%g", extend="max"
        )
        bar.minorticks_off()
    figure.supylabel("trained on")
    figure.supxlabel("tested on")
    return figure


def main() -> None:
    """Arguments, models, spectra, table, figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "models", nargs="+", metavar="NAME=CHECKPOINT", help="outputs of a stage, or checkpoints"
    )
    parser.add_argument("--stars", type=positive, default=2000, help="number of test stars")
    parser.add_argument("--seed", type=int, default=2, help="of the stars; not that of training")
    parser.add_argument("--snr", type=positive_float, default=150.0, help="a pixel")
    parser.add_argument(
        "--line-lists", choices=LINE_LISTS, default="nominal", help="of the stars' spectra"
    )
    parser.add_argument("--output", type=Path, required=True, help="of the files, without .csv")
    arguments = parser.parse_args()
    try:
        models = {}
        for text in arguments.models:
            name, equals, path = text.partition("=")
            if not equals or name in models:
                raise ValueError(f"{text}: give each model a name of its own, NAME=CHECKPOINT")
            models[name] = load_network(resolve_checkpoint(Path(path)), "cpu")
        of = emulated(models)
        spectra, labels = observe(
            arguments.stars, arguments.seed, arguments.snr, of, arguments.line_lists
        )
        table = matrix(models, INSTRUMENTS[of], spectra, labels, arguments.snr)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    stem = arguments.output
    stem.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(stem.with_name(f"{stem.name}.csv")) as temporary:
        table.to_csv(temporary, index=False, float_format="%.7g", lineterminator="\n")
    text = markdown_table(text_table(table))
    with atomic_output(stem.with_name(f"{stem.name}_table.md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    caption = CAPTION.format(stars=arguments.stars, snr=arguments.snr, worst=WORST)
    save_figure(draw(table), stem.with_name(f"{stem.name}.png"), caption)
    print(text, end="")


if __name__ == "__main__":
    run_script(main)
