"""Dropout whose random numbers cost less on the CPU."""

import torch
from torch import Tensor, nn

__all__ = ["Dropout"]


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`; on the CPU 16 random bits decide on each value.

    PyTorch draws a random number of 32 bits or more for each value on the CPU, which takes longer
    than the layer before. The rate is rounded to a multiple of 2^-16, and the remaining values are
    scaled with the rounded rate, so that the mean is preserved.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; zeros in training with probability `p`, the rest divided by 1 - p."""
        dropped = round(self.p * 2**16)
        drawn_here = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (self.training and drawn_here and 0 < dropped < 2**16):
            return super().forward(x)
        # Four numbers of 16 bits from each of 64, over the full range.
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))
