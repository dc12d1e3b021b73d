"""Attention made of oneDNN's products is attention."""

import pytest
import torch
from reference_attention import expected

from stellarperceptron.network.kernels.self_attention import (
    _has_fused_products,
    fast_self_attention_applies,
    self_attention,
)

pytestmark = pytest.mark.skipif(
    not _has_fused_products(), reason="this processor or PyTorch has no faster product to test"
)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [0.3, 2.0, 40.0])  # 40: exponentials vanish below their bound
def test_values_and_gradients(scale, masked):
    torch.manual_seed(0)
    projected = torch.randn(2, 130, 96)
    projected[..., :64] *= scale
    parameters = [projected, torch.randn(1, 1, 32), torch.randn(1, 1, 32)]
    for parameter in parameters:
        parameter.requires_grad_()
    attend = torch.rand(2, 130) < 0.7 if masked else None
    gradient = torch.randn(2, 130, 32)

    actual = self_attention(*parameters, attend, heads=2)
    reference = expected(*parameters, attend, heads=2)
    # Scores of scale^2 are rounded, and the exponential makes this a relative error.
    tolerance = 2e-6 * max(1.0, scale**2)
    torch.testing.assert_close(actual, reference.float(), rtol=0, atol=tolerance)
    ours = torch.autograd.grad(actual, parameters, gradient)
    theirs = torch.autograd.grad(reference, parameters, gradient.double())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=0, atol=4 * tolerance * b.abs().max().item())


def test_what_is_masked_has_no_influence():
    torch.manual_seed(0)
    projected, bias = torch.randn(1, 130, 48, requires_grad=True), torch.randn(1, 1, 16)
    attend = torch.arange(130)[None] < 100
    output = self_attention(projected, bias, bias, attend, heads=1)[:, :100]
    changed = projected.detach().clone()
    changed[:, 100:] = 7.0
    assert torch.equal(output, self_attention(changed, bias, bias, attend, heads=1)[:, :100])
    (gradient,) = torch.autograd.grad(output.sum(), projected)
    assert not gradient[:, 100:].any() and gradient[:, :100].any()


def test_applies_to_long_contexts_in_float32_training_only():
    def applies(*shape, **options):
        return fast_self_attention_applies(torch.zeros(*shape, **options))

    assert applies(1, 512, 48, requires_grad=True)
    assert not applies(1, 512, 48)
    assert not applies(1, 64, 48, requires_grad=True)
    assert not applies(1, 512, 48, requires_grad=True, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert not applies(1, 512, 48, requires_grad=True)
