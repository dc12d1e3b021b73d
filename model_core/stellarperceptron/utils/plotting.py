"""One style for all figures, and the parts that several of them share.

Figures are made with `matplotlib.figure.Figure` and need no window, no `pyplot`, and nothing to be
closed; they leave a notebook's own figures alone.
"""

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
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
    "LABEL_SYMBOLS",
    "axis_label",
    "chip_axes",
    "error_bar",
    "metrics_text",
    "plot_predicted_against_actual",
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

_STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "#444444",
    "axes.prop_cycle": cycler(color=list(COLORS.values())),
    "axes.axisbelow": True,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "image.cmap": "viridis",
    "mathtext.default": "regular",
    "savefig.dpi": 150,
    "figure.facecolor": "white",
}


def use_style() -> None:
    """Let all figures that are made from now on have this project's style."""
    matplotlib.rcParams.update(_STYLE)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as PNG, whole or not at all.

    Neither version nor date is written with it: the same figure is the same bytes.
    """
    with atomic_output(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


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
        "upper left" or "lower right".

    Returns
    -------
    PathCollection
        The points inside, for a colour bar.
    """
    predicted, actual = np.asarray(predicted, dtype=float), np.asarray(actual, dtype=float)
    if text is None:
        text = metrics_text(label_metrics(predicted, actual), label)
    known = np.isfinite(predicted) & np.isfinite(actual)
    predicted, actual = predicted[known], actual[known]
    if error is not None:
        error = np.asarray(error, dtype=float)[known]
        if norm is None and len(error):
            norm = Normalize(*np.quantile(error, [0.02, 0.98]))
    if limits is None:
        limits = _limits(actual, label_named(label).range)
    low, high = limits
    inside = (predicted >= low) & (predicted <= high) & (actual >= low) & (actual <= high)
    # Points as small as many stars need, as large as few can have.
    size = float(np.clip(1.5e4 / max(len(actual), 1), 1.5, 12))
    style = {"linewidths": 0, "rasterized": True}
    style |= {"color": color} if error is None else {"norm": norm}

    def scatter(which: np.ndarray, **more) -> PathCollection:
        colors = {} if error is None else {"c": error[which]}
        x, y = actual[which].clip(low, high), predicted[which].clip(low, high)
        return axes.scatter(x, y, **colors, **style, **more)

    axes.plot(limits, limits, color=COLORS["black"], lw=0.8, ls="--", zorder=3)
    points = scatter(inside, s=size, zorder=2)
    scatter(~inside, s=max(10.0, size), marker="^", clip_on=False, zorder=4)
    axes.set(xlim=limits, ylim=limits, box_aspect=1)
    for axis in (axes.xaxis, axes.yaxis):  # the same ticks on both
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(axis_label(label, "catalogue"))
    axes.set_ylabel(axis_label(label, "predicted"))
    upper = corner == "upper left"
    axes.text(
        *((0.04, 0.96, text) if upper else (0.96, 0.04, text)),
        transform=axes.transAxes,
        va="top" if upper else "bottom",
        ha="left" if upper else "right",
        fontsize="small",
        linespacing=1.35,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 2},
        zorder=5,
    )
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
        steps = np.outer(10.0 ** np.arange(-6, 6), [1, 2, 3, 5]).ravel()
        ticks = steps[(steps >= low) & (steps <= high)]
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
        The spines between neighbouring detectors are left out. Wavelengths are labelled below the
        last row.
    """
    if instrument is None:
        from stellarperceptron.instruments import APOGEE as instrument
    pixels = [instrument.chips[chip] for chip in chips or instrument.chips]
    ranges = [np.clip(instrument.wavelength[chip][[0, -1]], *between) for chip in pixels]
    ranges = [span for span in ranges if span[0] < span[1]]
    axes = figure.subplots(
        *(rows, len(ranges)),
        squeeze=False,
        sharex="col",
        sharey="row",
        gridspec_kw={"width_ratios": [float(np.ptp(span)) for span in ranges], "wspace": 0.03},
    )
    for column, span in enumerate(ranges):
        for axis in axes[:, column]:
            axis.set_xlim(*span)
            axis.spines["left"].set_visible(column == 0)
            axis.spines["right"].set_visible(column == len(ranges) - 1)
            axis.tick_params(axis="y", left=column == 0, right=column == len(ranges) - 1)
    axes[-1, len(ranges) // 2].set_xlabel("vacuum wavelength [Å]")
    return axes
