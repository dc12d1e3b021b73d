"""A model without its weights: vocabulary, standardization, configuration, calibration."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch

from stellarperceptron.data.standardizer import Standardizer
from stellarperceptron.network.config import PUBLISHED_KEYS, ModelConfig
from stellarperceptron.utils.arguments import with_nearest
from stellarperceptron.utils.arrays import as_array, sentinels_to_nan

__all__ = ["PADDING", "Calibration", "StellarPerceptronCore", "error_scale", "label_table"]

PADDING = "[pad]"


class Calibration:
    """Factors that scale predicted standard deviations to the scatter of held-out stars.

    The factor of a label is ``exp(a + b ln(n / PIXELS) + c ln(s / SNR))`` for a star with n valid
    pixels (or other values) and a signal-to-noise ratio s, and ``exp(a + b ln(n / PIXELS) + d)``
    where the model was not told the ratio. A pixel of another instrument than the model's counts as
    many as it is wide in pixels of the model's.

    Parameters
    ----------
    factors
        (a, b), (a, b, c) or (a, b, c, d) of each label, the others being 0; other labels have a
        factor of 1. A model of several instruments has such a mapping for each, under its name.

    Attributes
    ----------
    factors : dict
        (a, b, c, d) of the labels.
    parts : dict of str to Calibration
        Those of the instruments.
    """

    PIXELS = 1000.0
    SNR = 100.0
    SNR_LIMITS = (20.0, 500.0)  # the profiles' trainings show no other

    def __init__(self, factors: Mapping[str, Sequence[float]] | None = None):
        self.factors: dict[str, tuple[float, ...]] = {}
        self.parts: dict[str, Calibration] = {}
        if not isinstance(factors, Mapping | None):
            raise ValueError(f"the calibration is {factors!r}, not numbers for each label")
        for label, values in (factors or {}).items():
            if isinstance(values, Mapping):
                self.parts[str(label)] = Calibration(values)
                continue
            numbers = tuple(float(value) for value in values)
            if len(numbers) not in (2, 3, 4) or not np.isfinite(numbers).all():
                raise ValueError(
                    f"calibration of {label} is {values!r}, not two to four finite numbers"
                )
            self.factors[str(label)] = numbers + (0.0,) * (4 - len(numbers))

    def to_dict(self) -> dict[str, Any]:
        """What the calibration can be made from, in values that JSON can hold."""
        known = {label: f if any(f[2:]) else f[:2] for label, f in self.factors.items()}
        return {**known, **{name: part.to_dict() for name, part in self.parts.items()}}

    def of(self, instruments: Sequence[str]) -> "Calibration":
        """Calibration for spectra of some of the instruments at once.

        Their factors are the geometric means of those of each; of instruments that are not known,
        those of all. Without `parts`, it is the calibration itself.
        """
        parts = [self.parts[name] for name in instruments if name in self.parts]
        parts = parts or list(self.parts.values())
        labels = dict.fromkeys(label for part in parts for label in part.factors)
        means = {
            label: np.mean([part.factors[label] for part in parts if label in part.factors], axis=0)
            for label in labels
        }
        return Calibration(means) if parts else self

    def factor(
        self, labels: Sequence[str], pixels: np.ndarray, snr: np.ndarray | None = None
    ) -> np.ndarray:
        """Factors (N, Q) of labels.

        Parameters
        ----------
        labels
            (Q,) names.
        pixels
            (N,) numbers of valid pixels of the stars.
        snr
            (N,) signal-to-noise ratios a pixel, NaN where unknown; None: all unknown.
        """
        factors = np.array([self.factors.get(label, (0.0,) * 4) for label in labels])
        return np.exp(self._terms(pixels, snr) @ factors.T)

    def _terms(self, pixels: np.ndarray, snr: np.ndarray | None) -> np.ndarray:
        """What a, b, c and d are multiplied with (k, 4)."""
        size = np.log(np.maximum(pixels, 1) / self.PIXELS)
        told = np.full(len(size), np.nan) if snr is None else np.asarray(snr)
        ratio = np.nan_to_num(np.log(np.clip(told, *self.SNR_LIMITS) / self.SNR), nan=0.0)
        return np.stack([np.ones(len(size)), size, ratio, np.isnan(told)], axis=1)

    def fit(
        self,
        label: str,
        pixels: np.ndarray,
        scales: np.ndarray,
        snr: np.ndarray | None = None,
        first: bool = False,
    ) -> None:
        """Fit the factor of a label to scales (k,) measured with these numbers of pixels (k,).

        Least squares in the logarithms give a, b and, from signal-to-noise ratios (k,), which are
        NaN where the model was not told, c and d. What the measurements do not tell apart is 0.

        Parameters
        ----------
        label, pixels, scales, snr
            The measurements.
        first
            Make the fit exact for the first measurement, usually that of the whole spectra.

        Raises
        ------
        ValueError
            A scale is not a positive number.
        """
        if not np.all(np.isfinite(scales) & (np.asarray(scales) > 0)):
            raise ValueError(f"scales {scales} of the errors of {label} are not positive numbers")
        x, y = self._terms(np.asarray(pixels), snr)[:, 1:], np.log(scales)
        x0, y0 = (x[0], y[0]) if first else (x.mean(axis=0), y.mean())
        slopes = np.linalg.lstsq(x - x0, y - y0, rcond=None)[0]
        self.factors[label] = (float(y0 - x0 @ slopes), *map(float, slopes))


def error_scale(residuals: np.ndarray, errors: np.ndarray, label_errors: np.ndarray) -> float:
    """Factor s of predicted errors for which 68.3 % of the stars lie within one standard deviation.

    Parameters
    ----------
    residuals, errors, label_errors
        (N,) predicted minus catalogue label, predicted standard deviation e and catalogue error c.
        A star lies within one standard deviation if ``|residual| < sqrt((s e)^2 + c^2)``. NaNs are
        left out.

    Returns
    -------
    float
        NaN if there is no star, or if the scatter is smaller than the catalogue errors.
    """
    excess = np.square(residuals) - np.square(np.nan_to_num(label_errors))
    ratio = excess / np.square(errors)
    ratio = ratio[np.isfinite(ratio)]
    quantile = float(np.quantile(ratio, 0.6827)) if len(ratio) else 0.0
    return float(np.sqrt(quantile)) if quantile > 0 else math.nan


def label_table(values: Any, names: Sequence[str], suffix: str = "") -> pd.DataFrame:
    """Labels (N, Q) in any container as a table; NaN where they are missing.

    Parameters
    ----------
    values
        The labels, or their errors.
    names
        (Q,) names of the columns.
    suffix
        "_ERR" for errors, whose marks for a missing value are others; see `sentinels_to_nan`.
    """
    array = as_array(values, unit=None, name=f"labels{suffix}")
    array = sentinels_to_nan(array, [f"{name}{suffix}" for name in names])
    return pd.DataFrame(array, columns=list(names))


class StellarPerceptronCore:
    """Configuration, vocabulary and standardization of a model.

    Parameters
    ----------
    vocabs
        Names of all tokens (pixels and labels), each once. Name i has token i + 1; token 0 is
        padding.
    config
        Sizes of the network.
    embed_map
        Embedding row of each token: a mapping of names to names (others keep their own row), or
        (V + 1,) integers. None: each token has its own row.

    Attributes
    ----------
    vocabs : list of str
    vocab_size : int
        Number of tokens V, without padding.
    embed_map : ndarray
        (V + 1,) integers.
    standardizer : Standardizer
        Center and scale of every token.
    calibration : Calibration
        Calibration of predicted standard deviations.

    Raises
    ------
    ValueError
        A name appears twice or is reserved, or `embed_map` has unknown tokens.
    """

    def __init__(
        self,
        vocabs: Sequence[str],
        config: ModelConfig | None = None,
        embed_map: Mapping[str, str] | np.ndarray | None = None,
    ):
        self.config = config or ModelConfig()
        self.vocabs: list[str] = []
        self._token_of: dict[str, int] = {PADDING: 0}
        self.standardizer = Standardizer(1)
        self.calibration = Calibration()
        self.embed_map = np.zeros(1, dtype=np.int64)
        self._append_vocabs(vocabs)
        if not self.vocabs:
            raise ValueError("the vocabulary is empty")
        self._update_embed_map(embed_map)

    @property
    def vocab_size(self) -> int:
        """Number of tokens without padding."""
        return len(self.vocabs)

    # Names of center and scale in the published code.
    _input_mean = property(lambda self: self.standardizer.center)
    _input_std = property(lambda self: self.standardizer.scale)
    _input_standardized = property(lambda self: self.standardizer.fitted)

    @property
    def positions(self) -> np.ndarray:
        """(V + 1,) position of each token's pixel on the pixel grid, which determines its bin."""
        return np.arange(-1, self.vocab_size)

    def _append_vocabs(self, names: Sequence[str]) -> None:
        """Append new names: each gets the next token, no standardization and a row of its own."""
        names = [str(name) for name in names]
        counts = Counter(names)
        counts.update(list(self._token_of))
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"names that are known already or given twice: {twice[:10]}")
        first = self.vocab_size + 1
        self.vocabs += names
        self._token_of.update({name: first + i for i, name in enumerate(names)})
        self.standardizer.grow(len(names))
        self.embed_map = np.append(self.embed_map, np.arange(first, first + len(names)))

    def _update_embed_map(self, embed_map: Mapping[str, str] | np.ndarray | None) -> None:
        if embed_map is None:
            return
        if isinstance(embed_map, Mapping):
            tokens = self.tokenize(list(embed_map))
            targets = self.tokenize(list(embed_map.values()))
            if not (tokens.all() and targets.all()):
                raise ValueError(f"embed_map: {PADDING} has a row of its own that no token shares")
            for token, target in zip(tokens, targets, strict=True):
                # The target may itself use the row of another token.
                self.embed_map[token] = self.embed_map[target]
            return
        rows = np.asarray(embed_map)
        size = self.vocab_size + 1
        if rows.shape != (size,) or rows.dtype.kind not in "iu":
            raise ValueError(
                f"embed_map has shape {rows.shape} and type {rows.dtype}; a vocabulary of "
                f"{self.vocab_size} needs ({size},) integers, row 0 for padding"
            )
        if rows.min() < 0 or rows.max() >= size or rows[0] != 0:
            raise ValueError(f"embed_map must send 0 to 0 and stay within 0..{size - 1}")
        self.embed_map = rows.astype(np.int64)

    def tokenize(self, names: Sequence[str] | np.ndarray) -> np.ndarray:
        """Turn names into tokens.

        Parameters
        ----------
        names
            Names of any shape, "[pad]" for padding. Integers are checked and returned as tokens.

        Returns
        -------
        ndarray
            int64, same shape.

        Raises
        ------
        ValueError
            A name or token is not in the vocabulary; the message lists the nearest names.
        """
        names = np.asarray(names)
        if names.dtype.kind in "iu":
            if names.size and (names.min() < 0 or names.max() > self.vocab_size):
                raise ValueError(f"tokens outside 0..{self.vocab_size}")
            return names.astype(np.int64)
        if names.ndim > 1 and len(names) > 1 and (names == names[0]).all():
            return np.broadcast_to(self.tokenize(names[0]), names.shape).copy()
        unique, inverse = np.unique(names.astype(str), return_inverse=True)
        tokens = [self._token_of.get(name) for name in unique.tolist()]
        unknown = [n for n, token in zip(unique.tolist(), tokens, strict=True) if token is None]
        if unknown:
            shown = "; ".join(with_nearest(name, self.vocabs) for name in unknown[:5])
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ValueError(f"not in the vocabulary: {shown}{more}")
        return np.asarray(tokens, dtype=np.int64)[inverse].reshape(names.shape)

    def detokenize(self, tokens: np.ndarray) -> np.ndarray:
        """Turn tokens into names (inverse of `tokenize`).

        Raises
        ------
        ValueError
            Tokens outside the vocabulary.
        """
        return np.asarray([PADDING, *self.vocabs])[self.tokenize(np.asarray(tokens, dtype=int))]

    def padding(self, values: np.ndarray, fill: float = 0) -> np.ndarray:
        """Pad the last axis to the context length.

        Parameters
        ----------
        values
            (..., L) tokens, standardized values or wavelengths.
        fill
            Value to pad with; 0 stands for padding in all three.

        Raises
        ------
        ValueError
            L exceeds the context length.
        """
        values = np.asarray(values)
        missing = self.config.context_length - values.shape[-1]
        if missing < 0:
            raise ValueError(
                f"{values.shape[-1]} tokens exceed the context length of "
                f"{self.config.context_length}"
            )
        width = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
        return np.pad(values, width, constant_values=fill)

    def fit_standardization(
        self,
        values: np.ndarray,
        names: Sequence[str] | np.ndarray,
        device: torch.device | str = "cpu",
    ) -> None:
        """Fit the standardization of names that have none yet; see `Standardizer.fit`.

        Parameters
        ----------
        values
            (N, n) values, one column per name.
        names
            (n,) names or tokens of the columns.
        device
            Device that computes the medians. For 100,000 spectra a CPU core takes minutes.

        Raises
        ------
        ValueError
            Shapes that do not match, or unknown names.
        """
        tokens = self.tokenize(names)
        values = as_array(values, unit=None, name="values")
        if np.ndim(values) != 2 or tokens.shape != (np.shape(values)[1],):
            raise ValueError(f"values {np.shape(values)} are not (N, n) for {tokens.shape} names")
        values = sentinels_to_nan(values, self.detokenize(tokens))
        self.standardizer.fit(values, tokens, device)

    def require_standardization(self, tokens: np.ndarray) -> None:
        """Refuse tokens whose standardization is unknown.

        Raises
        ------
        ValueError
            There are some; the message names them.
        """
        missing = self.standardizer.missing(tokens)
        if len(missing):
            raise ValueError(
                f"no standardization is known for {len(missing)} names, "
                f"{self.detokenize(missing[:5]).tolist()} the first: fit the model, or call "
                "fit_standardization with training data"
            )

    def get_config(self) -> dict[str, dict[str, Any]]:
        """Everything but the weights, in lists and numbers.

        Returns
        -------
        dict
            The published sections `nn_config`, `tokenizer_config` and `norm_config`, and
            `stellarperceptron` with entries that are not part of the published format.
        """
        entries = asdict(self.config)
        published = {key: entries.pop(key) for key in PUBLISHED_KEYS}
        return {
            "nn_config": {"backend_framework": f"torch-{torch.__version__[:5]}", **published},
            "tokenizer_config": {
                "vocabs": list(self.vocabs),
                "vocab_tokens": list(range(1, self.vocab_size + 1)),
            },
            "norm_config": self.standardizer.to_config(),
            "stellarperceptron": {**entries, "calibration": self.calibration.to_dict()},
        }
