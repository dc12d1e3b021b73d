"""Settings for fine-tuning on few stars."""

import pytest
import torch

from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.stars.few_stars import SETTINGS, fine_tuning


@pytest.mark.parametrize(("stars", "epochs"), [(1, 100), (16, 100), (17, 50), (100, 15)])
def test_the_steps_do_not_depend_on_the_number_of_stars(stars, epochs):
    assert fine_tuning(stars, steps=100)["epochs"] == epochs


def test_the_learning_rate_falls_to_zero_with_the_last_step():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], SETTINGS["learning_rate"])
    schedule = fine_tuning(30, steps=50)["lr_scheduler"](optimizer)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(SETTINGS["learning_rate"])
    assert optimizer.param_groups[0]["lr"] < 1e-6


def test_they_are_options_of_the_training():
    settings = fine_tuning(30, steps=50, seed=7)
    for name in ("lr_scheduler", "validation_split"):  # arguments of `fit` itself
        del settings[name]
    assert TrainingOptions(**{"choice": "batch", **settings}).seed == 7
