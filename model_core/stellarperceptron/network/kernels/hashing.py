"""Choices that look random, made from hashed numbers; the same on a CPU and a GPU."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["LARGEST", "scramble", "smallest"]

LARGEST = 2**31 - 1
"""The largest int32."""


def scramble(x: Tensor) -> Tensor:
    """Scramble int32 numbers, each bit of the result depending on all bits (a 32-bit finalizer).

    Multiplications wrap around as in C. The constants are those of Wellons' "lowbias32" search for
    bijections of least bias.
    """
    if x.device.type == "cpu":  # NumPy works in place, and knows unsigned shifts
        bits = x.contiguous().numpy().view(np.uint32)
        bits = bits ^ (bits >> np.uint32(16))
        shifted = np.empty_like(bits)
        bits *= np.uint32(0x7FEB352D)
        bits ^= np.right_shift(bits, np.uint32(15), out=shifted)
        bits *= np.uint32(0x846CA68B)
        bits ^= np.right_shift(bits, np.uint32(16), out=shifted)
        return torch.from_numpy(bits.view(np.int32))
    return _scramble_on_gpu(x)


def _scramble_on_gpu(x: Tensor) -> Tensor:
    # The masks make PyTorch's arithmetic shift a logical one.
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (x >> 15 & 0x1FFFF)) * -0x7B935975  # 0x846CA68B as a signed number
    return x ^ (x >> 16 & 0xFFFF)


def smallest(keys: Tensor, number: int) -> Tensor:
    """Columns (B, number) of the smallest keys in each row of (B, n), in any order.

    The lowest bits of the keys, as many as count the columns, give way to the column: equal keys
    are told apart alike everywhere, and numbers are partitioned faster than their indices.
    """
    columns = keys.shape[1]
    low = (1 << (columns - 1).bit_length()) - 1
    keys = (keys & ~low).bitwise_or_(torch.arange(columns, dtype=keys.dtype, device=keys.device))
    if keys.device.type == "cpu":
        values = keys.numpy()
        values.partition(number - 1, axis=1)
        return torch.from_numpy((values[:, :number] & low).astype(np.int64))
    return (keys.topk(number, dim=1, largest=False, sorted=False).values & low).long()
