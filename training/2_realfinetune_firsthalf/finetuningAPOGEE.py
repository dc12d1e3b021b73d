r"""Stage 2: fine-tune the pre-trained model on the first half of observed spectra.

One process:
    python finetuningAPOGEE.py --data survey.h5 --output runs/laptop/2_realfinetune_firsthalf \
        --checkpoint runs/laptop/1_basemodel_synthetic
Several GPUs: put `torchrun --nproc-per-node=4` in place of `python`.
"""

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.network.checkpoint import weights_sha256
from stellarperceptron.training.loop import TrainingError
from stellarperceptron.training.run.calibration import calibrate_stage
from stellarperceptron.training.run.script import (
    mark_complete,
    stage_arguments,
    stage_folder,
    starts_anew,
)
from stellarperceptron.training.stages import (
    place_stars,
    read_stars,
    split_rows,
    train_stage,
)
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
        SpectraDataset.open(arguments.data) as dataset,
        stage_folder(arguments.output, process, fresh=fresh),
    ):
        # Pixels keep the names, embeddings and standardization of the synthetic ones, so that
        # fine-tuning starts from what the model has learned about them.
        model = StellarPerceptron.load_for_finetuning(arguments.checkpoint, device=process.device)
        data = place_stars(model, dataset, read_stars(dataset, profile), profile)
        rehearsal = None
        if profile.rehearsal is not None:
            stars = read_stars(dataset, profile.rehearsal)
            rehearsal = place_stars(model, dataset, stars, profile)
        training, validation = split_rows(dataset, profile)
        train_stage(
            model,
            data,
            training,
            validation,
            profile,
            process,
            arguments.output,
            inputs={
                "stage": 2,
                "data": dataset.identity,
                "checkpoint": str(arguments.checkpoint),
                "checkpoint_sha256": sha256,
            },
            rehearsal=rehearsal,
            resume=not fresh,
        )
        if process.rank == 0:
            calibrate_stage(model, dataset, profile, validation)
            model.save(arguments.output / "selected", overwrite=True)
        mark_complete(arguments.output, process)


if __name__ == "__main__":
    run_script(main, errors=(TrainingError,), hint="; the same command continues")
