"""Hashed numbers and the choices made from them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from stellarperceptron.network.kernels.hashing import _scramble_on_gpu, scramble, smallest


def lowbias32(x: int) -> int:
    """The finalizer as Wellons writes it, in unbounded integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
def test_scrambled_numbers(numbers):
    expected = [lowbias32(number % 2**32) for number in numbers]
    x = torch.tensor(numbers, dtype=torch.int32)
    assert (scramble(x).numpy().view(np.uint32) == expected).all()
    assert x.tolist() == numbers


def test_gpus_scramble_alike():
    x = torch.arange(-500, 500, dtype=torch.int32) * 4_000_037
    assert torch.equal(scramble(x), _scramble_on_gpu(x))


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 30),
    share=st.floats(0.01, 1),
    values=st.integers(1, 2**31 - 1),
    seed=st.integers(0, 99),
)
def test_smallest_of_each_row(rows, columns, share, values, seed):
    torch.manual_seed(seed)
    keys = torch.randint(0, values, (rows, columns), dtype=torch.int32)  # few values: many ties
    number = max(1, int(share * columns))
    chosen = smallest(keys, number)
    expected = (keys // 32).sort(dim=1, stable=True).indices[:, :number]
    if columns > 16:  # five bits count the columns
        assert torch.equal(chosen.sort(dim=1).values, expected.sort(dim=1).values)
    assert all(len(set(row.tolist())) == number for row in chosen)
