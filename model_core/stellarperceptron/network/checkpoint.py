"""The checkpoint folder, in the published format; nothing in it is ever executed.

``config.json``, ``weights.pt`` and ``embed_map.npz`` have the format of the published code
(Koblischke & Bovy 2024), which can read folders of this package, and the other way round. The
weights may also lie in ``weights.safetensors``, which is read where there is no ``weights.pt``.
"""

import glob
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stellarperceptron.network.tensor_files import (
    MOST_TOKENS,
    check_network_size,
    load_safetensors,
    load_tensors,
    not_finite,
    save_safetensors,
    save_tensors,
    tensor_bytes,
)
from stellarperceptron.utils.arrays import check_array_archive
from stellarperceptron.utils.data_utils import atomic_output, written_by

__all__ = [
    "CARD",
    "Checkpoint",
    "load_weights",
    "read_checkpoint",
    "read_config",
    "read_embed_map",
    "read_weights",
    "require_finite",
    "require_replaceable",
    "weights_file",
    "weights_sha256",
    "write_checkpoint",
]

# Prefixes that DistributedDataParallel and torch.compile add to parameter names.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
CARD = "card.md"
"""File of a checkpoint's model card."""
_FILES = {
    *("config.json", "weights.pt", "embed_map.npz", "reference.npz", "training_state.pt"),
    *(CARD, "pinned.json", "weights.safetensors"),
}
_LONGEST_CARD = 100_000  # bytes
# Files that file browsers create.
_DEBRIS = {".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint folder.

    Attributes
    ----------
    folder : Path
    config : dict
        `config.json`: sections `nn_config`, `tokenizer_config`, `norm_config`.
    weights : dict of str to Tensor
        Weights on the CPU, by their published names.
    optimizer_state : dict or None
        State of the optimizer, if it was saved.
    optimizer : str or None
        Class name of the optimizer.
    epoch : int
    embed_map : ndarray or None
        (V + 1,) integers; None if the folder has no map.
    reference : dict of str to ndarray or None
        Arrays of a `stellarperceptron.data.flags.Reference`, if the folder has them.
    card : str
        The model card, `card.md`; empty if the folder has none.
    """

    folder: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer_state: dict | None
    optimizer: str | None
    epoch: int
    embed_map: np.ndarray | None
    reference: dict[str, np.ndarray] | None = None
    card: str = ""


def read_checkpoint(folder: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint folder.

    Raises
    ------
    FileNotFoundError
        The folder is missing or is not a checkpoint.
    ValueError
        A file is damaged, holds more than tensors and plain values, or declares more data than it
        holds, or a weight is NaN or infinite.
    """
    folder = Path(folder)
    path = weights_file(folder)
    missing = [file.name for file in (folder / "config.json", path) if not file.is_file()]
    if missing:
        what = f"has no {' and no '.join(missing)}" if folder.is_dir() else "is not a folder"
        set_aside = sorted(folder.parent.glob(f"{glob.escape(folder.name)}.*.previous"))
        hint = f"; a save was cut short, rename {set_aside[0]} to it" if set_aside else ""
        raise FileNotFoundError(f"{folder} is no checkpoint: it {what}{hint}")
    config = read_config(folder)
    weights, state = read_weights(path)
    epoch = weights.get("epoch") or 0
    if not isinstance(epoch, int):
        raise ValueError(f"{path}: epoch = {epoch!r} is no number")
    state = {_without_prefixes(name): tensor for name, tensor in state.items()}
    require_finite(state, path)
    tokens = len(config["tokenizer_config"]["vocabs"])
    check_network_size(config["nn_config"], tokens, state, folder / "config.json", path.name)
    path, reference = folder / "embed_map.npz", folder / "reference.npz"
    return Checkpoint(
        folder=folder,
        config=config,
        weights=state,
        optimizer_state=weights.get("optimizer_state_dict"),
        optimizer=weights.get("optimizer"),
        epoch=epoch,
        embed_map=read_embed_map(path) if path.is_file() else None,
        reference=_read_arrays(reference) if reference.is_file() else None,
        card=_read_card(folder / CARD),
    )


def _read_card(path: Path) -> str:
    """Text of a model card; what is too long for one, or no text, is cut and replaced."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return file.read(_LONGEST_CARD).decode("utf-8", "replace")


def weights_file(folder: Path) -> Path:
    """`weights.pt` of a checkpoint, or `weights.safetensors` where only that is there."""
    path, other = folder / "weights.pt", folder / "weights.safetensors"
    return other if other.is_file() and not path.is_file() else path


def read_weights(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Read a file of weights: all of its content, and the weights by name.

    Raises
    ------
    FileNotFoundError, ValueError
        See `load_tensors`; the weights are missing or are not floating-point tensors with names.
    """
    content = load_safetensors(path) if path.suffix == ".safetensors" else load_tensors(path)
    state = content.get("model_state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds no 'model_state_dict'")
    for name, tensor in state.items():
        plain = isinstance(tensor, Tensor) and tensor.is_floating_point()
        if not (isinstance(name, str) and plain):
            raise ValueError(f"{path}: {name!r} is not the name of a plain tensor of numbers")
    return content, state


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint's `config.json` and check that its sections are there.

    Parameters
    ----------
    path
        The file, or the checkpoint's folder.

    Raises
    ------
    ValueError
        The file is not JSON or lacks a section.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for name in ("nn_config", "tokenizer_config", "norm_config"):
        if not isinstance(config, dict) or not isinstance(config.get(name), dict):
            raise ValueError(f"{path} has no section '{name}'")
    vocabs = config["tokenizer_config"].get("vocabs")
    if not isinstance(vocabs, list) or not all(isinstance(name, str) for name in vocabs):
        raise ValueError(f"{path}: tokenizer_config.vocabs is not a list of names")
    if config["tokenizer_config"].get("vocab_tokens") != list(range(1, len(vocabs) + 1)):
        raise ValueError(f"{path}: vocab_tokens are not 1..{len(vocabs)}")
    return config


def weights_sha256(folder: str | os.PathLike) -> str:
    """SHA-256 of a checkpoint's weights: of names, types, shapes and values, not of the file.

    Raises
    ------
    FileNotFoundError, ValueError
        See `read_weights`.
    """
    _, state = read_weights(weights_file(Path(folder)))
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{_without_prefixes(name)} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Check that no weight is NaN or infinite.

    Raises
    ------
    ValueError
        There is one; the message names the first tensor.
    """
    if name := not_finite(weights):
        raise ValueError(
            f"{path}: {name} has values that are NaN or infinite, as after a training that "
            "diverged: use an earlier checkpoint"
        )


def require_replaceable(folder: Path, overwrite: bool = True) -> None:
    """Check that a checkpoint may be written to a folder.

    Raises
    ------
    FileExistsError
        The folder exists and is not a checkpoint, or holds other files as well; or it is a
        checkpoint and `overwrite` is False.
    """
    if not (folder.is_symlink() or folder.exists()):
        return
    if not (folder / "config.json").is_file():
        raise FileExistsError(f"{folder} exists and is no checkpoint: it is left as it is")
    if not overwrite:
        raise FileExistsError(f"{folder} exists: choose another folder or give overwrite=True")
    names = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in names if name not in _FILES | _DEBRIS and name[:2] != "._"]
    if foreign:
        raise FileExistsError(
            f"{folder} holds more than a checkpoint, which would be lost "
            f"({', '.join(foreign[:5])}{', ...' if len(foreign) > 5 else ''}): move it away, or "
            "choose another folder"
        )


def _without_prefixes(name: str) -> str:
    while name.startswith(_WRAPPER_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def read_embed_map(path: Path) -> np.ndarray:
    """Read `embed_map.npz`: (V + 1,) integers, the embedding row of each token.

    Raises
    ------
    ValueError
        The file is damaged or holds other data.
    """
    arrays = _read_arrays(path)
    if not {"keys", "values"} <= set(arrays):
        raise ValueError(f"{path} is damaged: it has no arrays keys and values")
    keys, values = arrays["keys"], arrays["values"]
    whole = keys.ndim == 1 and keys.dtype.kind in "iu" and values.dtype.kind in "iu"
    if (
        not whole
        or keys.shape != values.shape
        or not np.array_equal(np.sort(keys), np.arange(len(keys)))
    ):
        raise ValueError(f"{path}: keys are not whole numbers from 0, once each, with values alike")
    embed_map = np.zeros(len(keys), dtype=np.int64)
    embed_map[keys] = values
    return embed_map


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a small `.npz` file of plain arrays."""
    try:
        check_array_archive(path, MOST_TOKENS)
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise ValueError(f"{path} is damaged: {error}") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str = "weights") -> None:
    """Put weights into a model; all of its tensors must be given, with the right shapes.

    Parameters
    ----------
    model
        Model that receives the weights.
    weights
        Tensors by parameter name.
    source
        Description of the weights for error messages.

    Raises
    ------
    ValueError
        Tensors are missing, unknown or of the wrong shape; the message names them.
    """
    expected = model.state_dict()
    problems = [f"missing: {name}" for name in expected if name not in weights]
    problems += [f"extra: {name}" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"{source} do not fit the configuration: {'; '.join(problems[:8])}{more}")
    model.load_state_dict(weights)


def write_checkpoint(
    folder: str | os.PathLike,
    model: nn.Module,
    config: dict[str, Any],
    embed_map: np.ndarray,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    epoch: int = 0,
    overwrite: bool = False,
    training_state: dict[str, Any] | None = None,
    reference: Mapping[str, np.ndarray] | None = None,
    dtype: torch.dtype = torch.float32,
    card: str = "",
    safetensors: bool = False,
) -> Path:
    """Write a checkpoint folder; a failed save leaves nothing behind.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    model
        Network whose weights are saved, without the prefixes of wrappers.
    config
        Result of `StellarPerceptronCore.get_config`.
    embed_map
        (V + 1,) integers.
    optimizer
        Optimizer whose state is saved. None: a new AdamW with the published learning rate, because
        the published code expects a state.
    epoch
        Number of epochs trained.
    overwrite
        Replace a checkpoint at `folder`. Anything else is never replaced.
    training_state
        Tensors and plain values from which an interrupted training continues, saved in
        `training_state.pt`. The published code ignores this file.
    reference
        Arrays of a `stellarperceptron.data.flags.Reference`, saved in `reference.npz`. The
        published code ignores this file, too.
    dtype
        Type of the weights in the file.
    card
        Text of a model card; none is written if it is empty.
    safetensors
        Write `weights.safetensors` as well.

    Raises
    ------
    FileExistsError
        `folder` exists and `overwrite` is False, or it is not only a checkpoint.
    ValueError
        A weight is NaN or infinite in the precision of the file.
    OSError
        The disk is full; the message says how much is needed.
    """
    folder = Path(folder)
    require_replaceable(folder, overwrite)
    if optimizer is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    state = {_without_prefixes(name): value.to(dtype) for name, value in model.state_dict().items()}
    if name := not_finite(state):
        raise ValueError(f"{folder} is not written: {name} is not finite as {dtype}")
    content = {
        "model_state_dict": state,
        "optimizer_state_dict": optimizer.state_dict(),
        "optimizer": type(optimizer).__name__,
        "epoch": int(epoch),
    }
    config["stellarperceptron"] = {
        **config.get("stellarperceptron", {}),
        "written_by": written_by(),
    }
    # As in the published files, padding (row 0) comes last.
    keys = np.append(np.arange(1, len(embed_map)), 0)
    with atomic_output(folder, expected_bytes=tensor_bytes(content)) as temporary:
        temporary.mkdir()
        # One line per section: one line per name would double the size of the file.
        sections = (
            f"{json.dumps(name)}: {json.dumps(section, separators=(',', ':'))}"
            for name, section in config.items()
        )
        text = "{\n" + ",\n".join(sections) + "\n}\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")
        if card:
            (temporary / CARD).write_text(card, encoding="utf-8")
        np.savez_compressed(temporary / "embed_map.npz", keys=keys, values=embed_map[keys])
        save_tensors(content, temporary / "weights.pt")
        if safetensors:
            save_safetensors(state, int(epoch), temporary / "weights.safetensors")
        if reference is not None:
            np.savez_compressed(temporary / "reference.npz", **dict(reference))  # type: ignore
        if training_state is not None:
            save_tensors(training_state, temporary / "training_state.pt")
    return folder
