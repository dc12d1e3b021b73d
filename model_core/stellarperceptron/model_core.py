"""What a model knows beside its weights: vocabulary, standardization, configuration."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from astropy.stats import mad_std
from torch import Tensor

from stellarperceptron.network.config import PUBLISHED_KEYS, ModelConfig
from stellarperceptron.utils.arguments import with_nearest

__all__ = ["PADDING", "StellarPerceptronCore"]

PADDING = "[pad]"
# Standardized values beyond this are taken for bad pixels (published implementation).
MAXIMUM_DEVIATION = 10.0


def _median_and_spread(x: np.ndarray, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Of each column (N, n), NaNs left out, in double precision; 0, 0 without any value."""
    if device.type == "cpu":
        x = np.asarray(x, dtype=np.float64)
        x = np.where(np.isfinite(x).any(axis=0), x, 0.0)
        return np.nanmedian(x, axis=0), mad_std(x, axis=0, ignore_nan=True)
    return _sorted_median_and_spread(torch.from_numpy(np.ascontiguousarray(x)).to(device))


def _sorted_median_and_spread(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The same numbers by sorting, which a GPU is good at."""

    def median(x: Tensor) -> Tensor:
        valid = (~x.isnan()).sum(dim=0)  # NaN comes last
        middle = torch.stack([(valid - 1) // 2, valid // 2])
        return x.sort(dim=0).values.gather(0, middle).mean(dim=0)

    x = x.double()
    x = torch.where(x.isfinite().any(dim=0), x, 0.0)
    center = median(x)
    spread = 1.482602218505602 * median((x - center).abs())  # as astropy.stats.mad_std
    return center.cpu().numpy(), spread.cpu().numpy()


class StellarPerceptronCore:
    """Configuration, vocabulary and standardization of a model.

    Parameters
    ----------
    vocabs
        Names of all tokens, pixels and labels, each once. Name i has token i + 1; token 0 is
        padding.
    config
        Sizes of the network.
    embed_map
        Which embedding row a token uses: a mapping of names to names (others keep their own), or
        (V + 1,) integers. None: each token its own.

    Attributes
    ----------
    vocabs : list of str
    vocab_size : int
        V, without padding.
    embed_map : ndarray
        (V + 1,) integers.

    Raises
    ------
    ValueError
        Names that appear twice or are no names; an `embed_map` that names unknown tokens.
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
        self._input_mean = np.zeros(1)
        self._input_std = np.ones(1)
        self._input_standardized = np.zeros(1, dtype=bool)
        self.embed_map = np.zeros(1, dtype=np.int64)
        self._append_vocabs(vocabs)
        if not self.vocabs:
            raise ValueError("the vocabulary is empty")
        self._update_embed_map(embed_map)

    @property
    def vocab_size(self) -> int:
        """Number of tokens without padding."""
        return len(self.vocabs)

    def _append_vocabs(self, names: Sequence[str]) -> None:
        """Give new names the next tokens, with no standardization and a row of their own."""
        names = [str(name) for name in names]
        counts = Counter(names)
        counts.update(list(self._token_of))
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"names that are known already or given twice: {twice[:10]}")
        first = self.vocab_size + 1
        self.vocabs += names
        self._token_of.update({name: first + i for i, name in enumerate(names)})
        self._input_mean = np.append(self._input_mean, np.zeros(len(names)))
        self._input_std = np.append(self._input_std, np.ones(len(names)))
        self._input_standardized = np.append(self._input_standardized, np.zeros(len(names), bool))
        self.embed_map = np.append(self.embed_map, np.arange(first, first + len(names)))

    def _update_embed_map(self, embed_map: Mapping[str, str] | np.ndarray | None) -> None:
        if embed_map is None:
            return
        if isinstance(embed_map, Mapping):
            tokens = self.tokenize(list(embed_map))
            targets = self.tokenize(list(embed_map.values()))
            if not (tokens.all() and targets.all()):
                raise ValueError(f"embed_map: {PADDING} has a row of its own, for nothing else")
            for token, target in zip(tokens, targets, strict=True):
                # The row that the target uses, which need not be its own.
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
            Names, any shape, "[pad]" for padding. Integers are taken for tokens and checked.

        Returns
        -------
        ndarray
            int64, same shape.

        Raises
        ------
        ValueError
            Names (or tokens) that are not in the vocabulary, with the nearest that are.
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
            What to pad with; 0 is padding in all three.

        Raises
        ------
        ValueError
            When L is more than the context length.
        """
        values = np.asarray(values)
        missing = self.config.context_length - values.shape[-1]
        if missing < 0:
            raise ValueError(
                f"{values.shape[-1]} tokens are more than the context of "
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
        """Set median and spread of tokens that have none yet from training data.

        Spread is the median absolute deviation scaled to a standard deviation
        (`astropy.stats.mad_std`); NaNs are left out. Tokens that have a standardization keep it.

        Parameters
        ----------
        values
            (N, n) values, one column a token.
        names
            (n,) names or tokens of the columns.
        device
            Where medians are taken: for 100,000 spectra they are minutes on a CPU core.
        """
        tokens = self.tokenize(names)
        values = np.asarray(values) if isinstance(values, Sequence) else values
        if np.ndim(values) != 2 or tokens.shape != (np.shape(values)[1],):
            raise ValueError(f"values {np.shape(values)} are not (N, n) for {tokens.shape} names")
        new = np.flatnonzero((tokens > 0) & ~self._input_standardized[tokens])
        for columns in np.array_split(new, max(1, math.ceil(len(new) / 256))):
            if not len(columns):
                continue
            part = np.asarray(values[:, columns[0] : columns[-1] + 1])[:, columns - columns[0]]
            median, spread = _median_and_spread(part, torch.device(device))
            self._input_mean[tokens[columns]] = median
            self._input_std[tokens[columns]] = spread
            self._input_standardized[tokens[columns]] = True

    def require_standardization(self, tokens: np.ndarray) -> None:
        """Refuse to work with tokens whose standardization is not known.

        Raises
        ------
        ValueError
            Names them.
        """
        missing = np.unique(tokens[(tokens > 0) & ~self._input_standardized[tokens]])
        if len(missing):
            raise ValueError(
                f"no standardization is known for {len(missing)} tokens, "
                f"{self.detokenize(missing[:5]).tolist()} the first: fit the model, or call "
                "fit_standardization with training data"
            )

    def _statistics(self, tokens, like):
        """Median, spread, largest deviation of tokens; 0, 1, infinity for those without spread."""
        through = self._input_std[tokens] == 0
        statistics = (
            np.where(through, 0.0, self._input_mean[tokens]),
            np.where(through, 1.0, self._input_std[tokens]),
            np.where(through, np.inf, MAXIMUM_DEVIATION),
        )
        if isinstance(like, Tensor):
            dtype = like.dtype if like.dtype == torch.float64 else torch.float32
            return [torch.as_tensor(x, dtype=dtype, device=like.device) for x in statistics]
        return statistics

    def standardize(self, values, tokens: np.ndarray):
        """``(x - median) / spread`` token by token; beyond 10 spreads: NaN.

        Values of tokens without spread pass through as they are.

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
        median, spread, limit = self._statistics(tokens, values)
        z = (values - median) / spread
        if isinstance(z, Tensor):
            return z.masked_fill((z.abs() > limit) | z.isinf(), math.nan)
        return np.where((np.abs(z) > limit) | np.isinf(z), np.nan, z).astype(np.float32)

    def standardize_error(self, errors, tokens: np.ndarray):
        """Scale errors of values like the values themselves (no shift); see `standardize`."""
        _, spread, _ = self._statistics(tokens, errors)
        return errors / spread

    def inverse_standardize(self, values, tokens: np.ndarray):
        """Inverse of `standardize`; see there."""
        median, spread, _ = self._statistics(tokens, values)
        return values * spread + median

    def inverse_standardize_error(self, errors, tokens: np.ndarray):
        """Inverse of `standardize_error`; see there."""
        _, spread, _ = self._statistics(tokens, errors)
        return errors * spread

    def get_config(self) -> dict[str, dict[str, Any]]:
        """Everything but the weights, as plain lists and numbers.

        Returns
        -------
        dict
            The published sections `nn_config`, `tokenizer_config` and `norm_config`, and
            `stellarperceptron` with the entries that the published format does not know.
        """
        entries = asdict(self.config)
        published = {key: entries.pop(key) for key in PUBLISHED_KEYS}
        return {
            "nn_config": {"backend_framework": f"torch-{torch.__version__[:5]}", **published},
            "tokenizer_config": {
                "vocabs": list(self.vocabs),
                "vocab_tokens": list(range(1, self.vocab_size + 1)),
            },
            "norm_config": {
                "_input_mean": self._input_mean.tolist(),
                "_input_std": self._input_std.tolist(),
                "_input_standardized": self._input_standardized.tolist(),
            },
            "stellarperceptron": entries,
        }

    def _set_norm_config(self, norm: Mapping[str, Sequence]) -> None:
        """Take over `norm_config` of a checkpoint."""
        size = self.vocab_size + 1
        for key in ("_input_mean", "_input_std", "_input_standardized"):
            values = np.asarray(norm[key])
            kinds = "b" if key == "_input_standardized" else "iuf"
            if values.shape != (size,) or values.dtype.kind not in kinds:
                raise ValueError(
                    f"norm_config.{key} is not a list of {size} "
                    f"{'truth values' if kinds == 'b' else 'numbers'}"
                )
            if (
                kinds != "b"
                and not (np.isfinite(values) & ((key != "_input_std") | (values >= 0))).all()
            ):
                raise ValueError(f"norm_config.{key} holds numbers that are not possible")
            setattr(self, key, values if kinds == "b" else values.astype(float))
