"""Dropout is dropout."""

import math

import pytest
import torch

from stellarperceptron.network.kernels.dropout import Dropout


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_share_and_mean(rate):
    torch.manual_seed(0)
    x = torch.ones(999, 1001)
    y = Dropout(rate)(x)
    spread = math.sqrt(rate * (1 - rate) / x.numel())
    assert abs((y == 0).double().mean().item() - rate) < 4 * spread
    kept = y[y != 0]
    assert torch.allclose(kept, torch.tensor(1 / (1 - rate)), rtol=2e-4)


def test_neighbours_fall_independently():
    torch.manual_seed(1)
    dropped = (Dropout(0.25)(torch.ones(400_000)) == 0).double()
    for distance in range(1, 9):
        together = (dropped[distance:] * dropped[:-distance]).mean().item()
        assert abs(together - 0.25**2) < 4 * math.sqrt(0.25**2 / 400_000)


def test_gradient_passes_where_values_do():
    x = torch.randn(7, 33, requires_grad=True)
    layer = Dropout(0.5)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    assert torch.equal(x.grad * x, y)


def test_seed_decides():
    x, layer = torch.ones(1000), Dropout(0.5)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


@pytest.mark.parametrize("layer", [Dropout(0.5).eval(), Dropout(0.0)])
def test_nothing_falls_in_evaluation_or_at_rate_zero(layer):
    x = torch.ones(100)
    assert torch.equal(layer(x), x)
