"""Parts of the training scripts: arguments, locked folders, error messages."""

import argparse
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from stellarperceptron.network.checkpoint import weights_file
from stellarperceptron.training.profiles import describe_entries, find_profile, read_profile
from stellarperceptron.training.run.configuration import (
    CHECKPOINT_SHA256,
    read_configuration,
    settle_configuration,
)
from stellarperceptron.training.run.surveys import require_surveys
from stellarperceptron.utils.arguments import HelpFormatter, positive
from stellarperceptron.utils.data_utils import check_output_folder
from stellarperceptron.utils.distributed import Process, usable_device
from stellarperceptron.utils.locks import FileLock

__all__ = [
    "mark_complete",
    "resolve_checkpoint",
    "stage_arguments",
    "stage_folder",
    "starts_anew",
]


def _seed(text: str) -> int:
    """A seed for NumPy and PyTorch."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value} is not within 0 and {2**32 - 1}")
    return value


def stage_arguments(
    script: str, description: str, stage: str, needs_checkpoint: bool
) -> argparse.Namespace:
    """Parse the arguments of a stage, and add the selected profile as `profile_settings`.

    Parameters
    ----------
    script
        `__file__` of the script. The folder `profiles` beside that of the script has the profiles.
    description
        Description of the script, for `--help`.
    stage
        "stage_1", "stage_2", "stage_3" or "baseline".
    needs_checkpoint
        Whether the stage starts from a checkpoint of the previous stage.
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
    several = stage in ("stage_1", "stage_2")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+" if several else None,
        metavar="SURVEY",
        required=needs_checkpoint or stage == "baseline",
        help="survey file or folder of published arrays"
        + (", or several of instruments whose wavelengths do not overlap" if several else "")
        + ("; none with data.source=emulator" if stage == "stage_1" else ""),
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of logs and checkpoints")
    if needs_checkpoint:
        parser.add_argument(
            "--checkpoint",
            type=Path,
            required=True,
            help="output of the previous stage (its selected or last checkpoint), or a checkpoint",
        )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.ENTRY=VALUE",
        help="override an entry of the profile (listed below); may be given more than once",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        help="seed of weights, choices and dropout (default: that of the profile)",
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
            help="start again if the weights that the stage started from have changed",
        )
    arguments = parser.parse_args()
    try:
        seed = [] if arguments.seed is None else [f"training.seed={arguments.seed}"]
        arguments.profile_settings = read_profile(
            find_profile(arguments.profile, folder), stage, [*arguments.set, *seed]
        )
        if needs_checkpoint:
            arguments.checkpoint = resolve_checkpoint(arguments.checkpoint)
        require_surveys(arguments.data if several else [arguments.data], arguments.profile_settings)
        usable_device(arguments.device)
        check_output_folder(arguments.output)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    torch.set_num_threads(arguments.threads)
    return arguments


def resolve_checkpoint(path: Path) -> Path:
    """Checkpoint at a path: the path itself, or the selected or last checkpoint in it.

    Raises
    ------
    FileNotFoundError
        There is none; the message names the command that makes one.
    """
    epochs = [p for p in path.glob("epoch_*") if p.name[6:].isdigit()]
    last = sorted(epochs, key=lambda p: int(p.name[6:]))[-1:]
    for folder in (path, path / "selected", *last):
        if weights_file(folder).is_file():
            return folder
    raise FileNotFoundError(
        f"there is no checkpoint in {path}: run the stage before with --output {path}, or make "
        "reproduce"
    )


@contextmanager
def stage_folder(
    output: Path,
    process: Process,
    *,
    fresh: bool,
    configuration: dict[str, Any] | None = None,
) -> Iterator[None]:
    """Lock the folder of a stage for this run, from its first training until it is `complete`.

    Parameters
    ----------
    output
        The folder; created if it is missing.
    process
        This process; the first process holds the lock.
    fresh
        The stage starts again: remove its mark `complete` and its selected checkpoint.
    configuration
        Configuration of a stage whose trainings have their own folders; see `RunFolder`.

    Raises
    ------
    BusyError
        Another run uses the folder; the message of this `OSError` names it.
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
    """Whether a stage starts again: on request, or because its initial weights have changed."""
    if arguments.no_resume or not getattr(arguments, "retrain_if_stale", False):
        return arguments.no_resume
    old = read_configuration(arguments.output)
    return old is not None and old.get(CHECKPOINT_SHA256) != checkpoint_sha256


def mark_complete(output: Path, process: Process) -> None:
    """Write the file `complete`, which marks a stage that does not have to run again."""
    process.barrier()
    if process.rank == 0:
        (output / "complete").touch()
