"""The network: sizes, encodings, and the two ways to compute cross-attention."""

import math

import numpy as np
import pytest
import torch
from conftest import LABELS, make_model
from hypothesis import given
from hypothesis import strategies as st
from reference_network import ReferenceNetwork

from stellarperceptron import StellarPerceptron
from stellarperceptron.layers import Tokens, wavelength_encoding
from stellarperceptron.network.block import TransformerBlock


@pytest.fixture(scope="module")
def paper_model():
    names = [f"syn_apogee{i}" for i in range(7514)]
    return StellarPerceptron([*names, "TEFF", "LOGG", "O_FE", "MG_FE", "FE_H"], device="cpu")


def test_published_parameter_count(paper_model):
    assert paper_model.set_trainable() == 11_870_722


def test_published_parameter_count_of_stage_3(paper_model):
    trainable = paper_model.set_trainable(freeze_decoder=True, freeze_encoder_second_layer=True)
    assert trainable == 5_165_824


def test_frozen_encoder_leaves_decoder_and_embedding(model):
    model.set_trainable(freeze_encoder=True)
    trainable = {n.split(".")[0] for n, p in model.torch_model.named_parameters()}
    frozen = {n for n, p in model.torch_model.named_parameters() if not p.requires_grad}
    assert trainable == {"embedding_layer", "torch_encoder", "torch_decoder"}
    assert {n.split(".")[0] for n in frozen} == {"torch_encoder"}


def test_published_arithmetic(paper_model):
    assert paper_model.flops_per_star() == pytest.approx(3.1e9, rel=0.01)
    assert paper_model.flops_per_star(training=True) == pytest.approx(9.3e9, rel=0.01)


def test_wavelength_encoding_follows_its_formula():
    wavelength, dim = 16100.0, 8
    position = 1000 * (wavelength - 15000) / 2000
    expected = [
        f(position * 10000 ** (-2 * i / dim)) for i in range(dim // 2) for f in (math.sin, math.cos)
    ]
    actual = wavelength_encoding(torch.tensor([wavelength]), dim)[0]
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-4)  # float32 at 550 rad


def test_wavelength_encoding_depends_on_the_range():
    wavelength = torch.tensor([5500.0])
    optical = wavelength_encoding(wavelength, 16, (4000.0, 8000.0))
    shifted = wavelength_encoding(wavelength + 1000, 16, (5000.0, 9000.0))
    torch.testing.assert_close(optical, shifted)


def test_no_wavelength_is_encoded_as_zeros():
    assert not wavelength_encoding(torch.zeros(3), 16).any()


@given(
    queries=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 4]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_few_queries_attention_equals_projected_attention(queries, heads, masked, seed):
    torch.manual_seed(seed)
    block = TransformerBlock(16, heads, 32).eval()
    with torch.no_grad():
        for parameter in block.parameters():  # biases start at zero, where errors would hide
            parameter.add_(0.3 * torch.randn_like(parameter))
        query, context = torch.randn(3, queries, 16), torch.randn(3, 7, 16)
        attend = torch.rand(3, 7) > 0.4 if masked else None
        few, few_weights = block._few_queries_attention(query, context, attend, True)
        usual, usual_weights = block._cross_attention(query, context, attend, True)
        fused, _ = block._cross_attention(query, context, attend, False)
    torch.testing.assert_close(few, usual, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(few, fused, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(few_weights, usual_weights, rtol=1e-5, atol=1e-6)


def test_block_equals_pytorch_multihead_attention():
    torch.manual_seed(0)
    block = TransformerBlock(16, 4, 32).eval()
    x, attend = torch.randn(2, 6, 16), torch.rand(2, 6) > 0.3
    with torch.no_grad():
        attended, weights = block.attention(x, x, x, key_padding_mask=~attend)
        middle = block.layernorm_1(x + attended)
        feedforward = block.dense_2(torch.nn.functional.gelu(block.dense_1(middle)))
        expected = block.layernorm_2(middle + feedforward)
        actual, actual_weights = block(x, attend=attend, need_weights=True)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual_weights, weights, rtol=1e-5, atol=1e-6)


def relative(actual, expected):
    """Largest deviation over the root mean square of what is expected."""
    return np.abs(actual - expected).max() / np.sqrt(np.square(expected).mean())


@pytest.mark.parametrize("nan_policy", ["mask", "attend"])
@pytest.mark.parametrize("pixels_per_token", [1, 4])
def test_the_network_is_what_its_formulas_say(pixels_per_token, nan_policy):
    model = make_model(pixels_per_token=pixels_per_token)
    random = np.random.default_rng(3)
    ids = 1 + np.arange(48).reshape(12, 4)[:, :pixels_per_token] % 40
    ids[3, 1:] = 0  # an incomplete bin
    ids[5] = 0  # padding
    values = random.normal(size=(6, 12, pixels_per_token)).astype(np.float32)
    values[random.random(values.shape) < 0.4] = np.nan
    values[1] = np.nan  # a star without any value
    wavelengths = np.sort(random.uniform(15100, 16900, 12))
    wavelengths[7] = 0
    requests = model.tokenize(LABELS)
    layer = model.torch_model.embedding_layer
    if pixels_per_token > 1:  # zero in a fresh network
        with torch.no_grad():
            layer.bin_bias.copy_(torch.from_numpy(random.normal(size=16)))
    tokens = Tokens(
        torch.from_numpy(ids),
        torch.from_numpy(values),
        layer.encode_wavelength(torch.from_numpy(wavelengths)),
    )
    with torch.no_grad():
        answer = model.torch_model(tokens, torch.from_numpy(requests), nan_policy)
    expected = ReferenceNetwork.of(model)(ids, values, wavelengths, requests, nan_policy)
    assert np.ptp(expected[0]) > 0.01 and np.ptp(expected[1]) > 0.01
    for actual, formula in zip(answer, expected, strict=True):
        assert relative(actual.numpy(), formula) < 1e-5


def test_every_star_may_have_its_own_tokens_and_request(model):
    random = np.random.default_rng(5)
    ids = random.integers(0, 41, size=(6, 12, 1))
    values = random.normal(size=(6, 12, 1)).astype(np.float32)
    requests = random.integers(41, 44, size=(6, 1))
    tokens = Tokens(torch.from_numpy(ids), torch.from_numpy(values))
    with torch.no_grad():
        answer = model.torch_model(tokens, torch.from_numpy(requests))
    expected = ReferenceNetwork.of(model)(ids, values, None, requests)
    for actual, formula in zip(answer, expected, strict=True):
        assert relative(actual.numpy(), formula) < 1e-5


def test_padding_gets_no_gradient(model):
    network = model.torch_model
    ids = torch.tensor([[1, 2, 3, 0, 0]])
    values = torch.tensor([[0.5, -1.0, 0.2, 7.0, 0.0]])
    value, _ = network(Tokens(ids[..., None], values[..., None]), torch.tensor([41]))
    value.sum().backward()
    assert not network.embedding_layer.embeddings.grad[0].any()
    assert not network.embedding_layer.bias.grad[0].any()


def test_a_token_sums_the_embeddings_of_its_valid_pixels():
    network = make_model(pixels_per_token=2).torch_model
    ids = torch.tensor([[1, 2], [3, 4], [41, 0]])
    values = torch.tensor([[[0.3, math.nan], [-0.2, 0.1], [0.7, math.nan]]])
    layer = network.embedding_layer
    with torch.no_grad():
        layer.embed_map.copy_(torch.arange(len(layer.embed_map)))  # a row for each pixel
        layer.bin_bias.normal_()
        embedded = layer(Tokens(ids, values))[0]
        scale, shift = layer.embeddings, layer.bias
        first = 0.3 * scale[1] + shift[1]
        second = -0.2 * scale[3] + shift[3] + 0.1 * scale[4] + shift[4]
        label = 0.7 * scale[41] + shift[41]
        expected = torch.nn.functional.gelu(torch.stack([first, second, label]) + layer.bin_bias)
    torch.testing.assert_close(embedded, expected)


@pytest.mark.parametrize("pixels_per_token", [1, 16])
def test_fresh_bins_are_as_large_as_fresh_pixels(pixels_per_token):
    model = StellarPerceptron(
        [*(f"syn_apogee{i}" for i in range(400)), *LABELS],
        device="cpu",
        seed=0,
        pixels_per_token=pixels_per_token,
        embedding_dim=64,
    )
    layer = model.torch_model.embedding_layer
    for table in (layer.embeddings, layer.bias):
        assert table[1:401].std().item() == pytest.approx(pixels_per_token**-0.5, rel=0.02)
        assert table[401:].std().item() == pytest.approx(1, rel=0.15)


def test_tokens_of_several_pixels_are_alike_for_all_stars():
    layer = make_model(pixels_per_token=2).torch_model.embedding_layer
    with pytest.raises(ValueError, match="same for all stars"):
        layer(Tokens(torch.ones(3, 4, 2, dtype=torch.int64), torch.zeros(3, 4, 2)))


@pytest.mark.parametrize("policy", ["mask", "attend"])
def test_missing_tokens_are_masked_or_zero(policy):
    network = make_model(pixels_per_token=2).torch_model
    ids = torch.tensor([[1, 2], [3, 4], [0, 0]])
    values = torch.tensor([[[0.3, math.nan], [math.nan, math.nan], [math.nan, math.nan]]])
    x, attend = network.embed(Tokens(ids, values), policy)
    assert attend.tolist() == [[True, policy == "attend", False]]
    assert policy == "mask" or not x[0, 1:].any()


def test_dropout_is_active_in_training_only(model):
    network = model.torch_model
    tokens = Tokens(torch.arange(1, 9)[:, None], torch.randn(1, 8, 1))
    arguments = tokens, torch.tensor([41])
    with torch.no_grad():
        still = [network(*arguments)[0] for _ in range(2)]
        network.train()
        moving = [network(*arguments)[0] for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*moving)


def test_attention_dropout_is_active_in_training_only():
    block = TransformerBlock(16, 4, 32, attention_dropout_rate=0.5)
    x = torch.randn(2, 6, 16)
    with torch.no_grad():
        assert not torch.equal(block(x)[0], block(x)[0])
        block.eval()
        assert torch.equal(block(x)[0], block(x)[0])


def test_the_network_keeps_its_own_embed_map(model):
    model.embed_map[3] = 7
    assert model.torch_model.embedding_layer.embed_map[3] == 1
