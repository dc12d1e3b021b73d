"""Self-attention of compiled networks on a GPU.

PyTorch's attention treats the learned key as an additional token. 513 tokens do not fill blocks,
and its kernels are made for wider heads; with a mask, it took two fifths of a training step on an
H100. The kernel of `flex_attention` is generated along with the rest of the network. It sees the
tokens without the learned key and masks them at almost no cost, in a fifth of a shorter step. It
also returns the logarithm of the sum of exponentials, with which the learned key is added
afterwards: ``softmax([s, l]) = [sigmoid(log sum exp s - l) softmax(s), sigmoid(l - log sum exp
s)]``.
"""

import math

import torch
from torch import Tensor

try:
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention
except ImportError:  # PyTorch before 2.9
    AuxRequest = flex_attention = None

__all__ = ["compiled_self_attention", "compiled_self_attention_applies"]


def compiled_self_attention_applies(projected: Tensor, heads: int) -> bool:
    """Whether `compiled_self_attention` can take projected tokens (N, L, 3D)."""
    head_dim = projected.shape[-1] // (3 * heads)
    return (
        torch.compiler.is_compiling()  # without a compiler it would keep all weights
        and projected.device.type == "cuda"
        and AuxRequest is not None
        and head_dim >= 16  # the smallest matrix product of the generated kernel
        and head_dim & (head_dim - 1) == 0
    )


def compiled_self_attention(
    projected: Tensor, bias_k: Tensor, bias_v: Tensor, attend: Tensor | None, heads: int
) -> Tensor:
    """Scaled dot-product attention of tokens on each other and on one learned key and value.

    Parameters
    ----------
    projected
        (N, L, 3D) queries, keys and values.
    bias_k, bias_v
        (1, 1, D) learned key and value.
    attend
        (N, L) boolean, True for tokens to attend to; None: all of them.
    heads
        H.

    Returns
    -------
    Tensor
        (N, L, D), before the output projection.
    """
    q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (N, H, L, d)

    def masked(score: Tensor, star: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.where(attend[star, key], score, -math.inf)

    tokens, aux = flex_attention(
        q, k, v, score_mod=None if attend is None else masked, return_aux=AuxRequest(lse=True)
    )
    learned_k, learned_v = (b.to(q.dtype).view(heads, 1, -1) for b in (bias_k, bias_v))
    learned = (q * learned_k).sum(dim=-1, dtype=torch.float32) / math.sqrt(q.shape[-1])
    share = torch.sigmoid(aux.lse - learned)[..., None].to(q.dtype)
    return (share * tokens + (1 - share) * learned_v).transpose(1, 2).flatten(-2)
