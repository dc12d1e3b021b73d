"""One step of training at a time: what the options change in it, and nothing else."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import make_model
from train_tiny import STARS, tiny_data

from stellarperceptron.nn_utils import (
    Schedule,
    cosine_annealing_warm_restarts,
    robust_mean_squared_error,
)
from stellarperceptron.training.batches import MixedBatch
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.step import Trainer
from stellarperceptron.training.tasks import PerceptronTask
from stellarperceptron.utils.distributed import Process

ALONE = Process(0, 1, torch.device("cpu"))


def make_trainer(dropout=0.0, scheduler=None, **options):
    """A trainer of a tiny model with 64 training stars."""
    model = make_model(encoder_dropout_rate=dropout, decoder_dropout_rate=dropout)
    model.torch_model.train()
    given = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "labels_per_star": "all"}
    settings = TrainingOptions(**(given | options))
    rows = np.arange(64), np.arange(64, STARS)
    task = PerceptronTask(model, tiny_data(model), *rows, settings, ALONE)
    return Trainer(task, settings, ALONE, scheduler)


def gradients_of_first_step(trainer):
    """Gradients as the optimizer receives them, in one vector."""
    found = []

    def note(optimizer, *_):
        parameters = optimizer.param_groups[0]["params"]
        found.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))

    trainer.optimizer.register_step_pre_hook(note)
    for batch in trainer.training.batches():
        if trainer.train_batch(batch):
            return found[0]


def first_batch(trainer):
    return next(trainer.training.batches())


def weights(trainer):
    return {name: x.detach().clone() for name, x in trainer.network.named_parameters()}


def test_gradients_are_clipped_to_the_norm():
    whole = gradients_of_first_step(make_trainer())
    most = whole.norm().item() / 5
    clipped = gradients_of_first_step(make_trainer(max_gradient_norm=most))
    assert clipped.norm().item() == pytest.approx(most, rel=1e-4)
    torch.testing.assert_close(clipped, whole / 5, rtol=1e-4, atol=1e-7)
    untouched = gradients_of_first_step(make_trainer(max_gradient_norm=10 * most))
    torch.testing.assert_close(untouched, whole)


def test_gathered_gradients_are_the_mean_of_their_batches():
    gathered = gradients_of_first_step(make_trainer(batch_size=8, gradient_accumulation=2))
    at_once = gradients_of_first_step(make_trainer(batch_size=16))
    torch.testing.assert_close(gathered, at_once, rtol=1e-4, atol=1e-5)


def test_gathered_gradients_are_clipped_together():
    whole = gradients_of_first_step(make_trainer(batch_size=8, gradient_accumulation=2))
    most = whole.norm().item() / 5
    options = {"batch_size": 8, "gradient_accumulation": 2, "max_gradient_norm": most}
    clipped = gradients_of_first_step(make_trainer(**options))
    torch.testing.assert_close(clipped, whole / 5, rtol=1e-4, atol=1e-7)


def test_weights_decay_by_learning_rate_times_decay():
    trainers = [make_trainer(weight_decay=decay) for decay in (0.0, 0.1)]
    before = weights(trainers[0])
    for trainer in trainers:
        assert trainer.train_batch(first_batch(trainer))
    free, decayed = map(weights, trainers)
    assert any(not torch.equal(free[name], before[name]) for name in before)
    for name in before:
        expected = free[name] - 1e-3 * 0.1 * before[name]
        torch.testing.assert_close(decayed[name], expected, rtol=0, atol=1e-6, msg=name)


def test_beta2_reaches_the_optimizer():
    assert make_trainer(beta2=0.95).optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_the_loss_of_a_mixed_batch_is_the_mean_over_all_of_its_stars():
    trainer = make_trainer()
    batches = list(trainer.training.batches())
    few = next(make_trainer(batch_size=4).training.batches())
    losses = [trainer.task.losses(trainer.network, batch)[0] for batch in (batches[0], few)]
    mixed, metrics = trainer.task.losses(trainer.network, MixedBatch((batches[0], few)))
    expected = (16 * losses[0]["likelihood"] + 4 * losses[1]["likelihood"]) / 20
    torch.testing.assert_close(mixed["likelihood"], expected)
    assert set(metrics) == {"mse_loss", "squared_pull"}


def test_dropout_follows_the_seed():
    def loss_of_first_batch(seed):
        trainer = make_trainer(dropout=0.5, seed=seed)
        trainer.train_batch(first_batch(make_trainer()))  # the same stars for all seeds
        return trainer.sums["loss"].item()

    assert loss_of_first_batch(0) == loss_of_first_batch(0) != loss_of_first_batch(1)


def test_dropout_is_drawn_anew_for_every_batch_and_epoch():
    trainer = make_trainer(dropout=0.5, learning_rate=1e-30, weight_decay=0)
    batch, losses = first_batch(trainer), []  # always the same stars
    for _ in range(2):
        for _ in range(3):
            before = trainer.sums.get("loss", 0.0)
            trainer.train_batch(batch)
            losses.append(round(float(trainer.sums["loss"] - before), 9))
        trainer.end_epoch()
    assert len(set(losses)) == 6


def test_a_schedule_is_stepped_once_an_epoch():
    trainer = make_trainer(scheduler=lambda o, steps: cosine_annealing_warm_restarts(o, 4, 0.0))
    rates = []
    for _ in range(5):
        for batch in trainer.training.batches(trainer.epoch):
            trainer.train_batch(batch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.end_epoch()
    cosine = [0.5e-3 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (0, 1, 2, 3, 0)]
    assert rates == pytest.approx(cosine)


def test_one_cosine_lasts_the_whole_training():
    schedule = Schedule("warmup_cosine", warmup_steps=2)
    trainer = make_trainer(scheduler=lambda optimizer, steps: schedule.make(optimizer, steps, 3))
    rates = []
    for _ in range(3):
        for batch in trainer.training.batches(trainer.epoch):
            rates.append(trainer.optimizer.param_groups[0]["lr"])
            trainer.train_batch(batch)
        trainer.end_epoch()
    cosine = [0.5e-3 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert rates == pytest.approx([0.5e-3, 1e-3, *cosine])
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 4), (3, 2)])
def test_a_schedule_knows_the_steps_of_an_epoch(accumulation, steps):
    told = []
    options = {"gradient_accumulation": accumulation}
    trainer = make_trainer(scheduler=lambda _, number: told.append(number), **options)
    assert told == [steps]
    taken = [trainer.train_batch(batch) for batch in trainer.training.batches()]
    assert sum(taken) == steps


def test_the_logged_loss_is_the_mean_over_stars_with_and_without_labels():
    """Batches of unequal size: 64 stars in batches of 48 and 16."""
    trainer = make_trainer(batch_size=48, learning_rate=1e-30, weight_decay=0)
    trainer.task.data.labels[3, 1] = torch.nan
    trainer.task.data.labels[5] = torch.nan
    for batch in trainer.training.batches():
        trainer.train_batch(batch)
    everyone = make_trainer(batch_size=64)
    everyone.task.data.labels.copy_(trainer.task.data.labels)
    batch = first_batch(everyone)
    with torch.no_grad():
        value, logvar = everyone.network(batch.tokens, batch.request_ids)
    expected = robust_mean_squared_error(batch.labels, value, logvar, batch.label_errors)
    assert trainer.means(trainer.sums)["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_every_process_has_its_own_dropout():
    losses = []
    for rank in (0, 1):
        trainer = make_trainer(dropout=0.5)
        batch = first_batch(trainer)  # the same stars for both
        trainer.process = Process(rank, 1, torch.device("cpu"))
        trainer.train_batch(batch)
        losses.append(trainer.sums["loss"].item())
    assert losses[0] != losses[1]


def test_validation_changes_nothing_and_has_no_dropout():
    def trainer_after_a_step(dropout):  # it knows what is logged, and its weights are as before
        trainer = make_trainer(dropout=dropout, learning_rate=1e-30, weight_decay=0)
        trainer.train_batch(first_batch(trainer))
        return trainer

    trainer = trainer_after_a_step(dropout=0.5)
    before = weights(trainer)
    first, second = trainer.validate(), trainer.validate()
    assert first == second and "loss" in first
    assert trainer.network.training
    assert all(torch.equal(before[name], x) for name, x in weights(trainer).items())
    still = trainer_after_a_step(dropout=0.0).validate()
    assert first == pytest.approx(still, rel=1e-6)


def test_a_restored_trainer_takes_the_same_steps():
    """Optimizer, schedule and sums go on where they were, in the middle of an epoch."""

    def scheduler(optimizer, steps):
        return cosine_annealing_warm_restarts(optimizer, 5)

    trainer = make_trainer(dropout=0.1, scheduler=scheduler)
    for batch in trainer.training.batches():
        trainer.train_batch(batch)
    trainer.end_epoch()
    batches = list(trainer.training.batches(1))
    trainer.train_batch(batches[0])
    again = make_trainer(dropout=0.1, scheduler=scheduler)
    again.network.load_state_dict(trainer.network.state_dict())
    again.restore(*copy.deepcopy((trainer.state(), trainer.optimizer.state_dict())))
    assert (again.epoch, again.batch) == (1, 1)
    for one in (trainer, again):
        for batch in one.training.batches(one.epoch, start=one.batch):
            one.train_batch(batch)
        one.end_epoch()
    for name, tensor in weights(trainer).items():
        assert torch.equal(weights(again)[name], tensor), name
    rates = [one.optimizer.param_groups[0]["lr"] for one in (trainer, again)]
    assert rates[0] == rates[1] < 1e-3
