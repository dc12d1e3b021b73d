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
    for name in (
        "lr_scheduler",
        "validation_split",
        "freeze_decoder",
        "freeze_encoder",
    ):  # of `fit`
        del settings[name]
    assert TrainingOptions(**{"choice": "batch", **settings}).seed == 7


@pytest.mark.parametrize(
    ("stars", "train", "frozen"),
    [(30, "auto", True), (300, "auto", False), (300, "embeddings", True), (30, "all", False)],
)
def test_few_stars_train_the_embeddings_only(stars, train, frozen):
    settings = fine_tuning(stars, steps=50, train=train)
    assert settings["freeze_encoder"] is settings["freeze_decoder"] is frozen


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="train = 'some' is none of auto, embeddings, all"):
        fine_tuning(30, steps=50, train="some")
