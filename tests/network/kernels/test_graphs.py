"""CUDA graphs without a GPU: the same protocol, with a recorder that computes everything again."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import make_model
from small_training import make_data

from stellarperceptron.network.kernels.graphs import WARM_UP, CapturedGradients, tensors_of
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.step import Trainer
from stellarperceptron.training.tasks import PerceptronTask
from stellarperceptron.utils.distributed import Process

ALONE = Process(0, 1, torch.device("cpu"))
BINS = {"choice": "batch", "window_share": 0.5, "subset_share": 0.2, "window_tokens": 2}


class Recorder:
    """Replays as a graph does: from the same memory, into the same memory."""

    def __init__(self, parameters):
        self.parameters, self.recorded, self.replayed = list(parameters), 0, 0

    def __call__(self, function):
        self.recorded += 1
        values = function()
        gradients = [parameter.grad for parameter in self.parameters]

        def replay():
            self.replayed += 1
            before = [parameter.grad for parameter in self.parameters]
            for mine, new in zip(values.values(), function().values(), strict=True):
                mine.copy_(new)
            for mine, parameter, other in zip(gradients, self.parameters, before, strict=True):
                mine.copy_(parameter.grad)
                parameter.grad = other  # a graph knows nothing but its memory

        return values, replay


def make_trainer(**options):
    """A trainer of a tiny model with bins of four pixels: 26 stars in batches of 8 and one of 2."""
    model = make_model(
        pixels_per_token=4, encoder_dropout_rate=0.0, decoder_dropout_rate=0.0, context_length=11
    )
    model.torch_model.train()
    given = {"batch_size": 8, "learning_rate": 1e-3, "labels_per_star": "all"}
    settings = TrainingOptions(**(given | BINS | options))
    data = make_data(pixels_per_token=4, bad=0.05)
    task = PerceptronTask(model, data, np.arange(26), np.arange(0), settings, ALONE)
    return Trainer(task, settings, ALONE)


def trained(trainer, epochs=3):
    for epoch in range(epochs):
        for batch in trainer.training.batches(epoch):
            trainer.train_batch(batch)
        loss = trainer.means(trainer.sums)["loss"]
        trainer.end_epoch()
    return loss, torch.cat([p.detach().flatten() for p in trainer.network.parameters()])


def without_gpu(trainer, record):
    parameters = trainer.optimizer.param_groups[0]["params"]
    trainer.captured = CapturedGradients(trainer._new_gradients, parameters, record(parameters))
    return trainer


@pytest.mark.filterwarnings("ignore:training.cuda_graphs")
def test_a_replayed_training_is_the_same():
    options = {"cuda_graphs": True, "max_gradient_norm": 1.0}
    trainer = without_gpu(make_trainer(**options), Recorder)
    loss, weights = trained(trainer)
    expected, same = trained(make_trainer(**options))
    recorder = trainer.captured.record
    # Three batches of 8 and one of 2 stars in each of three epochs: the former are replayed after
    # the warm-up, the latter are too few.
    assert (recorder.recorded, recorder.replayed) == (1, 9 - WARM_UP)
    assert torch.equal(weights, same) and loss == expected


@pytest.mark.filterwarnings("ignore:training.cuda_graphs")
def test_a_failed_recording_is_told_and_the_training_goes_on():
    def fails(parameters):
        def record(function):
            function()
            raise RuntimeError("operation not permitted")

        return record

    with pytest.warns(UserWarning, match="no CUDA graph.*not permitted") as told:
        loss, weights = trained(without_gpu(make_trainer(cuda_graphs=True), fails))
    assert sum("no CUDA graph" in str(one.message) for one in told) == 1  # and not tried again
    expected, same = trained(make_trainer(cuda_graphs=True))
    assert torch.equal(weights, same) and loss == expected


def test_without_a_gpu_it_is_said():
    with pytest.warns(UserWarning, match="cuda_graphs needs one process on a GPU"):
        trainer = make_trainer(cuda_graphs=True)
    assert trainer.captured is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_accumulation": 2}, "gradient_accumulation = 1"),
        ({"precision": "float16"}, "no loss scaling"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingOptions(cuda_graphs=True, **options)


def test_batches_that_differ_in_what_is_no_tensor_have_graphs_of_their_own():
    class Masked(NamedTuple):
        values: torch.Tensor
        complete: bool

    weight = torch.nn.Parameter(torch.ones(3))

    def gradients(batch):
        weight.grad = None
        loss = (weight * batch.values)[: None if batch.complete else 1].sum()
        loss.backward()
        return {"loss": loss.detach()}

    captured = CapturedGradients(gradients, [weight], Recorder([weight]))
    ones = torch.ones(3)
    all_three, one = [(True, 3.0)], [(False, 1.0)]
    for complete, expected in (all_three + one) * (WARM_UP + 2) + one + all_three:
        assert captured(Masked(ones, complete))["loss"] == expected
        assert weight.grad.sum() == expected
    assert captured.record.recorded == 2


def test_tensors_of_nested_things():
    class Pair(NamedTuple):
        first: torch.Tensor
        second: object

    a, b = torch.ones(1), torch.ones(2)
    found = list(tensors_of((Pair(a, None), [b], 3, (b,))))
    assert [len(x) for x in found] == [1, 2]
