"""Spectra of other instruments, read between the pixels of a model's instrument.

A model has a row of embeddings, E and V, for every pixel of its instrument. A pixel of another
instrument, with standardized flux x at a wavelength between the rows r and r + 1, contributes

    d [(1 - t) (E_r x + V_r) + t (E_{r+1} x + V_{r+1})]

to the embedding of its token, where d is its width in rows and t its position between the two, both
in the logarithm of the wavelength. This is the same as adding ``d (1 - t) x`` and ``d t x`` to the
values of the two rows, and ``d (1 - t)`` and ``d t`` to their weights, with which V is multiplied.
Tokens then have nearly the same embedding on any grid of pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.instruments.spectrograph import Instrument

__all__ = ["BetweenRows", "between_rows", "log_widths"]


@dataclass(frozen=True)
class BetweenRows:
    """Positions of m pixels between the R rows of a model's instrument.

    Attributes
    ----------
    pixels : (m,) int
        Which of the n pixels lie between rows; the others are in gaps or outside.
    left : (m,) int
        The row before each of them.
    fraction : (m,) float
        Distance from this row, in rows.
    width : (m,) float
        Width in rows.
    rows : int
        R.
    """

    pixels: np.ndarray
    left: np.ndarray
    fraction: np.ndarray
    width: np.ndarray
    rows: int

    def interpolate(self, table: Tensor) -> Tensor:
        """Values (m,) at the pixels of something known at the rows (R,)."""
        left = torch.as_tensor(self.left, device=table.device)
        fraction = torch.as_tensor(self.fraction, dtype=table.dtype, device=table.device)
        return torch.lerp(table[left], table[left + 1], fraction)

    def spread(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Spread standardized pixels (B, m), NaN where bad, onto the rows.

        Returns
        -------
        values, weights : Tensor
            (B, R) sums of the values and of the widths of valid pixels. A row to which nothing
            contributes has the value NaN and the weight 0.
        """
        number, like = len(values), {"dtype": values.dtype, "device": values.device}
        valid = ~values.isnan()
        both = torch.cat([values.nan_to_num(nan=0.0), valid.to(values.dtype)])
        both *= torch.as_tensor(self.width, **like)
        after = both * torch.as_tensor(self.fraction, **like)
        left = torch.as_tensor(self.left, device=values.device).expand_as(both)
        sums = torch.zeros(len(both), self.rows, **like)
        sums.scatter_add_(1, left, both - after).scatter_add_(1, left + 1, after)
        sums, weights = sums[:number], sums[number:]
        return sums.masked_fill(weights == 0, torch.nan), weights


def log_widths(wavelengths: np.ndarray) -> np.ndarray:
    """Widths (n,) of pixels at wavelengths (n,) in any order, in the natural logarithm.

    That is the smaller of the steps to both neighbours: a gap makes no pixel wider.
    """
    order = np.argsort(wavelengths)
    steps = np.diff(np.log(wavelengths[order]))
    widths = np.empty(len(order))
    widths[order] = np.minimum(np.append(steps, np.inf), np.append(np.inf, steps))
    return widths


def between_rows(instrument: Instrument, wavelengths: np.ndarray) -> BetweenRows:
    """Find pixels of another instrument between those of a model's.

    A pixel within half a step of the end of a chip belongs to its last row. Pixels farther outside
    all chips are left out.

    Parameters
    ----------
    instrument
        The model's instrument.
    wavelengths
        (n,) two or more different vacuum wavelengths of the other instrument's pixels [Angstrom].
    """
    rows, place = np.log(instrument.wavelength), np.log(wavelengths)
    row_width = instrument.pixel_width / instrument.wavelength
    step = np.diff(rows)
    gap = step > 1.5 * row_width[:-1]
    left = np.searchsorted(rows, place, side="right").clip(1, len(rows) - 1) - 1
    after = (place - rows[left]) / row_width[left]  # the left row, in rows
    before = (rows[left + 1] - place) / row_width[left + 1]
    inside = np.where(
        gap[left], np.minimum(after, before) <= 0.5, np.minimum(after, before) >= -0.5
    )
    fraction = np.where(gap[left], after > before, ((place - rows[left]) / step[left]).clip(0, 1))
    pixels = np.flatnonzero(inside)
    return BetweenRows(
        pixels,
        left[pixels],
        fraction[pixels],
        (log_widths(wavelengths) / row_width[left])[pixels],
        len(rows),
    )
