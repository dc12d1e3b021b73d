"""The network on one page: tokens, embedding, encoder, decoder and the whole model.

Parameter names and shapes are those of the published checkpoints (Koblischke & Bovy 2024,
arXiv 2411.04750, after Leung & Bovy 2023, arXiv 2308.10944). Shapes: N stars, L tokens, Q
requests, P pixels per token, D embedding dimensions.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stellarperceptron.data.standardizer import CONDITIONS
from stellarperceptron.instruments import APOGEE
from stellarperceptron.network.block import ACTIVATIONS, TransformerBlock
from stellarperceptron.network.kernels.dropout import Dropout
from stellarperceptron.network.kernels.linear import Linear

__all__ = [
    "NonLinearEmbedding",
    "StellarPerceptronDecoder",
    "StellarPerceptronEncoder",
    "StellarPerceptronTorchModel",
    "Tokens",
    "wavelength_encoding",
]


class Tokens(NamedTuple):
    """Tokens of N stars, as the encoder receives them.

    A token holds P pixels. A value that is not a pixel (a label, a colour) has a token of its own
    and takes the first of the P places.

    Attributes
    ----------
    ids : Tensor
        (N, L, P) integers, or (L, P) if they are the same for all stars: position in the
        vocabulary of each value, 0 for an empty place. A token of empty places is padding.
    values : Tensor
        (N, L, P) standardized; NaN where a value is missing.
    encoding : Tensor or None
        (N, L, D) or (L, D) wavelength encoding (`NonLinearEmbedding.encode_wavelength`); None if no
        token has a wavelength.
    complete : bool
        True if every token is known to hold a value. Attention then needs no mask.
    conditions : Tensor or None
        (N, L, C) or (L, C) what is known of the observation, standardized, NaN where unknown, in
        the order of `stellarperceptron.data.standardizer.CONDITIONS`; None: nothing is known.
    weights : Tensor or None
        (N, L, P) weight of each place that holds a value, where it is not 1; the values are
        multiplied with it already. See `stellarperceptron.instruments.rows`.
    """

    ids: Tensor
    values: Tensor
    encoding: Tensor | None = None
    complete: bool = False
    conditions: Tensor | None = None
    weights: Tensor | None = None

    def present(self) -> Tensor:
        """(N, L) tokens that hold at least one value."""
        if self.ids.shape[-1] == 1:
            return (~self.values.isnan() & (self.ids != 0))[..., 0]
        return (~self.values.isnan() & (self.ids != 0)).any(dim=-1)


def wavelength_encoding(
    wavelength: Tensor,
    embedding_dim: int,
    wavelength_range: tuple[float, float] = APOGEE.encoding_range,
) -> Tensor:
    """Sine-cosine encoding of wavelength (Koblischke & Bovy 2024, section 2).

    ``PE(w)[2i] = sin(1000 v d_i)``, ``PE(w)[2i+1] = cos(1000 v d_i)`` with
    ``v = (w - range[0]) / (range[1] - range[0])`` and ``d_i = 10000^(-2i / D)``; a wavelength of 0
    stands for no wavelength and is encoded as zeros.

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
        Shape of `wavelength` + (D,), float32. All steps are in float32 and in this order because
        the published weights were trained with these rounding errors: for arguments near 1000,
        another order changes the sines by 4e-4.
    """
    wavelength = wavelength.to(torch.float32)
    low, high = wavelength_range
    position = 1000.0 * ((wavelength - low) / (high - low))
    even = torch.arange(0, embedding_dim, 2, dtype=torch.float32, device=wavelength.device)
    angle = position[..., None] * torch.exp(even * (-math.log(10000.0) / embedding_dim))
    encoding = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
    return encoding * (wavelength != 0)[..., None]


class NonLinearEmbedding(nn.Module):
    """Embed tokens of P pixels: ``gelu(sum_i v_i (E[t_i] x_i + V[t_i]) + B + K) + PE(w)``.

    The sum runs over the pixels of a token; x_i is the standardized flux of pixel i, t_i its name
    in the vocabulary, and v_i is 1 for a valid pixel, 0 for a missing one. With P = 1 and one row
    of E and V for all pixels this is the embedding of Koblischke & Bovy (2024, section 2); with
    P = 1 and a row for each pixel, that of Leung & Bovy (2023, section 3.1). Neither has B. With
    conditions, K is the sum of ``A_c x_c + C_c`` over those conditions c of `Tokens.conditions`
    that are known. A request has no value; its embedding is ``E[t]``.

    Parameters
    ----------
    vocabulary_size
        Number of names. `embeddings` (E) and `bias` (V) have one more row: row 0, for padding, is
        zero.
    embedding_dim
        D.
    activation
        A key of `ACTIVATIONS`.
    embed_map
        (vocabulary_size + 1,) integers: the row of E and V of each name. None: its own.
    wavelength_range
        See `wavelength_encoding` [Angstrom].
    pixels_per_token
        P.
    conditions
        Whether there are A and C. They start small, so that what is unknown matters little.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        activation: str = "gelu",
        embed_map: Tensor | None = None,
        wavelength_range: tuple[float, float] = APOGEE.encoding_range,
        pixels_per_token: int = 1,
        conditions: bool = False,
    ):
        super().__init__()
        self.embedding_dim = embedding_dim
        self.activation = ACTIVATIONS[activation]
        self.wavelength_range = wavelength_range
        self.pixels_per_token = pixels_per_token
        self.embeddings = nn.Parameter(torch.empty(vocabulary_size + 1, embedding_dim))
        self.bias = nn.Parameter(torch.empty(vocabulary_size + 1, embedding_dim))
        if pixels_per_token > 1:
            self.bin_bias = nn.Parameter(torch.zeros(embedding_dim))
        shape = (2 * len(CONDITIONS), embedding_dim)  # A of all conditions, then C
        self.conditions = nn.Parameter(torch.empty(shape)) if conditions else None
        if embed_map is None:
            embed_map = torch.arange(vocabulary_size + 1)
        # Saved in the checkpoint's embed_map.npz, not among its weights.
        self.register_buffer("embed_map", embed_map.to(torch.int64, copy=True), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw E and V from N(0, 1), so that fluxes start as large as the wavelength encoding."""
        for parameter in (self.embeddings, self.bias):
            nn.init.normal_(parameter)
            with torch.no_grad():
                parameter[0] = 0.0
        if self.conditions is not None:
            nn.init.normal_(self.conditions, std=0.02)

    def encode_wavelength(self, wavelength: Tensor) -> Tensor:
        """`wavelength_encoding` with this layer's dimension and range."""
        return wavelength_encoding(wavelength, self.embedding_dim, self.wavelength_range)

    def request(self, ids: Tensor) -> Tensor:
        """Embed requests (..., Q): their rows of E, (..., Q, D)."""
        return F.embedding(self.embed_map[ids], self.embeddings)

    def forward(self, tokens: Tokens) -> Tensor:
        """Embed tokens: (N, L, D).

        Raises
        ------
        ValueError
            Tokens of several pixels differ from star to star.
        """
        rows = self.embed_map[tokens.ids]
        if self.pixels_per_token == 1:
            flux = tokens.values.nan_to_num(nan=0.0)  # (N, L, 1)
            scale, shift = (F.embedding(rows[..., 0], x) for x in (self.embeddings, self.bias))
            embedded = torch.addcmul(shift, scale, flux)
        elif rows.dim() == 2:
            embedded = self._sum_of_pixels(rows, tokens) + self.bin_bias
        else:
            raise ValueError("tokens of several pixels must be the same for all stars of a batch")
        if self.conditions is not None and tokens.conditions is not None:
            known = ~tokens.conditions.isnan()
            told = [tokens.conditions.nan_to_num(nan=0.0), known.to(tokens.conditions.dtype)]
            embedded = embedded + torch.cat(told, dim=-1) @ self.conditions
        embedded = self.activation(embedded)
        return embedded if tokens.encoding is None else embedded + tokens.encoding

    def _sum_of_pixels(self, rows: Tensor, tokens: Tokens) -> Tensor:
        """Sum of E x + V over the valid pixels (N, L, P) with these rows (L, P): (N, L, D)."""
        values = tokens.values
        weights = (~values.isnan()).to(values.dtype)
        if tokens.weights is not None:
            weights = weights * tokens.weights
        flux = torch.cat([values.nan_to_num(nan=0.0), weights], dim=-1)
        both = [F.embedding(rows, table) for table in (self.embeddings, self.bias)]
        tables = torch.cat(both, dim=-2)  # (L, 2P, D)
        # One matrix product per token: all stars share its rows of E and V.
        return torch.bmm(flux.transpose(0, 1), tables.to(flux.dtype)).transpose(0, 1)


class StellarPerceptronEncoder(nn.Module):
    """Two self-attention blocks, the second with half the heads and half the width.

    Parameters
    ----------
    embedding_dim, head_num, dense_num, dropout_rate, attention_dropout_rate, activation
        Settings of the first block; see `TransformerBlock`.
    """

    def __init__(self, embedding_dim: int, head_num: int, dense_num: int, **block):
        super().__init__()
        self.encoder_transformer_block_1 = TransformerBlock(
            embedding_dim, head_num, dense_num, **block
        )
        self.encoder_transformer_block_2 = TransformerBlock(
            embedding_dim, head_num // 2, dense_num // 2, **block
        )

    def forward(
        self, x: Tensor, attend: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(N, L, D) embedded tokens -> (N, L, D) perception, and the last block's weights."""
        x, _ = self.encoder_transformer_block_1(x, attend=attend)
        return self.encoder_transformer_block_2(x, attend=attend, need_weights=need_weights)


class StellarPerceptronDecoder(nn.Module):
    """Three cross-attention blocks on the perception, then dense layers to value and log-variance.

    Parameters
    ----------
    embedding_dim, head_num, dense_num, dropout_rate, attention_dropout_rate, activation
        Settings of the first block; see `TransformerBlock`. The other two have a half and a
        quarter of its heads and width; the dense layers have 1, 1/2, 1/4 and 1/8 of its width.
    """

    def __init__(self, embedding_dim: int, head_num: int, dense_num: int, **block):
        super().__init__()
        for i in range(3):
            self.add_module(
                f"decoder_transformer_block_{i + 1}",
                TransformerBlock(embedding_dim, head_num // 2**i, dense_num // 2**i, **block),
            )
        widths = [embedding_dim, *(dense_num // 2**i for i in range(4))]
        for i in range(4):
            self.add_module(f"decoder_dense_{i + 3}", Linear(widths[i], widths[i + 1]))
        self.decoder_out = Linear(widths[-1], 1)
        self.decoder_logvar_out = Linear(widths[-1], 1)
        self.activation = ACTIVATIONS[block.get("activation", "gelu")]
        self.dropout = Dropout(block.get("dropout_rate", 0.0))

    def forward(
        self,
        request: Tensor,
        perception: Tensor,
        attend: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Answer requests, any number at once: they do not attend to each other.

        Parameters
        ----------
        request
            (N, Q, D) embedded label tokens.
        perception
            (N, L, D) the encoder's output.
        attend
            (N, L) boolean, True for tokens to attend to; None: all of them.
        need_weights
            Return the attention weights of the last block.

        Returns
        -------
        value, logvar : Tensor
            (N, Q), standardized.
        weights : Tensor or None
            (N, Q, L + 1), see `TransformerBlock.forward`.
        """
        x, weights = request, None
        for i in range(1, 4):
            block = self.get_submodule(f"decoder_transformer_block_{i}")
            x, weights = block(x, perception, attend, need_weights and i == 3)
        return *self.answer(x), weights

    def answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-variance (N, Q) from the last block's output (N, Q, D)."""
        for i in range(3, 7):
            x = self.dropout(self.activation(self.get_submodule(f"decoder_dense_{i}")(x)))
        with torch.autocast(x.device.type, enabled=False):  # answers in full precision
            x = x.to(self.decoder_out.weight.dtype)
            return self.decoder_out(x)[..., 0], self.decoder_logvar_out(x)[..., 0]


class StellarPerceptronTorchModel(nn.Module):
    """The whole network.

    Parameters
    ----------
    embedding_layer
        Shared by inputs and requests.
    encoder, decoder
        The encoder and the decoder.
    """

    def __init__(
        self,
        embedding_layer: NonLinearEmbedding,
        encoder: StellarPerceptronEncoder,
        decoder: StellarPerceptronDecoder,
    ):
        super().__init__()
        self.embedding_layer = embedding_layer
        self.torch_encoder = encoder
        self.torch_decoder = decoder

    def embed(self, tokens: Tokens, nan_policy: str = "mask") -> tuple[Tensor, Tensor | None]:
        """Embed tokens for the encoder.

        Parameters
        ----------
        tokens
            The tokens.
        nan_policy
            "mask": tokens without a value are not attended to. "attend": they are attended to as
            zero vectors, as in the published code at inference. Padding is never attended to.

        Returns
        -------
        x : Tensor
            (N, L, D).
        attend : Tensor or None
            (N, L) boolean, True for tokens to attend to; None: all of them.
        """
        x = self.embedding_layer(tokens)
        if tokens.complete:
            return x, None
        present = tokens.present()
        if nan_policy == "mask":
            return x, present
        padding = (tokens.ids == 0).all(dim=-1).expand(present.shape)
        return x * present[..., None], ~padding

    def encode(
        self, tokens: Tokens, nan_policy: str = "mask", need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Perceive stars.

        Parameters
        ----------
        tokens, nan_policy
            See `embed`.
        need_weights
            Return the attention weights of the last block.

        Returns
        -------
        perception : Tensor
            (N, L, D); rows of tokens that are not attended to have no meaning.
        attend : Tensor or None
            (N, L), see `embed`.
        weights : Tensor or None
            (N, L, L + 1), see `TransformerBlock.forward`.
        """
        x, attend = self.embed(tokens, nan_policy)
        perception, weights = self.torch_encoder(x, attend, need_weights)
        return perception, attend, weights

    def decode(
        self,
        request_ids: Tensor,
        perception: Tensor,
        attend: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Answer requests about perceived stars.

        Parameters
        ----------
        request_ids
            (N, Q) integers, or (Q,) if all stars have the same requests.
        perception, attend
            As `encode` returns them.
        need_weights
            Return the attention weights of the last block.

        Returns
        -------
        value, logvar : Tensor
            (N, Q), standardized.
        weights : Tensor or None
            (N, Q, L + 1), see `TransformerBlock.forward`.
        """
        request = self.embedding_layer.request(request_ids).expand(perception.shape[0], -1, -1)
        return self.torch_decoder(request, perception, attend, need_weights)

    def forward(
        self, tokens: Tokens, request_ids: Tensor, nan_policy: str = "mask"
    ) -> tuple[Tensor, Tensor]:
        """Perceive and answer: standardized value and log-variance (N, Q).

        Parameters are those of `encode` and `decode`.
        """
        perception, attend, _ = self.encode(tokens, nan_policy)
        value, logvar, _ = self.decode(request_ids, perception, attend)
        return value, logvar
