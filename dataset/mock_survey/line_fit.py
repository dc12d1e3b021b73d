"""
The unknowns of the line-list calibration: responses of the spectra to them, and the fit.

A change of log gf changes the spectrum only near the line, so that one synthesis can perturb many
lines that are some Angstrom apart. A Gauss-Newton step then fits the survey's pixel medians and
scales with all unknowns at once, within bounds and with a prior.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import survey_median as survey
from line_lists import LineList, air_to_vacuum
from scipy.optimize import lsq_linear

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH

STEP = 0.15  # dex, finite difference in log gf
WINDOW = 1.6  # A, half width of a line's response
SEPARATION = 3.2  # A, between lines that are perturbed together
CELL = 0.22  # A: of the lines in one pixel, only the strongest is adjusted
BOUNDS = (-2.5, 1.6)  # dex, total change of log gf
STRIDE = 0.6  # dex, largest change in one iteration
PRIOR = 0.6  # dex, prior width of a change of log gf
NOISE = 0.008  # of a median, in units of the continuum
SPREAD_WEIGHT = 0.5
START_VDW = -7.2  # log10 of the width per hydrogen atom at 10,000 K


@dataclass
class Unknown:
    """One adjustable quantity: log gf of lines, or the damping constant of an element.

    `response` is the change of the spectra for a change of `step`, (stars, pixels in `window`).
    """

    kind: str  # "line", "added", "molecule" or "damping"
    index: np.ndarray  # of the lines it changes
    wavelength: float  # vacuum, A; nan for those that act everywhere
    value: float = 0.0
    low: float = BOUNDS[0]
    high: float = BOUNDS[1]
    exponent: float = 0.8  # of the response's growth with gf
    window: slice = field(default_factory=lambda: slice(0, survey.N_VALID))
    response: np.ndarray | None = None
    measured_at: float = 0.0


def choose_lines(lines: LineList, strength: np.ndarray, threshold: float) -> list[Unknown]:
    """Lines to adjust: strong enough, and the strongest within a pixel."""
    vacuum = air_to_vacuum(lines.air)
    order = np.flatnonzero(strength > threshold)
    order = order[np.argsort(-strength[order])]
    taken = np.zeros(0)
    unknowns = []
    for i in order:
        if len(taken) and np.abs(taken - vacuum[i]).min() < CELL:
            continue
        window = np.flatnonzero(np.abs(APOGEE_WAVELENGTH - vacuum[i]) < WINDOW)
        if len(window) < 4:
            continue
        taken = np.append(taken, vacuum[i])
        span = slice(window[0], window[-1] + 1)
        unknowns.append(Unknown("line", np.array([i]), float(vacuum[i]), window=span))
    return sorted(unknowns, key=lambda u: u.wavelength)


def combs(unknowns: list[Unknown]) -> list[list[Unknown]]:
    """Groups of unknowns far enough apart to be perturbed together."""
    groups = []
    for unknown in unknowns:
        for group in groups:
            if (
                np.isfinite(unknown.wavelength)
                and unknown.wavelength - group[-1].wavelength > SEPARATION
            ):
                group.append(unknown)
                break
        else:
            groups.append([unknown])
    return groups


def with_values(lines: LineList, unknowns: list[Unknown], extra: dict | None = None) -> LineList:
    """Line list at the unknowns' values, plus `extra` (id of unknown -> change)."""
    lines = lines.take(np.arange(len(lines)))
    for unknown in unknowns:
        value = unknown.value + (extra or {}).get(id(unknown), 0.0)
        if unknown.kind == "damping":
            lines.vdw[unknown.index] = value
        else:
            lines.loggf[unknown.index] += value
    return lines


def measure_responses(lab, lines, unknowns, stars, todo=None) -> None:
    """Finite differences for the unknowns in `todo` (default: all), star by star."""
    todo = unknowns if todo is None else todo
    groups = combs([u for u in todo if np.isfinite(u.wavelength)])
    groups += [[u] for u in todo if not np.isfinite(u.wavelength)]
    variants = [with_values(lines, unknowns)]
    variants += [with_values(lines, unknowns, {id(u): STEP for u in group}) for group in groups]
    spectra = lab.spectra(variants, stars, f"responses ({len(groups)} groups)")
    for group, changed in zip(groups, spectra[1:], strict=True):
        for unknown in group:
            unknown.response = (changed - spectra[0])[:, unknown.window].astype(np.float64)
            unknown.measured_at = unknown.value


def nearest_star(stars: list[dict], measured: list[dict]) -> np.ndarray:
    """Index of the most similar measured star for every star."""

    def scaled(group):
        return np.array([[s["TEFF"] / 300, s["LOGG"] / 0.6, s["FE_H"] / 0.3] for s in group])

    distance = ((scaled(stars)[:, None] - scaled(measured)[None]) ** 2).sum(axis=2)
    return distance.argmin(axis=1)


def growth(unknown: Unknown) -> float:
    """Derivative per dex of the response, at the unknown's present value."""
    if unknown.kind == "damping":
        return 1.0 / STEP
    a = unknown.exponent * np.log(10.0)
    moved = unknown.value - unknown.measured_at
    return a * np.exp(a * moved) / (np.exp(a * STEP) - 1.0)


def solve(unknowns, spectra, nearest, target_median, target_spread) -> np.ndarray:
    """One Gauss-Newton step: the change of every unknown.

    The derivative of a median is the mean derivative of the stars in the middle third at that
    pixel; the derivative of the scale follows in the same way from the deviations.
    """
    continuum = survey.pseudo_continuum(spectra)
    normalized = spectra / continuum
    median, spread = survey.statistics(spectra)
    n = len(spectra)
    deviation = normalized - median
    middle = slice(n // 3, n - n // 3)
    central = np.argsort(normalized, axis=0)[middle]  # (stars, pixels)
    typical = np.argsort(np.abs(deviation), axis=0)[middle]
    sign = np.sign(deviation)
    columns = len(unknowns)
    jacobian = np.zeros((2 * survey.N_VALID, columns))
    mean_continuum = continuum.mean(axis=0)
    for k, unknown in enumerate(unknowns):
        w = unknown.window
        change = unknown.response[nearest] / continuum[:, w] * growth(unknown)
        at_median = np.take_along_axis(change, central[:, w], axis=0).mean(axis=0)
        jacobian[: survey.N_VALID, k][w] += at_median
        signed = np.take_along_axis(sign[:, w] * (change - at_median), typical[:, w], axis=0)
        jacobian[survey.N_VALID :, k][w] += 1.4826 * signed.mean(axis=0)
        mean = unknown.response[nearest].mean(axis=0) * growth(unknown)
        for chip, base in zip(survey.CHIP_SLICES, survey.BASES, strict=True):
            low, high = max(chip.start, w.start), min(chip.stop, w.stop)
            if low < high:
                part = base[low - chip.start : high - chip.start]
                lowered = base @ (mean[low - w.start : high - w.start] @ part)
                jacobian[: survey.N_VALID, k][chip] -= median[chip] * lowered / mean_continuum[chip]
    residual = np.concatenate([target_median - median, SPREAD_WEIGHT * (target_spread - spread)])
    jacobian[survey.N_VALID :] *= SPREAD_WEIGHT
    values = np.array([u.value for u in unknowns])
    start = np.array([START_VDW if u.kind == "damping" else 0.0 for u in unknowns])
    ridge = NOISE / PRIOR
    matrix = np.vstack([jacobian, ridge * np.eye(columns)])
    right = np.concatenate([residual, ridge * (start - values)])
    low = np.maximum([u.low for u in unknowns] - values, -STRIDE) - 1e-9
    high = np.minimum([u.high for u in unknowns] - values, STRIDE) + 1e-9
    gram = np.linalg.cholesky(matrix.T @ matrix)
    return lsq_linear(
        gram.T, np.linalg.solve(gram, matrix.T @ right), bounds=(low, high), tol=1e-6
    ).x


def report(title, spectra, target_median, target_spread) -> dict:
    """Print and return how well the medians and scales agree."""
    figures = survey.agreement(*survey.statistics(spectra), target_median, target_spread)
    print(title + ": " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()), flush=True)
    return figures
