"""Training of `StellarPerceptron` on stars that lie ready."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from stellarperceptron.network.checkpoint import load_weights, read_checkpoint, write_checkpoint
from stellarperceptron.training.batches import TrainingGenerator
from stellarperceptron.training.loop import PEAK_FLOPS, TrainingError, run_training
from stellarperceptron.training.prepare import Batch, TrainingData, fewest_tokens
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.run_folder import RunFolder
from stellarperceptron.utils.distributed import Process

__all__ = ["PEAK_FLOPS", "TrainingError", "train"]


class _PerceptronTask:
    """A model and its stars, as the training loop sees them; see `trainer.Task`."""

    optimizer = torch.optim.AdamW

    def __init__(
        self,
        model: Any,
        data: TrainingData,
        training_rows: np.ndarray,
        validation_rows: np.ndarray,
        options: TrainingOptions,
        process: Process,
    ):
        self.model, self.data, self.network = model, data, model.torch_model
        self.compile = options.compile
        shared = {
            "labels_per_star": options.labels_per_star,
            "seed": options.seed,
            "rank": process.rank,
            "world_size": process.world_size,
        }
        self.training = TrainingGenerator(
            data,
            training_rows,
            options.batch_size,
            model.config.context_length,
            outputs_padding=options.outputs_padding,
            narrow_share=options.narrow_share,
            narrow_tokens=options.narrow_tokens,
            **shared,
        )
        self.validation = TrainingGenerator(
            data,
            validation_rows,
            options.batch_size * options.val_batchsize_factor,
            model.config.context_length,
            fixed=True,
            **shared,
        )
        # Where every star fills its context, no attention needs a mask.
        everyone = np.concatenate([training_rows, validation_rows])
        fills = fewest_tokens(data, everyone) >= self.training.context_length
        # (An augmentation may make a pixel bad.)
        self.complete = fills and not options.outputs_padding and data.augment is None
        labels = len(data.label_tokens) if options.labels_per_star == "all" else 1
        # Gradients take twice the arithmetic of the answer.
        self.flops_per_star = 3 * model.flops_per_star(self.training.context_length, labels)

    def answer(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        stars = len(batch.stars)
        if self.compile:  # for one shape: every other would take as long to compile
            batches = self.training if self.network.training else self.validation
            batch = batch.filled(min(batches.batch_size, len(batches.rows)))
        encoding = self.data.encode(batch, self.network.embedding_layer.encode_wavelength)
        value, logvar = module(
            batch.tokens,
            batch.inputs,
            batch.request_tokens,
            encoding,
            batch.pixels,
            complete=self.complete,
        )
        return value[:stars], logvar[:stars]

    def save(self, folder: Path, network: nn.Module, optimizer, epoch: int, training_state) -> None:
        write_checkpoint(
            folder,
            network,
            self.model.get_config(),
            self.model.embed_map,
            optimizer=optimizer,
            epoch=epoch,
            overwrite=True,
            training_state=training_state,
        )

    def load(self, folder: Path) -> dict[str, Any]:
        content = read_checkpoint(folder)
        load_weights(self.network, content.weights, f"weights of {folder}")
        return content.optimizer_state


def train(
    model: Any,
    data: TrainingData,
    training_rows: np.ndarray,
    validation_rows: np.ndarray,
    options: TrainingOptions,
    process: Process,
    *,
    scheduler: Callable[[torch.optim.Optimizer, int], LRScheduler | None] | None = None,
    folder: RunFolder | None = None,
    resume: bool = True,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a model.

    Parameters
    ----------
    model : StellarPerceptron
        Its network is trained in place, as far as it is not frozen.
    data
        All stars, on the device of `process`.
    training_rows, validation_rows
        Which of them to train and to validate on; the latter may be none.
    options
        How to train.
    process
        See `distributed.process_group`.
    scheduler
        Gives a learning-rate schedule, from the optimizer and the number of steps in an epoch. It
        is stepped every epoch, or every optimizer step when it has an attribute `every_step`
        that is true. None: the learning rate stays.
    folder
        Where logs and checkpoints go; None: nowhere.
    resume
        Go on from the newest checkpoint in `folder`.
    progress
        Show a progress bar when the output is a terminal.

    Returns
    -------
    list of dict
        Metrics, epoch by epoch; see `RunFolder`.

    Raises
    ------
    TrainingError
        A loss is NaN.
    SystemExit
        With code 0, after SIGTERM or SIGUSR1 and a checkpoint.
    """
    task = _PerceptronTask(model, data, training_rows, validation_rows, options, process)
    history = run_training(
        task,
        options,
        process,
        scheduler=scheduler,
        folder=folder,
        resume=resume,
        progress=progress,
    )
    model.epoch = options.epochs
    return history
