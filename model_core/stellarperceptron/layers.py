"""The published network: embedding, encoder, decoder.

Parameter names and shapes are those of the published checkpoints (Koblischke & Bovy 2024,
arXiv 2411.04750, after Leung & Bovy 2023, arXiv 2308.10944). Shapes: N stars, L tokens, Q
requests, P pixels a token, D embedding dimensions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stellarperceptron.embedding import ACTIVATIONS, NonLinearEmbedding, wavelength_encoding
from stellarperceptron.transformer import TransformerBlock
from stellarperceptron.utils.dropout import Dropout
from stellarperceptron.utils.linear import Linear

__all__ = [
    "ACTIVATIONS",
    "NonLinearEmbedding",
    "StellarPerceptronDecoder",
    "StellarPerceptronEncoder",
    "StellarPerceptronTorchModel",
    "TransformerBlock",
    "wavelength_encoding",
]


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
