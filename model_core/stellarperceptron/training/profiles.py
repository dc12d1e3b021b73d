"""Profiles: TOML files read into frozen dataclasses, every mistake in them named at once."""

import dataclasses
import math
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from stellarperceptron.data.apogee.spectra import pixel_range
from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.network.config import PRECISIONS, ModelConfig
from stellarperceptron.nn_utils import (
    cosine_annealing_warm_restarts,
    linear_warmup_cosine,
    warmup_cosine_annealing_warm_restarts,
)
from stellarperceptron.training.prefetch import MEMORIES
from stellarperceptron.utils.arguments import with_nearest

__all__ = [
    "DataProfile",
    "FreezeProfile",
    "Profile",
    "Schedule",
    "SelectionProfile",
    "TrainingOptions",
    "read_profile",
]


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Parameters
    ----------
    epochs
        Passes over the training stars.
    batch_size
        Stars of a batch in each process.
    learning_rate, weight_decay
        Of AdamW (published: 1e-4 and PyTorch's 0.01).
    val_batchsize_factor
        Validation batches are this many times larger.
    labels_per_star, outputs_padding, narrow_share, narrow_tokens
        See `TrainingGenerator`.
    gradient_accumulation
        Batches to an optimizer step.
    attention_entropy
        Weight of a second loss beside the first, of the entropy of what answers take from each
        token, see `contribution_entropy` and `StellarPerceptronTorchModel.contributions`. It makes
        each answer come from few tokens of its own; stars that show a narrow stretch are left out.
    max_gradient_norm
        Longer gradients are shortened to this; 0: never.
    precision
        "float32", "bfloat16" or "float16" (with loss scaling) where matrices are multiplied.
    compile
        Compile the network with `torch.compile`.
    checkpoint_every_n_epochs
        0: at the end only.
    keep_checkpoints
        How many of these are kept; 0: all.
    terminate_on_nan
        Stop when a loss is NaN.
    seed
        Of all choices, and of dropout.
    """

    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    val_batchsize_factor: int = 5
    labels_per_star: str = "one"
    outputs_padding: int = 0
    narrow_share: float = 0.0
    narrow_tokens: int = 0
    gradient_accumulation: int = 1
    attention_entropy: float = 0.0
    max_gradient_norm: float = 0.0
    precision: str = "float32"
    compile: bool = False
    checkpoint_every_n_epochs: int = 1
    keep_checkpoints: int = 3
    terminate_on_nan: bool = True
    seed: int = 0

    def __post_init__(self):
        problems = list(self._problems())
        if problems:
            raise ValueError("impossible training options: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        for name in ("epochs", "batch_size", "val_batchsize_factor", "gradient_accumulation"):
            if not getattr(self, name) >= 1:
                yield f"{name} = {getattr(self, name)} is below 1"
        whole = ("outputs_padding", "narrow_tokens", "seed")
        for name in ("checkpoint_every_n_epochs", "keep_checkpoints", *whole):
            if not getattr(self, name) >= 0:
                yield f"{name} = {getattr(self, name)} is negative"
        for name in ("weight_decay", "attention_entropy", "max_gradient_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                yield f"{name} = {getattr(self, name)} is not a number of at least 0"
        if not 0 < self.learning_rate < math.inf:
            yield f"learning_rate = {self.learning_rate} is not a positive number"
        if not 0 <= self.narrow_share <= 1:
            yield f"narrow_share = {self.narrow_share} is not in [0, 1]"
        for name, known in (("precision", PRECISIONS), ("labels_per_star", ("one", "all"))):
            if getattr(self, name) not in known:
                yield f"{name} = {getattr(self, name)!r} is not one of {', '.join(known)}"


@dataclass(frozen=True)
class DataProfile:
    """Which stars and pixels are trained on.

    Parameters
    ----------
    kind
        "synthetic" or "observed" spectra.
    pixels
        "full", "first_half", "fe_chunk" or "start:stop".
    labels
        Names of the labels.
    validation_split
        Share of the training stars that is kept for validation; 0 for none.
    metal_poor_copies
        How often stars with [Fe/H] < -1 come in an epoch. They are few, and a network that sees
        them no more often than that draws them towards the others.
    augment
        Fresh noise, continuum error and line-spread variation on every draw of a spectrum.
    half_precision
        Keep the spectra in half precision: half the memory, rounded below 1e-4 of the flux.
    memory
        Where they are kept: "device"; "host", from where they are streamed; "auto": the device if
        they take at most half of its free memory.
    """

    kind: str = "synthetic"
    pixels: str = "full"
    labels: tuple[str, ...] = ("TEFF", "LOGG", "O_FE", "MG_FE", "FE_H")
    validation_split: float = 0.1
    metal_poor_copies: int = 1
    augment: bool = False
    half_precision: bool = True
    memory: str = "auto"


@dataclass(frozen=True)
class SelectionProfile:
    """Which epoch of the last stage and of the baseline is used.

    Parameters
    ----------
    name
        "folds": the epoch with the least loss over five folds of the hundred stars, of a training
        on all of them. "fixed": the last epoch. "published": the epoch with the least loss on
        other stars, metal-poor ones (stage 3) or the test stars (baseline); this looks at labels
        that a user with a hundred stars does not have.
    """

    name: str = "folds"


@dataclass(frozen=True)
class FreezeProfile:
    """What training leaves as it is; see `StellarPerceptron.set_trainable`."""

    freeze_decoder: bool = False
    freeze_encoder: bool = False
    freeze_encoder_second_layer: bool = False


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule.

    Parameters
    ----------
    name
        "constant"; "cosine_warm_restarts" (published stage 1); "warmup_cosine_warm_restarts"
        (published stage 2); "warmup_cosine": warm-up and one cosine over the whole training,
        stepped with every optimizer step.
    warmup_epochs, restart_epochs
        Of the published schedules.
    minimum_lr
        Their lowest learning rate.
    warmup_steps
        Optimizer steps, of "warmup_cosine".
    """

    name: str = "constant"
    warmup_epochs: int = 51
    restart_epochs: int = 50
    minimum_lr: float = 1e-10
    warmup_steps: int = 200

    @property
    def depends_on_epochs(self) -> bool:
        """Whether the first epochs' learning rates depend on how many epochs there will be."""
        return self.name == "warmup_cosine"

    def make(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int, epochs: int
    ) -> LRScheduler | None:
        """Schedule for an optimizer; None for a constant learning rate."""
        if self.name == "cosine_warm_restarts":
            return cosine_annealing_warm_restarts(optimizer, self.restart_epochs, self.minimum_lr)
        if self.name == "warmup_cosine_warm_restarts":
            return warmup_cosine_annealing_warm_restarts(
                optimizer, self.warmup_epochs, self.restart_epochs, self.minimum_lr
            )
        if self.name == "warmup_cosine":
            return linear_warmup_cosine(optimizer, self.warmup_steps, steps_per_epoch * epochs)
        return None


SCHEDULES = ("constant", "cosine_warm_restarts", "warmup_cosine_warm_restarts", "warmup_cosine")


@dataclass(frozen=True)
class Profile:
    """One stage of training.

    Parameters
    ----------
    data, augmentation, model, training, schedule, freeze, selection
        Sections of the TOML file; `augmentation` counts where `data.augment` is true, `model` where
        a stage starts from fresh weights, and `selection` in the last stage and the baseline.
    """

    data: DataProfile = field(default_factory=DataProfile)
    augmentation: Augmentation = field(default_factory=Augmentation)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    schedule: Schedule = field(default_factory=Schedule)
    freeze: FreezeProfile = field(default_factory=FreezeProfile)
    selection: SelectionProfile = field(default_factory=SelectionProfile)

    def _problems(self) -> Iterable[str]:
        choices = {
            "data.kind": ("synthetic", "observed"),
            "data.memory": MEMORIES,
            "schedule.name": SCHEDULES,
            "selection.name": ("folds", "fixed", "published"),
        }
        for key, known in choices.items():
            section, name = key.split(".")
            value = getattr(getattr(self, section), name)
            if value not in known:
                yield f"{key} = {value!r} is not one of {', '.join(known)}"
        if not 0 <= self.data.validation_split < 1:
            yield f"data.validation_split = {self.data.validation_split} is not in [0, 1)"
        try:
            pixel_range(self.data.pixels)
        except (ValueError, IndexError) as error:
            yield f"data.pixels: {error}"
        if self.data.metal_poor_copies < 1:
            yield f"data.metal_poor_copies = {self.data.metal_poor_copies} is below 1"
        if not self.data.labels:
            yield "data.labels is empty"
        if self.schedule.warmup_steps < 0:
            yield f"schedule.warmup_steps = {self.schedule.warmup_steps} is negative"
        if not 0 < self.schedule.minimum_lr < float("inf"):
            yield f"schedule.minimum_lr = {self.schedule.minimum_lr} is not a positive number"
        for name in ("warmup_epochs", "restart_epochs"):
            if getattr(self.schedule, name) < 1:
                yield f"schedule.{name} = {getattr(self.schedule, name)} is below 1"

    def to_dict(self) -> dict[str, Any]:
        """As nested dictionaries, to be saved with a run."""
        return dataclasses.asdict(self)


def _fits(value: Any, expected: Any) -> bool:
    """Whether a TOML value can stand for a dataclass entry."""
    if typing.get_origin(expected) is tuple:
        inner = typing.get_args(expected)
        kinds = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else inner
        return (
            isinstance(value, list | tuple)
            and len(kinds) == len(value)
            and all(_fits(v, k) for v, k in zip(value, kinds, strict=True))
        )
    if isinstance(expected, types.UnionType):
        return any(_fits(value, kind) for kind in typing.get_args(expected))
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def read_profile(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Profile:
    """Read a profile.

    Parameters
    ----------
    path
        TOML file with the sections of `Profile`.
    overrides
        "section.entry=value", the value as in TOML (a bare word counts as text).

    Raises
    ------
    FileNotFoundError
        There is no such profile; names those beside it.
    ValueError
        Lists all unknown and impossible entries at once.
    """
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.toml"))) or "none"
        raise FileNotFoundError(f"there is no profile {path}; known are {known}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    problems: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or not name:
            problems.append(f"--set {override}: write section.entry=value")
            continue
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        entries = content.setdefault(section, {})
        if isinstance(entries, dict):  # what is no section is named below
            entries[name] = value

    sections: dict[str, Any] = {}
    kinds = typing.get_type_hints(Profile)
    for section, entries in content.items():
        if section not in kinds or not isinstance(entries, Mapping):
            problems.append(f"unknown section {with_nearest(section, kinds)}")
            continue
        hints = typing.get_type_hints(kinds[section])
        good = {}
        for name, value in entries.items():
            if name not in hints:
                problems.append(f"unknown entry in [{section}]: {with_nearest(name, hints)}")
            elif not _fits(value, hints[name]):
                problems.append(f"{section}.{name} = {value!r} is no {hints[name]}")
            else:
                good[name] = tuple(value) if isinstance(value, list) else value
        try:
            sections[section] = kinds[section](**good)
        except ValueError as error:
            problems.append(f"[{section}] {error}")
    profile = Profile(**sections)
    problems += profile._problems()
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return profile
