"""What only a GPU does: kernels made by the compiler, copies beside the computation."""

import warnings

import numpy as np
import pytest
import torch
from conftest import LABELS, make_model, make_spectra
from reference_attention import expected
from small_training import make_data
from train_tiny import NAMES, STARS, WAVELENGTHS, tiny_data

from stellarperceptron.data.mock.emulated import emulated_source
from stellarperceptron.network.kernels.compiled_attention import compiled_self_attention
from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.step import Trainer
from stellarperceptron.training.tasks import PerceptronTask, train
from stellarperceptron.utils.distributed import Process

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

WIDE = {"embedding_dim": 64, "encoder_dropout_rate": 0.0, "decoder_dropout_rate": 0.0}


def model_on(device):
    """The same tiny model wherever it is, with heads that the compiled attention takes."""
    model, same = make_model(device=device, **WIDE), make_model(**WIDE)
    model.torch_model.load_state_dict(same.torch_model.state_dict())
    return model


def trained(device, data=tiny_data, **options):
    """History of a short training whose last batch is smaller than the others."""
    model = model_on(device)
    options = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3} | options
    return train(
        model,
        data(model),
        np.arange(61),
        np.arange(64, STARS),
        TrainingOptions(**options),
        Process(0, 1, torch.device(device)),
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("head_dim", [16, 32])
def test_compiled_attention_has_the_right_gradients(masked, head_dim):
    torch.manual_seed(0)
    parameters = [torch.randn(3, 130, 6 * head_dim, device="cuda")]
    parameters += [torch.randn(1, 1, 2 * head_dim, device="cuda") for _ in range(2)]
    attend = None
    if masked:
        attend = torch.rand(3, 130, device="cuda") < 0.7
        attend[0] = False  # the learned key alone is left
    for parameter in parameters:
        parameter.requires_grad_()
    gradient = torch.randn(3, 130, 2 * head_dim, device="cuda")
    actual = torch.compile(compiled_self_attention, dynamic=False)(*parameters, attend, 2)
    reference = expected(*parameters, attend, heads=2)
    torch.testing.assert_close(actual, reference.float(), rtol=0, atol=1e-5)
    ours = torch.autograd.grad(actual, parameters, gradient)
    theirs = torch.autograd.grad(reference, parameters, gradient.double())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=0, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("labels", ["one", "all"])
def test_training_is_the_same_compiled_and_on_a_cpu(labels):
    with warnings.catch_warnings(action="ignore"):
        compiled = trained("cuda", compile=True, labels_per_star=labels)
    plain, on_cpu = (trained(device, labels_per_star=labels) for device in ("cuda", "cpu"))
    for history in (plain, compiled):
        for name in ("loss", "val_loss"):
            assert history[-1][name] == pytest.approx(on_cpu[-1][name], rel=2e-3)


BINS = {"choice": "batch", "window_share": 0.5, "subset_share": 0.2, "window_tokens": 2}


def trained_on_bins(device, **options):
    """History of a short training on bins, with an incomplete last batch, and what was warned."""
    bins = {"pixels_per_token": 4, "context_length": 11, **WIDE}
    model, same = make_model(device=device, **bins), make_model(**bins)
    model.torch_model.load_state_dict(same.torch_model.state_dict())
    given = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "labels_per_star": "all"}
    data = tiny_data(model)
    settings = TrainingOptions(**(given | BINS | options))
    process = Process(0, 1, torch.device(device))
    return train(model, data, np.arange(61), np.arange(64, STARS), settings, process)


@pytest.mark.parametrize("compile", [False, True])
def test_a_training_of_cuda_graphs_is_the_same_as_on_a_cpu(compile):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no CUDA graph")
        replayed = trained_on_bins("cuda", cuda_graphs=True, compile=compile)
    on_cpu = trained_on_bins("cpu")
    for name in ("loss", "val_loss"):
        assert replayed[-1][name] == pytest.approx(on_cpu[-1][name], rel=2e-3)


def test_no_step_waits_for_the_device():
    model = model_on("cuda")
    options = TrainingOptions(batch_size=8, cuda_graphs=True, max_gradient_norm=1.0)
    process = Process(0, 1, torch.device("cuda"))
    task = PerceptronTask(model, tiny_data(model), np.arange(64), np.arange(0), options, process)
    trainer = Trainer(task, options, process)
    batches = list(trainer.training.batches())
    for batch in batches:  # the graph is recorded meanwhile
        trainer.train_batch(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            trainer.train_batch(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_emulated_spectra_are_those_of_a_cpu():
    spectra = emulated_source(50, seed=2).splits["train"]["synthetic"]
    here = spectra.flux(spectra.coefficients)
    there = spectra.flux(spectra.coefficients.cuda())
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=2e-5)


def test_training_in_bfloat16_learns():
    options = {"precision": "bfloat16", "compile": True, "epochs": 10, "learning_rate": 3e-3}
    history = trained("cuda", labels_per_star="all", **options)
    assert history[-1]["loss"] < history[0]["loss"] - 0.3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_predictions_are_those_of_a_cpu(precision):
    spectra = make_spectra(5, 40)
    exact = model_on("cpu").predict(spectra, WAVELENGTHS, LABELS, names=NAMES).to_numpy()
    for options in ({}, {"compile": True, "batch_size": 3}):
        found = model_on("cuda").predict(
            spectra, WAVELENGTHS, LABELS, names=NAMES, precision=precision, **options
        )
        tolerance = 1e-4 if precision == "float32" else 0.05 * exact.std()
        np.testing.assert_allclose(found.to_numpy(), exact, rtol=0, atol=tolerance)


def epoch(data):
    return list(TrainingGenerator(data, np.arange(30), 4, 12, seed=3).batches(epoch=1))


def test_batches_are_those_of_a_cpu():
    for one, other in zip(epoch(make_data()), epoch(make_data(device="cuda")), strict=True):
        assert torch.equal(one.stars, other.stars.cpu())
        ids = one.tokens.ids.sort(dim=1).values, other.tokens.ids.cpu().sort(dim=1).values
        assert torch.equal(*ids)
        torch.testing.assert_close(one.labels, other.labels.cpu(), equal_nan=True)


def test_streamed_batches_equal_resident_ones():
    resident, streamed = (
        epoch(make_data(device="cuda", memory=memory)) for memory in ("device", "host")
    )
    for one, other in zip(resident, streamed, strict=True):
        assert other.tokens.values.device.type == "cuda"
        ids = one.tokens.ids.sort(dim=1).values, other.tokens.ids.sort(dim=1).values
        assert torch.equal(*ids)
        total = one.tokens.values.nansum(dim=1), other.tokens.values.nansum(dim=1)
        torch.testing.assert_close(*total)
