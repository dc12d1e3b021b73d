r"""Figure 4: where the decoder looks for each label, under the mean spectra of giants and dwarfs.

Attention (weights of the last decoder block) hangs down from its line as absorption does.
`sensitivity.png` beside it shows in the same way how far the answers move with the flux of each
pixel. Each is written as PNG and PDF, with its caption. Dashed:
`notable_spectral_lines.csv`, the lines that the SpectraFM paper names.

    python Figure4.py --checkpoint runs/laptop/2_realfinetune_firsthalf \
        --data runs/laptop/survey.h5 --output runs/laptop/attention
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import HelpFormatter, output_folder, run_script
from stellarperceptron.utils.plotting import (
    COLORS,
    LABEL_SYMBOLS,
    PAGE_WIDTH,
    chip_axes,
    save_figure,
    use_style,
)

LINES = Path(__file__).with_name("notable_spectral_lines.csv")
GROUPS = {"giants": "Giants (1.0 < log g < 3.5)", "dwarfs": "Dwarfs (log g > 4.0)"}
LABEL_COLORS = ("vermilion", "blue", "green", "purple", "orange")
MEASURES = {
    "attention": (
        "Figure4",
        "Figure 4. Attention of each label to each token (weights of the last decoder block, mean "
        "of the heads and of the stars), coloured and hanging down from its line,",
        "the mean over all tokens",
    ),
    "sensitivity": (
        "sensitivity",
        "Derivative of each predicted label with respect to the flux of each pixel (absolute value "
        "of the mean of the stars), coloured and hanging down from its line,",
        "the label's spread in the survey for the pixel's",
    ),
}
CAPTION = (
    "{what} below the mean observed spectra (black) of {groups}. Each label is scaled to its "
    "largest value, which is given at the right in units of {unit}. Dashed: lines that the "
    "SpectraFM paper names, with their elements. Slanted strokes mark the gaps between detectors, "
    "in which there is no flux."
)
HEIGHT, SPACING = 0.085, 0.11  # of attention and of its lines, on the spectrum's axis


def main() -> None:
    """Arguments, attention, figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="the one whose attention was extracted"
    )
    parser.add_argument("--data", type=Path, required=True, help="the survey it was extracted on")
    parser.add_argument(
        "--output",
        type=output_folder,
        required=True,
        help="output of extract_attention.py; gets both",
    )
    arguments = parser.parse_args()
    path = arguments.output / "attention.h5"
    (arguments.output / "complete").unlink(missing_ok=True)
    try:
        checkpoint = resolve_checkpoint(arguments.checkpoint)
        with SpectraDataset.open(arguments.data) as dataset, open_attention(path) as file:
            require_source(file, checkpoint, dataset)
            lines = pd.read_csv(LINES)
            for measure, (name, what, unit) in MEASURES.items():
                stars = {
                    group: int(file[f"{group}/stars"][()]) for group in GROUPS if group in file
                }
                groups = " and ".join(f"{number:,} {group}" for group, number in stars.items())
                caption = CAPTION.format(what=what, groups=groups, unit=unit)
                save_figure(draw(file, measure, lines), arguments.output / f"{name}.png", caption)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    (arguments.output / "complete").touch()
    print(arguments.output / "Figure4.png")


def open_attention(path: Path) -> h5py.File:
    """Open the output of `extract_attention.py`."""
    remedy = f"run results/attention/extract_attention.py --output {path.parent}"
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: {remedy}")
    try:
        file = h5py.File(path)
    except PermissionError:
        raise
    except OSError as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
    if not any(f"{group}/sensitivity" in file for group in (*GROUPS, "all")):
        raise ValueError(f"{path} is of an older version: {remedy}")
    return file


def require_source(file: h5py.File, checkpoint: Path, dataset: SpectraDataset) -> None:
    """Refuse attention of another checkpoint or another survey."""
    about = json.loads(file.attrs["about"])
    with open(checkpoint / "weights.pt", "rb") as weights:
        same = hashlib.file_digest(weights, "sha256").hexdigest() == about["checkpoint_sha256"]
    if not same or about["data"] != dataset.provenance:
        other = str(dataset.path) if same else str(checkpoint)
        raise ValueError(
            f"{file.filename} does not belong to {other}: run extract_attention.py again"
        )


def draw(file: h5py.File, measure: str, lines: pd.DataFrame) -> Figure:
    """Draw all groups of the file, one below another, with all labels."""
    labels = list(file.attrs["labels"])
    wavelength, pixels = file["wavelength"][:], file["token_pixels"][:]
    groups = {name: title for name, title in GROUPS.items() if name in file}
    if not groups:
        raise ValueError(f"{file.filename} has neither giants nor dwarfs: extract more --stars")
    use_style()
    figure = Figure(figsize=(PAGE_WIDTH, 0.4 + 2.9 * len(groups)), layout="constrained")
    panels = chip_axes(figure, len(groups), between=(wavelength.min(), wavelength.max()))
    spectra = {name: file[f"{name}/spectrum"][:] for name in groups}
    top = min(np.nanmin(spectrum) for spectrum in spectra.values()) - 0.02  # where attention begins
    for number, (group, title) in enumerate(groups.items()):
        row = panels[number]
        spectrum, stars = spectra[group], int(file[f"{group}/stars"][()])
        values = file[f"{group}/{measure}"][:]
        of_pixels = measure == "sensitivity"
        attention = np.abs(values) if of_pixels else by_pixel(values, pixels, len(wavelength))
        for axes in row:
            low, high = axes.get_xlim()
            inside = (wavelength > low - 1) & (wavelength < high + 1)
            scaled = attention[:, inside] / np.nanmax(attention, axis=1, keepdims=True)
            draw_chip(axes, wavelength[inside], spectrum[inside], scaled, top)
            draw_lines(axes, lines, names=number == 0)
        finish_row(row, labels, attention, top, f"{title}: mean of {stars} stars")
        row[0].set_ylabel(f"{measure} / largest      flux / continuum")
    return figure


def by_pixel(values: np.ndarray, pixels: np.ndarray, number: int) -> np.ndarray:
    """Values (Q, T) of tokens with (T, P) pixels, for each of the pixels (Q, n)."""
    token, place = np.nonzero(pixels >= 0)
    result = np.full((len(values), number), np.nan)
    result[:, pixels[token, place]] = values[:, token]
    return result


def draw_chip(
    axes: Axes, wavelength: np.ndarray, spectrum: np.ndarray, attention: np.ndarray, top: float
) -> None:
    """Draw a mean spectrum (n,) and, downwards from `top`, attention (Q, n) over its maximum."""
    axes.plot(wavelength, spectrum, color=COLORS["black"], lw=0.4)
    for i, values in enumerate(attention):
        base, color = top - SPACING * i, COLORS[LABEL_COLORS[i % len(LABEL_COLORS)]]
        depth = base - HEIGHT * values
        axes.fill_between(wavelength, base, depth, color=color, alpha=0.3, lw=0)
        axes.plot(wavelength, depth, color=color, lw=0.5)


def draw_lines(axes: Axes, lines: pd.DataFrame, names: bool) -> None:
    """Draw dashed lines at notable wavelengths, with the names of the elements on top."""
    low, high = axes.get_xlim()
    for line in lines.itertuples():
        if low < line.Wavelength < high:
            axes.axvline(line.Wavelength, color=COLORS["grey"], lw=0.5, ls=(0, (4, 3)), zorder=0)
            if names:
                # Neighbours would write over each other: the left one ends at its line.
                close = lines.Wavelength - line.Wavelength
                side = "right" if ((close > 0) & (close < 20)).any() else "center"
                axes.text(
                    *(line.Wavelength, 1.01, line.Element),
                    transform=axes.get_xaxis_transform(),
                    ha=side,
                    va="bottom",
                )


def finish_row(
    row: np.ndarray, labels: list[str], attention: np.ndarray, top: float, title: str
) -> None:
    """Draw ticks for flux and labels, with the maximum attention of each label at the right."""
    flux = np.arange(np.ceil(10 * top) / 10, 1.01, 0.1)
    bases = top - SPACING * np.arange(len(labels)) - HEIGHT / 2
    symbols = [LABEL_SYMBOLS.get(label, label) for label in labels]
    first, last = row[0], row[-1]
    first.set_ylim(top - SPACING * len(labels) - 0.01, 1.14)
    first.set_yticks([*flux, *bases], [*(f"{value:.1f}" for value in flux), *symbols])
    first.text(0.012, 0.985, title, transform=first.transAxes, va="top", fontweight="bold")
    style = {"transform": last.get_yaxis_transform(), "va": "center"}
    last.text(1.01, bases[0] + 0.7 * SPACING, "largest", **style)
    for base, values in zip(bases, attention, strict=True):
        last.text(1.01, base, f"{np.nanmax(values):.2g}", **style)
    last.tick_params(axis="y", right=False)


if __name__ == "__main__":
    run_script(main)
