"""
The survey's median spectrum as a model: typical stars, APOGEE's resolution, ASPCAP's continuum.

Used by ``calibrate_lines.py`` to compare a line list with the pixel medians of the real survey.
Where the package has functions of the same purpose (``observation.broadening_velocity``,
``population.all_labels``), those here stay as they were when ``line_adjustments.csv`` was made.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from grid_labels import complete
from spectral_ranges import APOGEE, LOG10_STEP, RESOLUTION

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, CHIP_PIXELS, VALID_PIXELS
from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT

N_VALID = len(VALID_PIXELS)  # 7,514
LOG10_WAVELENGTH = np.log10(APOGEE_WAVELENGTH)  # vacuum, A
CHIP_SLICES = tuple(CHIP_PIXELS.values())
CHIP_OF_PIXEL = np.repeat(np.arange(3), [chip.stop - chip.start for chip in CHIP_SLICES])


def read_norm_config(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the survey's pixel medians and robust spreads, (7514,) each.

    Parameters
    ----------
    path : Path
        ``config.json`` of a published model: its ``norm_config`` holds, for every token, the
        median and the scaled median absolute deviation over the training stars; tokens 1 to
        7,514 are the valid pixels.
    """
    config = json.loads(path.read_text(encoding="utf-8-sig"))["norm_config"]
    median = np.array(config["_input_mean"][1 : N_VALID + 1], dtype=np.float64)
    spread = np.array(config["_input_std"][1 : N_VALID + 1], dtype=np.float64)
    if median.shape != (N_VALID,) or not 0.9 < median.mean() < 1.1:
        raise ValueError(f"{path}: tokens 1 to {N_VALID} are not pixel medians")
    return median, spread


# Not `continuum.normalize`: the fit of the lines needs these projections for its derivatives.
def _projections():
    """Orthonormal polynomials of degree 0 to 4 on each chip."""
    bases = []
    for chip in CHIP_SLICES:
        x = np.linspace(-1, 1, chip.stop - chip.start)
        bases.append(np.linalg.qr(np.vander(x, 5, increasing=True))[0])
    return bases


BASES = _projections()


def pseudo_continuum(flux: np.ndarray) -> np.ndarray:
    """Least-squares polynomial of degree 4 over each chip, without rejection.

    That this is what ASPCAP does can be read off the published medians: their Legendre moments
    of degree 1 to 4 vanish on every chip, and their mean is 1.001.
    """
    out = np.empty_like(flux)
    for chip, base in zip(CHIP_SLICES, BASES, strict=True):
        out[..., chip] = (flux[..., chip] @ base) @ base.T
    return out


# Not `line_spread.lsf_matrix`, which cuts the kernel elsewhere: the shipped table was made so.
def sample(flux: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """Broaden a grid spectrum and take it at the 7,514 valid pixels.

    Parameters
    ----------
    flux : ndarray, (16510,)
        Normalized flux at R = 60,000.
    fwhm : ndarray, (3,)
        Total FWHM wanted on each chip, km/s.
    """
    own = SPEED_OF_LIGHT / RESOLUTION
    # 2.3548 is `line_spread.FWHM` to 2e-5; the shipped table was made with it.
    sigma = np.sqrt(np.maximum(np.asarray(fwhm) ** 2 - own**2, 1.0)) / 2.3548
    pixel = LOG10_STEP * np.log(10.0) * SPEED_OF_LIGHT  # km/s
    position = (LOG10_WAVELENGTH - APOGEE.windows[0].start) / LOG10_STEP
    half = int(np.ceil(4.5 * sigma.max() / pixel))
    index = np.rint(position).astype(int)[:, None] + np.arange(-half, half + 1)
    weight = np.exp(
        -0.5 * ((index - position[:, None]) * pixel / sigma[CHIP_OF_PIXEL][:, None]) ** 2
    )
    weight /= weight.sum(axis=1, keepdims=True)
    return np.einsum("ij,ij->i", flux[np.clip(index, 0, len(flux) - 1)], weight)


# Not `population.all_labels`, which came later: the shipped table was made with this relation.
def carbon_nitrogen(logg: float, fe_h: float, alpha: float) -> tuple[float, float]:
    """Typical [C/Fe] and [N/Fe]: first dredge-up, and extra mixing of metal-poor upper giants."""
    dredge_up = 1.0 / (1.0 + np.exp((logg - 3.4) / 0.1))
    extra = np.clip(-fe_h - 0.4, 0.0, 1.5) / (1.0 + np.exp((logg - 2.2) / 0.2))
    carbon = 0.35 * alpha - 0.14 * dredge_up - 0.25 * extra
    nitrogen = 0.22 * dredge_up + 0.30 * extra
    return float(carbon), float(nitrogen)


def typical_stars(anchors: np.ndarray, n_stars: int, start: float = 0.5) -> list[dict]:
    """Labels of `n_stars` stars of equal weight: every k-th of the survey, sorted by Teff.

    Parameters
    ----------
    anchors : ndarray, (n, 6)
        Cluster centres of survey labels and a weight, proportional to the square root of their
        number of stars.
    n_stars : int
        Number of stars.
    start : float
        Phase of the systematic sample, 0 to 1.
    """
    anchors = anchors[np.lexsort((anchors[:, 1], anchors[:, 0]))]
    cumulative = np.cumsum(anchors[:, -1] ** 2)
    targets = (np.arange(n_stars) + start) / n_stars * cumulative[-1]
    stars = []
    for row in anchors[np.searchsorted(cumulative, targets)]:
        teff, logg, o_fe, mg_fe, fe_h = (float(v) for v in row[:-1])
        carbon, nitrogen = carbon_nitrogen(logg, fe_h, 0.5 * (o_fe + mg_fe))
        labels = {"TEFF": teff, "LOGG": logg, "FE_H": fe_h, "O_FE": o_fe, "Mg_FE": mg_fe}
        stars.append(complete({**labels, "C_FE": carbon, "N_FE": nitrogen}))
    return stars


# Not `observation.broadening_velocity`, which came later: the shipped table was made with this.
def macroturbulence(labels: dict[str, float]) -> float:
    """FWHM [km/s] of macroturbulence (giants, DR17's relation) or rotation (dwarfs)."""
    if labels["LOGG"] < 3.8:
        return 10.0 ** (0.741 - 0.0998 * labels["LOGG"] - 0.225 * labels["FE_H"])
    return 5.0 + 6.0 * float(np.clip((labels["TEFF"] - 5500.0) / 1000.0, 0.0, 1.0))


def observe(flux: np.ndarray, labels: dict[str, float], resolution: np.ndarray) -> np.ndarray:
    """APOGEE spectrum of one star, before the pseudo-continuum: (7514,)."""
    fwhm = np.hypot(SPEED_OF_LIGHT / np.asarray(resolution), macroturbulence(labels))
    return sample(flux, fwhm)


def statistics(spectra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and 1.4826 x median absolute deviation over stars, after the pseudo-continuum."""
    normalized = spectra / pseudo_continuum(spectra)
    median = np.median(normalized, axis=0)
    return median, 1.4826 * np.median(np.abs(normalized - median), axis=0)


def agreement(median, spread, target_median, target_spread) -> dict[str, float]:
    """Correlation and rms difference of the medians, correlation of the spreads."""
    difference = median - target_median
    return {
        "correlation": float(np.corrcoef(median, target_median)[0, 1]),
        "rms": float(np.sqrt(np.mean(difference**2))),
        "spread_correlation": float(np.corrcoef(spread, target_spread)[0, 1]),
        "spread_ratio": float(np.median(spread / target_spread)),
    }
