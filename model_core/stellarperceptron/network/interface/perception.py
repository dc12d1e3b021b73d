"""Perceive stars within one context, then answer requests about them, with attention weights."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stellarperceptron.data.wavelengths import vacuum_to_air
from stellarperceptron.labels import resolve_label_names
from stellarperceptron.layers import Tokens
from stellarperceptron.network.interface.base import one_of
from stellarperceptron.network.interface.storage import StoredModel
from stellarperceptron.network.patches import group_values, known_conditions
from stellarperceptron.utils.arrays import as_array, as_names, is_constant, sentinels_to_nan

__all__ = ["PerceivingModel"]


class PerceivingModel(StoredModel):
    """A model that perceives stars and keeps the perception for later requests."""

    def __init__(self, vocabs: Sequence[str], **options: Any):
        super().__init__(vocabs, **options)
        self._perception: tuple[Tensor, Tensor | None] | None = None
        self._valid = np.zeros(0, dtype=int)  # values of each star
        self._seen: list[str] = []  # instruments

    @cached_property
    def _pixels(self) -> np.ndarray:
        """(V + 1,) the instrument's pixel of each token, -1 for labels and padding."""
        index = dict(
            zip(self.instrument.pixel_names().tolist(), range(len(self.instrument)), strict=True)
        )
        return np.array([-1, *(index.get(name, -1) for name in self.vocabs)])

    def _instruments_of(self, tokens: np.ndarray) -> list[str]:
        """Names of the parts of a combined instrument that have pixels among these tokens."""
        if self.instrument is None or not self.instrument.parts:
            return []
        pixels = self._pixels[tokens]
        ranges = {one.name: self.instrument.ranges[one.name] for one in self.instrument.parts}
        return [
            name
            for name, within in ranges.items()
            if ((pixels >= within.start) & (pixels < within.stop)).any()
        ]

    def measured(self, values: Tensor, tokens: np.ndarray) -> Tensor:
        """Put NaN in the place of flux that is no measurement.

        That is, in pixels of the instrument, a flux of exactly zero, and a chip of a spectrum whose
        flux is constant, or not above zero in most of its valid pixels.

        Parameters
        ----------
        values
            (N, n) tensor, NaN where missing.
        tokens
            (n,) tokens of the columns, or (N, n) if every star has its own.

        Returns
        -------
        Tensor
            `values` itself if all of it is measured, or else a copy.
        """
        if self.instrument is None:
            return values
        if tokens.ndim == 1:
            return self._measured(values, self._pixels[tokens])
        stars = zip(values.split(1), self._pixels[tokens], strict=True)
        rows = [self._measured(star, pixels) for star, pixels in stars]
        return torch.cat(rows) if rows else values

    def _measured_at(self, flux: np.ndarray, wavelengths: np.ndarray) -> np.ndarray:
        """The same for flux (N, n) at any wavelengths (n,), which belong to the nearest chip."""
        pixels = self.instrument.nearest_pixels(wavelengths)
        return self._measured(torch.from_numpy(flux), pixels).numpy()

    def _measured(self, values: Tensor, pixels: np.ndarray) -> Tensor:
        """The same for columns (n,) of the instrument's pixels, negative for other columns."""
        bad = values == 0
        bad[:, torch.as_tensor(pixels < 0, device=values.device)] = False
        order = np.argsort(pixels, kind="stable")
        for chip in self.instrument.chips.values():
            start, stop = np.searchsorted(pixels[order], (chip.start, chip.stop))
            columns = torch.as_tensor(order[start:stop], device=values.device)
            part = values[:, columns]
            valid, dark = torch.isfinite(part).sum(dim=1), (part <= 0).sum(dim=1)
            empty = is_constant(part) | (dark > 0.5 * valid)
            if bool(empty.any()):
                bad[:, columns] |= empty[:, None]
        return values.masked_fill(bad, torch.nan) if bool(bad.any()) else values

    def _refuse_names_in_air(self, tokens: np.ndarray, wavelengths: np.ndarray) -> None:
        """Refuse wavelengths (n,) or (N, n) that are those in air of the pixels with these tokens.

        Raises
        ------
        ValueError
            All of them are.
        """
        if self.instrument is None:
            return
        pixels, wavelengths = np.broadcast_arrays(self._pixels[tokens], wavelengths)
        named = (pixels >= 0) & (wavelengths != 0)
        grid = self.instrument.wavelength[pixels[named]]
        off = np.abs(wavelengths[named] - vacuum_to_air(grid))
        if named.any() and (off < 0.5 * self.instrument.pixel_width[pixels[named]]).all():
            raise ValueError(
                f"the wavelengths are those in air of the {self.instrument.name} pixels that are "
                "named: convert them with stellarperceptron.data.wavelengths.air_to_vacuum"
            )

    def _known_names(self, names: Any, what: str, strict: bool = False) -> list[str] | None:
        """Names with those of labels as the vocabulary has them, such as "FE_H" for "[Fe/H]"."""
        if names is None:
            return None
        known, result = set(self.vocabs), as_names(names, what)
        for i, name in enumerate(result):
            if name not in known:
                try:
                    (result[i],) = resolve_label_names(name, self.label_names)
                except ValueError as error:
                    if strict:
                        raise ValueError(f"{what}: {error}") from error
        return result

    def perceive(
        self,
        inputs: np.ndarray | pd.DataFrame,
        names: Sequence[str] | np.ndarray | None = None,
        wavelengths: np.ndarray | None = None,
        *,
        batch_size: int | None = None,
        return_attention_scores: bool = False,
        attention_normalization: str = "pixels",
    ) -> np.ndarray | None:
        """Perceive stars; `request` then answers for them.

        Parameters
        ----------
        inputs
            (N, n) values in physical units, NaN where missing, or (n,) for one star. A data frame
            gives the names itself.
        names
            (n,) names (or tokens) of the columns, or (N, n) if every star has its own; "[pad]" for
            padding.
        wavelengths
            (n,) or (N, n), vacuum [Angstrom]; 0 for values without one, such as labels or colours.
            None: no wavelengths. Models with several pixels per token need (n,) and group
            neighbouring pixels.
        batch_size
            Stars at a time; None chooses by device.
        return_attention_scores
            Return how much every token attends to every other in the last encoder block.
        attention_normalization
            "pixels": the attention of a token to all tokens sums to one. "published": the sum runs
            over the attending tokens instead, as in the published code; NaN where there are none.

        Returns
        -------
        ndarray or None
            (N, T, T) attention of token (axis 1) to token (axis 2), averaged over heads, without
            the learned key, if requested. T is n with one pixel per token.

        Raises
        ------
        ValueError
            Shapes do not match, names are unknown, wavelengths are not finite, or there are more
            tokens than the context length (use `predict`).
        """
        one_of("attention_normalization", attention_normalization, ("pixels", "published"))
        self._perception = None  # after an error, `request` must not answer for other stars
        if isinstance(inputs, pd.DataFrame) and names is None:
            names = inputs.columns.to_numpy(dtype=str)
        inputs = np.atleast_2d(as_array(inputs, name="inputs"))
        shapes = (inputs.shape[1:], inputs.shape)
        if inputs.ndim != 2 or names is None or np.shape(names) not in shapes:
            raise ValueError(
                f"inputs {inputs.shape} and names {None if names is None else np.shape(names)} "
                "do not match: give a name for each column, or for each value"
            )
        tokens = self.tokenize(names)
        self.require_standardization(tokens)
        if wavelengths is not None:
            wavelengths = self._check_wavelengths(wavelengths, shapes)
            self._refuse_names_in_air(tokens, wavelengths)
        kinds: str | list[str] = "flux"
        if tokens.ndim == 1:  # labels among the inputs have other marks for a missing value
            labels = set(self.label_names)
            kinds = [k if k in labels else "flux" for k in self.detokenize(tokens).tolist()]
        inputs = sentinels_to_nan(inputs, kinds)
        inputs = self.measured(torch.from_numpy(inputs), tokens).numpy()
        values = self.standardizer.standardize(inputs, tokens)
        valid = (np.isfinite(values) & (tokens != 0)).sum(axis=1)
        ids, values, conditions = tokens[..., None], values[..., None], None
        if self.config.pixels_per_token > 1:
            if wavelengths is None or wavelengths.ndim != 1 or tokens.ndim != 1:
                raise ValueError(
                    f"with {self.config.pixels_per_token} pixels a token, give one list of names "
                    "and one of wavelengths for all stars (0 for values that are no pixels)"
                )
            ids, values, wavelengths = group_values(
                values[..., 0],
                tokens,
                wavelengths,
                self.positions[tokens],
                self.config.pixels_per_token,
            )
            power = self.resolving_power_at(wavelengths)
            if power is not None:
                power = np.where(wavelengths == 0, np.nan, power)
                conditions = known_conditions(np.arange(len(power))[:, None], power)
        if values.shape[1] > self.config.context_length:
            raise ValueError(
                f"{values.shape[1]} tokens exceed the context length of "
                f"{self.config.context_length}: use predict, which takes any number"
            )
        self._warn_of_empty_stars(valid == 0)

        if wavelengths is not None:
            wavelengths = wavelengths.astype(np.float32)  # some devices know nothing longer
        complete = bool((np.isfinite(values) & (ids != 0)).any(axis=2).all())
        length = values.shape[1]
        heads = self.config.encoder_head_num // 2 if return_attention_scores else 0
        batch_size = self.stars_at_once(batch_size, max(1, heads * length * (length + 1)))
        perceptions: list[Tensor] = []
        masks: list[Tensor] = []
        scores: list[Tensor] = []
        encode_wavelength = self.torch_model.embedding_layer.encode_wavelength

        def part(values: np.ndarray | None, rows: slice, shared: int) -> Tensor | None:
            """Rows of an array; the whole array if its `shared` dimensions serve all stars."""
            if values is None:
                return None
            values = values if values.ndim == shared else values[rows]
            return torch.as_tensor(values, device=self.device)

        with self._evaluation():
            for start in range(0, len(inputs), batch_size):
                rows = slice(start, start + batch_size)
                encoding = part(wavelengths, rows, shared=1)
                batch = Tokens(
                    part(ids, rows, shared=2),
                    part(values, rows, shared=0),
                    None if encoding is None else encode_wavelength(encoding),
                    complete,
                    None if conditions is None else conditions.to(self.device),
                )
                perception, attend, weights = self.torch_model.encode(
                    batch, self.nan_policy, need_weights=return_attention_scores
                )
                perceptions.append(perception)
                if not complete:
                    masks.append(attend)
                if return_attention_scores:
                    scores.append(
                        _normalized_attention(weights, attend, attention_normalization).cpu()
                    )
            shape = (0, length, self.config.embedding_dim)
            perception = torch.cat(perceptions) if perceptions else torch.empty(shape)
        self._perception = perception, torch.cat(masks) if masks else None
        self._valid, self._seen = valid, self._instruments_of(tokens)
        if not return_attention_scores:
            return None
        return torch.cat(scores).numpy() if scores else np.empty((0, length, length))

    def request(
        self,
        labels: Sequence[str] | str,
        *,
        batch_size: int | None = None,
        return_attention_scores: bool = False,
    ) -> pd.DataFrame | tuple[pd.DataFrame, np.ndarray]:
        """Request labels of the stars perceived last.

        Parameters
        ----------
        labels
            Names of Q labels (any tokens of the vocabulary).
        batch_size
            Stars at a time; None chooses by device.
        return_attention_scores
            Also return how much each label attends to each token.

        Returns
        -------
        DataFrame
            N rows; columns `<label>` and, after all of them, `<label>_error` (standard
            deviation), in the labels' units. NaN for stars without any valid value.
        ndarray
            (N, T, Q) attention in the last decoder block, averaged over heads, without the
            learned key; it sums to one over the tokens. Only if requested.

        Raises
        ------
        RuntimeError
            Nothing has been perceived yet.
        ValueError
            Unknown labels.
        """
        labels, tokens = self._label_tokens(labels)
        if self._perception is None:
            raise RuntimeError("nothing has been perceived yet: call perceive before request")
        perception, mask = self._perception
        request_ids = torch.as_tensor(tokens, device=self.device)
        scores_per_star = len(labels) * self.config.decoder_head_num * (perception.shape[1] + 1)
        batch_size = self.stars_at_once(batch_size, scores_per_star)
        answers = [torch.empty(2, 0, len(labels), dtype=torch.float64)]
        scores = [torch.empty(0, len(labels), perception.shape[1], dtype=torch.float64)]
        with self._evaluation():
            for start in range(0, len(perception), batch_size):
                part = slice(start, start + batch_size)
                value, logvar, weights = self.torch_model.decode(
                    request_ids,
                    perception[part],
                    None if mask is None else mask[part],
                    need_weights=return_attention_scores,
                )
                answers.append(torch.stack([value, (0.5 * logvar).exp()]).cpu().double())
                if return_attention_scores:
                    weights = weights[..., :-1].cpu().double()  # (N, Q, L)
                    scores.append(weights / weights.sum(dim=2, keepdim=True))
        value, error = torch.cat(answers, dim=1).numpy()
        empty = self._valid == 0
        value[empty] = error[empty] = np.nan
        frame = self._frame(value, error, labels, tokens, self._valid, instruments=self._seen)
        if not return_attention_scores:
            return frame
        attention = torch.cat(scores).transpose(1, 2).numpy().copy()
        attention[empty] = np.nan
        return frame, attention


def _normalized_attention(weights: Tensor, attend: Tensor | None, normalization: str) -> Tensor:
    """Attention (N, L, L) of token to token from softmax weights (N, L, L + 1) of the encoder.

    See `PerceivingModel.perceive` for the two normalizations.
    """
    weights = weights[..., :-1]
    if attend is not None:
        weights = weights * attend[..., None]  # tokens that were not attended to
    if normalization == "published":
        return weights / weights.sum(dim=1, keepdim=True)
    return (weights / weights.sum(dim=2, keepdim=True)).nan_to_num(nan=0.0)
