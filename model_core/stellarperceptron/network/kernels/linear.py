"""Linear layers at the full speed of the processor.

PyTorch multiplies float32 matrices on the CPU with MKL, which leaves AVX-512 unused on AMD
processors. oneDNN, which PyTorch ships too, uses it: 230 instead of 100 GFLOP/s a core on an EPYC
of 2024 (`benchmarks/`). Everywhere else this is `torch.nn.functional.linear`.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "has_fast_product", "linear"]


@functools.cache
def has_fast_product() -> bool:
    """Whether oneDNN's product exists here and is faster."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.enabled:
        return False
    try:
        # No random numbers, which would change the state of the generator.
        x, weight = torch.arange(1024.0).view(64, 16).cos(), torch.arange(512.0).view(32, 16).sin()
        return torch.allclose(_product(x, weight, None), x @ weight.T, rtol=1e-4, atol=1e-4)
    except (
        AttributeError,
        RuntimeError,
        NotImplementedError,
    ):  # a private function, which may change between releases
        return False


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` in oneDNN, for plain float32 tensors."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """oneDNN's product with the products of its gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        x_gradient = weight_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = linear(gradient, weight.t().contiguous())
        rows = gradient.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            columns = x.flatten(0, -2)
            # oneDNN is fastest with the shorter side first.
            if rows.shape[1] <= columns.shape[1]:
                weight_gradient = linear(rows.t(), columns.t())
            else:
                weight_gradient = linear(columns.t(), rows.t()).t()
        if ctx.needs_input_grad[2]:
            bias_gradient = rows.sum(dim=0)
        return x_gradient, weight_gradient, bias_gradient


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, as `torch.nn.functional.linear`.

    Parameters
    ----------
    x
        (..., I).
    weight
        (O, I).
    bias
        (O,) or None.
    """
    fast = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() > 1
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()  # torch.func differentiates F.linear
        and has_fast_product()
    )
    if not fast:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(x, self.weight, self.bias)
