"""The configuration that a training's folder belongs to, kept in `configuration.json`."""

import json
import math
from pathlib import Path
from typing import Any

from stellarperceptron.utils.data_utils import atomic_output

__all__ = ["CHECKPOINT_SHA256", "read_configuration", "settle_configuration"]

CHECKPOINT_SHA256 = "inputs.checkpoint_sha256"
"""Entry with the SHA-256 of the weights that a stage starts from."""

# Where these files lay does not decide what a training gives.
_NOT_COMPARED = {"inputs.checkpoint"}


def read_configuration(folder: Path) -> dict[str, Any] | None:
    """Entries of a folder's `configuration.json`, with dotted keys; None where there is none.

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
    """Check that a folder belongs to a configuration, or make it so if it belongs to none.

    What differs from a training that is complete removes its file `complete`.

    Parameters
    ----------
    folder
        Of a training; exists.
    configuration
        Everything that decides what the training gives, as JSON can hold it.
    grows
        Dotted key of a number that may be larger when a run is started again: its epochs.
    fixed
        Why it must not be larger, if that is so.
    write
        False only compares.

    Returns
    -------
    str
        What was raised from what; empty otherwise.

    Raises
    ------
    ValueError
        The folder belongs to another configuration; names the entries that differ.
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
    """What else helps when a stage's starting point is another one."""
    if CHECKPOINT_SHA256 not in differ:
        return ""
    return (
        "; the weights that this stage starts from have changed, as after training the stage "
        "before once more: --no-resume trains this stage anew from them"
    )


def _number(value: Any) -> float:
    """A number; NaN, which no comparison holds for, in the place of anything else."""
    return value if isinstance(value, int | float) else math.nan


def _flat(entries: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in entries.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
