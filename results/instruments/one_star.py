r"""One star as four spectrographs of the H band see it, and the labels that one model derives.

A star of the mock survey, which the model has not seen in training, is observed by APOGEE, by
MOONS, and by two made-up instruments, with noise of their own. Draws flux against wavelength, a
panel for each, with the model's labels and their errors, and writes PNG, PDF and caption.

    python one_star.py --checkpoint runs/instruments/1 --output results/instruments/one_star.png
"""

import argparse
import dataclasses
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.mock.emulated import emulated_source
from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.instruments import APOGEE, MOONS_H
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.labels import label as label_named
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import (
    HelpFormatter,
    output_picture,
    positive_float,
    run_script,
)
from stellarperceptron.utils.plotting import COLORS, PAGE_WIDTH, save_figure, use_style

CAPTION = (
    "A star of the mock survey ({truth}) as four spectrographs see it, at a signal-to-noise ratio "
    "of {snr:g} a pixel, and the labels that one model derives from each spectrum."
)


def window(name: str, low: float, high: float, power: float, sampling: float) -> Instrument:
    """A made-up instrument with pixels of equal width from `low` to `high` [Angstrom]."""
    step = (low + high) / 2 / power / sampling
    return dataclasses.replace(
        MOONS_H,
        name=name,
        wavelength=np.arange(low, high, step),
        chips={},
        ranges={},
        grid_index=None,
        pixel_prefix="",
        resolving_power=power,
    )


INSTRUMENTS = (
    dataclasses.replace(APOGEE, name="APOGEE, R = 22,500"),
    dataclasses.replace(MOONS_H, name="MOONS, R = 19,700"),
    window("R = 5,000, the whole band", 15_160.0, 16_940.0, 5_000.0, 2.4),
    window("R = 45,000, a window of 400 Å", 16_000.0, 16_400.0, 45_000.0, 3.0),
)


def look(
    model: StellarPerceptron, instrument: Instrument, flux: np.ndarray, snr: float
) -> pd.Series:
    """The model's labels and errors of one spectrum (n,)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(flagged|left out)")
        return model.predict(
            flux,
            instrument.wavelength,
            resolving_power=instrument.resolving_power,
            snr=snr,
            progress=False,
        ).iloc[0]


def draw(
    spectra: list[np.ndarray], answers: list[pd.Series], labels: list[str], truth: str
) -> Figure:
    """A panel for each instrument."""
    use_style()
    figure = Figure(figsize=(PAGE_WIDTH, 1.25 * len(INSTRUMENTS)), layout="constrained")
    panels = figure.subplots(len(INSTRUMENTS), 1, sharex=True, sharey=True)
    for axes, one, flux, answer in zip(panels, INSTRUMENTS, spectra, answers, strict=True):
        for chip in one.chips.values():
            axes.plot(one.wavelength[chip], flux[chip], color=COLORS["black"], lw=0.4)
        told = ", ".join(text(label, answer[label], answer[f"{label}_error"]) for label in labels)
        axes.set_title(f"{one.name}:  {told}", loc="left", fontsize="small")
    figure.suptitle(f"One star: {truth}", x=0.01, ha="left")
    figure.supylabel("flux / continuum")
    panels[-1].set_xlabel("vacuum wavelength in the star's rest frame [Å]")
    return figure


def text(label: str, value: float, error: float | None = None) -> str:
    """Write a label's value, and its error."""
    entry = label_named(label)
    unit = "" if entry.unit in ("", "dex") else f" {entry.unit}"
    return f"{entry.symbol} {entry.format_value(value, error)}{unit}"


def main() -> None:
    """Arguments, model, star, answers, figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of a stage, or a checkpoint"
    )
    parser.add_argument("--seed", type=int, default=2, help="of the star; not that of training")
    parser.add_argument("--star", type=int, default=0, help="number of the star")
    parser.add_argument("--snr", type=positive_float, default=100.0, help="a pixel")
    parser.add_argument("--output", type=output_picture, required=True, help="the picture")
    arguments = parser.parse_args()
    try:
        model = StellarPerceptron.load(resolve_checkpoint(arguments.checkpoint), device="cpu")
        if model.drawn is None or model.instrument != APOGEE:
            raise ValueError("the model was not trained on many instruments of the H band")
        source = emulated_source(arguments.star + 1, arguments.seed, any_instrument=True)
        recipe = source.splits["train"]["synthetic"]
        noise = Augmentation(snr=(arguments.snr, arguments.snr))
        generator = torch.Generator().manual_seed(arguments.seed)
        spectra = [
            noise(recipe.seen_by(recipe.coefficients[-1:], one), generator, instrument=one).numpy()[
                0
            ]
            for one in INSTRUMENTS
        ]
        answers = [
            look(model, one, flux, arguments.snr)
            for one, flux in zip(INSTRUMENTS, spectra, strict=True)
        ]
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    true = dict(
        zip(source.label_names, source.splits["train"]["labels"][arguments.star], strict=True)
    )
    labels = [name for name in true if name in model.label_names]
    truth = ", ".join(text(name, true[name]) for name in labels)
    figure = draw(spectra, answers, labels, truth)
    plain = ", ".join(
        f"{label_named(name).plain} {label_named(name).format_value(true[name])}" for name in labels
    )
    save_figure(figure, arguments.output, CAPTION.format(truth=plain, snr=arguments.snr))
    for one, answer in zip(INSTRUMENTS, answers, strict=True):
        said = ", ".join(
            f"{name} {label_named(name).format_value(answer[name], answer[f'{name}_error'])}"
            for name in labels
        )
        print(f"{one.name}: {said}")


if __name__ == "__main__":
    run_script(main)
