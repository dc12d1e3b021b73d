"""Stage 1: pre-train a model from scratch on all 7,514 pixels of synthetic spectra.

One process:
    python trainingAPOGEEGPU.py --data survey.h5 --output runs/laptop/1_basemodel_synthetic
Several GPUs:
    torchrun --nproc-per-node=4 trainingAPOGEEGPU.py --profile gpu --data survey.h5 --output runs/1
Fresh stars of the emulator, without a survey file:
    python trainingAPOGEEGPU.py --set data.source=emulator --set data.stars=100000 --output out
One model for the instruments of several surveys:
    python trainingAPOGEEGPU.py --profile surveys --data apogee.h5 galah.h5 rvs.h5 --output out
"""

from stellarperceptron.training.loop import TrainingError
from stellarperceptron.training.prepare import fit_standardization
from stellarperceptron.training.run.calibration import calibrate_surveys
from stellarperceptron.training.run.script import (
    mark_complete,
    stage_arguments,
    stage_folder,
)
from stellarperceptron.training.run.surveys import identity_of, open_surveys
from stellarperceptron.training.stages import (
    new_model,
    place_stars,
    read_stars,
    split_rows,
    train_stage,
)
from stellarperceptron.training.stars.drawn import at_all_powers
from stellarperceptron.training.stars.surveys import SurveyStars
from stellarperceptron.utils.arguments import run_script
from stellarperceptron.utils.distributed import process_group


def main() -> None:
    """Train the model of this stage and calibrate its errors."""
    arguments = stage_arguments(__file__, __doc__, "stage_1", needs_checkpoint=False)
    profile = arguments.profile_settings
    with (
        process_group(arguments.device) as process,
        open_surveys(arguments.data, profile, process) as surveys,
        stage_folder(arguments.output, process, fresh=arguments.no_resume),
    ):
        first, *others = surveys
        model = new_model(*first, process.device, others)
        trained = []
        for dataset, own in surveys:
            stars = read_stars(dataset, own, instrument=model.instrument)
            for_all = at_all_powers(stars, dataset.instrument, profile.instruments)
            fit_standardization(model, for_all, model.device)
            data = place_stars(model, dataset, stars, own)
            trained.append(SurveyStars(data, *split_rows(dataset, own)))
        train_stage(
            model,
            trained[0].data,
            trained[0].training,
            trained[0].validation,
            profile,
            process,
            arguments.output,
            inputs={"stage": 1, "data": identity_of(surveys)},
            others=trained[1:],
            resume=not arguments.no_resume,
        )
        if process.rank == 0:
            held = [survey.validation for survey in trained]
            calibrate_surveys(model, [(*s, rows) for s, rows in zip(surveys, held, strict=True)])
            model.save(arguments.output / "selected", overwrite=True)
        mark_complete(arguments.output, process)


if __name__ == "__main__":
    run_script(main, errors=(TrainingError,), hint="; the same command continues")
