"""Losses and learning rates."""

import csv
import math

import pytest
import torch

from stellarperceptron.nn_utils import (
    cosine_annealing_warm_restarts,
    mean_squared_error,
    robust_mean_squared_error,
    warmup_cosine_annealing_warm_restarts,
)


def learning_rates(schedule, steps, lr=1e-4):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = schedule(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_loss_follows_its_formula():
    true, predicted, logvar, error = torch.tensor(
        [[[1.0, 2.0]], [[0.5, 0.0]], [[0.1, 0.2]], [[0.3, 0]]]
    )
    variance = [math.exp(0.1) + 0.09 + 1e-8, math.exp(0.2) + 1e-8]
    expected = sum(
        0.5 * (d**2 / s + math.log(s)) for d, s in zip((0.5, 2.0), variance, strict=True)
    )
    assert robust_mean_squared_error(true, predicted, logvar, error).item() == pytest.approx(
        expected
    )


def test_loss_sums_requests_and_averages_stars():
    true, predicted = torch.zeros(4, 3), torch.ones(4, 3)
    assert mean_squared_error(true, predicted) == 3
    assert mean_squared_error(true[:, 0], predicted[:, 0]) == 1


def test_cosine_starts_again():
    rates = learning_rates(lambda o: cosine_annealing_warm_restarts(o, 10, 1e-10), 21)
    assert rates[0] == rates[10] == rates[20] == pytest.approx(1e-4)
    assert rates[5] == pytest.approx(5e-5, rel=1e-4)
    assert rates[9] < rates[8] < rates[1]


def test_warmup_reaches_the_learning_rate_and_hands_over():
    rates = learning_rates(lambda o: warmup_cosine_annealing_warm_restarts(o, 5, 20), 30)
    assert rates[0] == pytest.approx(1e-10)
    assert rates[1] == pytest.approx(2e-5, rel=1e-4)
    assert rates[5] == rates[25] == pytest.approx(1e-4)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("stage", "schedule"),
    [
        (1, lambda optimizer: cosine_annealing_warm_restarts(optimizer, 50)),
        (2, lambda optimizer: warmup_cosine_annealing_warm_restarts(optimizer, 51, 500)),
    ],
)
def test_published_learning_rates(shared, stage, schedule):
    with open(shared / "published" / f"training_metrics_stage{stage}.csv", newline="") as file:
        published = [float(row["lr"]) for row in csv.DictReader(file)]
    assert learning_rates(schedule, len(published)) == pytest.approx(published, rel=1e-3)
