"""Self-attention at the full speed of the processor.

PyTorch's attention on the CPU multiplies its blocks with MKL, at a fifth of the rate of oneDNN on
AMD processors (see `linear`), and takes an exponential from a vector library. Here every head of a
star is a few oneDNN products whose elementwise parts are fused into them, and the weights, never
more than those of one head, stay in the processor's cache.

The exponentials are oneDNN's sigmoid: ``sigmoid(x) = exp(x) (1 - exp(x) + ...)``, so that shifted
by `_SHIFT` below the largest score it is the exponential to float32 rounding. Shifts, masks and
sums are further columns of the factors: ``[q, -m] . [k, 1] = q . k - m``.
"""

import functools
import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stellarperceptron.network.kernels.linear import has_fast_product

__all__ = ["fast_self_attention_applies", "self_attention"]

_SHIFT = 16.0  # exp(-16) = 1e-7, one rounding of float32
_MASKED = -1e4  # added to scores; the sigmoid of it is 0
# exp(-87) is the smallest number of float32. A sum of exponentials above exp(-66) has lost nothing
# but weights below exp(-21) = 1e-9.
_SMALLEST_SUM = math.exp(-66.0)
_FEWEST_TOKENS = 384  # below, PyTorch's attention is as fast


def fast_self_attention_applies(projected: Tensor) -> bool:
    """Whether `self_attention` can take, and is the faster way for, projected tokens (N, L, 3D)."""
    return (
        projected.device.type == "cpu"
        and projected.dtype == torch.float32
        and projected.shape[1] >= _FEWEST_TOKENS
        and projected.requires_grad  # what is gained is gained in the backward pass
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and _has_fused_products()
    )


@functools.cache
def _has_fused_products() -> bool:
    """Whether oneDNN's products exist here, with the functions that are fused into them."""
    if not has_fast_product():
        return False
    # No random numbers, which would change the state of the generator.
    x, weight = torch.arange(128.0).view(8, 16).cos(), torch.arange(160.0).view(10, 16).sin()
    scores = x @ weight.T
    try:
        pairs = (
            (_product(x, weight, "sigmoid"), scores.sigmoid()),
            (_product_times(x, weight, scores), scores.square()),
        )
    except (
        AttributeError,
        RuntimeError,
        NotImplementedError,
    ):  # a private function, which may change between releases
        return False
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in pairs)


def _product(x: Tensor, weight: Tensor, function: str = "none") -> Tensor:
    """``function(x @ weight.T)``."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, function, [], "")


def _product_times(x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """``(x @ weight.T) * factor``."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, factor, weight, None, "mul")


class _Star:
    """Queries, keys and values of one star, (H, L, d) and (H, L + 1, d); queries are scaled."""

    def __init__(self, projected, bias_k, bias_v, masked, heads):
        q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
        self.q = q / math.sqrt(q.shape[-1])
        self.k = torch.cat([k, bias_k.view(heads, 1, -1)], dim=1)
        if masked is not None:  # what stands there must not lengthen the longest key either
            self.k = self.k.masked_fill(masked[:, None], 0.0)
        self.v = torch.cat([v, bias_v.view(heads, 1, -1)], dim=1)
        self.one = torch.ones_like(self.k[..., :1])
        self.masked = masked

    def factors(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Of the weights ``exp(q . k - shift)``, all heads', with `shift` (H, L, 1)."""
        queries, keys = [self.q, -shift], [self.k, self.one]
        if self.masked is not None:
            queries.append(torch.ones_like(shift))
            keys.append((_MASKED * self.masked)[:, None].expand_as(self.one))
        return torch.cat(queries, dim=-1), torch.cat(keys, dim=-1)

    def attend(self) -> tuple[Tensor, Tensor]:
        """Mean value of each query (H, L, d) and the logarithm of the sum of exponentials."""
        longest = self.k.norm(dim=-1).amax(dim=1)  # (H,); no score exceeds the product of lengths
        shift = self.q.norm(dim=-1, keepdim=True) * longest[:, None, None] + _SHIFT
        values = torch.cat([self.v, self.one], dim=-1).transpose(1, 2).contiguous()
        sums = torch.stack(
            [
                _product(_product(q, k, "sigmoid"), v)
                for q, k, v in zip(*self.factors(shift), values, strict=True)
            ]
        )
        total = sums[..., -1:]
        if total.min() < _SMALLEST_SUM:
            return self._attend_plainly()
        return sums[..., :-1] / total, total.log() + shift

    def _attend_plainly(self) -> tuple[Tensor, Tensor]:
        """Attention for scores so far below their bound that the exponentials underflow."""
        means, log_sums = [], []
        for q, k, v in zip(self.q, self.k, self.v, strict=True):  # one head's weights at a time
            scores = q @ k.t()
            if self.masked is not None:
                scores += _MASKED * self.masked
            log_sums.append(scores.logsumexp(dim=-1, keepdim=True))
            means.append(scores.sub_(log_sums[-1]).exp_() @ v)
        return torch.stack(means), torch.stack(log_sums)


class _SelfAttention(torch.autograd.Function):
    """Attention whose weights are computed again in the backward pass, head by head."""

    @staticmethod
    def forward(ctx, projected, bias_k, bias_v, masked, heads):
        n, length, width = projected.shape
        output = projected.new_empty(n, length, heads, width // (3 * heads))
        log_sums = projected.new_empty(n, heads, length, 1)
        for i in range(n):
            star = _Star(projected[i], bias_k, bias_v, None if masked is None else masked[i], heads)
            mean, log_sums[i] = star.attend()
            output[i] = mean.transpose(0, 1)
        ctx.save_for_backward(projected, bias_k, bias_v, masked, output, log_sums)
        return output.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        projected, bias_k, bias_v, masked, output, log_sums = ctx.saved_tensors
        n, length, heads, dim = output.shape
        gradient = gradient.view_as(output)
        projected_gradient = projected.new_empty(n, length, 3, heads, dim)
        bias_gradient = projected.new_zeros(2, heads, dim)
        for i in range(n):
            star = _Star(projected[i], bias_k, bias_v, None if masked is None else masked[i], heads)
            shift = log_sums[i] + _SHIFT  # so that weights are the softmax's times exp(-_SHIFT)
            g = gradient[i].transpose(0, 1) * math.exp(_SHIFT)  # (H, L, d)
            projection = (g * output[i].transpose(0, 1)).sum(dim=-1, keepdim=True)
            by_head = zip(
                *star.factors(shift),
                torch.cat([g, -projection], dim=-1),
                torch.cat([star.v, star.one], dim=-1),
                g.transpose(1, 2).contiguous(),
                star.q.transpose(1, 2).contiguous(),
                star.k.transpose(1, 2),
                strict=True,
            )
            of_q, of_k, of_v = [], [], []
            for q_factor, k_factor, g_factor, v_factor, g_rows, q_rows, k_rows in by_head:
                weights = _product(q_factor, k_factor, "sigmoid")
                of_v.append(_product(g_rows, weights.t()))  # (d, L + 1)
                # Of the softmax: w (dw - sum w dw), the sum being that of g times the output.
                of_scores = _product_times(g_factor, v_factor, weights)
                of_k.append(_product(q_rows, of_scores.t()))
                of_q.append(_product(of_scores, k_rows))
            of_kv = torch.stack([torch.stack(of_k), torch.stack(of_v)])  # (2, H, d, L + 1)
            bias_gradient += of_kv[..., -1]
            projected_gradient[i, :, 0] = torch.stack(of_q, dim=1) / math.sqrt(dim)
            projected_gradient[i, :, 1:] = of_kv[..., :-1].permute(3, 0, 1, 2)
        k_bias, v_bias = bias_gradient.flatten(1)
        return (
            projected_gradient.view_as(projected),
            k_bias.view_as(bias_k),
            v_bias.view_as(bias_v),
            None,
            None,
        )


def self_attention(
    projected: Tensor, bias_k: Tensor, bias_v: Tensor, attend: Tensor | None, heads: int
) -> Tensor:
    """Scaled dot-product attention of tokens on each other and on one learned key and value.

    Only where `fast_self_attention_applies`.

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
    masked = None if attend is None else torch.nn.functional.pad(~attend, (0, 1), value=False)
    return _SelfAttention.apply(projected, bias_k, bias_v, masked, heads)
