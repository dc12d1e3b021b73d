r"""Stage 2: fine-tune the pre-trained model on the first half of observed spectra.

One process:
    python finetuningAPOGEE.py --data survey.h5 --output runs/laptop/2_realfinetune_firsthalf \
        --checkpoint runs/laptop/1_basemodel_synthetic
Several surveys, of instruments that stage 1 has seen: --data apogee.h5 galah.h5 rvs.h5.
Several GPUs: put `torchrun --nproc-per-node=4` in place of `python`.
"""

from stellarperceptron import StellarPerceptron
from stellarperceptron.network.checkpoint import weights_sha256
from stellarperceptron.training.loop import TrainingError
from stellarperceptron.training.run.calibration import calibrate_surveys
from stellarperceptron.training.run.regression import (
    add_regression,
    require_regression_possible,
)
from stellarperceptron.training.run.script import (
    mark_complete,
    stage_arguments,
    stage_folder,
    starts_anew,
)
from stellarperceptron.training.run.surveys import identity_of, open_surveys
from stellarperceptron.training.stages import (
    label_names,
    place_stars,
    read_stars,
    require_labels,
    require_same_instrument,
    split_rows,
    train_stage,
)
from stellarperceptron.training.stars.surveys import SurveyStars
from stellarperceptron.utils.arguments import run_script
from stellarperceptron.utils.distributed import process_group


def main() -> None:
    """Train the model of this stage and calibrate its errors."""
    arguments = stage_arguments(__file__, __doc__, "stage_2", needs_checkpoint=True)
    profile = arguments.profile_settings
    sha256 = weights_sha256(arguments.checkpoint)
    fresh = starts_anew(arguments, sha256)
    with (
        process_group(arguments.device) as process,
        open_surveys(arguments.data, profile, process) as surveys,
        stage_folder(arguments.output, process, fresh=fresh),
    ):
        # Pixels keep the names, embeddings and standardization of the synthetic ones, so that
        # fine-tuning starts from what the model has learned about them.
        model = StellarPerceptron.load_for_finetuning(arguments.checkpoint, device=process.device)
        require_regression_possible(model, profile, len(surveys))
        for dataset, own in surveys:
            require_same_instrument(model, dataset)
            require_labels(model, label_names(dataset, own))
        trained = []
        for dataset, own in surveys:
            stars, rehearsal = read_stars(dataset, own, instrument=model.instrument), None
            data = place_stars(model, dataset, stars, own)
            if own.rehearsal is not None:
                stars = read_stars(dataset, own.rehearsal, instrument=model.instrument)
                rehearsal = place_stars(model, dataset, stars, own)
            trained.append(SurveyStars(data, *split_rows(dataset, own), rehearsal))
        train_stage(
            model,
            trained[0].data,
            trained[0].training,
            trained[0].validation,
            profile,
            process,
            arguments.output,
            inputs={
                "stage": 2,
                "data": identity_of(surveys),
                "checkpoint": str(arguments.checkpoint),
                "checkpoint_sha256": sha256,
            },
            rehearsal=trained[0].rehearsal,
            others=trained[1:],
            resume=not fresh,
        )
        if process.rank == 0:
            held = [survey.validation for survey in trained]
            calibrate_surveys(model, [(*s, rows) for s, rows in zip(surveys, held, strict=True)])
            if profile.data.regression:
                first = trained[0]
                add_regression(model, *surveys[0], first.training, first.validation)
            model.save(arguments.output / "selected", overwrite=True)
        mark_complete(arguments.output, process)


if __name__ == "__main__":
    run_script(main, errors=(TrainingError,), hint="; the same command continues")
