"""Agreement with the published implementation, on inputs and outputs that it left behind."""

import json

import numpy as np
import pytest
import torch
from reference_network import ReferenceNetwork

from stellarperceptron import StellarPerceptron
from stellarperceptron.layers import Tokens
from stellarperceptron.network.checkpoint import read_config
from stellarperceptron.nn_utils import mean_squared_error, robust_mean_squared_error

pytestmark = pytest.mark.reference
CASES = "ABCD"
LABELS = ["TEFF", "LOGG", "O_FE", "MG_FE", "FE_H"]


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden_small" / "golden.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def published(shared):
    return StellarPerceptron.load(shared / "golden_small", device="cpu", nan_policy="attend")


def relative(actual, expected):
    """Largest deviation over the root mean square of what is expected.

    Single values near zero have no relative accuracy in float32, whose rounding goes with the sum.
    """
    return np.nanmax(np.abs(actual - expected)) / np.sqrt(np.nanmean(np.square(expected)))


def perceive(published, golden, case, **options):
    wavelengths = golden.get(f"{case}_wavelength")
    return published.perceive(
        golden[f"{case}_inputs"], golden[f"{case}_names"], wavelengths, **options
    )


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_padding(published, golden, case):
    tokens = published.padding(published.tokenize(golden[f"{case}_names"]))
    np.testing.assert_array_equal(
        np.broadcast_to(tokens, golden[f"{case}_tokens"].shape), golden[f"{case}_tokens"]
    )


@pytest.mark.parametrize("case", CASES)
def test_standardized_inputs(published, golden, case):
    inputs = golden[f"{case}_inputs"]
    values = published.standardizer.standardize(inputs, published.tokenize(golden[f"{case}_names"]))
    np.testing.assert_array_equal(published.padding(values), golden[f"{case}_std_inputs"])


@pytest.mark.parametrize("case", CASES)
def test_network_layer_by_layer(published, golden, case):
    network = published.torch_model
    tokens, inputs, wavelengths, padding = (
        torch.as_tensor(golden[f"{case}_{name}"])
        for name in ("tokens", "std_inputs", "pad_wavelength", "padding_mask")
    )
    encoding = network.embedding_layer.encode_wavelength(wavelengths)
    given = Tokens(tokens[..., None], inputs[..., None], encoding)
    embedded = network.embedding_layer(given) * ~inputs.isnan()[..., None]
    assert relative(embedded.detach().numpy(), golden[f"{case}_embedded"]) < 1e-5
    block, _ = network.torch_encoder.encoder_transformer_block_1(embedded, attend=~padding)
    perception, attend, weights = network.encode(given, "attend", need_weights=True)
    real = ~padding.numpy()
    for actual, name in (
        (block, "encoder_block_1"),
        (perception, "perception"),
        (weights, "encoder_attention_raw"),
    ):
        actual, expected = actual.detach().numpy(), golden[f"{case}_{name}"]
        assert relative(actual[real], expected[real]) < 1e-5, name
    value, logvar, weights = network.decode(
        torch.as_tensor(published.tokenize(LABELS)), perception, attend, need_weights=True
    )
    for actual, name in (
        (value, "pred_standardized"),
        (logvar, "logvar_standardized"),
        (weights.transpose(1, 2), "decoder_attention_raw"),
    ):
        assert relative(actual.detach().numpy(), golden[f"{case}_{name}"]) < 1e-5, name


@pytest.mark.parametrize("case", CASES)
def test_the_formulas_give_the_published_answers(published, golden, case):
    """The reference in NumPy, which other tests compare with, is that of the publication."""
    value, logvar = ReferenceNetwork.of(published)(
        golden[f"{case}_tokens"][..., None],
        golden[f"{case}_std_inputs"][..., None],
        golden[f"{case}_pad_wavelength"],
        published.tokenize(LABELS),
        "attend",
    )
    assert relative(value, golden[f"{case}_pred_standardized"]) < 1e-5
    assert relative(logvar, golden[f"{case}_logvar_standardized"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_perceive_and_request(published, golden, case):
    encoder = perceive(
        published,
        golden,
        case,
        return_attention_scores=True,
        attention_normalization="published",
    )
    frame, decoder = published.request(LABELS, return_attention_scores=True)
    n = encoder.shape[1]
    expected = golden[f"{case}_encoder_attention_api"][:, :n, :n]
    np.testing.assert_array_equal(np.isnan(encoder), np.isnan(expected))
    assert relative(encoder, expected) < 1e-5
    assert relative(decoder, golden[f"{case}_decoder_attention_api"][:, :n]) < 1e-5
    spread = published.standardizer.scale[published.tokenize(LABELS)]
    for suffix, name in (("", "pred"), ("_error", "pred_err")):
        actual = frame[[label + suffix for label in LABELS]].to_numpy()
        # [Fe/H] of 0.003 has no relative accuracy: labels are judged on the scale of their spread.
        assert np.abs((actual - golden[f"{case}_{name}"]) / spread).max() < 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_size", [4, 5])
def test_request_in_batches(published, golden, case, batch_size):
    perceive(published, golden, case, batch_size=batch_size)
    frame = published.request(LABELS, batch_size=batch_size)
    spread = np.tile(published.standardizer.scale[published.tokenize(LABELS)], 2)
    expected = golden[f"{case}_request_batch{batch_size}"]
    assert np.abs((frame.to_numpy() - expected) / spread).max() < 1e-5


@pytest.mark.parametrize("prefix", ["loss", "loss2"])
def test_losses(golden, prefix):
    true, predicted, logvar, error = (
        torch.as_tensor(golden[f"{prefix}_{name}"])
        for name in ("y_true", "y_pred", "logvar", "labels_err")
    )
    robust = robust_mean_squared_error(true, predicted, logvar, error).item()
    squared = mean_squared_error(true, predicted).item()
    names = ("loss_robust_err", "loss_mse") if prefix == "loss" else ("loss2_robust", "loss2_mse")
    assert robust == pytest.approx(golden[names[0]].item(), rel=1e-6)
    assert squared == pytest.approx(golden[names[1]].item(), rel=1e-6)


def test_loss_without_label_errors(golden):
    true, predicted, logvar = (
        torch.as_tensor(golden[f"loss_{name}"]) for name in ("y_true", "y_pred", "logvar")
    )
    value = robust_mean_squared_error(true, predicted, logvar).item()
    assert value == pytest.approx(golden["loss_robust_err0"].item(), rel=1e-6)


def test_gradients_and_adamw_step(shared, golden):
    model = StellarPerceptron.load(shared / "golden_small", device="cpu", nan_policy="attend")
    network = model.torch_model
    tokens, requests, true, error = (
        torch.as_tensor(golden[f"train_{name}"])
        for name in ("tokens", "out_tokens", "labels", "labels_err")
    )
    # The step was taken on case B, its missing values made padding, as in published training.
    inputs = torch.as_tensor(golden["B_std_inputs"])
    encoding = network.embedding_layer.encode_wavelength(
        torch.as_tensor(golden["B_pad_wavelength"])
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    given = Tokens(tokens[..., None], inputs[..., None], encoding)

    def loss():
        value, logvar = network(given, requests, "attend")
        return robust_mean_squared_error(true, value, logvar, error)

    value, logvar = network(given, requests, "attend")
    assert relative(value.detach().numpy(), golden["train_out"][..., 0]) < 1e-5
    assert relative(logvar.detach().numpy(), golden["train_logvar"][..., 0]) < 1e-5
    first = loss()
    assert first.item() == pytest.approx(golden["train_loss"].item(), rel=1e-6)
    first.backward()
    gradients = np.load(shared / "golden_small" / "grads.npz", allow_pickle=False)
    for name, parameter in network.named_parameters():
        expected = gradients[name]
        gradient = parameter.grad.numpy() if parameter.grad is not None else 0 * expected
        scale = np.abs(expected).max()
        assert np.abs(gradient - expected).max() <= 1e-5 * scale + 1e-8, name
    optimizer.step()
    stepped = np.load(shared / "golden_small" / "params_after_adamw_step.npz", allow_pickle=False)
    for name, parameter in network.named_parameters():
        deviation = np.abs(parameter.detach().numpy() - stepped[name])
        # Adam's first step is lr g / (|g| + 1e-8): where the gradient is rounding, so is the step.
        clear = np.abs(gradients[name]) > 1e-4 * np.abs(gradients[name]).max()
        assert (deviation[clear] <= 1e-5 * np.abs(stepped[name]).max()).all(), name
        assert (deviation <= 2e-4).all(), name
    after = loss().item()
    assert after == pytest.approx(golden["train_loss_after_one_adamw_step"].item(), rel=1e-5)


def test_published_configuration_loads_with_random_weights(shared, tmp_path):
    folder = shared / "published" / "epoch_325"
    model = StellarPerceptron.from_config(read_config(folder), device="cpu", seed=0)
    model.save(tmp_path / "epoch_325")
    for name in ("config.json", "embed_map.npz"):
        (tmp_path / "epoch_325" / name).write_bytes((folder / name).read_bytes())
    loaded = StellarPerceptron.load(tmp_path / "epoch_325", device="cpu")
    assert loaded.vocab_size == 7519
    assert set(loaded.embed_map[1:7515]) == {1}
    assert loaded.embed_map[7515:].tolist() == list(range(7515, 7520))
    assert json.loads((folder / "config.json").read_text())["norm_config"]["_input_mean"] == (
        loaded.standardizer.center.tolist()
    )


def test_lb23_configuration(shared):
    config = read_config(shared / "published" / "lb23")
    model = StellarPerceptron.from_config(config, device="cpu", seed=0)
    assert (model.config.context_length, model.config.embedding_dim, model.vocab_size) == (
        64,
        128,
        118,
    )
    # A spectrum without wavelengths, a colour and a temperature as inputs; a parallax-like request.
    names = ["bp0", "bp1", "rp0", "jh", "teff"]
    model.perceive(model.standardizer.center[model.tokenize(names)][None], names)
    answer = model.request(["logg", "m_h", "bp2"])
    assert np.isfinite(answer.to_numpy()).all()
