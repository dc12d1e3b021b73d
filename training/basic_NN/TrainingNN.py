"""The baseline: a plain network trained from scratch on the hundred stars of stage 3.

512-2048-1280-1024 ReLU units with dropout, value and log-variance (4,987,138 parameters), Adam.
The number of epochs is chosen within the hundred stars (five folds) unless the profile says
otherwise. The network lies in OUTPUT/selected.

    python TrainingNN.py --data survey.h5 --output runs/laptop/basic_NN
"""

import json

import numpy as np
from tqdm.auto import tqdm

from stellarperceptron.baseline import BaselineNetwork
from stellarperceptron.dataset import SpectraDataset
from stellarperceptron.stages import five_folds, label_columns, stage_arguments
from stellarperceptron.utils.data_utils import atomic_output


def main() -> None:
    """Arguments, data, folds, network, run."""
    arguments = stage_arguments(__file__, __doc__, needs_checkpoint=False)
    profile = arguments.profile_settings
    settings, (label,) = profile.training, profile.data.labels
    with SpectraDataset.open(arguments.data) as dataset:
        (column,) = label_columns(dataset, profile)
        hundred = dataset.train.iron_rich_hundred()
        flux = dataset.train.read(profile.data.kind, hundred, profile.data.pixels)
        labels = dataset.train.labels[hundred, column]
        errors = dataset.train.label_errors[hundred, column]
        test = None
        if profile.selection.name == "published":
            known = np.isfinite(dataset.test.labels[:, column])
            test = (
                dataset.test.read(profile.data.kind, known, profile.data.pixels),
                dataset.test.labels[known, column],
            )

    def train(rows, epochs, validation=None):
        network = BaselineNetwork(flux.shape[1], label, seed=settings.seed)
        history = network.fit(
            flux[rows],
            labels[rows],
            errors[rows],
            epochs=epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            validation=validation,
        )
        return network, history

    epochs, everyone = settings.epochs, np.arange(len(hundred))
    histories = []
    if profile.selection.name == "folds":
        for some, others in tqdm(five_folds(len(hundred), settings.seed), "folds", disable=None):
            histories.append(train(some, epochs, (flux[others], labels[others]))[1])
    elif profile.selection.name == "published":
        histories.append(train(everyone, epochs, test)[1])
    if histories:
        # Folds are of equal size: the mean of their squares is the error over all hundred.
        rmse = np.sqrt(np.mean(np.square(histories), axis=0))
        epochs = int(np.argmin(rmse)) + 1
    network, _ = train(everyone, epochs)
    network.save(arguments.output / "selected")
    with atomic_output(arguments.output / "selection.json") as temporary:
        content = {"selection": profile.selection.name, "epochs": epochs}
        if histories:
            content["validation_rmse"] = [round(float(value), 5) for value in rmse]
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    (arguments.output / "complete").touch()


if __name__ == "__main__":
    main()
