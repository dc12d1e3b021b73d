"""A quadratic regression whose answers are averaged with those of a network.

Both learn from the same stars, but err differently: on the mock survey their errors correlate by
less than 0.6. The weighted mean is therefore better than either. Where the two disagree, as for
stars that are unlike those of the training, the network is the safer one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from stellarperceptron.network.baselines.quadratic import QuadraticForm
from stellarperceptron.utils.data_utils import require_arrays, require_names

__all__ = ["DISAGREEMENT", "AveragedRegression"]

LEAST_VALID = 0.9
"""Share of valid pixels below which the network, which does not need all, answers alone."""

DISAGREEMENT = 5.0
"""Differences beyond which the network answers alone, over their usual scatter and the network's
error in quadrature. On the mock survey, 0.4 % of the stars have one in some label."""


@dataclass(frozen=True, eq=False)
class AveragedRegression:
    """A quadratic regression, and its share in a model's answers.

    Labels are standardized as those of the model; fluxes are not. The shares hold for spectra with
    exactly the pixels of the regression; from others, the network answers alone.

    Attributes
    ----------
    tokens : ndarray
        (P,) tokens of the pixels.
    label_tokens : ndarray
        (Q,) tokens of the labels.
    mean : ndarray
        (P,) mean of the training spectra.
    form : QuadraticForm
        Labels from spectra less their mean.
    snr : ndarray
        (S,) descending signal-to-noise ratios a pixel at which the shares were measured. Between
        them, shares, scales and differences are interpolated in the logarithm. The last is 0: it
        stands for spectra whose ratio is unknown.
    shares : ndarray
        (S, Q) weights of the regression, 0 to 1; those of the network are the rest.
    scales : ndarray
        (S, Q) standard deviations of the mean over those of the network.
    differences : ndarray
        (S, Q) scatter of the regression's labels less the network's.
    """

    tokens: np.ndarray
    label_tokens: np.ndarray
    mean: np.ndarray
    form: QuadraticForm
    snr: np.ndarray
    shares: np.ndarray
    scales: np.ndarray
    differences: np.ndarray

    def columns(self, tokens: np.ndarray) -> np.ndarray | None:
        """Columns (P,) of the regression's pixels among tokens (n,); None if these are others."""
        order = np.argsort(tokens)
        if len(tokens) != len(self.tokens) or (tokens[order] != np.sort(self.tokens)).any():
            return None
        return order[np.searchsorted(tokens, self.tokens, sorter=order)]

    def answers(self, flux: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Labels (N, Q) from fluxes (N, n), NaN for stars with too few valid pixels."""
        centred = flux[:, columns] - self.mean
        valid = np.isfinite(centred)
        centred[~valid] = 0.0
        answers = self.form(centred)
        answers[valid.mean(axis=1) < LEAST_VALID] = np.nan
        return answers

    def average(
        self,
        value: np.ndarray,
        error: np.ndarray,
        answers: np.ndarray,
        label_tokens: np.ndarray,
        snr: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean of both answers, and its error.

        Parameters
        ----------
        value, error
            (N, q) labels and standard deviations by the network.
        answers
            (N, Q) labels by the regression, NaN where the network is to answer alone.
        label_tokens
            (q,) tokens of the labels; those that the regression does not know stay.
        snr
            (N,) signal-to-noise ratios a pixel, NaN where unknown; None: all unknown.

        Returns
        -------
        value, error : ndarray
            (N, q)
        """
        value, error = value.copy(), error.copy()
        told = np.full(len(value), np.nan) if snr is None else np.asarray(snr, dtype=float)
        unknown = ~(told > 0)
        place, places = -np.log(np.where(unknown, 1.0, told)), -np.log(self.snr[:-1])
        for own, token in enumerate(self.label_tokens):
            for asked in np.flatnonzero(label_tokens == token):
                share, scale, usual = (
                    np.where(unknown, table[-1, own], np.interp(place, places, table[:-1, own]))
                    for table in (self.shares, self.scales, self.differences)
                )
                difference = answers[:, own] - value[:, asked]
                agree = np.abs(difference) < DISAGREEMENT * np.hypot(usual, error[:, asked])
                value[:, asked] += np.where(agree, share * difference, 0.0)
                error[:, asked] *= np.where(agree, scale, 1.0)
        return value, error

    def to_arrays(self, half: bool = False) -> dict[str, np.ndarray]:
        """The arrays, by the names of the attributes; the large ones in half precision."""
        arrays = {**vars(self), **vars(self.form)}
        del arrays["form"]
        if half:
            arrays |= {name: arrays[name].astype(np.float16) for name in ("linear", "axes")}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], vocab_size: int) -> Self:
        """Make a regression from arrays of a file.

        Raises
        ------
        ValueError
            An array is missing, has the wrong shape, or holds impossible numbers.
        """
        inner = [field.name for field in fields(QuadraticForm)]
        names = [field.name for field in fields(cls) if field.name != "form"] + inner
        require_names("the regression", arrays, names)
        p, q, s = (len(np.atleast_1d(arrays[name])) for name in ("tokens", "label_tokens", "snr"))
        k = arrays["axes"].shape[-1] if arrays["axes"].ndim else 0
        shapes = {
            "tokens": (p,),
            "label_tokens": (q,),
            "mean": (p,),
            "snr": (s,),
            **dict.fromkeys(("shares", "scales", "differences"), (s, q)),
            "constant": (q,),
            "linear": (p, q),
            "axes": (p, k),
            "products": (k * (k + 1) // 2, q),
        }
        require_arrays("the regression", arrays, shapes, vocab_size)
        shares, snr, scales = (arrays[name] for name in ("shares", "snr", "scales"))
        possible = p and q and s > 1 and snr[-1] == 0 and (np.diff(snr) < 0).all()
        possible = possible and (scales > 0).all()
        possible = possible and (shares >= 0).all() and (shares <= 1).all()
        if not possible or (arrays["differences"] < 0).any():
            raise ValueError("snr, shares, scales or differences are not possible")
        large = {name: arrays[name].astype(np.float32) for name in ("linear", "axes")}
        form = QuadraticForm(**{name: arrays[name] for name in inner} | large)
        return cls(form=form, **{name: arrays[name] for name in names if name not in inner})
