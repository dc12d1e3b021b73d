"""One style for all figures, and the parts that several of them share.

Figures are as wide as one or both columns of a journal and are printed as they are, with letters
of 7 points. They are made with `matplotlib.figure.Figure` and need no window, no `pyplot`, and
nothing to be closed; they leave a notebook's own figures alone.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from stellarperceptron.evaluation.metrics import label_metrics
from stellarperceptron.labels import LABELS
from stellarperceptron.labels import label as label_named
from stellarperceptron.utils.data_utils import atomic_output

if TYPE_CHECKING:
    from stellarperceptron.instruments.spectrograph import Instrument

__all__ = [
    "COLORS",
    "COLUMN_WIDTH",
    "LABEL_SYMBOLS",
    "PAGE_WIDTH",
    "SHADE",
    "axis_label",
    "chip_axes",
    "error_bar",
    "mark_gaps",
    "metrics_text",
    "plot_predicted_against_actual",
    "plot_residuals",
    "save_figure",
    "use_style",
]

LABEL_SYMBOLS: Mapping[str, str] = MappingProxyType(
    {name: entry.symbol for name, entry in LABELS.items()}
)
"""Symbols of the labels of `stellarperceptron.labels`; others are written under their names."""

# Of Okabe & Ito (2008): told apart by readers who see colours differently, and in grey.
COLORS: Mapping[str, str] = MappingProxyType(
    {
        "blue": "#0072B2",
        "orange": "#E69F00",
        "green": "#009E73",
        "vermilion": "#D55E00",
        "purple": "#CC79A7",
        "sky": "#56B4E9",
        "grey": "#808080",
        "black": "#222222",
    }
)
"""Colours of all figures."""

COLUMN_WIDTH, PAGE_WIDTH = 3.35, 7.0
"""Width of one column and of a page of two columns [inch]."""

SHADE = "0.88"
"""Grey of ranges that are set apart: gaps between detectors, labels without training stars."""

# Plasma without its bright end, which cannot be seen on white.
_COLORMAP = LinearSegmentedColormap.from_list(
    "plasma_on_white", matplotlib.colormaps["plasma"](np.linspace(0, 0.75, 256))
)
matplotlib.colormaps.register(_COLORMAP, force=True)

_FONT_SIZE = 7  # [point]
_STYLE = {
    "font.size": _FONT_SIZE,
    **dict.fromkeys(
        [
            *("axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"),
            *("legend.fontsize", "legend.title_fontsize", "figure.titlesize", "figure.labelsize"),
        ],
        _FONT_SIZE,
    ),
    "axes.titlepad": 3,
    "axes.labelpad": 2,
    "axes.linewidth": 0.5,
    "axes.edgecolor": "#444444",
    "axes.prop_cycle": cycler(color=list(COLORS.values())),
    "axes.axisbelow": True,
    **{
        f"{axis}tick.{key}": value
        for axis in "xy"
        for key, value in {
            "direction": "in",
            "color": "#444444",
            "labelcolor": "black",
            "major.width": 0.5,
            "minor.width": 0.4,
            "major.size": 2.5,
            "minor.size": 1.5,
            "major.pad": 2,
        }.items()
    },
    "xtick.top": True,
    "ytick.right": True,
    "legend.frameon": False,
    "legend.handlelength": 1.5,
    "lines.linewidth": 0.8,
    "lines.markersize": 3,
    "patch.linewidth": 0.5,
    "image.cmap": _COLORMAP.name,
    "mathtext.default": "regular",
    "figure.figsize": (COLUMN_WIDTH, 2.5),
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "figure.facecolor": "white",
    "pdf.fonttype": 42,  # text that can be searched and edited
}


def use_style() -> None:
    """Let all figures that are made from now on have this project's style."""
    matplotlib.rcParams.update(_STYLE)


def save_figure(figure: Figure, path: str | os.PathLike, caption: str = "") -> None:
    """Write a figure as PNG and as PDF, and its caption as Markdown, each whole or not at all.

    Neither version nor date is written with it: the same figure is the same bytes.

    Parameters
    ----------
    figure
        What to write.
    path
        Name of the PNG; the PDF and the caption lie beside it.
    caption
        Says what is shown, and what every shade and symbol means; empty for none.

    Raises
    ------
    ValueError
        The name does not end in .png.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"the name of a picture must end in .png, not {path.name}")
    absent = {"pdf": ["Creator", "Producer", "CreationDate"], "png": ["Software"]}
    if caption:
        with atomic_output(path.with_suffix(".md")) as temporary:
            temporary.write_text(f"{caption}\n", encoding="utf-8")
    for kind, entries in absent.items():
        with atomic_output(path.with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, format=kind, metadata=dict.fromkeys(entries))


def axis_label(label: str, before: str = "") -> str:
    """Text of an axis: what is shown of a label, its symbol, its unit.

    Examples
    --------
    >>> axis_label("FE_H", "predicted")
    'predicted [Fe/H] [dex]'
    """
    entry = label_named(label)
    words = [before, entry.symbol, f"[{entry.unit}]" if entry.unit else ""]
    return " ".join(word for word in words if word)


def metrics_text(metrics: Mapping[str, float], label: str) -> str:
    """Lines with bias, mad_std and RMSE, as `label_metrics` gives them, in the label's unit."""
    entry = label_named(label)
    lines = [
        f"bias {entry.format_residual(metrics['bias'], '+')} {entry.unit}",
        f"mad_std {entry.format_residual(metrics['mad_std'])} {entry.unit}",
        f"RMSE {entry.format_residual(metrics['rmse'])} {entry.unit}",
    ]
    return "\n".join(line.rstrip() for line in lines)


def plot_predicted_against_actual(
    axes: Axes,
    predicted: np.ndarray,
    actual: np.ndarray,
    error: np.ndarray | None = None,
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    norm: Normalize | None = None,
    color: str = COLORS["blue"],
    text: str | None = None,
    corner: str = "upper left",
) -> PathCollection:
    """Plot predicted against catalogue values of a label, with the one-to-one line and metrics.

    Parameters
    ----------
    axes
        Where to draw.
    predicted, actual
        (N,) in the label's unit; pairs in which one is NaN are left out.
    error
        (N,) predicted standard deviations, shown as colour; None: one colour for all.
    label
        Name of the label.
    limits
        Of both axes; None: all but the outermost 0.05 % of the catalogue values, with a margin,
        within the label's range. Stars outside are drawn as small triangles on the edge, so that
        none is hidden.
    norm
        Of the colours; None: the 2nd to the 98th percentile of the errors.
    color
        Of points without errors.
    text
        To be written in a corner; None: bias, mad_std and RMSE of all stars.
    corner
        "upper left", "lower right", or "above" the panel.

    Returns
    -------
    PathCollection
        The points inside, for a colour bar.
    """
    predicted, actual = np.asarray(predicted, dtype=float), np.asarray(actual, dtype=float)
    if text is None:
        text = metrics_text(label_metrics(predicted, actual), label)
    known = np.isfinite(predicted) & np.isfinite(actual)
    if limits is None:
        limits = _limits(actual[known], label_named(label).range)
    axes.plot(limits, limits, color=COLORS["black"], lw=0.6, ls="--", zorder=3)
    points = _scatter(axes, actual, predicted, error, limits, limits, norm, color)
    axes.set_box_aspect(1)
    for axis in (axes.xaxis, axes.yaxis):  # the same ticks on both
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.set_xlabel(axis_label(label, "catalogue"))
    axes.set_ylabel(axis_label(label, "predicted"))
    x, y, ha, va = {
        "upper left": (0.04, 0.96, "left", "top"),
        "lower right": (0.96, 0.04, "right", "bottom"),
        "above": (0.0, 1.03, "left", "bottom"),
    }[corner]
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
    style = {"ha": ha, "va": va, "linespacing": 1.25, "zorder": 5}
    axes.text(
        x, y, text, transform=axes.transAxes, **style, bbox=box if corner != "above" else None
    )
    return points


def plot_residuals(
    axes: Axes,
    predicted: np.ndarray,
    actual: np.ndarray,
    error: np.ndarray | None = None,
    *,
    label: str,
    limits: tuple[float, float],
    norm: Normalize | None = None,
    color: str = COLORS["blue"],
) -> PathCollection:
    """Plot predicted minus catalogue values of a label against the catalogue's.

    The scale holds all but the outermost 1 % of the residuals, and zero; stars outside are drawn
    as small triangles on the edge. Parameters are those of `plot_predicted_against_actual`;
    `limits` are those of the catalogue's values.
    """
    predicted, actual = np.asarray(predicted, dtype=float), np.asarray(actual, dtype=float)
    residual = predicted - actual
    known = residual[np.isfinite(residual)]
    low, high = np.quantile(known, [0.005, 0.995]) if len(known) else (0.0, 0.0)
    low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.1 * (high - low) or 0.5
    axes.axhline(0, color=COLORS["black"], lw=0.6, ls="--", zorder=3)
    span = float(low - margin), float(high + margin)
    points = _scatter(axes, actual, residual, error, limits, span, norm, color)
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    axes.set_xlabel(axis_label(label, "catalogue"))
    axes.set_ylabel(axis_label(label, "residual of"))
    return points


def _scatter(axes, x, y, error, x_limits, y_limits, norm, color) -> PathCollection:
    """Draw the known of some points, coloured by error; those outside as triangles on the edge."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if error is not None:
        error = np.asarray(error, dtype=float)[known]
        if norm is None and len(error):
            norm = Normalize(*np.quantile(error, [0.02, 0.98]))
    shown = np.clip(x, *x_limits), np.clip(y, *y_limits)
    inside = (shown[0] == x) & (shown[1] == y)
    # Points as small as many stars need, as large as few can have.
    size = float(np.clip(5e3 / max(len(x), 1), 0.8, 8))
    style = {"linewidths": 0, "rasterized": True}
    style |= {"color": color} if error is None else {"norm": norm}

    def draw(which: np.ndarray, **more) -> PathCollection:
        colors = {} if error is None else {"c": error[which]}
        return axes.scatter(*(values[which] for values in shown), **colors, **style, **more)

    points = draw(inside, s=size, zorder=2)
    draw(~inside, s=max(5.0, size), marker="^", clip_on=False, zorder=4)
    axes.set(xlim=x_limits, ylim=y_limits)
    return points


def error_bar(
    figure: Figure | SubFigure, points: PathCollection, label: str, axes, **options
) -> Colorbar:
    """Colour bar of predicted errors, with plain numbers on a logarithmic scale.

    Parameters
    ----------
    figure, axes, **options
        As of `Figure.colorbar`.
    points
        As `plot_predicted_against_actual` gives them.
    label
        Name of the label.
    """
    bar = figure.colorbar(points, ax=axes, **options)
    bar.set_label(axis_label(label, "predicted error of"))
    if isinstance(points.norm, LogNorm):
        low, high = points.norm.vmin, points.norm.vmax
        # Beneath a narrow panel more numbers would touch each other.
        decades = np.log10(high / low)
        digits = [1, 2, 5] if decades < 0.9 else [1, 3] if decades <= 2 else [1]
        steps = np.outer(10.0 ** np.arange(-6, 6), digits).ravel()
        ticks = steps[(steps >= low) & (steps <= high)]
        if decades > 2:
            ticks = ticks[:: -(-len(ticks) // 3)]
        if len(ticks) < 2:  # a narrow range
            ticks = np.geomspace(low, high, 5)[1::2]
        bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
        bar.minorticks_off()
    return bar


def _limits(values: np.ndarray, sensible: tuple[float, float]) -> tuple[float, float]:
    """Range of nearly all values, with a margin, as far as it is sensible."""
    if not len(values):
        return sensible if np.isfinite(sensible).all() else (0.0, 1.0)
    low, high = np.quantile(values, [0.0005, 0.9995])
    margin = 0.06 * (high - low) or 0.5
    limits = float(low - margin), float(high + margin)
    within = max(limits[0], sensible[0]), min(limits[1], sensible[1])
    return within if within[0] < within[1] else limits


def chip_axes(
    figure: Figure | SubFigure,
    rows: int = 1,
    chips: Sequence[str] | None = None,
    between: tuple[float, float] = (0.0, np.inf),
    *,
    instrument: "Instrument | None" = None,
) -> np.ndarray:
    """Axes side by side for the detectors of an instrument, as wide as their wavelength ranges.

    Parameters
    ----------
    figure
        Where the axes are made.
    rows
        Number of rows; each shares its flux axis, each column its wavelength axis.
    chips
        Names of detectors, such as "blue", "green" and "red"; None: all.
    between
        Wavelengths that are shown [Angstrom]; detectors without any are left out.
    instrument
        APOGEE unless another is given.

    Returns
    -------
    (rows, chips) array of Axes
        Spines end at the gaps between detectors, which slanted strokes mark. Wavelengths are
        labelled below the last row.
    """
    if instrument is None:
        from stellarperceptron.instruments import APOGEE as instrument
    ranges = _chip_ranges(instrument, between, chips)
    axes = figure.subplots(
        *(rows, len(ranges)),
        squeeze=False,
        sharex="col",
        sharey="row",
        gridspec_kw={"width_ratios": [float(np.ptp(span)) for span in ranges], "wspace": 0.03},
    )
    stroke = {"marker": [(-1, -2), (1, 2)], "ms": 6, "mew": 0.6, "ls": "", "clip_on": False}
    stroke |= {"color": "#444444", "zorder": 6}
    for column, span in enumerate(ranges):
        first, last = column == 0, column == len(ranges) - 1
        for axis in axes[:, column]:
            axis.set_xlim(*span)
            axis.spines["left"].set_visible(first)
            axis.spines["right"].set_visible(last)
            axis.tick_params(axis="y", which="both", left=first, right=last)
            ends = [end for end, outer in ((0, first), (1, last)) if not outer]
            for end in ends:
                axis.plot([end, end], [0, 1], transform=axis.transAxes, label="_gap", **stroke)
    figure.supxlabel("vacuum wavelength [Å]")
    return axes


def mark_gaps(axes: Axes, instrument: "Instrument | None" = None) -> None:
    """Shade the wavelengths between an instrument's detectors on a continuous axis.

    Parameters
    ----------
    axes
        With wavelengths [Angstrom, vacuum] as abscissa, whose limits stay as they are.
    instrument
        APOGEE unless another is given.
    """
    if instrument is None:
        from stellarperceptron.instruments import APOGEE as instrument
    limits = axes.get_xlim()
    spans = _chip_ranges(instrument)
    for (_, low), (high, _) in itertools.pairwise(spans):
        axes.axvspan(low, high, color=SHADE, lw=0, zorder=0)
    axes.set_xlim(limits)


def _chip_ranges(
    instrument: "Instrument", between=(0.0, np.inf), chips: Sequence[str] | None = None
) -> list[np.ndarray]:
    """First and last wavelength of the detectors that have any between two wavelengths."""
    pixels = [instrument.chips[chip] for chip in chips or instrument.chips]
    ranges = [np.clip(instrument.wavelength[chip][[0, -1]], *between) for chip in pixels]
    return [span for span in ranges if span[0] < span[1]]
