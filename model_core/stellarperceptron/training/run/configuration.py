"""The configuration of a training folder, in `configuration.json`."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from stellarperceptron.utils.data_utils import atomic_output

__all__ = [
    "CHECKPOINT_SHA256",
    "describe_augmentation",
    "describe_schedule",
    "read_configuration",
    "settle_configuration",
]

CHECKPOINT_SHA256 = "inputs.checkpoint_sha256"
"""Entry with the SHA-256 of the weights that a stage starts from."""

# The location of these files does not affect the result of a training.
_NOT_COMPARED = {"inputs.checkpoint"}


def read_configuration(folder: Path) -> dict[str, Any] | None:
    """Entries of the `configuration.json` of a folder, with dotted keys; None without this file.

    Raises
    ------
    ValueError
        The file is damaged.
    """
    file = folder / "configuration.json"
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("it holds no entries")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): train into another folder, or start anew with "
            "--no-resume (fresh=True)"
        ) from error
    return _flat(content)


def settle_configuration(
    folder: Path,
    configuration: dict[str, Any],
    *,
    grows: str | None = None,
    fixed: str = "",
    write: bool = True,
) -> str:
    """Check that a folder belongs to a configuration; assign the configuration if it has none.

    If the configuration is new or changes, the file `complete` is removed.

    Parameters
    ----------
    folder
        Folder of a training, which exists.
    configuration
        All settings that affect the result of the training, in values that JSON can hold.
    grows
        Dotted key of a number that may be increased when a run is continued: its epochs.
    fixed
        Reason why it must not be increased; empty if it may be.
    write
        False: only compare.

    Returns
    -------
    str
        Message about an increased number; empty if there is none.

    Raises
    ------
    ValueError
        The folder belongs to another configuration; the message lists the differences.
    """
    configuration = json.loads(json.dumps(configuration))  # tuples become lists
    old, new = read_configuration(folder), _flat(configuration)
    differ = []
    if old is not None:
        keys = sorted((set(old) | set(new)) - _NOT_COMPARED)
        differ = [key for key in keys if old.get(key) != new.get(key)]
    grown = differ == [grows] and _number(old.get(grows)) < _number(new.get(grows))
    if differ and not (grown and not fixed):
        changes = "; ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in differ)
        raise ValueError(
            f"{folder} belongs to another configuration ({changes}): choose another folder, "
            f"or remove this one{f' ({fixed})' if fixed and grown else ''}{_hint(differ)}"
        )
    if write and (old is None or old != new):
        if old is None or differ:
            (folder / "complete").unlink(missing_ok=True)
        with atomic_output(folder / "configuration.json") as temporary:
            temporary.write_text(json.dumps(configuration, indent=1), encoding="utf-8")
    return f"{grows} raised from {old[grows]} to {new[grows]}" if grown else ""


def _hint(differ: list[str]) -> str:
    """Advice if the weights that a stage starts from have changed."""
    if CHECKPOINT_SHA256 not in differ:
        return ""
    return (
        "; the weights that this stage starts from have changed, as after training the stage "
        "before once more: --no-resume trains this stage anew from them"
    )


def _number(value: Any) -> float:
    """A number as it is; NaN, for which every comparison is false, for anything else."""
    return value if isinstance(value, int | float) else math.nan


def _flat(entries: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in entries.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


# --- functions that a user gives to `fit` ---------------------------------------------------------


def describe_schedule(
    make: Callable[[torch.optim.Optimizer], LRScheduler] | None, learning_rate: float
) -> dict[str, Any] | None:
    """Describe a schedule by its name and its learning rates after 0, 1, 2, 4, ... 1,024 steps."""
    if make is None:
        return None
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate)
    schedule, rates = make(optimizer), []
    for step in range(1025):
        if step & (step - 1) == 0:
            rates.append(float(f"{optimizer.param_groups[0]['lr']:.6g}"))
        optimizer.step()
        try:
            schedule.step()
        except ValueError:  # a schedule of a fixed number of steps has come to its end
            break
    return {"name": type(schedule).__name__, "learning_rates": rates}


def describe_augmentation(
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None,
    values: int,
    device: torch.device,
) -> dict[str, Any] | None:
    """Describe an augmentation by its name and by what it makes of spectra of flux 1.

    Functions cannot be compared, but what they do can.
    """
    if augment is None:
        return None
    flux = torch.ones(16, values, device=device)
    changed = augment(flux, torch.Generator(device).manual_seed(0))
    changed = changed[0] if isinstance(changed, tuple) else changed
    changed = changed.cpu().double().nan_to_num()
    function = getattr(augment, "func", augment)  # within a `functools.partial`
    name = getattr(function, "__qualname__", type(function).__qualname__)
    mean, scatter = (float(f"{x.item():.5g}") for x in (changed.mean(), changed.std()))
    return {"name": name, "mean_flux": mean, "scatter": scatter}
