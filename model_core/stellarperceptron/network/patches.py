"""From pixels to tokens to patches: how spectra of any length meet a fixed context."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.layers import NonLinearEmbedding, StellarPerceptronTorchModel

__all__ = [
    "Patch",
    "deal_patches",
    "group_pixels",
    "group_values",
    "mean_wavelengths",
    "predict_patches",
]


def group_pixels(wavelengths: np.ndarray, tokens: np.ndarray, pixels_per_token: int) -> np.ndarray:
    """Group neighbouring pixels into tokens, never across a gap between detector chips.

    Where pixels ascend in the vocabulary as they do in wavelength, each has its own place in its
    own group, whichever others are there: a narrow range of a spectrum gives the groups of the
    whole, the first and last of them in part. Other pixels are counted from the first.

    Parameters
    ----------
    wavelengths
        (n,) in any order [Angstrom].
    tokens
        (n,) from 1; they decide the order of pixels with the same wavelength.
    pixels_per_token
        P.

    Returns
    -------
    ndarray
        (T, P) indices into `wavelengths`, ascending in wavelength; -1 where a group has no such
        pixel.
    """
    order = np.lexsort((tokens, wavelengths))
    if pixels_per_token == 1:
        return order[:, None]
    tokens = np.asarray(tokens)[order]
    steps = np.diff(np.asarray(wavelengths)[order])
    # A step of several pixels is a gap; APOGEE's are 300 pixels wide, its steps alike within 10 %.
    gap = steps > 3 * np.median(steps) if len(steps) else np.empty(0, dtype=bool)
    if np.all(np.diff(tokens) > 0):
        group, place = np.divmod(tokens - 1, pixels_per_token)
    else:
        chip = np.concatenate([[0], np.cumsum(gap)])
        position = np.arange(len(order)) - np.searchsorted(chip, chip)  # in its chip
        group, place = np.divmod(position, pixels_per_token)
    starts = np.concatenate([[True], (np.diff(group) != 0) | gap])
    groups = np.full((starts.sum(), pixels_per_token), -1)
    groups[np.cumsum(starts) - 1, place] = order
    return groups


def mean_wavelengths(groups: np.ndarray, wavelengths: np.ndarray) -> np.ndarray:
    """(T,) mean wavelength of each group."""
    return np.nanmean(np.append(wavelengths, np.nan)[groups], axis=1)  # index -1: no pixel


def first_pixels(groups: np.ndarray) -> np.ndarray:
    """(T,) index of the first pixel of each group (T, P)."""
    return groups[np.arange(len(groups)), (groups >= 0).argmax(axis=1)]


def group_values(
    values: np.ndarray, tokens: np.ndarray, wavelengths: np.ndarray, pixels_per_token: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Group the pixels among standardized values; other values keep tokens of their own.

    Parameters
    ----------
    values
        (N, n) standardized.
    tokens
        (n,).
    wavelengths
        (n,) [Angstrom], 0 for values that are no pixels.
    pixels_per_token
        P.

    Padding is left out: it must not be taken for a neighbour.

    Returns
    -------
    tokens, wavelengths : ndarray
        (T,), spectral tokens first: the token of their first pixel, and their mean wavelength.
    inputs : ndarray
        (N, T) values of the tokens that are not spectral, NaN elsewhere.
    pixels : ndarray
        (N, T, P) pixels of the tokens that are, NaN elsewhere.
    """
    spectral = np.flatnonzero((wavelengths != 0) & (tokens != 0))
    others = np.flatnonzero((wavelengths == 0) & (tokens != 0))
    groups = np.empty((0, pixels_per_token), dtype=int)
    if len(spectral):
        local = group_pixels(wavelengths[spectral], tokens[spectral], pixels_per_token)
        groups = np.where(local < 0, -1, spectral[local])
    length = len(groups) + len(others)
    pixels = np.full((len(values), length, pixels_per_token), np.nan, dtype=np.float32)
    pixels[:, : len(groups)] = np.where(groups < 0, np.nan, values[:, groups])
    inputs = np.full((len(values), length), np.nan, dtype=np.float32)
    inputs[:, len(groups) :] = values[:, others]
    return (
        np.concatenate([tokens[first_pixels(groups)], tokens[others]]),
        np.concatenate([mean_wavelengths(groups, wavelengths), np.zeros(len(others))]),
        inputs,
        pixels,
    )


@dataclass(frozen=True)
class Patch:
    """A share of the pixels that fits the context, alike for all stars.

    Attributes
    ----------
    pixels : Tensor
        (T, P) indices of pixels, -1 for none.
    tokens : Tensor
        (T,).
    encoding : Tensor
        (T, D) wavelength encoding.
    """

    pixels: Tensor
    tokens: Tensor
    encoding: Tensor


def deal_patches(
    tokens: np.ndarray,
    wavelengths: np.ndarray,
    embedding_layer: NonLinearEmbedding,
    context_length: int,
    seed: int = 0,
    fill: bool = False,
) -> list[Patch]:
    """Deal pixels out at random into as few patches of equal size as the context allows.

    Parameters
    ----------
    tokens, wavelengths
        (n,) of all pixels; their order does not matter.
    embedding_layer
        Gives the wavelength encoding and the pixels per token; patches are on its device.
    context_length
        Largest number of tokens in a patch.
    seed
        Of the permutation (published: a fixed one, seed 0).
    fill
        Where sizes differ by one token, give the shorter patches one of padding.
    """
    device = embedding_layer.embeddings.device
    groups = group_pixels(wavelengths, tokens, embedding_layer.pixels_per_token)
    deal = np.random.default_rng(seed).permutation(len(groups))
    patches = []
    parts = np.array_split(deal, math.ceil(len(groups) / context_length))  # the longer ones first
    for part in parts:
        padding = (0, len(parts[0]) - len(part) if fill else 0)
        patch_tokens = np.pad(tokens[first_pixels(groups[part])], padding)
        mean = np.pad(mean_wavelengths(groups[part], wavelengths), padding)
        patches.append(
            Patch(
                torch.as_tensor(
                    np.pad(groups[part], (padding, (0, 0)), constant_values=-1), device=device
                ),
                torch.as_tensor(patch_tokens, device=device),
                embedding_layer.encode_wavelength(torch.as_tensor(mean, device=device)),
            )
        )
    return patches


def predict_patches(
    network: StellarPerceptronTorchModel,
    flux: Tensor,
    patches: list[Patch],
    request_tokens: Tensor,
    combine: str = "mean",
    nan_policy: str = "mask",
    always_mask: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Perceive patch by patch and combine the answers.

    Parameters
    ----------
    network
        The network, or what `torch.compile` made of it.
    flux
        (N, n) standardized, NaN for bad pixels.
    patches
        See `deal_patches`.
    request_tokens
        (Q,).
    combine
        "mean" or "inverse_variance", see `StellarPerceptron.predict`.
    nan_policy
        See `StellarPerceptronTorchModel.encode`.
    always_mask
        Spare the question whether a patch is complete, which a GPU has to stop for.

    Returns
    -------
    value, error : Tensor
        (N, Q) standardized; NaN for stars without any valid pixel.
    seen : Tensor
        (N,) False for these stars.
    """
    # The last column, index -1, is the pixel that is not there.
    flux = torch.nn.functional.pad(flux, (0, 1), value=math.nan)
    total = total_weight = total_error = 0.0
    for patch in patches:
        pixels = flux[:, patch.pixels]  # (N, T, P)
        missing = pixels.isnan().all(dim=2)
        seen = ~missing.all(dim=1, keepdim=True)
        one_pixel = pixels.shape[-1] == 1
        value, logvar = network(
            patch.tokens,
            pixels[..., 0] if one_pixel else None,
            request_tokens,
            patch.encoding,
            None if one_pixel else pixels,
            nan_policy=nan_policy,
            complete=not (always_mask or bool(missing.any())),
        )
        value, logvar = value.float(), logvar.float()
        if combine == "mean":
            weight, error = seen, seen * (0.5 * logvar).exp()
        else:
            weight, error = seen * (-logvar).exp(), seen
        total, total_weight = total + weight * value, total_weight + weight
        total_error = total_error + error
    # A star that was never seen: 0 / 0 is the NaN that it should be.
    error = total_error / total_weight
    if combine != "mean":
        error = error.sqrt()  # 1 / error^2 is the mean of the patches' 1 / error^2
    return total / total_weight, error, (total_weight > 0).any(dim=1)
