"""Attention to each token, sensitivity to each pixel, and a masking test.

Attention is given relative to a uniform distribution: it is 1 if all valid tokens of a star in a
patch receive the same. The scale depends neither on the length of the context nor on bad pixels.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stellarperceptron.evaluation.metrics import GIANTS, label_metrics
from stellarperceptron.layers import Tokens
from stellarperceptron.model import StellarPerceptron
from stellarperceptron.network.patches import (
    Patch,
    group_pixels,
    split_into_patches,
)

__all__ = [
    "TokenGroups",
    "decoder_attention",
    "label_sensitivity",
    "masking_test",
    "star_groups",
    "token_groups",
]


def star_groups(logg: np.ndarray) -> dict[str, np.ndarray]:
    """Groups of stars over which attention is averaged, as masks (N,): giants, dwarfs, all.

    Giants are the paper's (1.0 < log g < 3.5); dwarfs have log g > 4.0. NaN is neither.
    """
    logg = np.asarray(logg, dtype=float)
    return {
        "giants": (logg > GIANTS[0]) & (logg < GIANTS[1]),
        "dwarfs": logg > 4.0,
        "all": np.ones(len(logg), dtype=bool),
    }


@dataclass(frozen=True)
class TokenGroups:
    """Tokens that a model makes of the pixels of a spectrum.

    Attributes
    ----------
    names : (n,) int
        Token of each pixel in the vocabulary.
    pixels : (T, P) int
        Indices of each token's pixels, -1 for none.
    of_pixel : (n,) int
        Index of the token of each pixel.
    """

    names: np.ndarray
    pixels: np.ndarray
    of_pixel: np.ndarray


def token_groups(model: StellarPerceptron, wavelengths: np.ndarray) -> TokenGroups:
    """Tokens of the instrument's pixels at some wavelengths (n,) [Angstrom, vacuum]."""
    names = model.tokenize(model.instrument.pixel_names(wavelengths))
    model.require_standardization(names)
    pixels = group_pixels(wavelengths, model.positions[names], model.config.pixels_per_token)
    of_pixel = np.empty(len(wavelengths), dtype=int)
    token, place = np.nonzero(pixels >= 0)
    of_pixel[pixels[token, place]] = token
    return TokenGroups(names, pixels, of_pixel)


def decoder_attention(
    model: StellarPerceptron,
    spectra: np.ndarray,
    wavelengths: np.ndarray,
    labels: Sequence[str],
    *,
    permutations: int = 4,
    batch_size: int | None = None,
) -> Iterator[np.ndarray]:
    """Attention of each label to each token in the last decoder block, in batches of stars.

    The spectra are divided into patches as `StellarPerceptron.predict` does, with seeds 0, 1, ...
    The learned key, which is not a token, is left out. The rest of a request's attention is scaled
    to a mean of 1 over the valid tokens of the star in the patch.

    Parameters
    ----------
    model
        The model.
    spectra
        (N, n) normalized flux, NaN for bad pixels; anything that is sliced like an array.
    wavelengths
        (n,) of the instrument's pixels [Angstrom, vacuum].
    labels
        Names of the Q labels.
    permutations
        Number of random divisions of the pixels into patches, over which the mean is taken.
    batch_size
        Stars at a time; None chooses by device.

    Yields
    ------
    ndarray
        (B, Q, T); NaN for tokens without a valid pixel. T tokens as in `token_groups`.
    """
    groups = token_groups(model, wavelengths)
    request = torch.as_tensor(model.tokenize(list(labels)), device=model.device)
    for flux, patches in _in_patches(model, spectra, wavelengths, groups, permutations, batch_size):
        shape = (len(flux), len(request), len(groups.pixels))
        total = torch.zeros(shape, device=model.device)
        for patch in patches:
            first = patch.pixels.amax(dim=1).cpu().numpy()
            which = torch.as_tensor(groups.of_pixel[first], device=model.device)
            tokens = patch.tokens(flux)
            with torch.inference_mode():
                perception, attend, _ = model.torch_model.encode(tokens, model.nan_policy)
                *_, weights = model.torch_model.decode(
                    request, perception, attend, need_weights=True
                )
            total[:, :, which] += _even(weights[..., :-1], tokens.present()) / permutations
        yield total.cpu().numpy()


def label_sensitivity(
    model: StellarPerceptron,
    spectra: np.ndarray,
    wavelengths: np.ndarray,
    labels: Sequence[str],
    *,
    permutations: int = 1,
    batch_size: int | None = None,
) -> Iterator[np.ndarray]:
    """Derivatives of predicted labels with respect to flux, in batches of stars.

    These are derivatives of what `StellarPerceptron.predict` gives, label and flux both being
    standardized. The parameters are those of `decoder_attention`.

    Yields
    ------
    ndarray
        (B, Q, n); NaN for bad pixels.
    """
    groups = token_groups(model, wavelengths)
    request = torch.as_tensor(model.tokenize(list(labels)), device=model.device)
    trained = [p for p in model.torch_model.parameters() if p.requires_grad]
    for p in trained:  # their gradients are not needed
        p.requires_grad_(False)
    try:
        for flux, patches in _in_patches(
            model, spectra, wavelengths, groups, permutations, batch_size
        ):
            total = torch.zeros(len(flux), len(request), flux.shape[1], device=model.device)
            seen = torch.zeros(len(flux), 1, 1, device=model.device)
            for patch in patches:
                pixels = flux[:, patch.pixels]
                total[:, :, patch.pixels] += _slopes(model, pixels, patch, request)
                seen += (~pixels.isnan()).flatten(1).any(dim=1)[:, None, None]
            total = (total / seen).masked_fill(flux.isnan()[:, None], math.nan)
            yield total[..., :-1].cpu().numpy()
    finally:
        for p in trained:
            p.requires_grad_()


def masking_test(
    model: StellarPerceptron,
    spectra: np.ndarray,
    wavelengths: np.ndarray,
    actual: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    """Growth of the error of each label when some of the pixels are masked.

    Parameters
    ----------
    model
        The model, which predicts as `StellarPerceptron.predict` does.
    spectra
        (N, n) normalized flux, NaN for bad pixels.
    wavelengths
        (n,) of the instrument's pixels [Angstrom, vacuum].
    actual
        Catalogue labels (N,) by name; these labels are predicted.
    masks
        Masks (n,) of the pixels that are made NaN, by name.

    Returns
    -------
    DataFrame
        A row for each mask and label: masked, pixels, label, stars, rmse_whole (with all pixels),
        rmse (without the masked ones), growth (their ratio). Only stars with both predictions
        are used.
    """
    labels = list(actual)

    def answers(flux: np.ndarray) -> pd.DataFrame:
        return model.predict(flux, wavelengths, labels, progress=False)

    whole, rows = answers(spectra), []
    for name, mask in masks.items():
        masked = answers(np.where(mask, np.float32(np.nan), spectra))
        for label in labels:
            known = whole[label].notna() & masked[label].notna()
            truth = np.where(known, actual[label], np.nan)
            before = label_metrics(whole[label].to_numpy(), truth)
            after = label_metrics(masked[label].to_numpy(), truth)
            rows.append(
                {
                    "masked": name,
                    "pixels": int(mask.sum()),
                    "label": label,
                    "stars": after["stars"],
                    "rmse_whole": before["rmse"],
                    "rmse": after["rmse"],
                    "growth": after["rmse"] / before["rmse"],
                }
            )
    return pd.DataFrame(rows)


def _slopes(model: StellarPerceptron, pixels: Tensor, patch: Patch, request_ids: Tensor) -> Tensor:
    """Derivatives (N, Q, T, P) of the labels with respect to a patch's pixels (N, T, P)."""
    pixels = pixels.requires_grad_()
    tokens = Tokens(patch.ids, pixels, patch.encoding, conditions=patch.conditions)
    value, _ = model.torch_model(tokens, request_ids, model.nan_policy)
    slopes = [torch.autograd.grad(answer.sum(), pixels, retain_graph=True)[0] for answer in value.T]
    return torch.stack(slopes, dim=1)


def _in_patches(
    model: StellarPerceptron,
    spectra: np.ndarray,
    wavelengths: np.ndarray,
    groups: TokenGroups,
    permutations: int,
    batch_size: int | None,
) -> Iterator[tuple[Tensor, list[Patch]]]:
    """Batches of standardized spectra (B, n + 1), and the patches of all permutations.

    The last column, index -1, stands for missing pixels and is NaN. Dropout is switched off.
    """
    if permutations < 1:
        raise ValueError(f"permutations = {permutations} is below 1")
    network, context = model.torch_model, model.config.context_length
    patches = [
        patch
        for seed in range(permutations)
        for patch in split_into_patches(
            groups.names,
            wavelengths,
            model.positions[groups.names],
            network.embedding_layer,
            context,
            seed,
            resolving_power=model.resolving_power_at(wavelengths),
        )
    ]
    scores = model.config.encoder_head_num * context * (context + 1)
    batch_size = model.stars_at_once(batch_size, scores)
    training = network.training
    network.eval()
    try:
        for start in range(0, len(spectra), batch_size):
            flux = np.array(spectra[start : start + batch_size], dtype=np.float32)
            flux = model.standardizer.standardize(
                torch.from_numpy(flux).to(model.device), groups.names
            )
            yield torch.nn.functional.pad(flux, (0, 1), value=math.nan), patches
    finally:
        network.train(training)


def _even(attention: Tensor, present: Tensor) -> Tensor:
    """Scale attention (N, Q, T) to a mean of 1 over the tokens that are present (N, T)."""
    attention = attention * present[:, None]
    scaled = attention * present.sum(dim=1)[:, None, None] / attention.sum(dim=2, keepdim=True)
    return scaled.masked_fill(~present[:, None], math.nan)
