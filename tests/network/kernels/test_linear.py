"""The fast linear layer is a linear layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stellarperceptron.network.kernels.linear import Linear, has_fast_product, linear

needs_fast_product = pytest.mark.skipif(
    not has_fast_product(), reason="this processor or PyTorch has no faster product to test"
)


def compare(shape, outputs, bias, seed, frozen=False):
    torch.manual_seed(seed)
    double = [torch.randn(*shape), torch.randn(outputs, shape[-1]), torch.randn(outputs)]
    double = [tensor.double().requires_grad_(not (frozen and i)) for i, tensor in enumerate(double)]
    single = [tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in double]
    expected = torch.nn.functional.linear(*(double if bias else double[:2]))
    actual = linear(*(single if bias else single[:2]))
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)
    gradient = torch.randn(expected.shape)
    expected.backward(gradient.double())
    actual.backward(gradient)
    for ours, theirs in zip(single, double, strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-4, atol=1e-4)


@needs_fast_product
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    outputs=st.integers(1, 20),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients(shape, outputs, bias, seed):
    compare(shape, outputs, bias, seed)


@needs_fast_product
def test_frozen_parameters_get_no_gradient():
    compare((3, 4, 5), 6, True, 0, frozen=True)


@needs_fast_product
def test_inputs_need_not_be_contiguous():
    x, weight = torch.randn(5, 7).t(), torch.randn(6, 5)
    torch.testing.assert_close(linear(x, weight), x @ weight.t(), rtol=1e-5, atol=1e-5)


def test_other_precisions_are_pytorchs():
    layer = Linear(4, 3).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_autocast_is_respected():
    layer = Linear(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 4)).dtype == torch.bfloat16


@needs_fast_product
def test_second_derivatives_and_function_transforms():
    torch.manual_seed(0)
    weight, x = torch.randn(6, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    (first,) = torch.autograd.grad(linear(x, weight).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    (plain,) = torch.autograd.grad((x @ weight.T).pow(3).sum(), x, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(plain.sum(), weight)[0])
    jacobian = torch.func.jacrev(lambda v: linear(v, weight.detach()).sum(0))(x.detach())
    torch.testing.assert_close(jacobian[:, 0], weight.detach())
