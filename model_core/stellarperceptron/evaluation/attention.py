"""Where the model looks: attention of each label on each token, sensitivity to each pixel.

Attention is counted in units of an even spread: 1 is what a token gets when all tokens that a star
has in a patch share alike, so that neither the length of a context nor bad pixels change the scale.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from stellarperceptron.evaluation.metrics import GIANTS
from stellarperceptron.model import StellarPerceptron
from stellarperceptron.network.patches import (
    Patch,
    deal_patches,
    first_pixels,
    group_pixels,
)

__all__ = [
    "MEASURES",
    "TokenGroups",
    "decoder_attention",
    "label_sensitivity",
    "star_groups",
    "token_groups",
]

MEASURES: Mapping[str, str] = MappingProxyType(
    {
        "last_block": "weights of the last decoder block, mean of its heads",
        "all_blocks": "mean of the weights of the three decoder blocks",
        "contribution": "length of the vector that the weights carry from a token, all blocks",
        "rollout": "contributions, followed back through the encoder",
    }
)
"""Ways to count attention. `last_block` is the plain one: what `StellarPerceptron.request` and the
published code return. `contribution` weighs a weight with what it moves: the norm-based attention
of Kobayashi et al. 2020 (arXiv 2004.10102), summed over the blocks. `rollout` asks from where the
encoder had what stands there: see `StellarPerceptronTorchModel.contributions`."""


def star_groups(logg: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (N,) of the stars that are looked at together: giants, dwarfs, all.

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
        Which of the T tokens a pixel belongs to.
    """

    names: np.ndarray
    pixels: np.ndarray
    of_pixel: np.ndarray


def token_groups(model: StellarPerceptron, wavelengths: np.ndarray) -> TokenGroups:
    """Tokens of the instrument's pixels at some wavelengths (n,) [Angstrom, vacuum]."""
    names = model.tokenize(model.instrument.pixel_names(wavelengths))
    model.require_standardization(names)
    pixels = group_pixels(wavelengths, names, model.config.pixels_per_token)
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
) -> Iterator[dict[str, np.ndarray]]:
    """Attention of each label on each token, batch after batch of stars.

    Spectra are dealt into patches as `StellarPerceptron.predict` does, with seeds 0, 1, ...; the
    learned key, which is no token, is left out, and what is left of a request's attention sums to
    the number of tokens that the star has in the patch.

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
        How often the pixels are dealt out; the mean is taken.
    batch_size
        Stars at a time; None chooses by device.

    Yields
    ------
    dict
        For each of `MEASURES` an array (B, Q, T), in units of an even spread; NaN for tokens
        without a valid pixel. T tokens as in `token_groups`.
    """
    groups = token_groups(model, wavelengths)
    request = torch.as_tensor(model.tokenize(list(labels)), device=model.device)
    for flux, patches in _dealt(model, spectra, wavelengths, groups, permutations, batch_size):
        shape = (len(flux), len(request), len(groups.pixels))
        total = {name: torch.zeros(shape, device=model.device) for name in MEASURES}
        for patch in patches:
            first = first_pixels(patch.pixels.cpu().numpy())
            tokens = torch.as_tensor(groups.of_pixel[first], device=model.device)
            with torch.inference_mode():
                part = _patch_attention(model, flux, patch, request)
            for name, value in part.items():
                total[name][:, :, tokens] += value / permutations
        yield {name: value.cpu().numpy() for name, value in total.items()}


def label_sensitivity(
    model: StellarPerceptron,
    spectra: np.ndarray,
    wavelengths: np.ndarray,
    labels: Sequence[str],
    *,
    permutations: int = 1,
    batch_size: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """How far each answer moves with the flux of each pixel, batch after batch of stars.

    The derivative of what `StellarPerceptron.predict` answers by a pixel's flux, both standardized:
    how many of its spreads a label moves when one pixel moves by one of its own. Parameters are
    those of `decoder_attention`.

    Yields
    ------
    dict
        "sensitivity": (B, Q, n), NaN for bad pixels.
    """
    groups = token_groups(model, wavelengths)
    request = torch.as_tensor(model.tokenize(list(labels)), device=model.device)
    trained = [p for p in model.torch_model.parameters() if p.requires_grad]
    for p in trained:  # nobody asks for their gradients
        p.requires_grad_(False)
    try:
        for flux, patches in _dealt(model, spectra, wavelengths, groups, permutations, batch_size):
            total = torch.zeros(len(flux), len(request), flux.shape[1], device=model.device)
            seen = torch.zeros(len(flux), 1, 1, device=model.device)
            for patch in patches:
                pixels = flux[:, patch.pixels]
                total[:, :, patch.pixels] += _slopes(model, pixels, patch, request)
                seen += (~pixels.isnan()).flatten(1).any(dim=1)[:, None, None]
            total = (total / seen).masked_fill(flux.isnan()[:, None], math.nan)
            yield {"sensitivity": total[..., :-1].cpu().numpy()}
    finally:
        for p in trained:
            p.requires_grad_()


def _slopes(
    model: StellarPerceptron, pixels: Tensor, patch: Patch, request_tokens: Tensor
) -> Tensor:
    """Derivatives (N, Q, T, P) of the answers by the pixels (N, T, P) of a patch, standardized."""
    pixels = pixels.requires_grad_()
    one_pixel = pixels.shape[-1] == 1
    value, _ = model.torch_model(
        patch.tokens,
        pixels[..., 0] if one_pixel else None,
        request_tokens,
        patch.encoding,
        None if one_pixel else pixels,
        nan_policy=model.nan_policy,
    )
    slopes = [torch.autograd.grad(answer.sum(), pixels, retain_graph=True)[0] for answer in value.T]
    return torch.stack(slopes, dim=1)


def _dealt(
    model: StellarPerceptron,
    spectra: np.ndarray,
    wavelengths: np.ndarray,
    groups: TokenGroups,
    permutations: int,
    batch_size: int | None,
) -> Iterator[tuple[Tensor, list[Patch]]]:
    """Standardized spectra (B, n + 1), batch after batch, and the patches of all permutations.

    The last column, index -1, is the pixel that is not there: NaN. Dropout is off meanwhile.
    """
    if permutations < 1:
        raise ValueError(f"permutations = {permutations} is below 1")
    network, context = model.torch_model, model.config.context_length
    patches = [
        patch
        for seed in range(permutations)
        for patch in deal_patches(groups.names, wavelengths, network.embedding_layer, context, seed)
    ]
    if batch_size is None:
        batch_size = max(1, (4096 if model.device.type == "cpu" else 2**15) // context)
    training = network.training
    network.eval()
    try:
        for start in range(0, len(spectra), batch_size):
            flux = np.array(spectra[start : start + batch_size], dtype=np.float32)
            flux = model.standardize(torch.from_numpy(flux).to(model.device), groups.names)
            yield torch.nn.functional.pad(flux, (0, 1), value=math.nan), patches
    finally:
        network.train(training)


def _patch_attention(
    model: StellarPerceptron, flux: Tensor, patch: Patch, request_tokens: Tensor
) -> dict[str, Tensor]:
    """Attention (N, Q, T) on the tokens of one patch; see `decoder_attention`."""
    network = model.torch_model
    pixels = flux[:, patch.pixels]  # (N, T, P)
    present = ~pixels.isnan().all(dim=2)
    one_pixel = pixels.shape[-1] == 1
    x, attend = network.embed(
        patch.tokens,
        pixels[..., 0] if one_pixel else None,
        patch.encoding,
        None if one_pixel else pixels,
        nan_policy=model.nan_policy,
    )
    perception, _ = network.torch_encoder(x, attend)
    request = network.request(request_tokens, len(flux))
    decoder = network.torch_decoder
    *queries, _, _ = decoder.read(request, perception, attend)
    weights, lengths = decoder.contributions(queries, perception, attend)
    weights = [_even(block, present) for block in weights]
    return {
        "last_block": weights[-1],
        "all_blocks": torch.stack(weights).mean(dim=0),
        "contribution": _even(sum(lengths), present),
        "rollout": _even(network.contributions(queries, x, perception, attend), present),
    }


def _even(attention: Tensor, present: Tensor) -> Tensor:
    """Scale attention (N, Q, T) to a mean of 1 over the tokens that are present (N, T)."""
    attention = attention * present[:, None]
    scaled = attention * present.sum(dim=1)[:, None, None] / attention.sum(dim=2, keepdim=True)
    return scaled.masked_fill(~present[:, None], math.nan)
