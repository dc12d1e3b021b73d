"""The Transformer block of the encoder and the decoder.

Shapes: N stars, L tokens, Q requests, D embedding dimensions, H attention heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stellarperceptron.network.kernels.compiled_attention import (
    compiled_self_attention,
    compiled_self_attention_applies,
)
from stellarperceptron.network.kernels.dropout import Dropout
from stellarperceptron.network.kernels.linear import Linear, linear
from stellarperceptron.network.kernels.self_attention import (
    fast_self_attention_applies,
    self_attention,
)

__all__ = ["ACTIVATIONS", "TransformerBlock"]

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, D) -> (N, H, L, D/H)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Post-norm Transformer block; attention has one more key and value, which are learned.

    Parameters
    ----------
    embedding_dim, head_num, dense_num
        D, H and the width of the feed-forward layer.
    dropout_rate
        Dropout rate of the outputs of attention and feed-forward layer.
    attention_dropout_rate
        Dropout rate of the attention weights, for self-attention in training. PyTorch's CPU
        attention keeps all weights in memory if it is not zero.
    activation
        A key of `ACTIVATIONS`.
    """

    def __init__(
        self,
        embedding_dim: int,
        head_num: int,
        dense_num: int,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        activation: str = "gelu",
    ):
        super().__init__()
        self.head_num = head_num
        self.attention_dropout_rate = attention_dropout_rate
        self.activation = ACTIVATIONS[activation]
        # Only holds and initializes the parameters, under their published names.
        self.attention = nn.MultiheadAttention(
            embedding_dim, head_num, add_bias_kv=True, batch_first=True
        )
        self.dense_1 = Linear(embedding_dim, dense_num)
        self.dense_2 = Linear(dense_num, embedding_dim)
        self.layernorm_1 = nn.LayerNorm(embedding_dim)
        self.layernorm_2 = nn.LayerNorm(embedding_dim)
        self.dropout = Dropout(dropout_rate)

    def forward(
        self,
        query: Tensor,
        context: Tensor | None = None,
        attend: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the block.

        Parameters
        ----------
        query
            (N, Q, D).
        context
            (N, L, D) for cross-attention; None for self-attention.
        attend
            (N, L) boolean, True for tokens to attend to; None: all of them.
        need_weights
            Return the attention weights.

        Returns
        -------
        output : Tensor
            (N, Q, D).
        weights : Tensor or None
            (N, Q, L + 1) softmax weights averaged over heads; the learned key comes last.
        """
        if context is None:
            attended, weights = self._self_attention(query, attend, need_weights)
        elif query.shape[1] * self.head_num <= query.shape[2]:
            attended, weights = self._few_queries_attention(query, context, attend, need_weights)
        else:
            attended, weights = self._cross_attention(query, context, attend, need_weights)
        x = self.layernorm_1(query + self.dropout(attended))
        x = self.layernorm_2(x + self.dropout(self.dense_2(self.activation(self.dense_1(x)))))
        return x, weights

    def _self_attention(self, x, attend, need_weights):
        a = self.attention
        projected = linear(x, a.in_proj_weight, a.in_proj_bias)
        dropout = self.attention_dropout_rate if self.training else 0.0
        if need_weights or dropout:
            return self._attend(*projected.chunk(3, dim=-1), attend, need_weights)
        if fast_self_attention_applies(projected):
            attended = self_attention(projected, a.bias_k, a.bias_v, attend, self.head_num)
        elif compiled_self_attention_applies(projected, self.head_num):
            attended = compiled_self_attention(projected, a.bias_k, a.bias_v, attend, self.head_num)
        else:
            return self._attend(*projected.chunk(3, dim=-1), attend, need_weights)
        return linear(attended, a.out_proj.weight, a.out_proj.bias), None

    def _cross_attention(self, query, context, attend, need_weights):
        a, dim = self.attention, query.shape[-1]
        q = linear(query, a.in_proj_weight[:dim], a.in_proj_bias[:dim])
        kv = linear(context, a.in_proj_weight[dim:], a.in_proj_bias[dim:])
        return self._attend(q, *kv.chunk(2, dim=-1), attend, need_weights)

    def _attend(self, q, k, v, attend, need_weights):
        """Attention of projected queries (N, Q, D) on keys and values (N, L, D)."""
        a, n = self.attention, k.shape[0]  # len(k) would fix the batch of an exported network
        k = torch.cat([k, a.bias_k.to(k.dtype).expand(n, 1, -1)], dim=1)
        v = torch.cat([v, a.bias_v.to(v.dtype).expand(n, 1, -1)], dim=1)
        q, k, v = (_split_heads(x, self.head_num) for x in (q, k, v))
        mask = None if attend is None else F.pad(attend, (0, 1), value=True)[:, None, None, :]
        if need_weights:
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            if mask is not None:
                scores = scores.masked_fill(~mask, -math.inf)
            weights = scores.softmax(dim=-1)  # (N, H, Q, L + 1)
            output, weights = weights @ v, weights.mean(dim=1)
        else:
            dropout = self.attention_dropout_rate if self.training else 0.0
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
            weights = None
        return linear(
            output.transpose(1, 2).flatten(-2), a.out_proj.weight, a.out_proj.bias
        ), weights

    def _few_queries_attention(self, query, context, attend, need_weights):
        """Attention of few queries on many tokens, without projecting the tokens.

        ``q . (W_k x) = (W_k^T q) . x``, and ``sum_l w_l (W_v x_l) = W_v (sum_l w_l x_l)``: moving
        the projections from the L tokens to the H Q queries is the same attention for less
        arithmetic whenever H Q < D.
        """
        a, heads = self.attention, self.head_num
        queries, dim = query.shape[1:]
        length = context.shape[1]
        w_q, w_k, w_v = a.in_proj_weight.chunk(3)
        b_q, b_k, b_v = a.in_proj_bias.chunk(3)
        q = linear(query, w_q, b_q).unflatten(-1, (heads, -1)) / math.sqrt(dim // heads)
        # The keys of the tokens, to whose scores the bias b_k adds a constant, and the learned key.
        q_token = torch.einsum("nqhd,hdc->nqhc", q, w_k.unflatten(0, (heads, -1)))
        scores = q_token.flatten(1, 2) @ context.transpose(1, 2)  # (N, Q H, L)
        scores = scores.unflatten(1, (queries, heads))
        constant, learned = torch.einsum(
            "nqhd,khd->knqh", q, torch.stack([b_k, a.bias_k.flatten()]).unflatten(-1, (heads, -1))
        )
        scores = torch.cat([scores, (learned - constant)[..., None].to(scores.dtype)], dim=-1)
        if attend is not None:
            mask = F.pad(attend, (0, 1), value=True)[:, None, None, :]
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(dim=-1)  # (N, Q, H, L + 1)
        on_tokens, on_learned = weights.split([length, 1], dim=-1)
        mean = (on_tokens.flatten(1, 2).to(context.dtype) @ context).unflatten(1, (queries, heads))
        output = torch.einsum("nqhc,hdc->nqhd", mean, w_v.unflatten(0, (heads, -1)))
        output = (
            output
            + (1 - on_learned) * b_v.unflatten(0, (heads, -1))
            + on_learned * a.bias_v.unflatten(-1, (heads, -1))[0]
        )
        output = linear(output.flatten(-2), a.out_proj.weight, a.out_proj.bias)
        return output, weights.mean(dim=2) if need_weights else None
