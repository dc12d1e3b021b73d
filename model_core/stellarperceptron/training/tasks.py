"""Training tasks: a network, its stars, and the terms of its loss."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from astropy.stats import mad_std
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from stellarperceptron.network.baselines.published import BaselineNetwork
from stellarperceptron.network.checkpoint import load_weights, read_checkpoint, write_checkpoint
from stellarperceptron.network.tensor_files import load_tensors
from stellarperceptron.nn_utils import (
    mean_squared_error,
    mean_squared_pull,
    robust_mean_squared_error,
)
from stellarperceptron.training.batches import Batch, MixedBatch, MixedGenerator, TrainingGenerator
from stellarperceptron.training.loop import run_training
from stellarperceptron.training.prepare import TrainingData, fewest_tokens
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.run.folder import RunFolder
from stellarperceptron.training.stars.surveys import (
    CommonStars,
    InTurns,
    OneAfterAnother,
    OtherSurveys,
    SurveyStars,
    common_stars,
)
from stellarperceptron.utils.distributed import Process

__all__ = ["PerceptronTask", "train", "train_baseline"]


def _likelihood(
    batch: Any, value: Tensor, logvar: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The only term of the published loss, and further metrics to log."""
    answers = value.detach(), logvar.detach()
    return {
        "likelihood": robust_mean_squared_error(batch.labels, value, logvar, batch.label_errors)
    }, {
        "mse_loss": mean_squared_error(batch.labels, answers[0]),
        "squared_pull": mean_squared_pull(batch.labels, *answers, batch.label_errors),
    }


class PerceptronTask:
    """A model and its stars, for the training loop; see `step.Task`."""

    optimizer = torch.optim.AdamW

    def __init__(
        self,
        model: Any,
        data: TrainingData,
        training_rows: np.ndarray,
        validation_rows: np.ndarray,
        options: TrainingOptions,
        process: Process,
        rehearsal: tuple[TrainingData, TrainingOptions] | None = None,
        others: OtherSurveys | None = None,
    ):
        self.model, self.data, self.network = model, data, model.torch_model
        self.compile = options.compile
        shared = {
            "choice": options.choice,
            "labels_per_star": options.labels_per_star,
            "seed": options.seed,
            "rank": process.rank,
            "world_size": process.world_size,
        }
        again, rehearsed = rehearsal or (None, None)
        surveys = [SurveyStars(data, training_rows, validation_rows, again)]
        surveys += others.surveys if others is not None else ()
        training, validation, fills = [], [], True
        for survey in surveys:
            batches = self._training_batches(survey.data, survey.training, options, shared)
            fixed = TrainingGenerator(
                survey.data,
                survey.validation,
                options.batch_size * options.val_batchsize_factor,
                model.config.context_length,
                fixed=True,
                **shared,
            )
            # If every star fills its context, attention needs no mask.
            everyone = np.concatenate([survey.training, survey.validation])
            fills = fills and fewest_tokens(survey.data, everyone) >= fixed.context_length
            if rehearsed is not None:
                batches = MixedGenerator(
                    batches,
                    self._training_batches(survey.rehearsal, survey.training, rehearsed, shared),
                )
            training.append(batches)
            validation.append(fixed)
        self.training, self.validation = training[0], validation[0]
        if others is not None:
            total = sum(map(len, training))
            common = common_stars(surveys) if others.combined_share else []
            training += [
                CommonStars([self._training_batches(*part, options, shared) for part in parts])
                for parts in common
            ]
            shares = others.shares(len(common))
            self.training = InTurns(training, shares, total, options.seed)
            self.validation = OneAfterAnother(validation)
        # An augmentation may make single pixels bad, but not all pixels of a bin; a window may show
        # only bad pixels of the bins at its ends.
        bins = data.groups.shape[1] > 1
        hides = bool(options.window_share or options.subset_share)
        changes = hides if bins else data.augment is not None
        changes = changes or data.draw is not None
        self.complete = fills and not options.outputs_padding and not changes and rehearsal is None
        labels = len(data.label_ids) if options.labels_per_star == "all" else 1
        lengths = self.training.lengths()
        flops = [model.flops_per_star(int(length), labels, training=True) for length in lengths]
        self.flops_per_star = float(np.mean(flops))
        self.shapes_vary = lengths.min() < lengths.max()

    def _training_batches(self, data, rows, options, shared) -> TrainingGenerator:
        return TrainingGenerator(
            data,
            rows,
            options.batch_size,
            self.model.config.context_length,
            outputs_padding=options.outputs_padding,
            window_share=options.window_share,
            window_tokens=options.window_tokens,
            subset_share=options.subset_share,
            **shared,
        )

    def losses(
        self, module: nn.Module, batch: Batch | MixedBatch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The likelihood and metrics; a further term of the loss is a further entry."""
        if isinstance(batch, Batch):
            return self._part_losses(module, batch, self.compile)
        stars = len(batch.stars)
        sums: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        for part in batch.parts:
            for total, means in zip(sums, self._part_losses(module, part, False), strict=True):
                for name, mean in means.items():
                    total[name] = total.get(name, 0.0) + mean * (len(part.stars) / stars)
        return sums

    def _part_losses(
        self, module: nn.Module, batch: Batch, fill: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same for stars that show the same tokens."""
        stars = len(batch.stars)
        given = batch
        if fill:  # keep the number of stars: any other is compiled again
            batches = self.training if self.network.training else self.validation
            given = batch.filled(min(batches.batch_size, len(batches.rows)))
        tokens = given.tokens._replace(complete=self.complete)
        value, logvar = (part[:stars].float() for part in module(tokens, given.request_ids))
        return _likelihood(batch, value, logvar)

    def save(self, folder: Path, network: nn.Module, optimizer, epoch: int, training_state) -> None:
        """Save a checkpoint; see `step.Task`."""
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
        """Load a checkpoint; see `step.Task`."""
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
    rehearsal: tuple[TrainingData, TrainingOptions] | None = None,
    others: OtherSurveys | None = None,
    scheduler: Callable[[torch.optim.Optimizer, int], LRScheduler | None] | None = None,
    folder: RunFolder | None = None,
    resume: bool = True,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a model.

    Parameters
    ----------
    model : StellarPerceptron
        Model whose network is trained in place, apart from frozen parts.
    data
        All stars, on the device of `process`.
    training_rows, validation_rows
        Rows of the stars to train and to validate on. There may be no validation stars.
    options
        Settings of the training.
    process
        See `utils.distributed.process_group`.
    rehearsal
        Other spectra of the same stars that the model has learned before, which every batch shows
        too, and the options that say how many and which parts of them.
    others
        Further surveys; the validation loss is the mean over the stars of all.
    scheduler
        Function of the optimizer and the number of steps in an epoch that makes a learning-rate
        schedule. It is stepped once per epoch, or once per optimizer step if its attribute
        `every_step` is true. None: a constant learning rate.
    folder
        Folder for logs and checkpoints; None: none are written.
    resume
        Continue from the newest checkpoint in `folder`.
    progress
        Show a progress bar when the output is a terminal.

    Returns
    -------
    list of dict
        Metrics of each epoch; see `RunFolder`.

    Raises
    ------
    TrainingError
        The loss is NaN, or the weights are not finite.
    SystemExit
        With code 0, after SIGTERM or SIGUSR1 and a checkpoint.
    """
    rows = training_rows, validation_rows
    task = PerceptronTask(model, data, *rows, options, process, rehearsal, others)
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


# --- the published baseline -----------------------------------------------------------------------


def train_baseline(
    network: BaselineNetwork,
    flux: np.ndarray,
    labels: np.ndarray,
    label_errors: np.ndarray,
    *,
    validation: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    scheduler: Callable[[torch.optim.Optimizer, int], LRScheduler | None] | None = None,
    folder: RunFolder | None = None,
    resume: bool = True,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Train the published baseline with Adam.

    Parameters
    ----------
    network
        Network to train in place. Its standardization is computed from these stars.
    flux, labels, label_errors
        (N, P), (N,), (N,) flux, labels and errors of the training stars.
    validation
        The same for the validation stars.
    scheduler
        See `train`.
    folder
        Folder for logs and checkpoints; None: none are written.
    resume
        Continue from the newest checkpoint in `folder`.
    progress
        Show a progress bar when the output is a terminal.
    **options
        Entries of `TrainingOptions`: epochs, batch_size, ... By default the weight decay is 0 and
        the seed that of the network.

    Returns
    -------
    DataFrame
        Metrics, one row per epoch, as for the other stages, and `val_rmse`: root mean square error
        of the validation stars, in the unit of the label.

    Raises
    ------
    TrainingError
        The loss became NaN.
    SystemExit
        With code 0, after SIGTERM or SIGUSR1 and a checkpoint.
    """
    settings = TrainingOptions(**{"weight_decay": 0.0, "seed": network.seed, **options})
    scale = mad_std(flux, axis=0, ignore_nan=True)
    statistics = np.stack([np.nanmedian(flux, axis=0), np.where(scale > 0, scale, 1.0)])
    network.flux_statistics.copy_(torch.as_tensor(statistics))
    network.label_statistics.copy_(torch.tensor([np.median(labels), mad_std(labels)]))
    if validation is None:
        validation = flux[:0], labels[:0], label_errors[:0]
    size = settings.batch_size
    task = _BaselineTask(
        network,
        _Stars(network, flux, labels, label_errors, size, settings.seed),
        _Stars(network, *validation, size * settings.val_batchsize_factor),
    )
    process = Process(0, 1, network.flux_statistics.device)
    history = pd.DataFrame(
        run_training(
            task,
            settings,
            process,
            scheduler=scheduler,
            folder=folder,
            resume=resume,
            progress=progress,
        )
    )
    network.epoch = settings.epochs
    label_scale = float(network.label_statistics[1])
    return history.assign(val_rmse=label_scale * np.sqrt(history["val_mse_loss"]))


@dataclass(frozen=True)
class _Batch:
    stars: Tensor
    flux: Tensor
    labels: Tensor
    label_errors: Tensor


class _Stars:
    """Batches of stars, in a new order in each epoch; without a seed always in the same order."""

    def __init__(
        self,
        network: BaselineNetwork,
        flux: np.ndarray,
        labels: np.ndarray,
        label_errors: np.ndarray,
        batch_size: int,
        seed: int | None = None,
    ):
        device = network.flux_statistics.device
        median, scale = network.label_statistics
        self.rows, self.batch_size, self.seed = np.arange(len(flux)), batch_size, seed
        self.flux, labels, errors = (
            torch.as_tensor(values, dtype=torch.float32, device=device)
            for values in (flux, labels, label_errors)
        )
        self.labels = (labels - median) / scale
        self.label_errors = (errors / scale).nan_to_num(nan=0.0)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[_Batch]:
        order = self.rows
        if self.seed is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        order = torch.from_numpy(order).to(self.flux.device)
        for number in range(start, len(self)):
            stars = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield _Batch(stars, self.flux[stars], self.labels[stars], self.label_errors[stars])


class _BaselineTask:
    """The baseline and its stars, for the training loop; see `step.Task`."""

    optimizer = torch.optim.Adam
    shapes_vary = False

    def __init__(self, network: BaselineNetwork, training: _Stars, validation: _Stars):
        self.network, self.training, self.validation = network, training, validation
        # Two operations per weight for the forward pass, twice as many for the gradients.
        self.flops_per_star = 6 * sum(p.numel() for p in network.parameters() if p.dim() == 2)

    def losses(
        self, module: nn.Module, batch: _Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        value, logvar = (part.float() for part in module(batch.flux))
        return _likelihood(batch, value, logvar)

    def save(self, folder: Path, network, optimizer, epoch: int, training_state) -> None:
        network.save(folder, optimizer=optimizer, epoch=epoch, training_state=training_state)

    def load(self, folder: Path) -> dict[str, Any]:
        weights = load_tensors(folder / "weights.pt")
        load_weights(self.network, weights["model_state_dict"], f"weights of {folder}")
        return weights["optimizer_state_dict"]
