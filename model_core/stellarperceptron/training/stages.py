"""Shared parts of the training scripts: model, stars and training according to a profile."""

import dataclasses
import functools
import math
import os
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.instruments.combined import combined
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.labels import resolve_label_names
from stellarperceptron.model import StellarPerceptron
from stellarperceptron.model_core import Calibration
from stellarperceptron.network.config import ModelConfig
from stellarperceptron.training.prepare import (
    TrainingData,
    fit_standardization,
    prepare_training_data,
    usable_stars,
)
from stellarperceptron.training.profiles import Profile, TrainingOptions
from stellarperceptron.training.run.configuration import describe_augmentation, describe_schedule
from stellarperceptron.training.run.folder import RunFolder
from stellarperceptron.training.stars.drawn import DrawnSpectra, OtherSpectra
from stellarperceptron.training.stars.labelled import Stars, survey_stars, warn_without_errors
from stellarperceptron.training.stars.surveys import OtherSurveys, SurveyStars
from stellarperceptron.training.tasks import train
from stellarperceptron.utils.arrays import as_rows
from stellarperceptron.utils.distributed import Process

__all__ = [
    "draw_stars",
    "fit_model",
    "five_folds",
    "label_columns",
    "label_names",
    "new_model",
    "place_stars",
    "read_stars",
    "require_labels",
    "require_same_instrument",
    "split_rows",
    "train_stage",
]


def new_model(
    dataset: SpectraDataset,
    profile: Profile,
    device: torch.device,
    others: Sequence[tuple[SpectraDataset, Profile]] = (),
) -> StellarPerceptron:
    """A model with fresh weights for all pixels of a survey and the profile's labels.

    With one pixel per token, all pixels share one embedding, as published. With several, each pixel
    has its own. Unless the profile says otherwise, the wavelength encoding spans the
    instrument's range. With `others`, the model knows the pixels and labels of all surveys.
    """
    surveys, config = [(dataset, profile), *others], profile.model
    instrument = combined([survey.instrument for survey, _ in surveys])
    wavelengths = np.sort(np.concatenate([survey.wavelength for survey, _ in surveys]))
    pixels = instrument.pixel_names(wavelengths).tolist()
    labels = dict.fromkeys(name for survey in surveys for name in label_names(*survey))
    if config.wavelength_range == ModelConfig().wavelength_range:
        config = dataclasses.replace(config, wavelength_range=instrument.encoding_range)
    return StellarPerceptron(
        [*pixels, *labels],
        embed_map=dict.fromkeys(pixels, pixels[0]) if profile.model.pixels_per_token == 1 else None,
        device=device,
        seed=profile.training.seed,
        instrument=instrument,
        **vars(config),
    )


def require_same_instrument(model: StellarPerceptron, dataset: SpectraDataset) -> None:
    """Refuse a survey of an instrument that is neither the model's nor a part of it.

    Raises
    ------
    ValueError
        The instruments differ; the message names both.
    """
    known = () if model.instrument is None else (model.instrument, *model.instrument.parts)
    if dataset.instrument not in known:
        known = "no known instrument" if model.instrument is None else str(model.instrument)
        raise ValueError(
            f"{dataset.path} holds spectra of {dataset.instrument}, but the checkpoint is for "
            f"{known}: give a survey and a checkpoint of one instrument"
        )


def require_labels(model: StellarPerceptron, labels: Sequence[str]) -> None:
    """Refuse labels that the model does not know.

    Raises
    ------
    ValueError
        Some are unknown; the message lists them and the known ones.
    """
    missing = [label for label in labels if label not in model.label_names]
    if missing:
        raise ValueError(
            f"the checkpoint has no labels {', '.join(missing)}, only "
            f"{', '.join(model.label_names)}"
        )


def label_names(dataset: SpectraDataset, profile: Profile) -> tuple[str, ...]:
    """Names of the profile's labels in a survey; "all" stands for all of the survey's.

    Raises
    ------
    ValueError
        The survey lacks one; the message names it and lists those of the survey.
    """
    try:
        return resolve_label_names(profile.data.labels, dataset.label_names)
    except ValueError as error:
        raise ValueError(f"{dataset.path}, data.labels of the profile: {error}") from error


def label_columns(dataset: SpectraDataset, profile: Profile) -> list[int]:
    """Columns of the profile's labels in a survey; see `label_names`."""
    return [dataset.label_names.index(name) for name in label_names(dataset, profile)]


def draw_stars(dataset: SpectraDataset, columns: list[int], stars: int, seed: int) -> np.ndarray:
    """Rows of `stars` training stars that have a label, the first of a shuffle; 0 gives all.

    Parameters
    ----------
    columns
        Columns of the labels; a star needs at least one of them.
    stars, seed
        Number of stars, and seed of the shuffle. A smaller number gives a subset of a larger one.

    Raises
    ------
    ValueError
        There are fewer such stars.
    """
    known = np.isfinite(dataset.train.labels[:, columns]).any(axis=1)
    order = np.random.RandomState(seed).permutation(len(known))
    order = order[known[order]]
    if stars > len(order):
        raise ValueError(
            f"{dataset.path} has {len(order)} training stars with a label, not {stars}: "
            "ask for fewer"
        )
    return order[:stars] if stars else order


def split_rows(dataset: SpectraDataset, profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training and of the validation stars, none if their share is 0.

    Metal-poor training stars appear `profile.data.metal_poor_copies` times.
    """
    share, seed = profile.data.validation_split, profile.training.seed
    if profile.data.stars:
        drawn = draw_stars(dataset, label_columns(dataset, profile), profile.data.stars, seed)
        held = math.ceil(round(share * len(drawn), 9))
        training, validation = np.sort(drawn[held:]), np.sort(drawn[:held])
    elif share == 0:
        training, validation = np.arange(len(dataset.train)), np.arange(0)
    else:
        training, validation = dataset.train.validation_split(share, seed)
    copies = profile.data.metal_poor_copies
    if copies > 1:
        if "FE_H" not in dataset.label_names:
            raise ValueError(
                f"{dataset.path} has no label FE_H, which data.metal_poor_copies = {copies} needs; "
                f"it has {', '.join(dataset.label_names)}"
            )
        iron = dataset.train.labels[training, dataset.label_names.index("FE_H")]
        training = np.append(training, np.repeat(training[iron < -1], copies - 1))
    return training, validation


def read_stars(
    dataset: SpectraDataset,
    profile: Profile,
    rows: np.ndarray | None = None,
    instrument: Instrument | None = None,
) -> Stars:
    """Training stars of a survey, with the spectra, pixels and labels of a profile.

    Parameters
    ----------
    dataset, profile
        The survey, and the profile of the stage.
    rows
        Rows of the training stars to use; None: all of them.
    instrument
        The model's instrument, if that of the survey is only a part of it.

    Raises
    ------
    ValueError
        The survey lacks a label or the pixels.
    """
    data = profile.data
    labels = label_names(dataset, profile)
    stars = survey_stars(dataset, data.kind, data.pixels, labels, rows, instrument)
    return stars if data.label_errors else dataclasses.replace(stars, label_errors=None)


def place_stars(
    model: StellarPerceptron, dataset: SpectraDataset, stars: Stars, profile: Profile
) -> TrainingData:
    """Read stars and put them on the model's device, with the settings of the profile.

    Raises
    ------
    ValueError
        The survey and the model have different instruments, or the model lacks a label.
    """
    require_same_instrument(model, dataset)
    require_labels(model, stars.label_names)
    data = profile.data
    about = {**dataset.identity, "spectra": data.kind, "pixels": data.pixels}
    if dataset.instrument != model.instrument:  # a part of it: one of several surveys
        about = {**model.trained_on, dataset.instrument.name: about}
    model.trained_on = about
    if model.config.conditions and data.kind == "observed":
        warn_without_errors(dataset)
    augment = None
    if data.augment:
        function = profile.augmentation
        if model.config.conditions:
            function = function.with_noise
        augment = _augmentation(dataset.instrument, stars.wavelengths, function)
    draw = None
    if profile.instruments.share:
        errors = profile.augmentation if data.augment else None
        draw = DrawnSpectra(profile.instruments, dataset.instrument, stars, errors)
        model.drawn = profile.instruments
    prepared = prepare_training_data(
        model,
        stars,
        dtype=torch.float16 if data.half_precision else torch.float32,
        memory=data.memory,
        augment=augment,
    )
    return dataclasses.replace(prepared, draw=draw)


def _augmentation(
    instrument: Instrument, wavelength: np.ndarray, function: Callable
) -> Callable[[torch.Tensor, torch.Generator], Any]:
    """An augmentation of spectra at these wavelengths (n,)."""
    pixels = instrument.pixels_at(wavelength)
    if pixels[-1] - pixels[0] != len(pixels) - 1:
        raise ValueError(
            f"data.augment needs neighbouring pixels of {instrument}; the survey leaves some out"
        )
    part = slice(int(pixels[0]), int(pixels[-1]) + 1)
    return functools.partial(function, pixels=part, instrument=instrument)


def train_stage(
    model: StellarPerceptron,
    data: TrainingData,
    training_rows: np.ndarray,
    validation_rows: np.ndarray,
    profile: Profile,
    process: Process,
    output: Path,
    *,
    inputs: dict[str, Any],
    rehearsal: TrainingData | None = None,
    others: Sequence[SurveyStars] = (),
    resume: bool = True,
    extensible: bool = True,
) -> list[dict[str, float]]:
    """Train a model according to a profile, with logs and checkpoints; see `tasks.train`.

    Parameters
    ----------
    training_rows, validation_rows
        Rows of `data`; stars without labels or valid pixels are left out.
    inputs
        Files and hashes that the run depends on, saved with the profile as its configuration.
    rehearsal
        Spectra of the same stars that stage 1 has shown; see `Profile.rehearsal`.
    others
        Stars of further surveys; `profile.data` has the shares of all.
    resume
        Continue from the newest checkpoint in `output`.
    extensible
        A complete run may be continued with more epochs if its schedule allows that.
    """
    if profile.data.synthetic_share and rehearsal is None:
        raise ValueError("data.synthetic_share is for stage 2 only: remove it from the profile")
    surveys = [SurveyStars(data, training_rows, validation_rows, rehearsal), *others]
    tokens = sum(len(survey.data.groups) for survey in surveys)
    context = model.config.context_length
    if profile.data.combined_share and tokens > context:
        raise ValueError(
            f"data.combined_share shows all {tokens} tokens of the surveys in one context, but "
            f"model.context_length is {context}"
        )
    folder = RunFolder(
        output,
        {"inputs": inputs, "profile": profile.to_dict()},
        process.rank,
        fresh=not resume,
        echo=not sys.stderr.isatty(),
        grows="profile.training.epochs" if extensible else None,
        fixed="one cosine over the whole training cannot be made longer afterwards; a constant "
        "learning rate and warm restarts can"
        if profile.schedule.depends_on_epochs
        else "",
    )
    process.barrier()
    useful = [survey.useful() for survey in surveys]
    if dropped := sum(map(len, surveys)) - sum(map(len, useful)):
        folder.log(f"{dropped} stars without labels or valid pixels are left out")
    if not all(len(survey.training) for survey in useful):
        raise ValueError("there is no star with a label and a valid pixel to train on")
    first, *rest = useful
    trainable = model.set_trainable(**vars(profile.freeze))
    folder.log(f"{trainable} trainable parameters; schedule {profile.schedule}")
    model.epoch = 0
    # Those of the stage before belong to other weights and spectra.
    model.calibration, model.reference, model.regression = Calibration(), None, None
    return train(
        model,
        data,
        first.training,
        first.validation,
        profile.training,
        process,
        others=OtherSurveys(tuple(rest), profile.data.weights, profile.data.combined_share)
        if rest
        else None,
        rehearsal=None if rehearsal is None else (rehearsal, profile.rehearsal_options()),
        scheduler=lambda optimizer, steps: profile.schedule.make(
            optimizer, steps, profile.training.epochs
        ),
        folder=folder,
        resume=resume,
    )


def fit_model(
    model: StellarPerceptron,
    stars: Stars,
    options: Mapping[str, Any],
    *,
    validation_split: float = 0.1,
    validation_indices: np.ndarray | None = None,
    lr_scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    checkpoint_folder: str | os.PathLike | None = None,
    resume: bool = False,
    process: Process | None = None,
    progress: bool = True,
    draw: OtherSpectra | None = None,
) -> list[dict[str, float]]:
    """Train a model on stars without a profile; see `StellarPerceptron.fit`, which calls this.

    Parameters
    ----------
    model
        Model to train in place, apart from frozen parts. Missing standardization is fitted.
    stars
        The stars.
    options
        Entries of `TrainingOptions`.
    draw
        What spreads spectra of another instrument onto the model's pixels; it augments them itself.

    Raises
    ------
    ValueError
        Options are impossible, validation stars do not exist, or there is no star to train on.
    """
    # Tokens of several pixels are the same for all stars of a batch.
    choice = "star" if model.config.pixels_per_token == 1 else "batch"
    settings = TrainingOptions(**{"choice": choice, **options})
    if not 0 <= validation_split < 1:
        raise ValueError(f"validation_split = {validation_split} is not in [0, 1)")
    fit_standardization(model, stars)
    model.calibration, model.reference, model.regression = Calibration(), None, None
    data = prepare_training_data(model, stars, augment=augment, noise_of_tokens=True)
    data = dataclasses.replace(data, draw=draw)
    usable = usable_stars(data)
    if validation_indices is None:
        order = np.random.RandomState(settings.seed).permutation(len(usable))
        chosen = usable[order[: round(validation_split * len(usable))]]
    else:
        try:
            chosen = as_rows(validation_indices, len(stars), "validation_indices")
        except IndexError as error:
            raise ValueError(str(error)) from error
    validation = np.intersect1d(chosen, usable)
    training = np.setdiff1d(usable, validation)
    if not len(training):
        raise ValueError("there is no star with a label and a valid value to train on")
    process = process or Process(0, 1, model.device)
    folder = None
    if checkpoint_folder is not None:
        parameters = model.torch_model.named_parameters()
        configuration = {
            "training": dataclasses.asdict(settings),
            "model": dataclasses.asdict(model.config),
            "frozen": [name for name, p in parameters if not p.requires_grad],
            "inputs": len(stars.names),
            "outputs_name": list(stars.label_names),
            "stars": len(training),
            "validation_stars": len(validation),
            "labels_crc32": zlib.crc32(data.labels.cpu().numpy().tobytes()),
            "lr_scheduler": describe_schedule(lr_scheduler, settings.learning_rate),
            "augment": describe_augmentation(augment, len(stars.names), data.device),
        }
        folder = RunFolder(
            checkpoint_folder,
            configuration,
            process.rank,
            resume=resume,
            grows="training.epochs",
        )
    return train(
        model,
        data,
        training,
        validation,
        settings,
        process,
        scheduler=(lambda optimizer, _: lr_scheduler(optimizer)) if lr_scheduler else None,
        folder=folder,
        resume=resume,
        progress=progress,
    )


def five_folds(stars: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide stars into five folds: pairs of training and validation rows."""
    parts = np.array_split(np.random.RandomState(seed).permutation(stars), 5)
    return [(np.setdiff1d(np.arange(stars), part), np.sort(part)) for part in parts]
