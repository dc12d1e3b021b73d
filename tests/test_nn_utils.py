"""Losses and learning rates."""

import csv
import math

import pytest
import torch

from stellarperceptron.nn_utils import (
    cosine_annealing_warm_restarts,
    linear_warmup_cosine,
    mean_squared_error,
    mean_squared_pull,
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


def test_pulls_are_squared_and_averaged_over_the_known_labels():
    true = torch.tensor([[1.0, math.nan], [2.0, 0.5]])
    predicted, logvar = torch.tensor([[1.5, 9.0], [2.0, 0.0]]), torch.tensor([[0.1, 0.2], [0, 0.3]])
    error = torch.tensor([[0.3, math.nan], [0.0, 0.4]])
    squares = [0.25 / (math.exp(0.1) + 0.09), 0.0, 0.25 / (math.exp(0.3) + 0.16)]
    found = mean_squared_pull(true, predicted, logvar, error).item()
    assert found == pytest.approx(sum(squares) / 3)
    squares = [0.25 / math.exp(0.1), 0.0, 0.25 / math.exp(0.3)]
    assert mean_squared_pull(true, predicted, logvar).item() == pytest.approx(sum(squares) / 3)


@pytest.mark.parametrize("loss", [robust_mean_squared_error, mean_squared_error])
def test_unknown_labels_add_nothing_and_have_no_gradient(loss):
    true = torch.tensor([[1.0, math.nan], [math.nan, math.nan], [2.0, 0.5]])
    answer = torch.tensor([[1.5, 9.0], [3.0, 4.0], [2.5, 0.0]]).requires_grad_()
    more = (torch.zeros(3, 2),) if loss is robust_mean_squared_error else ()
    whole = loss(true, answer, *more)
    whole.backward()
    terms = [(1.0 - 1.5) ** 2, (2.0 - 2.5) ** 2, 0.5**2]
    factor = 0.5 if more else 1.0
    assert whole.item() == pytest.approx(factor * sum(terms) / 3, abs=1e-6)  # three stars
    assert answer.grad.isfinite().all()
    assert torch.equal(answer.grad != 0, ~true.isnan())


def test_one_cosine_after_a_linear_warmup():
    rates = learning_rates(lambda optimizer: linear_warmup_cosine(optimizer, 4, 12), 13, lr=2.0)
    cosine = [1 + math.cos(math.pi * step / 8) for step in range(9)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, *cosine], abs=1e-9)


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
