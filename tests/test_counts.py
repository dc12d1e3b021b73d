"""What a training step costs in calls, which do not vary as its seconds do."""

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import make_model
from torch.profiler import ProfilerActivity, profile
from train_tiny import STARS, tiny_data

from stellarperceptron.config import TrainingOptions
from stellarperceptron.distributed import Process
from stellarperceptron.trainer import Trainer
from stellarperceptron.training import _PerceptronTask


def calls_of_a_step(model, batch_size: int) -> Counter:
    """ATen's calls of one training step, made from its batch on, by name."""
    options = TrainingOptions(batch_size=batch_size, learning_rate=1e-3, max_gradient_norm=1.0)
    process = Process(0, 1, torch.device("cpu"))
    rows = np.arange(STARS)
    task = _PerceptronTask(model, tiny_data(model), rows, rows[:0], options, process)
    trainer = Trainer(task, options, process)
    batches = task.training.batches()
    trainer.train_batch(next(batches))  # the optimizer's state comes into being
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainer.train_batch(next(batches))
    names = (event.name for event in profiler.events())
    return Counter(name for name in names if name.startswith(("aten::", "mkldnn::")))


@pytest.fixture(scope="module")
def calls() -> Counter:
    return calls_of_a_step(make_model(), 8)


def test_calls_of_a_step(calls):
    assert 1000 < calls.total() < 5000


def test_more_stars_need_no_more_calls(calls):
    many = calls_of_a_step(make_model(), 32)
    assert many.total() < 1.02 * calls.total()  # small products are called in another way
    assert many["mkldnn::_linear_pointwise"] == calls["mkldnn::_linear_pointwise"]


def test_nothing_waits_for_the_device(calls):
    assert not {"aten::nonzero", "aten::is_nonzero", "aten::equal"} & calls.keys()
    # The fused optimizer of the CPU reads each parameter's count of steps, a GPU's does not.
    parameters = len(list(make_model().torch_model.parameters()))
    assert calls["aten::item"] <= parameters


def test_the_optimizer_takes_one_call(calls):
    assert calls["aten::_fused_adamw_"] == 1
    assert calls["aten::sqrt"] == 0
