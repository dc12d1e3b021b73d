"""Response of spectra to their labels, and how well attention follows it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stellarperceptron.data.apogee.continuum import pseudo_continuum
from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.data.mock.stellar_labels import LABELS
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument

__all__ = [
    "Concentration",
    "best_linear_weights",
    "concentration",
    "label_information",
    "label_response",
    "label_slopes",
    "leading_pixels",
    "token_response",
]


def label_slopes(
    emulator: Emulator,
    labels: Mapping[str, np.ndarray],
    names: Sequence[str],
    instrument: Instrument = APOGEE,
) -> np.ndarray:
    """Derivatives of the normalized flux of stars with respect to their labels.

    This is the derivative of the flux f divided by its pseudo-continuum c, (f' - c' f / c) / c, at
    the instrument's resolution, with all other labels held fixed.

    Parameters
    ----------
    emulator
        Emulator of spectra.
    labels
        Labels of N stars by name (see `standard_labels`). Labels outside the emulator's range are
        moved to its edge.
    names
        Names of the Q labels.
    instrument
        Instrument with the n pixels, the resolving power and the pseudo-continuum.

    Returns
    -------
    (N, Q, n) float64
        Derivatives per K or dex.

    Raises
    ------
    ValueError
        The emulator does not know a label.
    """
    unknown = [name for name in names if name not in LABELS]
    if unknown:
        raise ValueError(f"the emulator knows no labels {unknown}, only {list(LABELS)}")
    known = {name: torch.as_tensor(np.asarray(v, dtype=float)) for name, v in labels.items()}
    grid = instrument.wavelength, instrument.resolving_power
    flux = emulator.flux(known, *grid, "clip")
    slopes = emulator.derivatives(known, names, *grid, "clip")  # (N, Q, n)

    if instrument.continuum is None:
        return slopes.numpy()
    # Without clipping the polynomial is linear in the flux, and so has this derivative.
    fit = {"chips": instrument.chips, "order": instrument.continuum.order, "clip_high": math.inf}
    continuum = pseudo_continuum(flux, **fit)[:, None]
    moved = pseudo_continuum(slopes, **fit)
    return ((slopes - moved * flux[:, None] / continuum) / continuum).numpy()


def label_response(slopes: np.ndarray) -> np.ndarray:
    """Response of the flux (Q, n): root mean square of `label_slopes` over the stars."""
    return np.sqrt(np.square(slopes).mean(axis=0))


def label_information(slopes: np.ndarray) -> np.ndarray:
    """Information of the flux on each label that changes of no other label could imitate.

    A strong line responds to everything. What tells a label from the others is the part of its
    slope that no combination of the other labels' slopes imitates; the square of this part, pixel
    by pixel, is the Fisher information about the label in white noise when the other labels are
    unknown, too (in a regression: Frisch & Waugh 1933, Econometrica 1, 387).

    Parameters
    ----------
    slopes
        (N, Q, n), see `label_slopes`.

    Returns
    -------
    (Q, n) float64
        Square root of each pixel's share of the information, mean of the stars; the squares sum to
        one over the pixels.
    """
    own = np.square(_own_slopes(slopes))
    return np.sqrt((own / own.sum(axis=2, keepdims=True).clip(1e-300)).mean(axis=0))


def best_linear_weights(slopes: np.ndarray) -> np.ndarray:
    """Weights of the best linear unbiased estimator of each label, mean of the stars.

    Of all linear functions of the flux whose mean is the label, whatever the other labels are, the
    one of least variance in white noise: ``(D D^T)^-1 D`` (Aitken 1936, Proc. R. Soc. Edinburgh 55,
    42). Its derivative with respect to flux is to be compared with a network's.

    Parameters
    ----------
    slopes
        D of each star, (N, Q, n), see `label_slopes`.

    Returns
    -------
    (Q, n) float64
        Label per unit of flux.
    """
    own = _own_slopes(slopes)
    return (own / np.square(own).sum(axis=2, keepdims=True).clip(1e-300)).mean(axis=0)


def _own_slopes(slopes: np.ndarray) -> np.ndarray:
    """Part (N, Q, n) of each label's slope that is orthogonal to those of all other labels."""
    result = np.empty_like(slopes)
    for star, own in zip(slopes, result, strict=True):
        for i, slope in enumerate(star):
            others = np.delete(star, i, axis=0).T  # (n, Q - 1)
            # In units of their lengths, which differ by a thousand between K and dex.
            others = others / np.linalg.norm(others, axis=0).clip(1e-300)
            own[i] = slope - others @ np.linalg.lstsq(others, slope)[0]
    return result


def leading_pixels(ranking: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Mask (n,) of the share of the pixels that rank highest, at least one of them.

    Parameters
    ----------
    ranking
        (n,) such as one label's `label_response` or `label_information`.
    share
        Between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}: it must lie between 0 and 1")
    mask = np.zeros(len(ranking), dtype=bool)
    mask[np.argsort(-ranking, kind="stable")[: max(1, round(share * len(ranking)))]] = True
    return mask


def token_response(response: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Response (Q, T) of tokens: root mean square over their pixels (T, P) of (Q, n)."""
    squares = np.append(np.square(response), np.full((len(response), 1), np.nan), axis=1)
    return np.sqrt(np.nanmean(squares[:, pixels], axis=2))


@dataclass(frozen=True)
class Concentration:
    """Attention on the tokens that respond most to a label, or that constrain it best.

    Attributes
    ----------
    chance
        Fraction of the tokens that count as responding, which is their share of uniform attention.
    share
        Share of the attention that these tokens receive.
    ratio
        Share divided by chance.
    rank_correlation
        Spearman's coefficient of attention and response over all tokens; NaN if either is constant.
    ratio_of_response, ratio_of_square
        Ratio of attention that is proportional to the response, or to its square (the information
        about the label). This is what to expect of well-placed attention.
    """

    chance: float
    share: float
    ratio: float
    rank_correlation: float
    ratio_of_response: float
    ratio_of_square: float


def concentration(attention: np.ndarray, response: np.ndarray, top: float = 0.05) -> Concentration:
    """Compare attention (T,) with response (T,); `top` of the tokens count as responding.

    Raises
    ------
    ValueError
        Shapes that do not match, or a share that is not between 0 and 1.
    """
    if np.ndim(attention) != 1 or np.shape(attention) != np.shape(response):
        raise ValueError(f"attention {np.shape(attention)}, response {np.shape(response)}")
    if not 0 < top < 1:
        raise ValueError(f"top is {top}: it must lie between 0 and 1")
    known = np.isfinite(attention) & np.isfinite(response)
    attention, response = np.asarray(attention)[known], np.asarray(response)[known]
    number = max(1, round(top * len(response)))
    best = np.argsort(-response, kind="stable")[:number]
    chance = number / len(response)

    def share(values: np.ndarray) -> float:
        return float(values[best].sum() / values.sum())

    return Concentration(
        chance=chance,
        share=share(attention),
        ratio=share(attention) / chance,
        rank_correlation=_rank_correlation(attention, response),
        ratio_of_response=share(response) / chance,
        ratio_of_square=share(response**2) / chance,
    )


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation; NaN when all values of one are alike."""
    one, other = (ranks - ranks.mean() for ranks in (_ranks(one), _ranks(other)))
    scale = math.sqrt((one @ one) * (other @ other))
    return float(one @ other) / scale if scale else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (T,), equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
