"""Quadratic regression of labels on spectra, in closed form."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["FEWEST_STARS", "SIZES", "STRENGTHS", "QuadraticForm", "fit_quadratic"]

# Number of principal components, and of those that are multiplied with each other.
SIZES = ((10, 0), (30, 10), (100, 20), (200, 30), (300, 40))
FEWEST_STARS = 10  # from which a label can be learned
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True, eq=False)
class QuadraticForm:
    """Labels that are quadratic in the pixels of a spectrum.

    ``constant + x linear + sum_(k >= l) u_k u_l products_kl`` with ``u = x axes``, for a spectrum x
    less the mean of the training stars, 0 in bad pixels.

    Attributes
    ----------
    constant : ndarray
        (Q,)
    linear : ndarray
        (P, Q)
    axes : ndarray
        (P, K) principal axes whose components are multiplied with each other.
    products : ndarray
        (K (K + 1) / 2, Q), in the order of `numpy.tril_indices`.
    """

    constant: np.ndarray
    linear: np.ndarray
    axes: np.ndarray
    products: np.ndarray

    def __call__(self, flux: np.ndarray) -> np.ndarray:
        """Labels (N, Q) from centred fluxes (N, P)."""
        both = flux @ np.hstack([self.linear, self.axes])
        linear, components = np.split(both, [len(self.constant)], axis=1)
        one, other = np.tril_indices(self.axes.shape[1])
        components = components.astype(float)
        return self.constant + linear + components[:, one] * components[:, other] @ self.products


def fit_quadratic(
    flux: np.ndarray,
    labels: np.ndarray,
    sizes: Sequence[tuple[int, int]] = SIZES,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> tuple[QuadraticForm, np.ndarray, list[tuple[tuple[int, int], float]]]:
    """Ridge regression on principal components of the fluxes and on the products of the first.

    How many components and products are used, and the strength of the ridge, are chosen for each
    label on held-out stars (a tenth of them, or five folds of fewer than 1,000).

    Parameters
    ----------
    flux
        (N, P) float32, less the mean of each pixel, which bad pixels are given.
    labels
        (N, Q), NaN where missing.
    sizes
        Pairs to choose from: number of components, and of those whose products are used. Of few
        stars, fewer are used.
    strengths
        Of the ridge, with components of variance 1.
    seed
        Of the held-out stars and of the search for the components.

    Returns
    -------
    form : QuadraticForm
    errors : ndarray
        (Q,) RMSE of the held-out stars.
    chosen : list
        Size and strength for each label.

    A label that fewer than ten stars have is 0 everywhere.
    """
    stars, pixels = flux.shape
    limits = min(pixels, stars // 4), int((stars / 2) ** 0.5)
    sizes = sorted({(min(c, limits[0]), min(c, p, *limits)) for c, p in sizes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, values, axes = torch.pca_lowrank(torch.from_numpy(flux), sizes[-1][0], center=False)
    scaled = (axes / values.clamp_min(1e-6) * stars**0.5).numpy()
    multiplied = max(p for _, p in sizes)
    one, other = np.tril_indices(multiplied)
    components = (flux @ scaled).astype(float)
    products = components[:, one] * components[:, other]
    features, known = np.hstack([np.ones((stars, 1)), products, components]), np.isfinite(labels)

    def columns(size: tuple[int, int]) -> np.ndarray:
        squares, first = size[1] * (size[1] + 1) // 2, 1 + len(one)
        return np.append(np.arange(1 + squares), np.arange(first, first + size[0]))

    weights = np.zeros((features.shape[1], labels.shape[1]))
    errors, chosen = np.zeros(labels.shape[1]), [(sizes[0], strengths[0])] * labels.shape[1]
    for pattern in np.unique(known, axis=1).T:  # labels that the same stars have, together
        alike = np.flatnonzero((known == pattern[:, None]).all(axis=0))
        if pattern.sum() < FEWEST_STARS:
            continue
        x, y = features[pattern], labels[np.ix_(pattern, alike)]
        square, product = x.T @ x, x.T @ y
        residuals: dict[tuple, list[np.ndarray]] = {}
        for held in _held_out_folds(len(x), seed):
            part, truth = x[held], y[held]
            rest = square - part.T @ part, product - part.T @ truth
            for size, strength in itertools.product(sizes, strengths):
                some = columns(size)
                residual = part[:, some] @ _ridge(*rest, some, strength) - truth
                residuals.setdefault((size, strength), []).append(residual)
        rmse = {k: np.sqrt(np.mean(np.concatenate(r) ** 2, 0)) for k, r in residuals.items()}
        for i, label in enumerate(alike):
            size, strength = best = min(rmse, key=lambda key: rmse[key][i])
            some = columns(size)
            weights[some, label] = _ridge(square, product[:, i], some, strength)
            errors[label], chosen[label] = rmse[best][i], best
    constant, products, linear = np.split(weights, [1, 1 + len(one)])
    form = QuadraticForm(
        constant[0],
        (scaled @ linear).astype(np.float32),
        scaled[:, :multiplied],
        products,
    )
    return form, errors, chosen


def _held_out_folds(stars: int, seed: int, many: int = 1000) -> list[np.ndarray]:
    """Masks (N,) of held-out stars: one tenth of many stars, five folds of fewer."""
    order = np.random.RandomState(seed).permutation(stars)
    parts = [order[: stars // 10]] if stars >= many else np.array_split(order, min(5, stars))
    return [np.isin(np.arange(stars), part) for part in parts]


def _ridge(square: np.ndarray, product: np.ndarray, columns: np.ndarray, strength: float):
    """Weights by the normal equations of some of the columns; the first, a constant, is free."""
    square = square[np.ix_(columns, columns)]
    square[np.arange(1, len(columns)), np.arange(1, len(columns))] += strength
    return np.linalg.solve(square, product[columns])
