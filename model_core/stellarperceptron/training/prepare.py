"""Stars that lie ready for training: read, standardized, grouped, on the device or near it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.model_core import StellarPerceptronCore
from stellarperceptron.network.patches import first_pixels, group_pixels, mean_wavelengths
from stellarperceptron.training.prefetch import memory_for

__all__ = [
    "Batch",
    "TrainingData",
    "fewest_tokens",
    "prepare_training_data",
    "usable_stars",
]


@dataclass(frozen=True)
class Batch:
    """Arguments of the network and what it should answer; B stars, L tokens, Q requests.

    Attributes
    ----------
    stars : Tensor
        (B,) rows of the training data.
    tokens : Tensor
        (B, L) integers, 0 for padding.
    positions : Tensor
        (B, L) which of the data's tokens these are: rows of its table of wavelength encodings.
    inputs, pixels : Tensor or None
        (B, L) or (B, L, P) standardized values.
    request_tokens : Tensor
        (B, 1), or (Q,) when all labels are requested.
    labels, label_errors : Tensor
        (B, 1) or (B, Q) standardized; NaN where a star has no such label.
    narrow : Tensor or None
        (B,) whether a star shows a narrow stretch of its spectrum only; None: no star does.
    """

    stars: Tensor
    tokens: Tensor
    positions: Tensor
    inputs: Tensor | None
    pixels: Tensor | None
    request_tokens: Tensor
    labels: Tensor
    label_errors: Tensor
    narrow: Tensor | None = None

    def filled(self, size: int) -> "Batch":
        """A batch of `size` stars, the same ones over and over."""
        if size == len(self.stars):
            return self
        rows = torch.arange(size, device=self.stars.device) % len(self.stars)
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.request_tokens.ndim == 1:  # alike for all stars
            del parts["request_tokens"]
        more = {name: part[rows] for name, part in parts.items() if part is not None}
        return replace(self, **more)


@dataclass(frozen=True)
class TrainingData:
    """All stars, standardized; N stars, T tokens of P pixels, Q labels.

    Everything lies on one device, but for the values where its memory is too small for them.

    Attributes
    ----------
    values : Tensor
        (N, T, P) standardized, NaN for bad pixels; half or single precision.
    tokens : Tensor
        (T,) integers.
    encoding : Tensor or None
        (T, D) wavelength encoding; None without wavelengths, or where stars have their own.
    labels, label_errors : Tensor
        (N, Q) standardized, NaN for missing labels; errors of 0 where there are none.
    label_tokens : Tensor
        (Q,) integers.
    augment : callable or None
        Makes a changed copy of standardized values (B, T, P), given a generator.
    wavelengths : Tensor or None
        (N, T) vacuum [Angstrom] where every star has its own.
    """

    values: Tensor
    tokens: Tensor
    encoding: Tensor | None
    labels: Tensor
    label_errors: Tensor
    label_tokens: Tensor
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    wavelengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return self.labels.device

    def encode(self, batch: Batch, encode_wavelength: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Wavelength encoding (B, L, D) of a batch; None without wavelengths."""
        if self.wavelengths is not None:
            wavelengths = self.wavelengths[batch.stars].gather(1, batch.positions)
            return encode_wavelength(wavelengths)
        return None if self.encoding is None else self.encoding[batch.positions]


@dataclass(frozen=True)
class _StandardizedAugmentation:
    """An augmentation of fluxes, applied to standardized and grouped values."""

    augment: Callable[[Tensor, torch.Generator], Tensor]
    pixel_of: Tensor  # (T P,) pixel in each place of the groups; n for none
    place_of: Tensor  # (n,) place of each pixel in the flattened groups
    median: Tensor
    spread: Tensor
    limit: Tensor

    def __call__(self, values: Tensor, generator: torch.Generator) -> Tensor:
        flux = values.flatten(1).index_select(1, self.place_of) * self.spread + self.median
        z = (self.augment(flux, generator) - self.median) / self.spread
        z = z.masked_fill(z.abs() > self.limit, math.nan)
        z = torch.nn.functional.pad(z, (0, 1), value=math.nan)
        return z.index_select(1, self.pixel_of).view_as(values)


def prepare_training_data(
    model: StellarPerceptronCore,
    read: Callable[[slice], np.ndarray],
    stars: int,
    names: Sequence[str] | np.ndarray,
    wavelengths: np.ndarray | None,
    labels: np.ndarray,
    label_errors: np.ndarray | None,
    label_names: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    memory: str = "auto",
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    block: int = 4096,
) -> TrainingData:
    """Read, standardize, group and place all stars on a device.

    Tokens that have no standardization yet get theirs from these data.

    Parameters
    ----------
    model
        Vocabulary and standardization.
    read
        Gives the values (n, P) of a slice of stars, NaN for bad pixels.
    stars
        Their number N.
    names
        (P,) names or tokens of the values.
    wavelengths
        (P,) vacuum [Angstrom], or (N, P) when every star has its own (one pixel a token); None
        for none.
    labels, label_errors
        (N, Q), NaN for missing labels; errors None for none. A missing error counts as 0.
    label_names
        (Q,).
    device, dtype
        Where batches are made, and in which precision standardized values are kept: float16
        halves the memory, and its rounding is below 1e-4 of the flux.
    memory
        Whose they are kept in; see `streaming.memory_for`.
    augment
        Makes a changed copy of fluxes (B, P), given a generator on `device`.
    block
        Stars read at a time.
    """
    tokens, label_tokens = model.tokenize(names), model.tokenize(label_names)
    blocks = [slice(i, min(i + block, stars)) for i in range(0, stars, block)]
    if not model._input_standardized[tokens].all():
        # Medians need all stars at once, pixel by pixel.
        everything = np.empty((stars, len(tokens)), dtype=np.float32)
        for part in blocks:
            everything[part] = read(part)
        model.fit_standardization(everything, tokens, device)
        source = everything.__getitem__
    else:
        source = read
    model.fit_standardization(labels, label_tokens)

    per_token = model.config.pixels_per_token
    if wavelengths is None or np.ndim(wavelengths) == 2:
        if per_token > 1:
            raise ValueError(f"{per_token} pixels a token need one list of wavelengths")
        groups, encoding = np.arange(len(tokens))[:, None], None
    else:
        if per_token > 1 and not np.all(wavelengths):
            raise ValueError(f"with {per_token} pixels a token, every input needs a wavelength")
        groups = group_pixels(wavelengths, tokens, per_token)
        mean = torch.as_tensor(mean_wavelengths(groups, wavelengths), device=device)
        encoding = model.torch_model.embedding_layer.encode_wavelength(mean)
    place = torch.as_tensor(np.where(groups < 0, len(tokens), groups).ravel())
    size = stars * groups.size * dtype.itemsize
    values = torch.empty(
        (stars, *groups.shape), dtype=dtype, device=memory_for(size, device, memory)
    )
    for part in blocks:
        z = torch.from_numpy(np.ascontiguousarray(source(part), dtype=np.float32)).to(device)
        z = torch.nn.functional.pad(model.standardize(z, tokens), (0, 1), value=math.nan)
        values[part] = z[:, place.to(device)].view(len(z), *groups.shape).to(dtype)

    if augment is not None:
        like = torch.empty(0, device=device)
        place_of = torch.empty(len(tokens) + 1, dtype=torch.int64)
        place_of[place] = torch.arange(len(place))
        augment = _StandardizedAugmentation(
            augment,
            place.to(device),
            place_of[:-1].to(device),
            *model._statistics(tokens, like),
        )
    z = model.standardize(np.asarray(labels, dtype=np.float64), label_tokens)
    errors = np.zeros_like(z) if label_errors is None else label_errors
    errors = np.nan_to_num(model.standardize_error(errors, label_tokens), nan=0.0)
    return TrainingData(
        values=values,
        tokens=torch.as_tensor(tokens[first_pixels(groups)], device=device),
        encoding=encoding,
        labels=torch.as_tensor(z, dtype=torch.float32, device=device),
        label_errors=torch.as_tensor(errors, dtype=torch.float32, device=device),
        label_tokens=torch.as_tensor(label_tokens, device=device),
        augment=augment,
        wavelengths=torch.as_tensor(wavelengths, dtype=torch.float32, device=device)
        if np.ndim(wavelengths) == 2
        else None,
    )


def usable_stars(data: TrainingData) -> np.ndarray:
    """Rows of the stars with at least one label and one valid token."""
    labelled = ~data.labels.isnan().all(dim=1)
    seen = torch.cat([~block.isnan().flatten(1).all(dim=1) for block in data.values.split(4096)])
    seen = seen.to(labelled.device)
    return torch.nonzero(labelled & seen)[:, 0].cpu().numpy()


def fewest_tokens(data: TrainingData, rows: np.ndarray) -> int:
    """Smallest number of tokens with a valid pixel among some stars."""
    index = torch.as_tensor(rows, device=data.values.device)
    counts = [
        (~data.values[part].isnan().all(dim=2)).sum(dim=1).min() for part in index.split(4096)
    ]
    return int(torch.stack(counts).min()) if counts else 0
