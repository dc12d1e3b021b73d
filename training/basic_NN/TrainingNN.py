"""The baseline: a plain network trained from scratch on the 100 stars of stage 3.

512-2048-1280-1024 ReLU units with dropout, value and log-variance (4,987,138 parameters), Adam.
Unless the profile says otherwise, the number of epochs is chosen by five-fold cross-validation on
the 100 stars. The network is saved in OUTPUT/selected.

    python TrainingNN.py --data survey.h5 --output runs/laptop/basic_NN
"""

import dataclasses
import json
import sys
from contextlib import ExitStack

import numpy as np

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.network.baselines.published import BaselineNetwork
from stellarperceptron.training.loop import TrainingError
from stellarperceptron.training.run.folder import RunFolder
from stellarperceptron.training.run.script import (
    mark_complete,
    stage_arguments,
    stage_folder,
)
from stellarperceptron.training.stages import five_folds, label_columns, label_names
from stellarperceptron.training.tasks import train_baseline
from stellarperceptron.utils.arguments import run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.distributed import process_group


def main() -> None:
    """Train the folds, choose the number of epochs and train the network."""
    arguments = stage_arguments(__file__, __doc__, "baseline", needs_checkpoint=False)
    profile, output = arguments.profile_settings, arguments.output
    with ExitStack() as stack:
        process = stack.enter_context(process_group(arguments.device))
        dataset = stack.enter_context(SpectraDataset.open(arguments.data))
        if process.world_size > 1:
            raise ValueError(
                "the baseline trains on 100 stars in one process: start it without torchrun or srun"
            )
        (label,), (column,) = label_names(dataset, profile), label_columns(dataset, profile)

        def read(split, rows):
            flux = split.read(profile.data.kind, rows, profile.data.pixels)
            return flux, split.labels[rows, column], split.label_errors[rows, column]

        iron_rich = read(dataset.train, dataset.train.iron_rich_stars())
        inputs = {"stage": "baseline", "data": dataset.identity}
        configuration = {"inputs": inputs, "profile": profile.to_dict()}
        stack.enter_context(
            stage_folder(output, process, fresh=arguments.no_resume, configuration=configuration)
        )

        def train(rows, validation, folder, epochs=profile.training.epochs):
            options = dataclasses.replace(profile.training, epochs=epochs)
            settings = dataclasses.replace(profile, training=options)
            pixels = iron_rich[0].shape[1]
            network = BaselineNetwork(pixels, label, seed=options.seed).to(process.device)
            history = train_baseline(
                network,
                *(values[rows] for values in iron_rich),
                validation=validation,
                scheduler=lambda optimizer, steps: profile.schedule.make(optimizer, steps, epochs),
                folder=RunFolder(
                    folder,
                    {"inputs": inputs, "profile": settings.to_dict()},
                    fresh=arguments.no_resume,
                    echo=not sys.stderr.isatty(),
                ),
                resume=not arguments.no_resume,
                **vars(options),
            )
            return network, history["val_rmse"].to_numpy()

        everyone, epochs, errors = np.arange(len(iron_rich[0])), profile.training.epochs, []
        if profile.selection.name == "folds":
            for i, (some, others) in enumerate(five_folds(len(everyone), profile.training.seed)):
                validation = tuple(values[others] for values in iron_rich)
                errors.append(train(some, validation, output / f"fold_{i + 1}")[1])
        elif profile.selection.name == "published":
            known = np.isfinite(dataset.test.labels[:, column])
            validation = read(dataset.test, known)
            errors.append(train(everyone, validation, output / "validated_on_test_stars")[1])
        if errors:
            # The folds have equal sizes: the mean of their squares is that of all stars.
            rmse = np.sqrt(np.mean(np.square(errors), axis=0))
            epochs = int(np.nanargmin(rmse)) + 1
        network, _ = train(everyone, None, output / "all_hundred", epochs)
        network.save(output / "selected")
        content = {"selection": profile.selection.name, "epochs": network.epoch}
        if errors:
            content["validation_rmse"] = rmse.round(5).tolist()
        with atomic_output(output / "selection.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        mark_complete(output, process)


if __name__ == "__main__":
    run_script(main, errors=(TrainingError,), hint="; the same command continues")
