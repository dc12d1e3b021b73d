"""What a training step costs in calls and bytes, which do not vary as its seconds do."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from benchmarks.common import allocations
from conftest import make_model
from torch.profiler import ProfilerActivity, profile
from train_tiny import STARS, tiny_data

from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.step import Trainer
from stellarperceptron.training.tasks import PerceptronTask
from stellarperceptron.utils.distributed import Process


def training_under_way(model, batch_size: int):
    """A trainer after its first step, and the batches that follow."""
    options = TrainingOptions(batch_size=batch_size, learning_rate=1e-3, max_gradient_norm=1.0)
    process = Process(0, 1, torch.device("cpu"))
    rows = np.arange(STARS)
    task = PerceptronTask(model, tiny_data(model), rows, rows[:0], options, process)
    trainer = Trainer(task, options, process)
    batches = task.training.batches()
    trainer.train_batch(next(batches))  # the optimizer's state comes into being
    return trainer, batches


def calls_of_a_step(model, batch_size: int) -> Counter:
    """ATen's calls of one training step, made from its batch on, by name."""
    trainer, batches = training_under_way(model, batch_size)
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


def bytes_of_steps(batch_size: int, steps: int):
    trainer, batches = training_under_way(make_model(), batch_size)
    some = list(itertools.islice(batches, steps))
    assert len(some) == steps
    return allocations(lambda: [trainer.train_batch(batch) for batch in some])


def test_all_steps_allocate_alike_and_keep_nothing():
    two, four, eight = (bytes_of_steps(8, steps) for steps in (2, 4, 8))
    assert eight.total - four.total == 2 * (four.total - two.total) > 0
    assert eight.peak == four.peak == two.peak
    assert eight.kept == four.kept == two.kept < 100  # the sums of the epoch


def test_bytes_grow_no_faster_than_stars():
    few, many = bytes_of_steps(8, 1), bytes_of_steps(32, 1)
    assert few.total < many.total < 4 * few.total
    assert few.peak < many.peak < 4 * few.peak


def test_what_is_kept_is_seen():
    kept = []
    assert allocations(lambda: kept.append(torch.ones(1000))) == (4000, 4000, 4000)
