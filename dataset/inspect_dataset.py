"""
Summarize a survey file or a folder of published arrays: sizes, bad pixels, labels, plots.

It reads whatever the training scripts read, block by block.

    python dataset/inspect_dataset.py runs/dr17.h5
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from stellarperceptron.data.dataset import SpectraDataset, Split
from stellarperceptron.labels import label as label_named
from stellarperceptron.utils.arguments import output_file, positive, run_script
from stellarperceptron.utils.plotting import (
    COLORS,
    PAGE_WIDTH,
    axis_label,
    mark_gaps,
    save_figure,
    use_style,
)

BLOCK = 1024  # stars at a time: 31 MB a kind of spectra
CAPTION = (
    "Contents of {name}. Above: labels of training stars; colours are those of the bars. Middle: "
    "mean, standard deviation and share of bad pixels of the training spectra ({colours}: blue and "
    "vermilion, in this order). Below: spectra of three stars in the same colours, with their "
    "labels. Shaded: wavelengths between the detectors, where there is no flux."
)
EXAMPLES = 3  # stars whose spectra are drawn


def arguments(command_line: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="survey file (HDF5) or folder of arrays")
    parser.add_argument(
        "--output",
        type=output_file,
        help="page of plots, .png (default: beside the data, with their name); also written as "
        ".pdf, with a caption, .md",
    )
    parser.add_argument(
        "--stars",
        type=positive,
        default=20_000,
        help="spectra of so many stars of each split are read, evenly spread (default %(default)s)",
    )
    options = parser.parse_args(command_line)
    options.output = options.output or options.data.with_suffix(".png")
    if options.output.suffix != ".png":
        parser.error(f"--output {options.output} must end in .png")
    if options.output.exists() and not is_picture(options.output):
        parser.error(f"{options.output} is there and no picture: give another --output NAME.png")
    for other in (options.output.with_suffix(kind) for kind in (".pdf", ".md")):
        if other.exists() and not options.output.exists():  # somebody else's
            parser.error(f"{other} is there already: give another --output NAME.png")
    return options


def is_picture(path: Path) -> bool:
    """Whether a file is a PNG picture, which may be replaced."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def blocks(split: Split, kind: str, rows: np.ndarray, bar: tqdm) -> Iterator[np.ndarray]:
    """Spectra (n, P) of some stars, block after block."""
    for first in range(0, len(rows), BLOCK):
        some = rows[first : first + BLOCK]
        yield split.read(kind, some)
        bar.update(len(some))


def spectra_summary(split: Split, kind: str, rows: np.ndarray, bar: tqdm) -> dict:
    """Share of bad pixels a pixel (P,) and a star (n,); mean and scatter of the flux (P,)."""
    count = np.zeros(split.n_pixels)
    total, squares = np.zeros(split.n_pixels), np.zeros(split.n_pixels)
    bad = []
    for flux in blocks(split, kind, rows, bar):
        good = np.isfinite(flux)
        values = np.where(good, flux, 0).astype(np.float64)
        count += good.sum(axis=0)
        total += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
        bad.append(1 - good.mean(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        scatter = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return {
        "bad_pixel": 1 - count / len(rows),
        "bad_star": np.concatenate(bad),
        "mean": mean,
        "scatter": scatter,
    }


def label_table(split: Split) -> str:
    """Table of the labels: missing, percentiles, median error."""
    width = max(8, *(len(name) + 1 for name in split.label_names))
    heads = ("lowest", "16 %", "median", "84 %", "highest", "error")
    lines = [f"{split.name:{width}s}{'missing':>9s}" + "".join(f"{head:>11s}" for head in heads)]
    for column, name in enumerate(split.label_names):
        values, errors = split.labels[:, column], split.label_errors[:, column]
        values, errors = values[np.isfinite(values)], errors[np.isfinite(errors)]
        numbers = np.percentile(values, [0, 16, 50, 84, 100]) if len(values) else [np.nan] * 5
        error = np.median(errors) if len(errors) else np.nan
        missing = split.n_stars - len(values)
        lines.append(
            f"{name:{width}s}{missing:9,d}"
            + "".join(f"{number:11.4g}" for number in (*numbers, error))
        )
    return "\n".join(lines)


def findings(data: SpectraDataset, summaries: dict) -> list[str]:
    """Mistakes in the data: stars that are there twice, in both splits, or without data."""
    found = []
    train, test = (set(split.ids.tolist()) for split in (data.train, data.test))
    for split, names in ((data.train, train), (data.test, test)):
        if len(names) < len(split):
            found.append(f"{len(split) - len(names)} names of '{split.name}' are there twice")
        unlabelled = np.isnan(split.labels).all(axis=1).sum()
        if unlabelled:
            found.append(f"{unlabelled} stars of '{split.name}' have no label")
    both = train & test
    numbered = data.test.ids.tolist() == [str(row) for row in range(len(data.test))]
    if both and not numbered:
        found.append(f"{len(both)} stars are in both splits, such as {min(both)}")
    for (split, kind), summary in summaries.items():
        empty = int((summary["bad_star"] == 1).sum())
        if empty:
            found.append(f"{empty} stars of '{split}' have no pixel in their {kind} spectrum")
    return found


def label_plots(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Labels of each plot: abscissa, ordinate and colour, or one label for a histogram.

    A Kiel diagram and abundances against [Fe/H], coloured by temperature, as far as the labels are
    there; histograms of all others.
    """
    abundances = [name for name in names if label_named(name).is_abundance and name != "FE_H"]
    wanted = [("TEFF", "LOGG", "FE_H"), *(("FE_H", name, "TEFF") for name in abundances)]
    plots = [plot for plot in wanted if set(plot) <= set(names)]
    shown = {name for plot in plots for name in plot}
    return [*plots, *((name,) for name in names if name not in shown)]


def draw(data: SpectraDataset, summaries: dict, rows: np.ndarray) -> Figure:
    """Page of plots: labels, their errors, bad pixels, mean spectra, a few stars."""
    train, names = data.train, data.label_names
    use_style()
    plots = label_plots(names)
    rows_of_plots = -(-len(plots) // 3)
    figure = Figure(figsize=(PAGE_WIDTH, 6.6 + 1.7 * rows_of_plots), layout="constrained")
    figure.suptitle(f"{data.path.name}: {len(data.train):,d} + {len(data.test):,d} stars")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[rows_of_plots, 2, EXAMPLES * 0.8])
    axes = top.subplots(rows_of_plots, 3, squeeze=False).flat
    for axis in axes[len(plots) :]:
        axis.set_axis_off()
    for axis, shown in zip(axes, plots, strict=False):
        values = [train.labels[rows, names.index(name)] for name in shown]
        axis.set_xlabel(axis_label(shown[0]))
        if len(shown) == 1:
            axis.hist(values[0][np.isfinite(values[0])], bins=50, color=COLORS["blue"])
            axis.set_ylabel("stars")
            continue
        x, y, colour = values
        points = axis.scatter(x, y, c=colour, s=1.5, linewidths=0, rasterized=True)
        axis.set_ylabel(axis_label(shown[1]))
        if shown[0] == "TEFF":
            axis.invert_xaxis()
            axis.invert_yaxis()
        top.colorbar(points, ax=axis, label=axis_label(shown[2]))

    axes = middle.subplots(3, 1, sharex=True)
    colours = dict(zip(train.kinds, (COLORS["blue"], COLORS["vermilion"]), strict=False))
    for kind, colour in colours.items():
        summary = summaries["train", kind]
        for first, last in chips(data):
            x = data.wavelength[first:last]
            style = {"color": colour, "lw": 0.4, "label": None if first else kind}
            axes[0].plot(x, summary["mean"][first:last], **style)
            axes[1].plot(x, summary["scatter"][first:last], **style)
            axes[2].plot(x, 100 * summary["bad_pixel"][first:last], **style)
    heads = (
        "mean of\nflux / continuum",
        "standard deviation of\nflux / continuum",
        "bad pixels [%]",
    )
    for axis, label in zip(axes, heads, strict=True):
        axis.set_ylabel(label)
    axes[0].legend(loc="lower right", ncols=2)
    finish_wavelengths(axes, data)

    axes = np.atleast_1d(bottom.subplots(EXAMPLES, 1, sharex=True))
    for axis, row in zip(axes, rows[:: -(-len(rows) // EXAMPLES)], strict=False):
        for kind, colour in colours.items():
            flux = train.read(kind, [int(row)])[0]
            for first, last in chips(data):
                x = data.wavelength[first:last]
                axis.plot(x, flux[first:last], color=colour, lw=0.4, alpha=0.8)
        labels = ", ".join(
            f"{name} {value:.4g}" for name, value in zip(names, train.labels[row], strict=True)
        )
        heading = textwrap.fill(f"{train.ids[row]}: {labels}", 110)
        axis.set_title(heading, loc="left")
        axis.set_ylabel("flux / continuum")
    finish_wavelengths(axes, data)
    return figure


def finish_wavelengths(axes: np.ndarray, data: SpectraDataset) -> None:
    """Let axes end where the data do, and shade the gaps between the detectors."""
    for axis in axes:
        axis.set_xlim(data.wavelength[0], data.wavelength[-1])
        mark_gaps(axis, data.instrument)
    axes[-1].set_xlabel("vacuum wavelength [Å]")


def chips(data: SpectraDataset) -> list[tuple[int, int]]:
    """First pixel of each detector, and the one after its last."""
    first = int(data.instrument.nearest_pixels(data.wavelength[:1])[0])
    inside = data.instrument.chips_of(slice(first, first + len(data.wavelength)))
    return [(chip.start, chip.stop) for chip in inside.values()]


def inspect(options: argparse.Namespace) -> None:
    """Print the summary, then draw it."""
    with SpectraDataset.open(options.data) as data:
        print(f"{options.data}: {data.train.n_pixels:,d} pixels, ", end="")
        print(f"{data.wavelength[0]:.1f} to {data.wavelength[-1]:.1f} Angstrom")
        for name, value in data.provenance.items():
            if name != "cuts":
                print(f"{name}: {value}")
        for name, removed, left in data.provenance.get("cuts", []):
            print(f"cut {name:40s}{removed:10,d} removed{left:10,d} left")
        parts = [
            (split, kind, np.unique(np.linspace(0, len(split) - 1, options.stars).astype(int)))
            for split in (data.train, data.test)
            for kind in (*split.kinds, *(["observed_errors"] if split.has_errors else []))
        ]
        summaries = {}
        total = sum(len(rows) for *_, rows in parts)
        with tqdm(total=total, unit=" spectra", disable=None) as bar:
            for split, kind, rows in parts:
                summaries[split.name, kind] = spectra_summary(split, kind, rows, bar)
        for split, kind, rows in parts:
            summary = summaries[split.name, kind]
            print(
                f"{split.name} {kind}: {len(split):,d} stars, bad pixels "
                f"{100 * summary['bad_star'].mean():.2f} % (of a star at most "
                f"{100 * summary['bad_star'].max():.1f} %), mean {np.nanmean(summary['mean']):.4f}"
                + (f", from {len(rows):,d} stars" if len(rows) < len(split) else "")
            )
        for split in (data.train, data.test):
            print(label_table(split))
        for line in findings(data, summaries):
            print(f"WARNING: {line}")
        caption = CAPTION.format(name=data.path.name, colours=" and ".join(data.train.kinds))
        save_figure(draw(data, summaries, parts[0][-1]), options.output, caption)
    print(f"plots: {options.output}")


def main(command_line: list[str] | None = None) -> None:
    """Summarize, or say what is wrong with the data."""
    options = arguments(command_line)
    try:
        inspect(options)
    except (OSError, ValueError) as error:
        sys.exit(f"inspect_dataset.py: {error}")


if __name__ == "__main__":
    run_script(main)
