"""From stars with known labels to training data on a device.

`Stars` read the flux, and `prepare_training_data` puts it on a device. Batch by batch,
`TrainingData.standardized` augments and standardizes it, and `TrainingData.tokens` groups it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.layers import Tokens
from stellarperceptron.model_core import StellarPerceptronCore
from stellarperceptron.network.patches import (
    group_pixels,
    known_conditions,
    mean_wavelengths,
    pixel_ids,
)
from stellarperceptron.training.stars.drawn import DrawnSpectra, OtherSpectra, Seen
from stellarperceptron.training.stars.labelled import BLOCK, Stars
from stellarperceptron.training.stars.prefetch import memory_for

__all__ = [
    "TrainingData",
    "fewest_tokens",
    "fit_standardization",
    "prepare_training_data",
    "usable_stars",
]

EMULATED_STARS = 20_000  # that a standardization is fitted to, where spectra are made anew
LARGEST_ERROR = 1e6  # of a label, in scatters of all stars: with more, nothing is known of it


def fit_standardization(
    model: StellarPerceptronCore, stars: Stars, device: torch.device | str = "cpu"
) -> None:
    """Fit center and scale of values and labels that have no standardization yet.

    Parameters
    ----------
    model
        Model whose `standardizer` is fitted.
    stars
        The training stars. Values are read only if one of them has no standardization.
    device
        Device that computes the medians; see `Standardizer.fit`.

    Raises
    ------
    ValueError
        A label that has no standardization yet is the same for all stars, or missing in all.
    """
    tokens, label_tokens = model.tokenize(stars.names), model.tokenize(stars.label_names)
    if len(model.standardizer.missing(tokens)):
        # The spectra of all emulated stars may be too many for the memory.
        used = min(len(stars), EMULATED_STARS) if stars.decode else len(stars)
        values = np.empty((used, len(tokens)), dtype=np.float32)
        for block in stars.blocks(used):
            values[block] = _read(model, stars, block, tokens)
        model.fit_standardization(values, tokens, device)
    new = model.standardizer.missing(label_tokens)
    model.fit_standardization(np.asarray(stars.labels), label_tokens)
    alike = new[model.standardizer.scale[new] == 0]
    if len(alike):
        model.standardizer.fitted[new] = False
        name, column = model.detokenize(alike[:1])[0], label_tokens.tolist().index(alike[0])
        known = stars.labels[np.isfinite(stars.labels[:, column]), column]
        what = f"label {name} is {known[0]:g} in all stars" if len(known) else f"no star has {name}"
        raise ValueError(f"{what}: there is nothing to learn, leave this label out")


def _read(
    model: StellarPerceptronCore, stars: Stars, block: slice, tokens: np.ndarray
) -> np.ndarray:
    """Values (k, n) of a block of stars in single precision, NaN where nothing was measured."""
    values = np.ascontiguousarray(stars.read(block), dtype=np.float32)
    return model.measured(torch.from_numpy(values), tokens).numpy()


@dataclass(frozen=True)
class TrainingData:
    """N stars on a device, with n values that form T tokens of P pixels, and Q labels.

    Attributes
    ----------
    values : Tensor
        (N, n) differences from `center` in physical units, NaN where missing, in single or half
        precision; or (N, k) coefficients for `decode`. They may be in the memory of the host;
        everything else is on the device.
    center, scale, limit : Tensor
        (n,) standardization of the values, see `Standardizer`.
    groups : Tensor
        (T, P) columns of the values in each token; n for a missing pixel.
    ids : Tensor
        (T, P) integers, see `Tokens`.
    encoding : Tensor or None
        (T, D) wavelength encoding; None without wavelengths, or if stars have their own.
    labels, label_errors : Tensor
        (N, Q) standardized. NaN is a missing label; missing errors are 0.
    label_ids : Tensor
        (Q,) integers.
    augment : callable or None
        Function of values (B, n) in physical units and a generator that returns a changed copy, or
        that and the standard deviation (B,) or (B, n) of the noise in it.
    wavelengths : Tensor or None
        (N, T) vacuum [Angstrom], if every star has its own.
    encode_wavelength : callable or None
        Function that encodes them; see `NonLinearEmbedding.encode_wavelength`.
    decode : callable or None
        Makes values (B, n) in physical units from coefficients (B, k); see `Stars`.
    conditions : Tensor or None
        (T, C), see `known_conditions`; None for a model that takes none.
    noise : Tensor or None
        (N, 1) inverse signal-to-noise ratio a pixel of the values, or (N, T) that of each token,
        NaN where unknown; None if `conditions` is.
    draw : DrawnSpectra, OtherSpectra or None
        Makes what other instruments see of the stars; None: all batches show the model's own.
    star_ids : ndarray or None
        (N,) names of the stars, see `Stars`.
    """

    values: Tensor
    center: Tensor
    scale: Tensor
    limit: Tensor
    groups: Tensor
    ids: Tensor
    encoding: Tensor | None
    labels: Tensor
    label_errors: Tensor
    label_ids: Tensor
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    wavelengths: Tensor | None = None
    encode_wavelength: Callable[[Tensor], Tensor] | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    conditions: Tensor | None = None
    noise: Tensor | None = None
    draw: DrawnSpectra | OtherSpectra | None = None
    star_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def device(self) -> torch.device:
        """Device on which batches are made."""
        return self.labels.device

    def standardized(self, values: Tensor) -> Tensor:
        """Standardize rows of `values` (B, n)."""
        return self.seen(values).values

    def seen(
        self,
        values: Tensor,
        generator: torch.Generator | None = None,
        random: np.random.Generator | None = None,
    ) -> Seen:
        """Standardize rows of `values` (B, n); given a generator, augment them first.

        `random` draws the instrument that sees them, where training draws instruments.
        """
        if self.draw is not None and self.draw.applies(random):
            statistics = self.center, self.scale, self.limit
            return self.draw(values, statistics, self.groups.cpu().numpy(), random, generator)
        noise = None
        difference = values.float() if self.decode is None else self.decode(values) - self.center
        if generator is not None and self.augment is not None:
            flux = self.augment(difference + self.center, generator)
            flux, noise = flux if isinstance(flux, tuple) else (flux, None)
            if noise is not None and noise.dim() == 2:
                noise = noise[:, self.middles]
            difference = flux - self.center
        z = difference / self.scale
        return Seen(z.masked_fill_((z.abs() > self.limit) | z.isinf(), math.nan), noise)

    @cached_property
    def middles(self) -> Tensor:
        """(T,) column of the pixel in the middle of each token."""
        pixels = self.groups.sort(dim=1).values  # the missing ones, n, come last
        half = (pixels < len(self.center)).sum(dim=1, keepdim=True) // 2
        return pixels.gather(1, half)[:, 0]

    def snr(self, stars: Tensor, added: Tensor | None) -> Tensor:
        """Signal-to-noise ratio a pixel of stars (B,), NaN where it is unknown: (B, 1) or (B, T).

        `added` (B,) is what `seen` has added to the noise of the values, or (B, T) in each token.
        """
        noise = self.noise[stars]
        if added is not None:  # where the noise of the values is unknown, it is left out
            added = (added if added.dim() == 2 else added[:, None]).to(noise)
            noise = torch.hypot(noise.nan_to_num(nan=0.0), added)
        return 1 / noise

    def tokens(self, seen: Seen, positions: Tensor, stars: Tensor) -> Tokens:
        """Tokens of a batch of stars.

        Parameters
        ----------
        seen
            Their spectra.
        positions
            (L,) which of the T tokens, for all stars, or (B, L) for each star (P = 1 only).
        stars
            (B,) rows of the stars.
        """
        weights = None
        if positions.dim() == 2:  # tokens of one pixel, see `TrainingGenerator`
            columns, ids = self.groups[:, 0][positions], self.ids[:, 0][positions][..., None]
            values = seen.values.gather(1, columns)[..., None]
        else:
            columns, ids = self.groups[positions], self.ids[positions]
            values = torch.nn.functional.pad(seen.values, (0, 1), value=math.nan)[:, columns]
            if seen.weights is not None:
                weights = torch.nn.functional.pad(seen.weights, (0, 1))[:, columns]
        encoding = None
        if self.wavelengths is not None:
            own = self.wavelengths[stars]
            own = own[:, positions] if positions.dim() == 1 else own.gather(1, positions)
            encoding = self.encode_wavelength(own)
        elif self.encoding is not None:
            encoding = self.encoding[positions]
        told = self.conditions if seen.conditions is None else seen.conditions
        told = None if told is None else told[positions]
        return Tokens(ids, values, encoding, conditions=told, weights=weights)


def prepare_training_data(
    model: StellarPerceptronCore,
    stars: Stars,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    memory: str = "auto",
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    noise_of_tokens: bool = False,
) -> TrainingData:
    """Read all stars and put them on a device.

    Parameters
    ----------
    model
        Vocabulary, standardization (see `fit_standardization`) and wavelength encoding.
    stars
        The stars.
    device
        Device on which batches are made; None: the model's.
    dtype
        Precision of the stored values, which are differences from the median. float16 halves the
        memory and rounds a flux by less than 1e-4. Coefficients stay in single precision.
    memory
        Memory of the values; see `prefetch.memory_for`.
    augment
        Function of values (B, n) and a generator on `device`; see `TrainingData`.
    noise_of_tokens
        Whether the signal-to-noise ratio is that of each token; otherwise it is the star's.

    Raises
    ------
    ValueError
        A value or label has no standardization, or tokens of several pixels lack wavelengths.
    """
    device = torch.device(model.device if device is None else device)
    tokens, label_ids = model.tokenize(stars.names), model.tokenize(stars.label_names)
    model.require_standardization(np.append(tokens, label_ids))
    groups, encoding, wavelengths = _token_groups(model, stars, tokens, device)
    conditions = noise = None
    if model.config.conditions:
        power = model.resolving_power_at(stars.wavelengths)
        conditions = known_conditions(groups, power).to(device)
        parts = groups if noise_of_tokens else np.arange(len(tokens))[None]
        noise = torch.as_tensor(_noise(model, stars, tokens, parts), device=device)
    standardizer, like = model.standardizer, torch.empty(0, device=device)
    center, scale, limit = standardizer.statistics(tokens, like)
    if stars.decode is not None:
        values = stars.coefficients.to(memory_for(stars.coefficients.nbytes, device, memory))
    else:
        size = len(stars) * len(tokens) * dtype.itemsize
        place = memory_for(size, device, memory)
        values = torch.empty((len(stars), len(tokens)), dtype=dtype, device=place)
        for block in stars.blocks():
            difference = torch.from_numpy(_read(model, stars, block, tokens)).to(device) - center
            if augment is None:  # what is out of range stays so
                z = difference / scale
                difference = difference.masked_fill((z.abs() > limit) | z.isinf(), math.nan)
            values[block] = difference.to(dtype)
    labels = standardizer.standardize(np.asarray(stars.labels, dtype=np.float64), label_ids)
    errors = np.zeros_like(labels) if stars.label_errors is None else stars.label_errors
    errors = np.nan_to_num(standardizer.standardize_error(errors, label_ids), nan=0.0)
    unknown = errors > LARGEST_ERROR
    labels, errors = np.where(unknown, np.nan, labels), np.where(unknown, 0.0, errors)
    return TrainingData(
        values=values,
        center=center,
        scale=scale,
        limit=limit,
        groups=torch.as_tensor(np.where(groups < 0, len(tokens), groups), device=device),
        ids=torch.as_tensor(pixel_ids(groups, tokens), device=device),
        encoding=encoding,
        labels=torch.as_tensor(labels, dtype=torch.float32, device=device),
        label_errors=torch.as_tensor(errors, dtype=torch.float32, device=device),
        label_ids=torch.as_tensor(label_ids, device=device),
        augment=augment,
        wavelengths=wavelengths,
        encode_wavelength=model.torch_model.embedding_layer.encode_wavelength,
        decode=stars.decode,
        conditions=conditions,
        noise=noise,
        star_ids=stars.star_ids,
    )


def _noise(
    model: StellarPerceptronCore, stars: Stars, tokens: np.ndarray, parts: np.ndarray
) -> np.ndarray:
    """Median of error over flux (N, T) of the valid pixels in each part of the spectra (T, P).

    It is NaN where it is unknown; pixels are -1 where a part lacks one.
    """
    noise = np.full((len(stars), len(parts)), np.nan, dtype=np.float32)
    for block in stars.blocks() if stars.read_errors else ():
        errors = stars.read_errors(block)
        ratio = np.where(errors > 0, _read(model, stars, block, tokens) / errors, np.nan)
        ratio = np.pad(ratio, ((0, 0), (0, 1)), constant_values=np.nan)  # index -1: no pixel
        for part, pixels in enumerate(parts):
            own = ratio[:, pixels]
            known = np.isfinite(own).any(axis=1)
            snr = np.nanmedian(own[known], axis=1)
            noise[block, part][known] = np.where(snr > 0, 1 / snr, np.nan)
    return noise


def _token_groups(
    model: StellarPerceptronCore, stars: Stars, tokens: np.ndarray, device: torch.device
) -> tuple[np.ndarray, Tensor | None, Tensor | None]:
    """Values of each token (T, P), their wavelength encoding (T, D), or wavelengths (N, T)."""
    per_token, wavelengths = model.config.pixels_per_token, stars.wavelengths
    if wavelengths is None or np.ndim(wavelengths) == 2:
        if per_token > 1:
            raise ValueError(f"{per_token} pixels a token need one list of wavelengths")
        own = None
        if wavelengths is not None:
            own = torch.as_tensor(wavelengths, dtype=torch.float32, device=device)
        return np.arange(len(tokens))[:, None], None, own
    if per_token > 1 and not np.all(wavelengths):
        raise ValueError(f"with {per_token} pixels a token, every input needs a wavelength")
    groups = group_pixels(wavelengths, model.positions[tokens], per_token)
    mean = mean_wavelengths(groups, wavelengths)
    mean = torch.as_tensor(mean, dtype=torch.float32, device=device)
    return groups, model.torch_model.embedding_layer.encode_wavelength(mean), None


def _token_counts(data: TrainingData, rows: Tensor) -> Tensor:
    """(k,) number of tokens with a valid value, for some stars."""
    device = data.values.device
    # A float16 value may still be finite where its standardized form is beyond the limit.
    valid = ~data.standardized(data.values[rows].to(data.device)).isnan()
    valid = torch.nn.functional.pad(valid, (0, 1), value=False)
    return valid[:, data.groups].any(dim=2).sum(dim=1).to(device)


def usable_stars(data: TrainingData) -> np.ndarray:
    """Rows of the stars with at least one label and one valid token."""
    labelled = ~data.labels.isnan().all(dim=1)
    rows = torch.arange(len(data), device=data.values.device)
    seen = torch.cat([_token_counts(data, part) > 0 for part in rows.split(BLOCK)])
    return torch.nonzero(labelled & seen.to(labelled.device))[:, 0].cpu().numpy()


def fewest_tokens(data: TrainingData, rows: np.ndarray) -> int:
    """Smallest number of tokens with a valid value among some stars."""
    index = torch.as_tensor(rows, device=data.values.device)
    counts = [_token_counts(data, part).min() for part in index.split(BLOCK)]
    return int(torch.stack(counts).min()) if len(index) else 0
