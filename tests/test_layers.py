"""The network: sizes, encodings, and the two ways to compute cross-attention."""

import math

import numpy as np
import pytest
import torch
from conftest import make_model
from hypothesis import given
from hypothesis import strategies as st

from stellarperceptron import StellarPerceptron
from stellarperceptron.layers import TransformerBlock, wavelength_encoding


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


def test_padding_gets_no_gradient(model):
    network = model.torch_model
    tokens = torch.tensor([[1, 2, 3, 0, 0]])
    inputs = torch.tensor([[0.5, -1.0, 0.2, 7.0, 0.0]])
    value, _ = network(tokens, inputs, torch.tensor([41]))
    value.sum().backward()
    assert not network.embedding_layer.embeddings.grad[0].any()
    assert not network.embedding_layer.bias.grad[0].any()


def test_pixels_and_values_share_a_context():
    network = make_model(pixels_per_token=2).torch_model
    tokens = torch.tensor([1, 3, 41])
    pixels = torch.full((1, 3, 2), math.nan)
    pixels[0, :2] = torch.tensor([[0.3, math.nan], [-0.2, 0.1]])
    inputs = torch.tensor([[math.nan, math.nan, 0.7]])
    layer = network.embedding_layer
    with torch.no_grad():
        embedded = layer(tokens, inputs, pixels=pixels)[0]
        weight = layer.pixel_projection.weight  # (D, 2P): fluxes, then validities
        first = 0.3 * weight[:, 0] + weight[:, 2] + layer.bias[1]
        label = 0.7 * layer.embeddings[41] + layer.bias[41]
    torch.testing.assert_close(embedded[0], torch.nn.functional.gelu(first))
    torch.testing.assert_close(embedded[2], torch.nn.functional.gelu(label))


def test_dropout_is_active_in_training_only(model):
    network = model.torch_model
    arguments = torch.arange(1, 9), torch.randn(1, 8), torch.tensor([41])
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


def test_contributions_are_what_the_attention_adds(model):
    """Of a single token: the output less the output when its value is nothing."""
    block = model.torch_model.torch_decoder.decoder_transformer_block_2
    attention = block.attention
    query, context = torch.randn(4, 3, 16), torch.randn(4, 1, 16)
    with torch.no_grad():
        _, contribution = block.contributions(query, context)
        whole, _ = attention(query, context, context)
        attention.in_proj_weight[32:] = 0
        attention.in_proj_bias[32:] = 0
        without, _ = attention(query, context, context)
    expected = (whole - without).norm(dim=-1)
    torch.testing.assert_close(contribution[..., 0], expected, rtol=1e-4, atol=1e-5)


def test_weights_of_contributions_are_those_of_the_block(model):
    block = model.torch_model.torch_decoder.decoder_transformer_block_1
    query, context = torch.randn(2, 3, 16), torch.randn(2, 9, 16)
    attend = torch.rand(2, 9) < 0.8
    with torch.inference_mode():
        _, expected = block(query, context, attend, need_weights=True)
        weights, lengths = block.contributions(query, context, attend)
    torch.testing.assert_close(weights, expected[..., :-1])
    assert (lengths[~attend[:, None].expand(lengths.shape)] < 1e-12).all()


def test_contributions_are_followed_back_through_the_encoder(model):
    network = model.torch_model.eval()
    pixels = torch.randn(2, 8)
    pixels[:, 3] = torch.nan
    request, tokens = torch.tensor([41, 42]), torch.arange(1, 9)

    def contributions():
        with torch.no_grad():
            return network(
                tokens, pixels, request, encoding=torch.zeros(8, 16), contributions_of=2
            )[-1]

    mixed = contributions()
    assert mixed.shape == (2, 2, 8)
    torch.testing.assert_close(mixed.sum(dim=-1), torch.ones(2, 2))
    assert (mixed[..., 3] < 1e-12).all()
    # An encoder that carries nothing leaves what the decoder takes.
    encoder = network.torch_encoder
    for block in (encoder.encoder_transformer_block_1, encoder.encoder_transformer_block_2):
        torch.nn.init.zeros_(block.attention.out_proj.weight)
    with torch.no_grad():
        x, attend = network.embed(tokens, pixels, torch.zeros(8, 16))
        perception, _ = network.torch_encoder(x, attend)
        *queries, _, _ = network.torch_decoder.read(network.request(request, 2), perception, attend)
        _, lengths = network.torch_decoder.contributions(queries, perception, attend)
    taken = sum(lengths)
    torch.testing.assert_close(contributions(), taken / taken.sum(dim=-1, keepdim=True))
    assert (contributions() - mixed).abs().max() > 0.01


def test_contributions_teach_attention_only(model):
    network = model.torch_model
    pixels = torch.randn(2, 8)
    tokens = torch.arange(1, 9)
    *_, contributions = network(
        tokens, pixels, torch.tensor([41]), encoding=torch.zeros(8, 16), contributions_of=1
    )
    assert contributions.shape == (1, 1, 8)
    contributions.square().sum().backward()
    taught = {name for name, p in network.named_parameters() if p.grad is not None}
    assert taught
    assert all(".attention." in name for name in taught)
    assert {name.split(".")[0] for name in taught} == {"torch_decoder", "torch_encoder"}
