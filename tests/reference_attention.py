"""PyTorch's attention in double precision, to compare with."""

import torch
from torch.nn.functional import pad, scaled_dot_product_attention


def expected(projected, bias_k, bias_v, attend, heads):
    """PyTorch's attention in double precision."""
    q, k, v = projected.double().chunk(3, dim=-1)
    k = torch.cat([k, bias_k.double().expand(len(k), 1, -1)], dim=1)
    v = torch.cat([v, bias_v.double().expand(len(v), 1, -1)], dim=1)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if attend is None else pad(attend, (0, 1), value=True)[:, None, None, :]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
