"""Standardization of values, token by token.

Flux, labels and other values are centred on the median of the training stars and divided by their
scaled median absolute deviation (published implementation of Koblischke & Bovy 2024).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from astropy.stats import mad_std
from torch import Tensor

from stellarperceptron.utils.distributed import precise

__all__ = ["CONDITIONS", "MAXIMUM_DEVIATION", "Standardizer", "standardized_condition"]

MAXIMUM_DEVIATION = 10.0
"""Standardized values beyond this count as bad pixels (published implementation)."""

CONDITIONS = {"resolving_power": (4.2, 0.35), "snr": (2.0, 0.5)}
"""What a token can be told of its observation, the resolving power and the signal-to-noise ratio a
pixel, with center and scale of their logarithms (base 10)."""
_LARGEST_CONDITION = 3.0  # beyond, conditions count as this: signal-to-noise ratios of 3 and 3,200

_ROUNDING = 1e-9  # relative deviations below this are rounding
_COLUMNS = 256  # columns whose medians are computed at once


def _median_and_scale(x: np.ndarray, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Median and scale (float64) of each column (N, n) without NaNs; 0 and 0 without values."""
    if device.type == "cpu":
        x = np.asarray(x, dtype=np.float64)
        finite = np.isfinite(x)
        x = np.where(finite | finite.any(axis=0), np.where(finite, x, np.nan), 0.0)
        center, scale = np.nanmedian(x, axis=0), mad_std(x, axis=0, ignore_nan=True)
        deviation = np.nanstd(x, axis=0)
        varies = deviation > _ROUNDING * np.abs(center)
        return center, np.where((scale == 0) & varies, deviation, scale)
    values = torch.from_numpy(np.ascontiguousarray(x))
    if precise(device) == torch.float32:
        values = values.float()
    return _by_sorting(values.to(device))


def standardized_condition(name: str, values: Tensor) -> Tensor:
    """Standardize a condition of `CONDITIONS`: any shape; NaN where a value is not above zero."""
    center, scale = CONDITIONS[name]
    z = (torch.log10(values.float()) - center) / scale
    z = z.clamp(-_LARGEST_CONDITION, _LARGEST_CONDITION)
    return z.masked_fill(~(values > 0), math.nan)


def _by_sorting(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The same by sorting, which is fast on a GPU."""

    def median(x: Tensor) -> Tensor:
        valid = (~x.isnan()).sum(dim=0)  # NaN comes last
        middle = torch.stack([(valid - 1) // 2, valid // 2])
        return x.sort(dim=0).values.gather(0, middle).mean(dim=0)

    finite = x.isfinite()
    x = torch.where(finite, x, math.nan).to(precise(x.device))
    x = torch.where(finite.any(dim=0), x, 0.0)
    center = median(x)
    scale = 1.482602218505602 * median((x - center).abs())  # as astropy.stats.mad_std
    known = ~x.isnan()
    mean = x.nansum(dim=0) / known.sum(dim=0)
    squares = torch.where(known, x - mean, 0.0).square().sum(dim=0) / known.sum(dim=0)
    varies = squares.sqrt() > _ROUNDING * center.abs()
    scale = torch.where((scale == 0) & varies, squares.sqrt(), scale)
    return center.cpu().numpy(), scale.cpu().numpy()


class Standardizer:
    """Center and scale of tokens, and whether they have been fitted.

    Parameters
    ----------
    size
        Number of tokens, including padding. None of them is fitted at first.

    Attributes
    ----------
    center, scale : ndarray
        (V + 1,) median and scaled median absolute deviation; where more than half of the values are
        the same, the standard deviation instead. Values of a token of scale 0, which never varies,
        pass through unchanged.
    fitted : ndarray
        (V + 1,) booleans.
    """

    def __init__(self, size: int):
        self.center, self.scale = np.zeros(size), np.ones(size)
        self.fitted = np.zeros(size, dtype=bool)

    def grow(self, number: int) -> None:
        """Add tokens that are not fitted."""
        self.center = np.append(self.center, np.zeros(number))
        self.scale = np.append(self.scale, np.ones(number))
        self.fitted = np.append(self.fitted, np.zeros(number, dtype=bool))

    def copy_from(self, other: "Standardizer") -> None:
        """Copy all tokens of another standardizer to the first tokens of this one."""
        size = len(other.center)
        self.center[:size], self.scale[:size] = other.center, other.scale
        self.fitted[:size] = other.fitted

    def fit(
        self, values: np.ndarray, tokens: np.ndarray, device: torch.device | str = "cpu"
    ) -> None:
        """Fit tokens that are not fitted yet; the others are left unchanged.

        Parameters
        ----------
        values
            (N, n), one column per token; NaNs are ignored.
        tokens
            (n,) integers; 0 is ignored.
        device
            Device that computes the medians.
        """
        new = np.flatnonzero((tokens > 0) & ~self.fitted[tokens])
        for columns in np.array_split(new, max(1, math.ceil(len(new) / _COLUMNS))):
            if not len(columns):
                continue
            part = np.asarray(values[:, columns[0] : columns[-1] + 1])[:, columns - columns[0]]
            center, scale = _median_and_scale(part, torch.device(device))
            self.center[tokens[columns]], self.scale[tokens[columns]] = center, scale
            self.fitted[tokens[columns]] = True

    def missing(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens among these that are not fitted, each once."""
        return np.unique(tokens[(tokens > 0) & ~self.fitted[tokens]])

    def statistics(self, tokens: np.ndarray, like: np.ndarray | Tensor) -> list:
        """Center, scale and largest deviation of tokens, as arrays or as tensors like `like`."""
        through = self.scale[tokens] == 0
        statistics = (
            np.where(through, 0.0, self.center[tokens]),
            np.where(through, 1.0, self.scale[tokens]),
            np.where(through, np.inf, MAXIMUM_DEVIATION),
        )
        if isinstance(like, Tensor):
            dtype = like.dtype if like.dtype == torch.float64 else torch.float32
            return [torch.as_tensor(x, dtype=dtype, device=like.device) for x in statistics]
        return list(statistics)

    def standardize(self, values, tokens: np.ndarray):
        """``(x - center) / scale`` token by token; NaN beyond `MAXIMUM_DEVIATION`.

        Parameters
        ----------
        values
            (N, L) array or tensor.
        tokens
            (N, L) or (L,) integers.

        Returns
        -------
        ndarray (float32) or Tensor
            (N, L), same kind as `values`.
        """
        center, scale, limit = self.statistics(tokens, values)
        z = (values - center) / scale
        if isinstance(z, Tensor):
            return z.masked_fill((z.abs() > limit) | z.isinf(), math.nan)
        return np.where((np.abs(z) > limit) | np.isinf(z), np.nan, z).astype(np.float32)

    def standardize_error(self, errors, tokens: np.ndarray):
        """Scale standard deviations as `standardize` scales values, without the shift."""
        return errors / self.statistics(tokens, errors)[1]

    def inverse_standardize(self, values, tokens: np.ndarray):
        """Undo `standardize`: values in their units."""
        center, scale, _ = self.statistics(tokens, values)
        return values * scale + center

    def inverse_standardize_error(self, errors, tokens: np.ndarray):
        """Undo `standardize_error`: standard deviations in their units."""
        return errors * self.statistics(tokens, errors)[1]

    def to_config(self) -> dict[str, list]:
        """The section `norm_config` of a checkpoint."""
        return {
            "_input_mean": self.center.tolist(),
            "_input_std": self.scale.tolist(),
            "_input_standardized": self.fitted.tolist(),
        }

    @classmethod
    def from_config(cls, norm: Mapping[str, Sequence], size: int) -> "Standardizer":
        """Read the section `norm_config` of a checkpoint of `size` tokens.

        Raises
        ------
        ValueError
            An entry has the wrong size or impossible numbers; the message names it.
        """
        result, values = cls(size), {}
        for key in ("_input_mean", "_input_std", "_input_standardized"):
            values[key] = array = np.asarray(norm[key])
            kinds = "b" if key == "_input_standardized" else "iuf"
            if array.shape != (size,) or array.dtype.kind not in kinds:
                raise ValueError(
                    f"norm_config.{key} is not a list of {size} "
                    f"{'truth values' if kinds == 'b' else 'numbers'}"
                )
            possible = np.isfinite(array) & ((key != "_input_std") | (array >= 0))
            if kinds != "b" and not possible.all():
                raise ValueError(f"norm_config.{key} holds numbers that are not possible")
        result.center = values["_input_mean"].astype(float)
        result.scale = values["_input_std"].astype(float)
        result.fitted = values["_input_standardized"]
        return result
