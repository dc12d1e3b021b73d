"""Quality of predicted labels: bias, scatter, calibration, with bootstrap intervals."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from astropy.stats import mad_std

__all__ = [
    "GIANTS",
    "METRICS",
    "binned_rmse",
    "bootstrap_interval",
    "coverage",
    "label_metrics",
    "scatter_if_independent",
    "subsets",
    "summarize",
]

GIANTS = (1.0, 3.5)
"""Between these surface gravities [log10 cm/s2] stars count as giants (SpectraFM, Table 1)."""


def _rmse(residual: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(residual))))


# Statistics of the residuals, predicted minus catalogue, in the label's unit.
METRICS: Mapping[str, Callable[[np.ndarray], float]] = {
    "bias": lambda residual: float(np.median(residual)),
    "mad_std": lambda residual: float(mad_std(residual)),
    "rmse": _rmse,
}


def label_metrics(
    predicted: np.ndarray,
    actual: np.ndarray,
    error: np.ndarray | None = None,
    label_error: np.ndarray | None = None,
) -> dict[str, float]:
    """Metrics of one label.

    Parameters
    ----------
    predicted, actual
        (N,); pairs in which one is NaN are left out.
    error
        (N,) predicted standard deviations; None for none.
    label_error
        (N,) standard deviations of the catalogue's values, NaN where unknown; None for none.

    Returns
    -------
    dict
        `stars`; `bias` (median of predicted minus catalogue value), `mad_std` (median absolute
        deviation of these residuals, scaled to a standard deviation by `astropy.stats.mad_std`) and
        `rmse`, all in the label's unit. With errors also `pull_std` (standard deviation of the
        residuals over their errors) and `within_1_sigma`, `within_2_sigma` (fractions of the
        stars). For well-calibrated errors these are 1, 0.683 and 0.954, as long as the errors of
        the catalogue, which the predicted ones do not include, are much smaller. With `label_error`
        also `total_pull_std`, `total_within_1_sigma` and `total_within_2_sigma`, for which it is
        added to the predicted error in quadrature. These are 1, 0.683 and 0.954 for well-calibrated
        errors, however large those of the catalogue are. Stars of unknown catalogue error are left
        out there. Everything is NaN without stars.

    Raises
    ------
    ValueError
        Shapes that do not match, or a catalogue error without a predicted one.
    """
    predicted, actual = np.asarray(predicted, dtype=float), np.asarray(actual, dtype=float)
    if predicted.shape != actual.shape or predicted.ndim != 1:
        raise ValueError(f"predicted {predicted.shape} and actual {actual.shape} do not match")
    known = np.isfinite(predicted) & np.isfinite(actual)
    residual = (predicted - actual)[known]
    some = len(residual) > 0
    result: dict[str, float] = {"stars": int(known.sum())}
    result |= {name: metric(residual) if some else np.nan for name, metric in METRICS.items()}
    if error is None:
        if label_error is not None:
            raise ValueError("label_error needs the predicted errors, to which it is added")
        return result
    error = np.asarray(error, dtype=float)[known]
    result |= _calibration(residual, error)
    if label_error is not None:
        total = np.hypot(error, np.asarray(label_error, dtype=float)[known])
        measured = np.isfinite(total)
        totals = _calibration(residual[measured], total[measured])
        result |= {f"total_{name}": value for name, value in totals.items()}
    return result


def _calibration(residual: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """Standard deviation of the pulls, fractions within 1 and 2 sigma; NaN without stars."""
    one, two = coverage(residual, error, np.array([1.0, 2.0]))
    pull_std = float(np.std(residual / error)) if len(residual) else np.nan
    return {"pull_std": pull_std, "within_1_sigma": float(one), "within_2_sigma": float(two)}


def coverage(residual: np.ndarray, error: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Fraction of the stars whose residual is smaller than a multiple of their error.

    Parameters
    ----------
    residual, error
        (N,) predicted minus catalogue value, and its standard deviation.
    sigmas
        (K,) multiples of the error.

    Returns
    -------
    (K,) float64
        NaN without stars. For Gaussian errors it is ``erf(sigmas / sqrt(2))``.
    """
    if not len(residual):
        return np.full(len(sigmas), np.nan)
    return (np.abs(residual / error)[:, None] < np.asarray(sigmas)).mean(axis=0)


def binned_rmse(predicted: np.ndarray, actual: np.ndarray, edges: np.ndarray) -> pd.DataFrame:
    """RMSE of a label in bins of its catalogue value.

    Parameters
    ----------
    predicted, actual
        (N,); pairs in which one is NaN are left out.
    edges
        (K + 1,) ascending; a bin contains its lower edge, not its upper one.

    Returns
    -------
    DataFrame
        A row for each of the K bins: low, high, stars, rmse (NaN without stars).
    """
    actual = np.asarray(actual, dtype=float)
    residual = np.asarray(predicted, dtype=float) - actual
    rows = []
    for low, high in itertools.pairwise(edges):
        part = residual[np.isfinite(residual) & (actual >= low) & (actual < high)]
        rmse = _rmse(part) if len(part) else np.nan
        rows.append({"low": low, "high": high, "stars": len(part), "rmse": rmse})
    return pd.DataFrame(rows)


def bootstrap_interval(
    residual: np.ndarray,
    metric: Callable[[np.ndarray], float],
    *,
    share: float = 0.68,
    draws: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Central interval of a metric over resampled stars.

    Parameters
    ----------
    residual
        (N,) predicted minus catalogue values, finite.
    metric
        One of `METRICS`.
    share
        Probability inside.
    draws, seed
        Number of resamplings and their seed.
    """
    random = np.random.RandomState(seed)
    values = [metric(random.choice(residual, len(residual))) for _ in range(draws)]
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def subsets(actual: pd.DataFrame) -> dict[str, np.ndarray]:
    """Subsets of the paper: masks (N,) of all stars, giants, and metal-poor stars.

    Parameters
    ----------
    actual
        Catalogue labels with the columns `LOGG` and `FE_H`, as far as they are known.
    """
    everyone = np.ones(len(actual), dtype=bool)
    result = {"all": everyone}
    if "LOGG" in actual:
        result["giants"] = actual["LOGG"].between(*GIANTS, inclusive="neither").to_numpy()
    if "FE_H" in actual:
        result["[Fe/H] < -1"] = (actual["FE_H"] < -1.0).to_numpy()
    return result


def _intervals(residual: np.ndarray) -> dict[str, float]:
    """`<metric>_low` and `<metric>_high` of all metrics; NaN without stars."""
    result: dict[str, float] = {}
    for name, metric in METRICS.items():
        low, high = bootstrap_interval(residual, metric) if len(residual) else (np.nan, np.nan)
        result |= {f"{name}_low": low, f"{name}_high": high}
    return result


def summarize(
    predicted: pd.DataFrame,
    actual: pd.DataFrame,
    labels: Sequence[str] | None = None,
    *,
    intervals: bool = False,
) -> pd.DataFrame:
    """Metrics of all labels and subsets.

    Parameters
    ----------
    predicted
        Columns `<label>` and, where there are errors, `<label>_error`, as `predict` gives them.
    actual
        Catalogue labels: columns `<label>`, the same rows.
    labels
        Labels to compare; None: all that both have.
    intervals
        Add `bias_low`, `bias_high` and so on: central 68 % of bootstrap samples of the stars.

    Returns
    -------
    DataFrame
        A row for each label and subset, columns as from `label_metrics`.

    Raises
    ------
    ValueError
        The tables have different numbers of stars.
    """
    if len(predicted) != len(actual):
        raise ValueError(
            f"{len(predicted)} predictions do not belong to {len(actual)} stars with labels"
        )
    labels = [c for c in actual if c in predicted] if labels is None else labels
    rows = []
    for subset, mask in subsets(actual).items():
        for label in labels:
            error = predicted.get(f"{label}_error")
            found, true = predicted[label].to_numpy()[mask], actual[label].to_numpy()[mask]
            values = label_metrics(found, true, None if error is None else error.to_numpy()[mask])
            if intervals:
                residual = found - true
                values |= _intervals(residual[np.isfinite(residual)])
            rows.append({"subset": subset, "label": label, **values})
    return pd.DataFrame(rows)


def scatter_if_independent(scatters: Sequence[float]) -> float:
    """Scatter of the weighted mean of several answers whose errors are independent.

    Parameters
    ----------
    scatters
        Scatter of each answer; the weights are the inverse squares.

    Examples
    --------
    >>> scatter_if_independent([3.0, 4.0])
    2.4
    """
    return float(np.square(1 / np.asarray(scatters)).sum() ** -0.5)
