"""Stage 1: pre-train a model from scratch on all 7,514 pixels of synthetic spectra.

One process:
    python trainingAPOGEEGPU.py --data survey.h5 --output runs/laptop/1_basemodel_synthetic
Several GPUs:
    torchrun --nproc-per-node=4 trainingAPOGEEGPU.py --profile gpu --data survey.h5 --output runs/1
Fresh stars of the emulator, without a survey file:
    python trainingAPOGEEGPU.py --set data.source=emulator --set data.stars=100000 --output out
"""

from stellarperceptron.training.loop import TrainingError
from stellarperceptron.training.prepare import fit_standardization
from stellarperceptron.training.run.calibration import calibrate_stage
from stellarperceptron.training.run.script import (
    mark_complete,
    stage_arguments,
    stage_folder,
)
from stellarperceptron.training.stages import (
    new_model,
    open_stars,
    place_stars,
    read_stars,
    split_rows,
    train_stage,
)
from stellarperceptron.training.stars.drawn import at_all_powers
from stellarperceptron.utils.arguments import run_script
from stellarperceptron.utils.distributed import process_group


def main() -> None:
    """Train the model of this stage and calibrate its errors."""
    arguments = stage_arguments(__file__, __doc__, "stage_1", needs_checkpoint=False)
    profile = arguments.profile_settings
    with (
        process_group(arguments.device) as process,
        open_stars(arguments.data, profile, process) as dataset,
        stage_folder(arguments.output, process, fresh=arguments.no_resume),
    ):
        model = new_model(dataset, profile, process.device)
        stars = read_stars(dataset, profile)
        for_all = at_all_powers(stars, dataset.instrument, profile.instruments)
        fit_standardization(model, for_all, model.device)
        data = place_stars(model, dataset, stars, profile)
        training, validation = split_rows(dataset, profile)
        train_stage(
            model,
            data,
            training,
            validation,
            profile,
            process,
            arguments.output,
            inputs={"stage": 1, "data": dataset.identity},
            resume=not arguments.no_resume,
        )
        if process.rank == 0:
            calibrate_stage(model, dataset, profile, validation)
            model.save(arguments.output / "selected", overwrite=True)
        mark_complete(arguments.output, process)


if __name__ == "__main__":
    run_script(main, errors=(TrainingError,), hint="; the same command continues")
