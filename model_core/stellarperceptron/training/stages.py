"""Shared parts of the numbered training scripts: arguments, data and training as a profile says."""

import argparse
import dataclasses
import functools
import math
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.instruments import Instrument
from stellarperceptron.labels import resolve_label_names
from stellarperceptron.model import StellarPerceptron
from stellarperceptron.network.config import ModelConfig
from stellarperceptron.training.configuration import (
    CHECKPOINT_SHA256,
    read_configuration,
    settle_configuration,
)
from stellarperceptron.training.loop import TrainingError
from stellarperceptron.training.prepare import (
    Stars,
    TrainingData,
    prepare_training_data,
    survey_stars,
    usable_stars,
)
from stellarperceptron.training.profiles import (
    Profile,
    describe_entries,
    find_profile,
    read_profile,
)
from stellarperceptron.training.run_folder import RunFolder
from stellarperceptron.training.tasks import train
from stellarperceptron.utils.arguments import HelpFormatter, positive
from stellarperceptron.utils.data_utils import check_output_folder
from stellarperceptron.utils.distributed import Process, usable_device
from stellarperceptron.utils.locks import FileLock

__all__ = [
    "describe_data",
    "draw_stars",
    "five_folds",
    "label_columns",
    "label_names",
    "mark_complete",
    "new_model",
    "place_stars",
    "read_stars",
    "require_labels",
    "require_same_instrument",
    "resolve_checkpoint",
    "run_script",
    "split_rows",
    "stage_arguments",
    "stage_folder",
    "starts_anew",
    "train_stage",
]


def _seed(text: str) -> int:
    """A seed, as NumPy and PyTorch take it."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value} is not within 0 and {2**32 - 1}")
    return value


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; wrong input ends it with one line, not a traceback.

    Ctrl-C ends it with status 130.
    """
    name = Path(sys.argv[0]).name
    try:
        main()
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command continues", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (OSError, ValueError, TrainingError) as error:
        sys.exit(f"{name}: {error}")


def stage_arguments(
    script: str, description: str, stage: str, needs_checkpoint: bool
) -> argparse.Namespace:
    """Parse the arguments of a stage; adds `profile_settings`, the profile they name.

    Parameters
    ----------
    script
        `__file__` of the script; the profiles are in the folder `profiles` beside the script's.
    description
        Of the script.
    stage
        "stage_1", "stage_2", "stage_3" or "baseline".
    needs_checkpoint
        Whether the stage starts from the checkpoint of the stage before.
    """
    folder = Path(script).resolve().parents[1] / "profiles"
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=HelpFormatter,
        epilog=f"entries of a profile, with their defaults:\n{describe_entries()}",
    )
    profiles = sorted(path.stem for path in folder.glob("*.toml"))
    parser.add_argument(
        "--profile",
        default="laptop",
        help=f"one of {', '.join(profiles)}, or the path of a TOML file",
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="survey file or folder of published arrays"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of logs and checkpoints")
    if needs_checkpoint:
        parser.add_argument(
            "--checkpoint",
            type=Path,
            required=True,
            help="output of the stage before (its selected or last checkpoint), or a checkpoint",
        )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.ENTRY=VALUE",
        help="override an entry of the profile (listed below); may be given more than once",
    )
    parser.add_argument(
        "--seed", type=_seed, help="of weights, choices and dropout; default: the profile's, 0"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        help="CPU threads of each process (not used on a GPU)",
    )
    parser.add_argument(
        "--no-resume",
        action="store_true",
        help="start from scratch instead of continuing from checkpoints",
    )
    if needs_checkpoint:
        parser.add_argument(
            "--retrain-if-stale",
            action="store_true",
            help="start anew if the weights that the stage started from have changed",
        )
    arguments = parser.parse_args()
    try:
        seed = [] if arguments.seed is None else [f"training.seed={arguments.seed}"]
        arguments.profile_settings = read_profile(
            find_profile(arguments.profile, folder), stage, [*arguments.set, *seed]
        )
        if needs_checkpoint:
            arguments.checkpoint = resolve_checkpoint(arguments.checkpoint)
        usable_device(arguments.device)
        check_output_folder(arguments.output)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    torch.set_num_threads(arguments.threads)
    return arguments


def resolve_checkpoint(path: Path) -> Path:
    """Checkpoint that a path means: itself, or the selected or last one in a training's folder.

    Raises
    ------
    FileNotFoundError
        There is none; says which command makes one.
    """
    epochs = [p for p in path.glob("epoch_*") if p.name[6:].isdigit()]
    last = sorted(epochs, key=lambda p: int(p.name[6:]))[-1:]
    for folder in (path, path / "selected", *last):
        if (folder / "weights.pt").is_file():
            return folder
    raise FileNotFoundError(
        f"there is no checkpoint in {path}: run the stage before with --output {path}, or make "
        "reproduce"
    )


def new_model(dataset: SpectraDataset, profile: Profile, device: torch.device) -> StellarPerceptron:
    """A model with fresh weights for all pixels of a survey and the profile's labels.

    Pixels that are tokens of their own share one embedding, as published; in tokens of several
    pixels each has its own. Unless the profile says otherwise, the wavelength encoding spans the
    instrument's range.
    """
    instrument, config = dataset.instrument, profile.model
    pixels = instrument.pixel_names(dataset.wavelength).tolist()
    if config.wavelength_range == ModelConfig().wavelength_range:
        config = dataclasses.replace(config, wavelength_range=instrument.encoding_range)
    return StellarPerceptron(
        [*pixels, *label_names(dataset, profile)],
        embed_map=dict.fromkeys(pixels, pixels[0]) if profile.model.pixels_per_token == 1 else None,
        device=device,
        seed=profile.training.seed,
        instrument=instrument,
        **vars(config),
    )


def require_same_instrument(model: StellarPerceptron, dataset: SpectraDataset) -> None:
    """Refuse a survey of another instrument than the model's.

    Raises
    ------
    ValueError
        Names both.
    """
    if model.instrument != dataset.instrument:
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
        Names them and those that the model knows.
    """
    missing = [label for label in labels if label not in model.label_names]
    if missing:
        raise ValueError(
            f"the checkpoint has no labels {', '.join(missing)}, only "
            f"{', '.join(model.label_names)}"
        )


def label_names(dataset: SpectraDataset, profile: Profile) -> tuple[str, ...]:
    """Names of the profile's labels in a survey; all of the survey's for "all".

    Raises
    ------
    ValueError
        The survey lacks one; names it and those that are there.
    """
    try:
        return resolve_label_names(profile.data.labels, dataset.label_names)
    except ValueError as error:
        raise ValueError(f"{dataset.path}, data.labels of the profile: {error}") from error


def label_columns(dataset: SpectraDataset, profile: Profile) -> list[int]:
    """Columns of the profile's labels in a survey; see `label_names`."""
    return [dataset.label_names.index(name) for name in label_names(dataset, profile)]


def draw_stars(dataset: SpectraDataset, columns: list[int], stars: int, seed: int) -> np.ndarray:
    """Rows (stars,) of training stars with a label, the first of a shuffle; all of them for 0.

    Parameters
    ----------
    columns
        Columns of the labels of which a star needs one.
    stars, seed
        How many, and the seed of the shuffle: fewer stars are part of more.

    Raises
    ------
    ValueError
        There are fewer.
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
    """Rows of the training and of the validation stars; none of the latter for a share of 0.

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


def describe_data(dataset: SpectraDataset) -> dict[str, Any]:
    """What tells one survey from another, wherever the file lies."""
    return {
        "stars": len(dataset.train),
        "test_stars": len(dataset.test),
        "provenance": dataset.provenance,
    }


@contextmanager
def stage_folder(
    output: Path,
    process: Process,
    *,
    fresh: bool,
    configuration: dict[str, Any] | None = None,
) -> Iterator[None]:
    """Have a stage's folder for this run alone, from its first training until it is `complete`.

    Parameters
    ----------
    output
        Made when it is missing.
    process
        The first one holds the lock.
    fresh
        The stage starts anew: it is not complete any more, and nothing is selected.
    configuration
        Of a stage of several trainings, which have folders of their own; see `RunFolder`.

    Raises
    ------
    BusyError
        Another run has the folder; an `OSError` that says which one.
    ValueError
        The folder belongs to another configuration.
    """
    with ExitStack() as stack:
        if process.rank == 0:
            check_output_folder(output)
            output.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(output / ".stage.lock", f"the folder {output}"))
            if fresh:
                for name in ("complete", "selection.json", "configuration.json"):
                    (output / name).unlink(missing_ok=True)
                shutil.rmtree(output / "selected", ignore_errors=True)
            if configuration is not None:
                settle_configuration(output, configuration)
        process.barrier()
        yield


def starts_anew(arguments: argparse.Namespace, checkpoint_sha256: str = "") -> bool:
    """Whether a stage starts anew: asked to, or from other weights than its folder's."""
    if arguments.no_resume or not getattr(arguments, "retrain_if_stale", False):
        return arguments.no_resume
    old = read_configuration(arguments.output)
    return old is not None and old.get(CHECKPOINT_SHA256) != checkpoint_sha256


def mark_complete(output: Path, process: Process) -> None:
    """Write the file `complete`, which marks a stage that need not run again."""
    process.barrier()
    if process.rank == 0:
        (output / "complete").touch()


def read_stars(dataset: SpectraDataset, profile: Profile, rows: np.ndarray | None = None) -> Stars:
    """Training stars of a survey with the profile's spectra, pixels and labels.

    Parameters
    ----------
    dataset, profile
        The survey and what the profile takes of it.
    rows
        Which training stars; None: all of them.

    Raises
    ------
    ValueError
        The survey lacks a label or the pixels.
    """
    data = profile.data
    return survey_stars(dataset, data.kind, data.pixels, label_names(dataset, profile), rows)


def place_stars(
    model: StellarPerceptron, dataset: SpectraDataset, stars: Stars, profile: Profile
) -> TrainingData:
    """Read stars and place them on the model's device, as the profile says.

    Raises
    ------
    ValueError
        The survey is of another instrument than the model's, or the model lacks a label.
    """
    require_same_instrument(model, dataset)
    require_labels(model, stars.label_names)
    data = profile.data
    augment = None
    if data.augment:
        augment = _augmentation(dataset.instrument, stars.wavelengths, profile)
    return prepare_training_data(
        model,
        stars,
        dtype=torch.float16 if data.half_precision else torch.float32,
        memory=data.memory,
        augment=augment,
    )


def _augmentation(instrument: Instrument, wavelength: np.ndarray, profile: Profile):
    """The profile's augmentation of spectra at these wavelengths (n,)."""
    pixels = instrument.pixels_at(wavelength)
    if pixels[-1] - pixels[0] != len(pixels) - 1:
        raise ValueError(
            f"data.augment needs neighbouring pixels of {instrument}; the survey leaves some out"
        )
    part = slice(int(pixels[0]), int(pixels[-1]) + 1)
    return functools.partial(profile.augmentation, pixels=part, instrument=instrument)


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
    resume: bool = True,
    extensible: bool = True,
) -> list[dict[str, float]]:
    """Train a model as a profile says, with logs and checkpoints; see `training.train`.

    Parameters
    ----------
    training_rows, validation_rows
        Rows of `data`; stars without labels or valid pixels are left out.
    inputs
        What the run depends on beside the profile (files, hashes), saved with the configuration.
    resume
        Go on from the newest checkpoint in `output`.
    extensible
        A run that is complete may go on with more epochs, if its schedule allows that.
    """
    usable = usable_stars(data)
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
    dropped = len(training_rows) + len(validation_rows)
    training_rows, validation_rows = (
        rows[np.isin(rows, usable)] for rows in (training_rows, validation_rows)
    )
    dropped -= len(training_rows) + len(validation_rows)
    if dropped:
        folder.log(f"{dropped} stars without labels or valid pixels are left out")
    if not len(training_rows):
        raise ValueError("there is no star with a label and a valid pixel to train on")
    trainable = model.set_trainable(**vars(profile.freeze))
    folder.log(f"{trainable} trainable parameters; schedule {profile.schedule}")
    model.epoch = 0
    return train(
        model,
        data,
        training_rows,
        validation_rows,
        profile.training,
        process,
        scheduler=lambda optimizer, steps: profile.schedule.make(
            optimizer, steps, profile.training.epochs
        ),
        folder=folder,
        resume=resume,
    )


def five_folds(stars: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide stars into five folds: pairs of training and validation rows."""
    parts = np.array_split(np.random.RandomState(seed).permutation(stars), 5)
    return [(np.setdiff1d(np.arange(stars), part), np.sort(part)) for part in parts]
