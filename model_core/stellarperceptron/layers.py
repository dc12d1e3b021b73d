"""The published network: embedding, encoder, decoder.

Parameter names and shapes are those of the published checkpoints (Koblischke & Bovy 2024,
arXiv 2411.04750, after Leung & Bovy 2023, arXiv 2308.10944). Shapes: N stars, L tokens, Q
requests, P pixels a token, D embedding dimensions.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stellarperceptron.instruments import APOGEE
from stellarperceptron.network.block import ACTIVATIONS, TransformerBlock
from stellarperceptron.network.kernels.dropout import Dropout
from stellarperceptron.network.kernels.linear import Linear

__all__ = [
    "ACTIVATIONS",
    "NonLinearEmbedding",
    "StellarPerceptronDecoder",
    "StellarPerceptronEncoder",
    "StellarPerceptronTorchModel",
    "TransformerBlock",
    "wavelength_encoding",
]


def wavelength_encoding(
    wavelength: Tensor,
    embedding_dim: int,
    wavelength_range: tuple[float, float] = APOGEE.encoding_range,
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
        wavelength_range: tuple[float, float] = APOGEE.encoding_range,
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


class StellarPerceptronEncoder(nn.Module):
    """Two self-attention blocks, the second with half the heads and half the width.

    Parameters
    ----------
    embedding_dim, head_num, dense_num, dropout_rate, attention_dropout_rate, activation
        See `TransformerBlock`; the numbers of the first block.
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

    def contributions(self, x: Tensor, attend: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What each block puts into each token, from which token: shares (N, L, L), rows sum to 1.

        Lengths of the vectors that attention carries, and of the token's own, which is kept
        (Kobayashi et al. 2021, arXiv 2109.07152). Gradients reach the attention of the blocks, not
        what they are given.
        """
        x, shares = x.detach(), []
        for block in (self.encoder_transformer_block_1, self.encoder_transformer_block_2):
            _, lengths = block.contributions(x, x, attend)
            lengths = lengths + torch.diag_embed(x.norm(dim=-1))
            shares.append(lengths / lengths.sum(dim=-1, keepdim=True))
            if len(shares) < 2:
                with torch.no_grad():
                    x, _ = block(x, attend=attend)
        return shares[0], shares[1]


class StellarPerceptronDecoder(nn.Module):
    """Three cross-attention blocks on the perception, then dense layers to value and log-variance.

    Parameters
    ----------
    embedding_dim, head_num, dense_num, dropout_rate, attention_dropout_rate, activation
        See `TransformerBlock`; the numbers of the first block. The others have a half and a
        quarter of its heads and width; the dense layers have 1, 1/2, 1/4, 1/8 of it.
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
        """Answer requests; they never see each other, so any number may be asked at once.

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
        *_, x, weights = self.read(request, perception, attend, need_weights)
        return *self.answer(x), weights

    def read(
        self,
        request: Tensor,
        perception: Tensor,
        attend: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, ...]:
        """What each of the three blocks asks, what the last one gives (N, Q, D), its weights."""
        results, weights = [request], None
        for i in range(1, 4):
            block = self.get_submodule(f"decoder_transformer_block_{i}")
            x, weights = block(results[-1], perception, attend, need_weights and i == 3)
            results.append(x)
        return *results, weights

    def answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-variance (N, Q) of what was read (N, Q, D)."""
        for i in range(3, 7):
            x = self.dropout(self.activation(self.get_submodule(f"decoder_dense_{i}")(x)))
        with torch.autocast(x.device.type, enabled=False):  # rounding answers would be seen in them
            x = x.to(self.decoder_out.weight.dtype)
            return self.decoder_out(x)[..., 0], self.decoder_logvar_out(x)[..., 0]

    def contributions(
        self, queries: Sequence[Tensor], perception: Tensor, attend: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and lengths of the three blocks, see `TransformerBlock.contributions`.

        `queries` are what the blocks ask, see `read`. Gradients reach the attention of the blocks,
        not what they are given.
        """
        perception = perception.detach()
        blocks = [
            self.get_submodule(f"decoder_transformer_block_{i + 1}").contributions(
                query.detach(), perception, attend
            )
            for i, query in enumerate(queries)
        ]
        weights, lengths = zip(*blocks, strict=True)
        return list(weights), list(lengths)


class StellarPerceptronTorchModel(nn.Module):
    """The whole network.

    Parameters
    ----------
    embedding_layer
        Shared by inputs and requests.
    encoder, decoder
        See there.
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

    def encode(
        self,
        tokens: Tensor,
        inputs: Tensor | None,
        encoding: Tensor | None = None,
        pixels: Tensor | None = None,
        *,
        nan_policy: str = "mask",
        complete: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Perceive standardized values.

        Parameters
        ----------
        tokens
            (N, L) or (L,) integers; 0 is padding and never attended to.
        inputs, pixels
            (N, L) and (N, L, P), see `NonLinearEmbedding.forward`. A token without a value in
            either of them is missing.
        encoding
            (N, L, D) or (L, D), see `NonLinearEmbedding.encode_wavelength`.
        nan_policy
            "mask": missing tokens are not attended to. "attend": they are attended to as zero
            vectors, as the published code does at inference.
        complete
            The caller knows that no token is padding or missing, which spares the mask.
        need_weights
            Return the attention weights of the last block.

        Returns
        -------
        perception : Tensor
            (N, L, D); what stands at tokens that are not attended to has no meaning.
        attend : Tensor or None
            (N, L) boolean, True for tokens to attend to; None: all of them.
        weights : Tensor or None
            (N, L, L + 1), see `TransformerBlock.forward`.
        """
        x, attend = self.embed(
            tokens, inputs, encoding, pixels, nan_policy=nan_policy, complete=complete
        )
        perception, weights = self.torch_encoder(x, attend, need_weights)
        return perception, attend, weights

    def embed(
        self,
        tokens: Tensor,
        inputs: Tensor | None,
        encoding: Tensor | None = None,
        pixels: Tensor | None = None,
        *,
        nan_policy: str = "mask",
        complete: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What the encoder is given: embedded tokens (N, L, D), and `attend`, see `encode`."""
        x = self.embedding_layer(tokens, inputs, encoding, pixels)
        attend = None
        if not complete:
            present = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            if inputs is not None:
                present = present | ~inputs.isnan()
            if pixels is not None:
                present = present | ~pixels.isnan().all(dim=-1)
            attend = (tokens != 0).expand(present.shape)
            if nan_policy == "mask":
                attend = attend & present
            else:
                x = x * present[..., None]
        return x, attend

    def forward(
        self,
        tokens: Tensor,
        inputs: Tensor | None,
        request_tokens: Tensor,
        encoding: Tensor | None = None,
        pixels: Tensor | None = None,
        *,
        nan_policy: str = "mask",
        complete: bool = False,
        contributions_of: int = 0,
    ) -> tuple[Tensor, ...]:
        """Perceive and answer: see `encode` and `decode`.

        Returns
        -------
        value, logvar : Tensor
            (N, Q), standardized.
        contributions : Tensor
            (n, Q, L), of the first n = `contributions_of` stars and only if there are any: what the
            answers take from each token, see `contributions`.
        """
        x, attend = self.embed(
            tokens, inputs, encoding, pixels, nan_policy=nan_policy, complete=complete
        )
        perception, _ = self.torch_encoder(x, attend)
        request = self.request(request_tokens, len(perception))
        *queries, read, _ = self.torch_decoder.read(request, perception, attend)
        answer = self.torch_decoder.answer(read)
        if not contributions_of:
            return answer
        some = slice(contributions_of)
        attend = None if attend is None else attend[some]
        queries = [query[some] for query in queries]
        return *answer, self.contributions(queries, x[some], perception[some], attend)

    def contributions(
        self,
        queries: Sequence[Tensor],
        x: Tensor,
        perception: Tensor,
        attend: Tensor | None = None,
    ) -> Tensor:
        """What the answers take from each token, followed back through the encoder.

        The decoder reads a perception into which the encoder has mixed other tokens. What it takes
        (`TransformerBlock.contributions`, sum of the blocks) is shared out among these, block by
        block (`StellarPerceptronEncoder.contributions`): the attention rollout of Abnar & Zuidema
        2020 (arXiv 2005.00928), of lengths instead of weights.

        Parameters
        ----------
        queries
            See `StellarPerceptronDecoder.read`.
        x, attend
            See `embed`.
        perception
            See `encode`.

        Returns
        -------
        Tensor
            (N, Q, L) shares, which sum to 1.
        """
        _, lengths = self.torch_decoder.contributions(queries, perception, attend)
        taken = sum(lengths)
        taken = taken / taken.sum(dim=-1, keepdim=True)
        for shares in reversed(self.torch_encoder.contributions(x, attend)):
            taken = taken @ shares
        return taken

    def request(self, request_tokens: Tensor, stars: int) -> Tensor:
        """Embed requests (stars, Q) or, alike for all stars, (Q,): (stars, Q, D)."""
        return self.embedding_layer(request_tokens).expand(stars, -1, -1)

    def decode(
        self,
        request_tokens: Tensor,
        perception: Tensor,
        attend: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Answer requests on a perception.

        Parameters
        ----------
        request_tokens
            (N, Q) or, alike for all stars, (Q,) integers.
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
        request = self.request(request_tokens, len(perception))
        return self.torch_decoder(request, perception, attend, need_weights)
