"""Gaussian-process regression with two squared exponential kernels and a linear mean."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GaussianProcess"]


@dataclass
class GaussianProcess:
    """
    Some coefficients as functions of the inputs scaled to -1..1 (one shared kernel).

    Attributes
    ----------
    scale : (2, D)
        Inverse length scales of the long and of the short kernel.
    amplitude : (2,)
        Their variances relative to each other.
    inputs : (G, D)
        Scaled inputs of the grid's spectra.
    linear : (1 + D, K)
        Coefficients w of h(theta) = (1, inputs).
    alpha : (G, K)
        Weights of the kernel functions.
    """

    scale: Tensor
    amplitude: Tensor
    inputs: Tensor
    linear: Tensor
    alpha: Tensor

    def kernel(self, x: Tensor) -> Tensor:
        """Covariance (N, G) of the inputs `x` (N, D) with those of the grid."""
        total = 0.0
        for scale, amplitude in zip(self.scale, self.amplitude, strict=True):
            a, b = x * scale, self.inputs * scale
            distance = torch.addmm((b**2).sum(1)[None], a, b.T, alpha=-2.0)
            distance = (distance + (a**2).sum(1)[:, None]).clamp(min=0.0)
            total = total + amplitude * torch.exp(-0.5 * distance)
        return total

    def __call__(self, x: Tensor) -> Tensor:
        """Coefficients (N, K) at the scaled inputs `x` (N, D)."""
        return self.kernel(x) @ self.alpha + x @ self.linear[1:] + self.linear[0]

    def jacobian(self, x: Tensor) -> Tensor:
        """Derivatives (N, D, K) of the coefficients with respect to the scaled inputs."""
        out = self.linear[1:].expand(len(x), -1, -1).clone()
        for scale, amplitude in zip(self.scale, self.amplitude, strict=True):
            a, b = x * scale, self.inputs * scale
            k = amplitude * torch.exp(-0.5 * torch.cdist(a, b) ** 2)
            # dK/dx_d = -scale_d (a_d - b_d) K
            slope = a[:, :, None] * (k @ self.alpha)[:, None, :]
            slope = slope - torch.einsum("ng,gd,gk->ndk", k, b, self.alpha)
            out -= scale[:, None] * slope
        return out
