"""From pixels to tokens to patches: how spectra of any length fit a context of fixed length."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.data.standardizer import CONDITIONS, standardized_condition
from stellarperceptron.layers import NonLinearEmbedding, StellarPerceptronTorchModel, Tokens

__all__ = [
    "Patch",
    "group_pixels",
    "group_values",
    "known_conditions",
    "mean_wavelengths",
    "pixel_ids",
    "predict_patches",
    "split_into_patches",
    "with_snr",
]


def group_pixels(
    wavelengths: np.ndarray, positions: np.ndarray, pixels_per_token: int
) -> np.ndarray:
    """Group neighbouring pixels into tokens.

    Tokens of several pixels are bins of the pixel grid: the pixel at position p belongs to bin
    p // P. Part of a spectrum therefore has the same bins as the whole spectrum. Bins at its ends
    and at the edges of a chip may be incomplete.

    Parameters
    ----------
    wavelengths
        (n,) in any order [Angstrom].
    positions
        (n,) integers: position of each pixel on the grid. With one pixel per token they only sort
        pixels of the same wavelength.
    pixels_per_token
        P.

    Returns
    -------
    ndarray
        (T, P) indices into `wavelengths`; -1 where a bin lacks a pixel. Tokens are sorted by
        wavelength if P = 1, otherwise by position.
    """
    if pixels_per_token == 1:
        return np.lexsort((positions, wavelengths))[:, None]
    bins, place = np.divmod(np.asarray(positions), pixels_per_token)
    which, row = np.unique(bins, return_inverse=True)
    groups = np.full((len(which), pixels_per_token), -1)
    groups[row, place] = np.arange(len(positions))
    return groups


def pixel_ids(groups: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(T, P) token of each pixel in the groups; 0 where a group lacks a pixel."""
    return np.append(tokens, 0)[groups]  # index -1: no pixel


def mean_wavelengths(groups: np.ndarray, wavelengths: np.ndarray) -> np.ndarray:
    """(T,) mean wavelength of each group [Angstrom]."""
    return np.nanmean(np.append(wavelengths, np.nan)[groups], axis=1)  # index -1: no pixel


def known_conditions(groups: np.ndarray, resolving_power: np.ndarray) -> Tensor:
    """Conditions of tokens that are the same for all stars; see `Tokens`.

    Parameters
    ----------
    groups
        (T, P) pixels of each token, -1 for a missing one.
    resolving_power
        (n,) at each pixel, NaN where unknown.

    Returns
    -------
    Tensor
        (T, C): the mean resolving power of each token, and NaN for the signal-to-noise ratio.
    """
    power = np.append(resolving_power, np.nan)[groups]
    known = np.isfinite(power)
    # Tokens without a known value have a sum of zero, which counts as unknown.
    mean = np.where(known, power, 0).sum(axis=1) / known.sum(axis=1).clip(min=1)
    conditions = torch.full((len(groups), len(CONDITIONS)), math.nan)
    conditions[:, 0] = standardized_condition("resolving_power", torch.from_numpy(mean))
    return conditions


def with_snr(conditions: Tensor, snr: Tensor) -> Tensor:
    """Conditions (N, T, C) of N stars.

    Parameters
    ----------
    conditions
        (T, C), see `known_conditions`.
    snr
        (N, T) signal-to-noise ratio a pixel, or (N, 1) if it is that of all tokens; NaN where
        unknown.
    """
    power = conditions[:, 0].expand(len(snr), -1)
    return torch.stack([power, standardized_condition("snr", snr).expand_as(power)], dim=-1)


def group_values(
    values: np.ndarray,
    tokens: np.ndarray,
    wavelengths: np.ndarray,
    positions: np.ndarray,
    pixels_per_token: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group the pixels among standardized values; each other value has a token of its own.

    Padding is left out, so that it is not taken for a neighbouring pixel.

    Parameters
    ----------
    values
        (N, n) standardized.
    tokens, positions
        (n,) tokens and positions of the values; see `group_pixels`.
    wavelengths
        (n,) [Angstrom], 0 for values that are not pixels.
    pixels_per_token
        P.

    Returns
    -------
    ids : ndarray
        (T, P) integers, spectral tokens first.
    values : ndarray
        (N, T, P), NaN where a value is missing.
    wavelengths : ndarray
        (T,) mean wavelengths [Angstrom], 0 for tokens that are not spectral.
    """
    spectral = np.flatnonzero((wavelengths != 0) & (tokens != 0))
    others = np.flatnonzero((wavelengths == 0) & (tokens != 0))
    local = group_pixels(wavelengths[spectral], positions[spectral], pixels_per_token)
    groups = np.full((len(local) + len(others), pixels_per_token), -1)
    groups[: len(local)] = np.append(spectral, -1)[local]
    groups[len(local) :, 0] = others
    padded = np.pad(values, ((0, 0), (0, 1)), constant_values=np.nan)
    means = mean_wavelengths(groups, wavelengths) if len(groups) else np.zeros(0)
    return pixel_ids(groups, tokens), padded[:, groups], means


@dataclass(frozen=True)
class Patch:
    """Part of the pixels that fits into the context, the same for all stars.

    Attributes
    ----------
    pixels : Tensor
        (T, P) indices of pixels, -1 for a missing one.
    ids : Tensor
        (T, P) tokens of these pixels, 0 for a missing one.
    encoding : Tensor
        (T, D) wavelength encoding.
    conditions : Tensor or None
        (T, C), see `known_conditions`; None if the network takes none.
    """

    pixels: Tensor
    ids: Tensor
    encoding: Tensor
    conditions: Tensor | None = None

    def tokens(
        self,
        flux: Tensor,
        complete: bool = False,
        snr: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tokens:
        """Tokens of stars with standardized fluxes (N, n + 1); the last column is NaN.

        `snr` (N, n + 1) are signal-to-noise ratios of the pixels, of which a token is told the
        median, and `weights` (N, n + 1) their weights.
        """
        conditions = self.conditions
        if snr is not None:
            conditions = with_snr(conditions, snr[:, self.pixels].nanmedian(dim=2).values)
        weights = None if weights is None else weights[:, self.pixels]
        return Tokens(self.ids, flux[:, self.pixels], self.encoding, complete, conditions, weights)


def split_into_patches(
    tokens: np.ndarray,
    wavelengths: np.ndarray,
    positions: np.ndarray,
    embedding_layer: NonLinearEmbedding,
    context_length: int,
    seed: int = 0,
    fill: bool = False,
    resolving_power: np.ndarray | None = None,
) -> list[Patch]:
    """Split all tokens into as few patches of equal size as the context allows.

    Tokens that fit into the context make one patch. Otherwise they are shuffled first
    (Koblischke & Bovy 2024, section 3), so that each patch covers the whole wavelength range.

    Parameters
    ----------
    tokens, wavelengths, positions
        (n,) tokens, wavelengths and positions of all pixels, in any order; see `group_pixels`.
    embedding_layer
        Layer with the wavelength encoding and the pixels per token. Patches are on its device.
    context_length
        Largest number of tokens in a patch.
    seed
        Seed of the shuffle (published: always 0).
    fill
        Add a padding token to the shorter patches if sizes differ by one.
    resolving_power
        (n,) at each pixel, NaN where unknown; None for a network that takes no conditions.
    """
    device = embedding_layer.embeddings.device
    groups = group_pixels(wavelengths, positions, embedding_layer.pixels_per_token)
    order = np.random.default_rng(seed).permutation(len(groups))
    if len(groups) <= context_length:
        order = np.arange(len(groups))
    parts = np.array_split(order, math.ceil(len(groups) / context_length))  # longer ones first
    patches = []
    for part in parts:
        padding = (0, len(parts[0]) - len(part) if fill else 0)
        pixels = np.pad(groups[part], (padding, (0, 0)), constant_values=-1)
        mean = np.pad(mean_wavelengths(groups[part], wavelengths), padding)
        conditions = None
        if resolving_power is not None:
            conditions = known_conditions(pixels, resolving_power).to(device)
        patches.append(
            Patch(
                torch.as_tensor(pixels, device=device),
                torch.as_tensor(pixel_ids(pixels, tokens), device=device),
                embedding_layer.encode_wavelength(
                    torch.as_tensor(mean, dtype=torch.float32, device=device)
                ),
                conditions,
            )
        )
    return patches


def predict_patches(
    network: StellarPerceptronTorchModel,
    flux: Tensor,
    patches: list[Patch],
    request_ids: Tensor,
    combine: str = "mean",
    nan_policy: str = "mask",
    always_mask: bool = False,
    snr: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Perceive patch by patch and combine the answers.

    Parameters
    ----------
    network
        The network, possibly compiled.
    flux
        (N, n) standardized, NaN for bad pixels.
    patches
        See `split_into_patches`.
    request_ids
        (Q,).
    combine
        "mean" or "inverse_variance", see `StellarPerceptron.predict`.
    nan_policy
        See `StellarPerceptronTorchModel.embed`.
    always_mask
        Do not check whether patches are complete. The check makes a GPU wait.
    snr
        (N, n) signal-to-noise ratios of the pixels, NaN where unknown; None: of none.
    weights
        (N, n) weights of the pixels, see `Tokens`.

    Returns
    -------
    value, error : Tensor
        (N, Q) standardized; NaN for stars without any valid pixel.
    """
    # The last column (index -1) is a missing pixel.
    flux = torch.nn.functional.pad(flux, (0, 1), value=math.nan)
    snr = None if snr is None else torch.nn.functional.pad(snr, (0, 1), value=math.nan)
    weights = None if weights is None else torch.nn.functional.pad(weights, (0, 1))
    total = total_weight = total_error = 0.0
    for patch in patches:
        tokens = patch.tokens(flux, snr=snr, weights=weights)
        present = tokens.present()
        seen = present.any(dim=1, keepdim=True)
        complete = not always_mask and bool(present.all())
        value, logvar = network(tokens._replace(complete=complete), request_ids, nan_policy)
        value, logvar = value.float(), logvar.float()
        if combine == "mean":
            weight, error = seen, seen * (0.5 * logvar).exp()
        else:
            weight, error = seen * (-logvar).exp(), seen
        total, total_weight = total + weight * value, total_weight + weight
        total_error = total_error + error
    # For a star without valid pixels 0 / 0 gives NaN, as intended.
    error = total_error / total_weight
    if combine != "mean":
        error = error.sqrt()  # 1 / error^2 is the mean of the patches' 1 / error^2
    return total / total_weight, error
