"""Attention of compiled networks is attention."""

import warnings

import pytest
import torch
from reference_attention import expected

from stellarperceptron.network.kernels import compiled_attention
from stellarperceptron.network.kernels.compiled_attention import (
    compiled_self_attention,
    compiled_self_attention_applies,
)

pytestmark = pytest.mark.skipif(
    compiled_attention.AuxRequest is None, reason="this PyTorch cannot add the learned key"
)


@pytest.mark.parametrize("masked", [False, True])
def test_values(masked):
    torch.manual_seed(0)
    parameters = torch.randn(3, 30, 96), torch.randn(1, 1, 32), torch.randn(1, 1, 32)
    attend = None
    if masked:
        attend = torch.rand(3, 30) < 0.7
        attend[0] = False  # the learned key alone is left
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow without a compiler
        actual = compiled_self_attention(*parameters, attend, heads=2)
    reference = expected(*parameters, attend, heads=2).float()
    torch.testing.assert_close(actual, reference, rtol=0, atol=2e-6)


def test_plain_calls_and_cpus_take_other_ways():
    assert not compiled_self_attention_applies(torch.ones(1, 4, 96), heads=2)

    @torch.compile(backend="eager")
    def compiled(x):
        return x + compiled_self_attention_applies(x, heads=2)

    assert (compiled(torch.zeros(1, 4, 96)) == 0).all()
