"""Profiles: TOML files with a section for each stage, read into frozen dataclasses.

If a profile cannot be used, the message lists all of its mistakes.
"""

import dataclasses
import math
import os
import tomllib
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stellarperceptron.data.mock.emulated import LINE_LISTS
from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.instruments.drawn import DrawnInstruments
from stellarperceptron.labels import PUBLISHED_LABELS
from stellarperceptron.network.config import PRECISIONS, ModelConfig
from stellarperceptron.nn_utils import Schedule
from stellarperceptron.training.stars.prefetch import MEMORIES
from stellarperceptron.utils.arguments import (
    describe_sections,
    override_sections,
    read_sections,
    with_nearest,
)

__all__ = [
    "CHOICES",
    "DataProfile",
    "FreezeProfile",
    "Profile",
    "SelectionProfile",
    "TrainingOptions",
    "describe_entries",
    "find_profile",
    "read_profile",
]

# Stages of training, which are the sections of a profile.
STAGES = ("stage_1", "stage_2", "stage_3", "baseline")
# Entries with a fixed set of values.
CHOICES = {
    ("data", "source"): ("survey", "emulator"),
    ("data", "instrument"): ("APOGEE", "GALAH", "GAIA_RVS", "LOW_RESOLUTION"),
    ("data", "line_lists"): LINE_LISTS,
    ("data", "kind"): ("synthetic", "observed"),
    ("data", "memory"): MEMORIES,
    ("training", "precision"): tuple(PRECISIONS),
    ("training", "labels_per_star"): ("one", "all"),
    ("training", "choice"): ("star", "batch"),
    ("schedule", "name"): (
        "constant",
        "cosine_warm_restarts",
        "warmup_cosine_warm_restarts",
        "warmup_cosine",
    ),
    ("selection", "name"): ("folds", "last", "fixed", "published"),
}


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Parameters
    ----------
    epochs
        Passes over the training stars.
    batch_size
        Batch size of each process [stars].
    learning_rate, weight_decay
        Settings of AdamW (published: 1e-4 and PyTorch's 0.01).
    beta2
        Decay rate of AdamW's mean squared gradients (published: PyTorch's 0.999).
    val_batchsize_factor
        Factor by which validation batches are larger.
    choice, labels_per_star, outputs_padding, window_share, window_tokens, subset_share
        See `TrainingGenerator`.
    gradient_accumulation
        Number of batches per optimizer step.
    max_gradient_norm
        Gradients are clipped to this norm; 0: never.
    precision
        Precision of matrix products: "float32", "bfloat16", or "float16" with loss scaling.
    compile
        Compile the network with `torch.compile`.
    cuda_graphs
        Launch a step on a GPU as one CUDA graph, and make batches on another stream. The results
        are the same; on a CPU nothing changes.
    checkpoint_every_n_epochs
        Interval between checkpoints [epochs]; 0: at the end only.
    keep_checkpoints
        Number of these checkpoints to keep; 0: all.
    terminate_on_nan
        Stop when a loss is NaN.
    seed
        Seed of the initial weights, all random choices, and dropout.
    """

    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    beta2: float = 0.999
    val_batchsize_factor: int = 5
    choice: str = "star"
    labels_per_star: str = "one"
    outputs_padding: int = 0
    window_share: float = 0.0
    window_tokens: int = 0
    subset_share: float = 0.0
    gradient_accumulation: int = 1
    max_gradient_norm: float = 0.0
    precision: str = "float32"
    compile: bool = False
    cuda_graphs: bool = False
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
        whole = ("outputs_padding", "window_tokens", "seed")
        for name in ("checkpoint_every_n_epochs", "keep_checkpoints", *whole):
            if not getattr(self, name) >= 0:
                yield f"{name} = {getattr(self, name)} is negative"
        if not self.seed < 2**32:
            yield f"seed = {self.seed} is not below {2**32}"
        for name in ("weight_decay", "max_gradient_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                yield f"{name} = {getattr(self, name)} is not a number of at least 0"
        if not 0 < self.learning_rate < math.inf:
            yield f"learning_rate = {self.learning_rate} is not a positive number"
        for name in ("window_share", "subset_share", "beta2"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name} = {getattr(self, name)} is not in [0, 1]"
        if self.cuda_graphs and self.gradient_accumulation > 1:
            yield "cuda_graphs needs gradient_accumulation = 1"
        if self.cuda_graphs and self.precision == "float16":
            yield "cuda_graphs needs precision float32 or bfloat16, which need no loss scaling"
        for name in ("precision", "labels_per_star", "choice"):
            known = CHOICES["training", name]
            if getattr(self, name) not in known:
                yield f"{name} = {getattr(self, name)!r} is not one of {', '.join(known)}"


@dataclass(frozen=True)
class DataProfile:
    """Stars and pixels used in training.

    Parameters
    ----------
    source
        "survey": the spectra of a survey file. "emulator" (stage 1 only): synthetic spectra of
        `stars` stars of the mock survey whose seed is that of the training, made in every batch
        from their coefficients on the device, without a survey file.
    instrument
        Instrument whose pixels the model has, for source = "emulator"; a survey file names its own.
        APOGEE's emulators come with the package, those of the others only with the repository.
    line_lists
        Lines of the emulator's spectra: "nominal", or "mixed" between the two lists, drawn for each
        star; see `emulated_source`.
    kind
        "synthetic" or "observed" spectra.
    pixels
        "full", the name of another pixel range of the survey's instrument (for APOGEE "first_half"
        and "fe_chunk"), or "start:stop".
    labels
        Names of the labels; "all" for all labels of the survey.
    label_errors
        Add the errors of the catalogue to the predicted variances in the loss. Use false for
        synthetic spectra: they are made from the catalogue's labels, which are exact for them.
    synthetic_share
        Fraction of the stars in every batch that are seen with synthetic spectra, with all pixels
        and exact labels. Fine-tuning on a part of the observed spectra then keeps what the model
        knows about the other pixels.
    synthetic_window_share
        `training.window_share` of these stars.
    stars
        Number of stars for training and validation, the first of a seeded shuffle; 0: all, which
        needs a survey file.
    validation_split
        Fraction of the training stars used for validation; 0: none.
    metal_poor_copies
        How many times an epoch shows stars with [Fe/H] < -1. They are rare, and if they are shown
        once, the network predicts metallicities that are biased towards those of other stars.
    weights
        Stages 1 and 2 with several surveys: weight of each, in the order of --data. They say how
        many of the batches show its stars; empty: all the same number.
    combined_share
        Fraction of the batches that show stars of several surveys, which know them by the same
        name, with all of their pixels in one context.
    regression
        Stage 2 with one survey: end with a quadratic regression on the same stars, whose answers
        are averaged with those of the network. The model must take conditions.
    augment
        Add fresh noise, continuum error and line-spread variation whenever a spectrum is drawn.
    half_precision
        Keep the spectra in half precision, which halves their memory and rounds the flux by less
        than 1e-4.
    memory
        "device" keeps the spectra on the device; "host" streams them from the host; "auto" keeps
        them on the device if they take at most half of its free memory.
    """

    source: str = "survey"
    instrument: str = "APOGEE"
    line_lists: str = "nominal"
    kind: str = "synthetic"
    pixels: str = "full"
    labels: tuple[str, ...] | str = PUBLISHED_LABELS
    label_errors: bool = True
    synthetic_share: float = 0.0
    synthetic_window_share: float = 0.0
    stars: int = 0
    validation_split: float = 0.1
    metal_poor_copies: int = 1
    weights: tuple[float, ...] = ()
    combined_share: float = 0.0
    regression: bool = False
    augment: bool = False
    half_precision: bool = True
    memory: str = "auto"


@dataclass(frozen=True)
class SelectionProfile:
    """How the epoch of stage 3 and of the baseline is chosen.

    Parameters
    ----------
    name
        "folds": five-fold cross-validation on the 100 iron-rich stars chooses the epoch, and the
        network is trained on all of them up to that epoch. "last": the last epoch, which a learning
        rate that falls to zero is meant for; the folds only calibrate the errors of stage 3.
        "fixed": the last epoch, without folds. "published": the epoch with the smallest loss on
        other stars, metal-poor ones (stage 3) or the test stars (baseline). This uses labels beyond
        those of the 100 stars.
    """

    name: str = "folds"


@dataclass(frozen=True)
class FreezeProfile:
    """Parts of the network that stay fixed; see `StellarPerceptron.set_trainable`."""

    freeze_decoder: bool = False
    freeze_encoder: bool = False
    freeze_encoder_second_layer: bool = False


@dataclass(frozen=True)
class Profile:
    """One stage of training.

    Parameters
    ----------
    data, augmentation, instruments, model, training, schedule, freeze, selection
        Sections of the TOML file. `augmentation` is used where `data.augment` is true,
        `instruments` in stage 1, `model` where a stage starts from fresh weights, and `selection`
        in stage 3 and the baseline.
    """

    data: DataProfile = field(default_factory=DataProfile)
    augmentation: Augmentation = field(default_factory=Augmentation)
    instruments: DrawnInstruments = field(default_factory=DrawnInstruments)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    schedule: Schedule = field(default_factory=Schedule)
    freeze: FreezeProfile = field(default_factory=FreezeProfile)
    selection: SelectionProfile = field(default_factory=SelectionProfile)

    @property
    def rehearsal(self) -> "Profile | None":
        """The same stars as stage 1 has shown them; None if `data.synthetic_share` is 0."""
        if not self.data.synthetic_share:
            return None
        data = dataclasses.replace(self.data, kind="synthetic", pixels="full", label_errors=False)
        return dataclasses.replace(self, data=data)

    def rehearsal_options(self) -> TrainingOptions:
        """How batches show synthetic spectra beside the observed ones; see `rehearsal`."""
        share = self.data.synthetic_share
        stars = max(1, round(self.training.batch_size * share / (1 - share)))
        window_share = self.data.synthetic_window_share
        return dataclasses.replace(self.training, batch_size=stars, window_share=window_share)

    def _problems(self) -> Iterable[str]:
        for (section, name), known in CHOICES.items():
            value = getattr(getattr(self, section), name)
            if value not in known:
                yield f"{section}.{name} = {value!r} is not one of {', '.join(known)}"
        if not 0 <= self.data.validation_split < 1:
            yield f"data.validation_split = {self.data.validation_split} is not in [0, 1)"
        if not 0 <= self.data.synthetic_share <= 0.5:
            yield f"data.synthetic_share = {self.data.synthetic_share} is not in [0, 0.5]"
        if not 0 <= self.data.synthetic_window_share <= 1 - self.training.subset_share:
            share = self.data.synthetic_window_share
            yield f"data.synthetic_window_share = {share} is not in [0, 1 - training.subset_share]"
        if self.data.synthetic_share and self.data.kind == "synthetic":
            yield "data.synthetic_share is for observed spectra; data.kind is 'synthetic'"
        if self.data.source == "emulator" and self.data.kind != "synthetic":
            yield "data.source = 'emulator' has synthetic spectra only; data.kind is 'observed'"
        if self.data.source == "survey" and self.data.line_lists != "nominal":
            yield "data.line_lists = 'mixed' needs data.source = 'emulator'"
        if self.data.source == "survey" and self.data.instrument != "APOGEE":
            yield "data.instrument needs data.source = 'emulator': a survey file names its own"
        if self.data.source == "emulator" and self.data.stars == 0:
            yield "data.source = 'emulator' needs data.stars, the number of stars to draw"
        if self.instruments.share:
            if self.data.source != "emulator" or self.data.pixels != "full":
                yield "instruments.share needs data.source = 'emulator' and data.pixels = 'full'"
            if not self.model.conditions:
                yield "instruments.share needs model.conditions = true"
        if self.data.metal_poor_copies < 1:
            yield f"data.metal_poor_copies = {self.data.metal_poor_copies} is below 1"
        weights = self.data.weights
        if weights and not (min(weights) >= 0 and 0 < max(weights) < math.inf):
            yield f"data.weights = {list(weights)} are not 0 or more, at least one of them above 0"
        if not 0 <= self.data.combined_share < 1:
            yield f"data.combined_share = {self.data.combined_share} is not in [0, 1)"
        elif self.data.combined_share and self.training.choice != "batch":
            yield "data.combined_share needs training.choice = 'batch'"
        if self.data.stars < 0:
            yield f"data.stars = {self.data.stars} is negative"
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
        """The profile as nested dictionaries, to be saved with a run."""
        return dataclasses.asdict(self)


def describe_entries() -> str:
    """List the entries of a profile with type or choices, unit and default, one a line."""
    return describe_sections(typing.get_type_hints(Profile), CHOICES)


def find_profile(profile: str | os.PathLike, folder: Path) -> Path:
    """Path of a profile, given as its name in a folder or as the path of a TOML file.

    Raises
    ------
    FileNotFoundError
        There is no such profile; the message lists those in the folder.
    """
    path = Path(profile)
    if path.suffix != ".toml":
        path = folder / f"{profile}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml"))) or "none"
        raise FileNotFoundError(
            f"there is no profile {path}; known are {known}, and any path of a TOML file"
        )
    return path


def read_profile(path: str | os.PathLike, stage: str, overrides: Sequence[str] = ()) -> Profile:
    """Read one stage of a profile.

    Parameters
    ----------
    path
        TOML file with the sections of `Profile` for each stage: [stage_1.data], ...
    stage
        "stage_1", "stage_2", "stage_3" or "baseline".
    overrides
        Texts "section.entry=value", the value as in TOML (a bare word is a string).

    Raises
    ------
    ValueError
        Entries are unknown or impossible; the message lists all, with file and stage.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, nested too deeply
        raise ValueError(f"{path} is no TOML in UTF-8: {error}") from error
    problems = [
        f"unknown stage {with_nearest(name, STAGES)}" for name in content if name not in STAGES
    ]
    sections = content.get(stage)
    if not isinstance(sections, dict):
        problems.append(f"it has no sections [{stage}.data], [{stage}.training], ...")
        sections = {}
    problems += override_sections(sections, overrides)
    read, mistakes = read_sections(sections, typing.get_type_hints(Profile))
    profile = Profile(**read)
    problems += [*mistakes, *profile._problems()]
    if stage != "stage_1" and profile.data.source == "emulator":
        problems.append("data.source = 'emulator' is for stage 1")
    if problems:
        raise ValueError(f"{path}, {stage}: " + "; ".join(problems))
    return profile
