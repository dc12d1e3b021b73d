"""Interpolation of well-sampled spectra."""

import numpy as np

__all__ = ["interpolate"]


def interpolate(x: np.ndarray, y: np.ndarray, target: np.ndarray, points: int = 6) -> np.ndarray:
    """Interpolate y(x) at `target` by Lagrange polynomials through neighbouring points.

    Lines that span four pixels and more are met to a few thousandths of their depth with six
    points; linear interpolation misses a tenth.

    Parameters
    ----------
    x : (n,)
        Ascending, at least `points` of them, at any distances.
    y : (n,)
        Values at x.
    target : (m,)
        Where to interpolate, within x.
    points
        How many neighbours each polynomial goes through.

    Returns
    -------
    (m,) float64
    """
    right = np.clip(np.searchsorted(x, target), 1, len(x) - 1)
    first = np.clip(right - points // 2, 0, len(x) - points)
    nodes = first[:, None] + np.arange(points)
    offset = target[:, None] - x[nodes]
    value = np.zeros(len(target))
    for i in range(points):
        others = [j for j in range(points) if j != i]
        spacing = x[nodes[:, [i]]] - x[nodes[:, others]]
        value += y[nodes[:, i]] * np.prod(offset[:, others] / spacing, axis=1)
    return value
