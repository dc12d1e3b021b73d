"""From values and wavelengths to vectors.

Shapes: N stars, L tokens, P pixels a token, D embedding dimensions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stellarperceptron.utils.linear import Linear

__all__ = ["ACTIVATIONS", "NonLinearEmbedding", "wavelength_encoding"]

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}


def wavelength_encoding(
    wavelength: Tensor,
    embedding_dim: int,
    wavelength_range: tuple[float, float] = (15000.0, 17000.0),
) -> Tensor:
    """Sine-cosine encoding of wavelength (Koblischke & Bovy 2024, section 2).

    ``PE(w)[2i] = sin(1000 v d_i)``, ``PE(w)[2i+1] = cos(1000 v d_i)`` with
    ``v = (w - range[0]) / (range[1] - range[0])`` and ``d_i = 10000^(-2i / D)``; a wavelength of 0
    means none and is encoded as zeros.

    Parameters
    ----------
    wavelength
        Any shape, vacuum [Angstrom].
    embedding_dim
        D, even.
    wavelength_range
        Wavelengths at v = 0 and v = 1 [Angstrom].

    Returns
    -------
    Tensor
        Shape of `wavelength` + (D,), float32. Every step is taken in float32 and in this order
        because the published weights were trained on these very roundings: at arguments near 1000
        another order moves the sines by 4e-4.
    """
    wavelength = wavelength.to(torch.float32)
    low, high = wavelength_range
    position = 1000.0 * ((wavelength - low) / (high - low))
    even = torch.arange(0, embedding_dim, 2, dtype=torch.float32, device=wavelength.device)
    angle = position[..., None] * torch.exp(even * (-math.log(10000.0) / embedding_dim))
    encoding = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
    return encoding * (wavelength != 0)[..., None]


class NonLinearEmbedding(nn.Module):
    """Embed pixels and other values: ``gelu(E[t] * x + B[t]) + PE(w)``; requests: ``E[t] + PE(w)``.

    Parameters
    ----------
    vocabulary_size
        Number of tokens without padding; `embeddings` (E) and `bias` (B) have one row more, row 0
        for padding, which is zero.
    embedding_dim
        D.
    activation
        A key of `ACTIVATIONS`.
    embed_map
        (vocabulary_size + 1,) integers: the row of E and B that each token uses. None: its own.
    wavelength_range
        See `wavelength_encoding` [Angstrom].
    pixels_per_token
        P. Above 1, a spectral token carries P neighbouring pixels: a linear map of their
        standardized fluxes (0 where a pixel is bad) and validities (1 or 0) takes the place of
        ``E[t] * x``.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        activation: str = "gelu",
        embed_map: Tensor | None = None,
        wavelength_range: tuple[float, float] = (15000.0, 17000.0),
        pixels_per_token: int = 1,
    ):
        super().__init__()
        self.embedding_dim = embedding_dim
        self.activation = ACTIVATIONS[activation]
        self.wavelength_range = wavelength_range
        self.pixels_per_token = pixels_per_token
        self.embeddings = nn.Parameter(torch.empty(vocabulary_size + 1, embedding_dim))
        self.bias = nn.Parameter(torch.empty(vocabulary_size + 1, embedding_dim))
        if pixels_per_token > 1:
            self.pixel_projection = Linear(2 * pixels_per_token, embedding_dim, bias=False)
        if embed_map is None:
            embed_map = torch.arange(vocabulary_size + 1)
        # Part of the checkpoint's embed_map.npz, not of its weights.
        self.register_buffer("embed_map", embed_map.to(torch.int64, copy=True), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw E and B from N(0, 1), so that the flux starts as loud as its wavelength encoding."""
        for parameter in (self.embeddings, self.bias):
            nn.init.normal_(parameter)
            with torch.no_grad():
                parameter[0] = 0.0

    def encode_wavelength(self, wavelength: Tensor) -> Tensor:
        """`wavelength_encoding` with this layer's dimension and range."""
        return wavelength_encoding(wavelength, self.embedding_dim, self.wavelength_range)

    def forward(
        self,
        tokens: Tensor,
        inputs: Tensor | None = None,
        encoding: Tensor | None = None,
        pixels: Tensor | None = None,
    ) -> Tensor:
        """Embed tokens.

        Parameters
        ----------
        tokens
            (N, L) or, alike for all stars, (L,) integers.
        inputs
            (N, L) standardized values, NaN counted as 0; None when there are none, as in requests.
        encoding
            (N, L, D) or (L, D) wavelength encoding (`encode_wavelength`); None for no wavelengths.
        pixels
            (N, L, P) standardized fluxes of spectral tokens, only with P > 1; NaN for bad pixels
            and throughout at tokens that are not spectral.

        Returns
        -------
        Tensor
            (N, L, D), or (L, D) for requests shared by all stars.
        """
        rows = self.embed_map[tokens]
        embedded = F.embedding(rows, self.embeddings)
        if inputs is not None or pixels is not None:
            scaled = F.embedding(rows, self.bias)
            if inputs is not None:
                scaled = torch.addcmul(scaled, embedded, inputs.nan_to_num(nan=0.0)[..., None])
            if pixels is not None:
                valid = ~pixels.isnan()
                flux = torch.cat([pixels.nan_to_num(nan=0.0), valid.to(pixels.dtype)], dim=-1)
                scaled = scaled + self.pixel_projection(flux)  # (N, L, 2P) -> (N, L, D)
            embedded = self.activation(scaled)
        return embedded if encoding is None else embedded + encoding
