"""What a training step costs in calls and bytes, which do not vary as its seconds do."""

import contextlib
import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from benchmarks.common import allocations
from conftest import make_model
from small_training import make_data
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from train_tiny import STARS, tiny_data

from stellarperceptron.data.mock.observation import Augmentation
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


class Watch(TorchDispatchMode):
    """What would make a GPU wait for its host, or the host for its GPU.

    Tensors without data ("meta") take the ways of a GPU; whatever asks for their values is an
    error by itself.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.waits = Counter(), []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        name = function.overloadpacket.__name__
        self.calls[name] += 1
        given = [x for x in pytree.tree_leaves((arguments, options)) if torch.is_tensor(x)]
        devices = {x.device.type for x in given}
        indices = arguments[1] if name in ("index", "index_put") else ()
        masks = [x for x in indices if torch.is_tensor(x) and x.dtype == torch.bool]
        asks = name in ("item", "_local_scalar_dense", "nonzero", "masked_select")
        fetches = "meta" in devices and options.get("device") == CPU
        if asks or masks or fetches or len(devices) > 1:
            self.waits.append(name)
        elif devices == {"cpu"} and options.get("device", CPU).type == "meta":
            self.waits += [] if options.get("non_blocking") else [name]
        return function(*arguments, **options)


CPU = torch.device("cpu")


def watched_steps(monkeypatch, steps=6, **options) -> Watch:
    """The launches of some steps of an epoch: choice, augmentation, gradients, clipping."""
    model = make_model(pixels_per_token=4, context_length=11, conditions=True)
    data = make_data(pixels_per_token=4, conditions=True)
    augment = Augmentation().with_noise
    moved = {
        field.name: value.to("meta")
        for field in dataclasses.fields(data)
        if isinstance(value := getattr(data, field.name), torch.Tensor)
    }
    # Without data there are neither generators nor autocast.
    monkeypatch.setattr(torch, "Generator", lambda device: torch.default_generator)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    data = dataclasses.replace(
        data, **moved, augment=lambda flux, _: augment(flux, pixels=slice(0, flux.shape[1]))
    )
    model.torch_model.to("meta").train()
    settings = TrainingOptions(
        **{"batch_size": 4, "choice": "batch", "window_share": 0.5, "window_tokens": 2},
        **{"subset_share": 0.3, "labels_per_star": "all", "max_gradient_norm": 1.0},
        **{"cuda_graphs": True, **options},
    )
    process = Process(0, 1, torch.device("meta"))
    shared = {"choice": settings.choice, "labels_per_star": settings.labels_per_star}
    task = PerceptronTask.__new__(PerceptronTask)  # to ask for the data, it would need some
    task.network, task.model, task.compile, task.complete = model.torch_model, model, False, False
    task.training = task.validation = task._training_batches(data, np.arange(30), settings, shared)
    trainer = Trainer(task, settings, process)
    batches = trainer.training.batches()
    trainer._new_gradients(next(batches))  # tables of the augmentation come into being
    with Watch() as watch:
        for batch in itertools.islice(batches, steps):
            logged = trainer._new_gradients(batch)
            trainer._add(trainer.sums, logged, 4)
    return watch


@pytest.mark.filterwarnings("ignore:training.cuda_graphs")
def test_no_step_of_an_epoch_waits(monkeypatch):
    watch = watched_steps(monkeypatch)
    assert watch.waits == []
    assert watch.calls["masked_fill"] and watch.calls["gelu_backward"]  # it has seen the steps


@pytest.mark.parametrize("asks", [torch.Tensor.item, torch.Tensor.nonzero, torch.Tensor.cpu])
def test_the_watch_is_not_blind(asks):
    number = torch.zeros((), device="meta")
    with Watch() as watch, contextlib.suppress(RuntimeError, NotImplementedError):
        asks(number)
    assert watch.waits
