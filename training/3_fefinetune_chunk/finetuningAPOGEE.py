"""Stage 3: fine-tune on 100 iron-rich stars, [Fe/H] from a narrow chunk around two iron lines.

Decoder and second encoder block are frozen. The epoch that is used is chosen within the hundred
stars (five folds) unless the profile says otherwise, and lies in OUTPUT/selected.

    python finetuningAPOGEE.py --data survey.h5 --output runs/laptop/3_fefinetune_chunk \
        --checkpoint runs/laptop/2_realfinetune_firsthalf/epoch_8
"""

import dataclasses

import numpy as np

from stellarperceptron import StellarPerceptron
from stellarperceptron.dataset import SpectraDataset
from stellarperceptron.stages import five_folds, read_data, stage_arguments, train_stage
from stellarperceptron.training import process_group

# Stars for `selection = "published"`, which validates on metal-poor ones.
VALIDATION_STARS = 500


def main() -> None:
    """Arguments, data, folds, model, run, selection."""
    arguments = stage_arguments(__file__, __doc__, needs_checkpoint=True)
    profile = arguments.profile_settings
    inputs = {
        "stage": 3,
        "profile": arguments.profile,
        "data": str(arguments.data),
        "checkpoint": str(arguments.checkpoint),
    }
    with (
        process_group(arguments.device) as process,
        SpectraDataset.open(arguments.data) as dataset,
    ):
        hundred = dataset.train.iron_rich_hundred()
        iron = dataset.train.labels[:, dataset.label_names.index("FE_H")]
        metal_poor = np.flatnonzero(iron < -1)[:VALIDATION_STARS]
        stars = np.concatenate([hundred, metal_poor])
        rich, poor = np.arange(len(hundred)), np.arange(len(hundred), len(stars))

        def train(training, validation, output, settings=profile):
            model = StellarPerceptron.load_for_finetuning(
                arguments.checkpoint, device=process.device
            )
            history = train_stage(
                model,
                read_data(model, dataset, settings, stars),
                training,
                validation,
                settings,
                process,
                output,
                inputs=inputs,
                resume=not arguments.no_resume,
            )
            return model, [row["val_loss"] for row in history]

        epochs, output = profile.training.epochs, arguments.output
        if profile.selection.name == "published":
            _, losses = train(rich, poor, output)
            model = StellarPerceptron.load(output / "best", device=process.device)
        else:
            if profile.selection.name == "folds":
                losses = [
                    train(rich[some], rich[others], output / f"fold_{i + 1}")[1]
                    for i, (some, others) in enumerate(five_folds(100, profile.training.seed))
                ]
                epochs = int(np.argmin(np.mean(losses, axis=0))) + 1
            settings = dataclasses.replace(
                profile, training=dataclasses.replace(profile.training, epochs=epochs)
            )
            model, _ = train(rich, rich[:0], output / "all_hundred", settings)
        if process.rank == 0:
            model.save(output / "selected", overwrite=True)


if __name__ == "__main__":
    main()
