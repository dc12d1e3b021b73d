"""The baseline: its size, what it learns, and that an interrupted training goes on."""

import os
import signal

import numpy as np
import pytest
import torch

from stellarperceptron.network.baselines.published import BaselineNetwork
from stellarperceptron.training import tasks
from stellarperceptron.training.run.folder import RunFolder
from stellarperceptron.training.tasks import train_baseline


def test_published_baseline_has_its_parameters():
    network = BaselineNetwork(512)
    assert sum(p.numel() for p in network.parameters()) == 4_987_138


def test_baseline_round_trip(tmp_path):
    network = BaselineNetwork(20, "TEFF", seed=4)
    random = np.random.default_rng(0)
    flux = random.normal(0.95, 0.05, size=(30, 20))
    train_baseline(network, flux, 4000 + 1000 * flux[:, 0], np.full(30, 10.0), epochs=2)
    flux[3, 5] = np.nan
    network.save(tmp_path / "nn")
    loaded = BaselineNetwork.load(tmp_path / "nn")
    np.testing.assert_array_equal(loaded.predict(flux), network.predict(flux))
    assert np.isfinite(loaded.predict(flux)).all(axis=None)


@pytest.mark.slow
def test_baseline_learns():
    random = np.random.default_rng(1)
    flux = random.normal(0.95, 0.05, size=(200, 20))
    labels = flux[:, :5].sum(axis=1)
    network = BaselineNetwork(20)
    history = train_baseline(
        network,
        flux[:150],
        labels[:150],
        np.zeros(150),
        epochs=20,
        batch_size=64,
        validation=(flux[150:], labels[150:], np.zeros(50)),
    )
    assert history["val_rmse"].iloc[-1] < 0.5 * np.std(labels)


def test_every_epoch_and_seed_has_its_own_order(monkeypatch):
    orders = []

    def note(task, *_, **__):
        for epoch in (0, 1):
            orders.append(torch.cat([batch.stars for batch in task.training.batches(epoch)]))
        stars = torch.cat([batch.stars for batch in task.validation.batches(1)])
        assert stars.tolist() == list(range(7))
        return [{"val_mse_loss": 0.0}]

    monkeypatch.setattr(tasks, "run_training", note)
    for seed in (0, 1):
        train_baseline(BaselineNetwork(20, seed=seed), *stars(), validation=stars(7), epochs=2)
    assert all(sorted(order.tolist()) == list(range(40)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4


def stars(number=40):
    flux = np.random.default_rng(1).normal(0.95, 0.05, size=(number, 20))
    return flux, flux[:, :5].sum(axis=1), np.full(number, 0.01)


def train(folder, **options):
    network = BaselineNetwork(20)
    history = train_baseline(
        network,
        *stars(),
        validation=stars(7),
        folder=RunFolder(folder, {}),
        epochs=4,
        batch_size=16,
        **options,
    )
    return network, history


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, number):
    whole, history = train(tmp_path / "whole")
    step, steps = torch.optim.Adam.step, []

    def interrupted(self, *arguments):
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), number)
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(SystemExit) as end:
        train(tmp_path / "parts")
    assert end.value.code == 0 and (tmp_path / "parts" / "interrupted" / "weights.pt").exists()
    resumed, again = train(tmp_path / "parts")
    assert len(steps) == 12
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    np.testing.assert_allclose(again["val_rmse"], history["val_rmse"], rtol=1e-12)


@pytest.mark.slow
def test_best_network_is_kept_on_disk(tmp_path):
    _, history = train(tmp_path, learning_rate=3e-3)
    best = BaselineNetwork.load(tmp_path / "best")
    assert best.epoch == 1 + history["val_loss"].argmin()
    assert {"training.log", "training_metrics.csv", "loss.png"} <= {
        path.name for path in tmp_path.iterdir()
    }
    flux, labels, _ = stars(7)
    error = best.predict(flux)["FE_H"] - labels
    assert np.sqrt(np.mean(error**2)) == pytest.approx(history["val_rmse"].iloc[best.epoch - 1])
