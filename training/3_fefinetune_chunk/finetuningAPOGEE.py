r"""Stage 3: fine-tune on 100 iron-rich stars, [Fe/H] from a narrow chunk around two iron lines.

The profile says what is frozen: decoder and encoder, or, as published, the decoder and the second
encoder block. It also says how the epoch is chosen. Five-fold cross-validation on the 100 stars
calibrates the predicted errors. The result is OUTPUT/selected.

    python finetuningAPOGEE.py --data survey.h5 --output runs/laptop/3_fefinetune_chunk \
        --checkpoint runs/laptop/2_realfinetune_firsthalf
"""

import dataclasses
import json
from contextlib import ExitStack

import numpy as np
import pandas as pd

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.network.checkpoint import weights_sha256
from stellarperceptron.training.loop import TrainingError
from stellarperceptron.training.run.script import (
    mark_complete,
    stage_arguments,
    stage_folder,
    starts_anew,
)
from stellarperceptron.training.stages import (
    five_folds,
    label_names,
    place_stars,
    read_stars,
    train_stage,
)
from stellarperceptron.utils.arguments import run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.distributed import process_group

# Number of metal-poor validation stars for `selection.name = "published"`.
VALIDATION_STARS = 500


def main() -> None:
    """Train the folds, choose the epoch, train the model and calibrate its errors."""
    arguments = stage_arguments(__file__, __doc__, "stage_3", needs_checkpoint=True)
    profile = arguments.profile_settings
    sha256 = weights_sha256(arguments.checkpoint)
    fresh = starts_anew(arguments, sha256)
    with ExitStack() as stack:
        process = stack.enter_context(process_group(arguments.device))
        dataset = stack.enter_context(SpectraDataset.open(arguments.data))
        inputs = {
            "stage": 3,
            "data": dataset.identity,
            "checkpoint": str(arguments.checkpoint),
            "checkpoint_sha256": sha256,
        }
        configuration = {"inputs": inputs, "profile": profile.to_dict()}
        stack.enter_context(
            stage_folder(arguments.output, process, fresh=fresh, configuration=configuration)
        )
        published = profile.selection.name == "published"
        stars = iron_rich = dataset.train.iron_rich_stars()
        if published:
            iron = dataset.train.labels[:, dataset.label_names.index("FE_H")]
            stars = np.concatenate([iron_rich, np.flatnonzero(iron < -1)[:VALIDATION_STARS]])
        rich, poor = np.arange(len(iron_rich)), np.arange(len(iron_rich), len(stars))

        def load():
            return StellarPerceptron.load_for_finetuning(
                arguments.checkpoint, device=process.device
            )

        model = load()
        chosen = read_stars(dataset, profile, stars, model.instrument)
        data = place_stars(model, dataset, chosen, profile)

        def train(training, validation, output, settings=profile):
            model = load()
            history = train_stage(
                model,
                data,
                training,
                validation,
                settings,
                process,
                output,
                inputs=inputs,
                resume=not fresh,
                extensible=False,  # the epoch is chosen among all epochs
            )
            return model, pd.DataFrame(history)[["val_loss", "val_squared_pull"]].to_numpy()

        epochs, output = profile.training.epochs, arguments.output
        folds = []
        if published:
            folds = [train(rich, poor, output)[1]]
            model = StellarPerceptron.load(output / "best", device=process.device)
        else:
            if profile.selection.name in ("folds", "last"):
                folds = [
                    train(rich[some], rich[others], output / f"fold_{i + 1}")[1]
                    for i, (some, others) in enumerate(five_folds(len(rich), profile.training.seed))
                ]
            if profile.selection.name == "folds":
                epochs = int(np.nanargmin(np.mean(folds, axis=0)[:, 0])) + 1
            settings = dataclasses.replace(
                profile, training=dataclasses.replace(profile.training, epochs=epochs)
            )
            model, _ = train(rich, rich[:0], output / "all_hundred", settings)
        if process.rank == 0:
            content = {"selection": profile.selection.name, "epoch": model.epoch}
            if folds:
                loss, squared_pull = np.mean(folds, axis=0).T
                content["validation_loss"] = loss.round(5).tolist()
                # Scale the errors of the chosen epoch to the scatter of the validation stars.
                scale = float(np.sqrt(squared_pull[model.epoch - 1]))
                for label in label_names(dataset, profile):
                    model.calibration.fit(label, np.ones(1), np.array([scale]))
                content["error_scale"] = round(scale, 4)
            model.save(output / "selected", overwrite=True)
            with atomic_output(output / "selection.json") as temporary:
                temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        mark_complete(output, process)


if __name__ == "__main__":
    run_script(main, errors=(TrainingError,), hint="; the same command continues")
