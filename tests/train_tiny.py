"""A tiny training for tests in processes of their own: train_tiny.py FOLDER [option=value ...]."""

import json
import os
import signal
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from conftest import LABELS, make_model, make_spectra

from stellarperceptron.nn_utils import cosine_annealing_warm_restarts, linear_warmup_cosine
from stellarperceptron.training.prepare import fit_standardization, prepare_training_data
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.run.folder import RunFolder
from stellarperceptron.training.stars.labelled import Stars
from stellarperceptron.training.step import Trainer
from stellarperceptron.training.tasks import train
from stellarperceptron.utils.distributed import process_group

STARS = 80
NAMES = [f"syn_apogee{i}" for i in range(40)]
WAVELENGTHS = 15200.0 + 0.21 * np.arange(40)


def tiny_data(model, seed=0):
    spectra = make_spectra(STARS, 40, seed)
    labels = np.nanmean(spectra[:, :30].reshape(STARS, 3, 10), axis=2) + np.array([0.0, 1.0, 2.0])
    errors = np.full_like(labels, 0.001)
    stars = Stars(spectra.__getitem__, NAMES, WAVELENGTHS, labels, errors, LABELS)
    fit_standardization(model, stars)
    return prepare_training_data(model, stars)


def main(folder, *arguments) -> None:
    torch.set_num_threads(1)
    folder = Path(folder)
    given = dict(argument.split("=") for argument in arguments)
    kill_at = int(given.pop("kill_at", -1))
    terminate_at = int(given.pop("terminate_at", -1))
    terminate_validation = int(given.pop("terminate_validation", -1))  # of the last process
    dropout = float(given.pop("dropout", 0.1))
    every_step = given.pop("schedule", "epochs") == "steps"
    validation = int(given.pop("validation", STARS - 64))
    values = {k: json.loads(v) if v[0] in "0123456789tf" else v for k, v in given.items()}
    options = TrainingOptions(
        **{"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "keep_checkpoints": 0, **values}
    )
    trained = 0
    train_batch = Trainer.train_batch

    def counted(self, batch):
        nonlocal trained
        trained += 1
        if trained == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if trained == terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_batch(self, batch)

    validate = Trainer.validate

    def terminated(self):
        if self.epoch + 1 == terminate_validation and process.rank == process.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(self)

    rates, step = [], torch.optim.AdamW.step

    def noted(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    with (
        patch.object(Trainer, "train_batch", counted),
        patch.object(Trainer, "validate", terminated),
        patch.object(torch.optim.AdamW, "step", noted),
        process_group("cpu") as process,
    ):
        model = make_model(encoder_dropout_rate=dropout, decoder_dropout_rate=dropout)
        data = tiny_data(model)
        history = train(
            model,
            data,
            np.arange(64),
            np.arange(64, 64 + validation),
            options,
            process,
            scheduler=lambda optimizer, steps: (
                linear_warmup_cosine(optimizer, 3, steps * options.epochs)
                if every_step
                else cosine_annealing_warm_restarts(optimizer, 2)
            ),
            folder=RunFolder(folder, {"learning_rate": options.learning_rate}, process.rank),
        )
        (folder / f"history_{process.rank}.json").write_text(json.dumps(history))
        (folder / f"rates_{process.rank}.json").write_text(json.dumps(rates))
        if process.rank == 0:
            model.save(folder / "final", overwrite=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
