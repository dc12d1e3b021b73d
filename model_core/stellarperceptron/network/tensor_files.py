"""Files of tensors and plain values, of which nothing is ever executed."""

import pickle
from collections.abc import Mapping, ValuesView
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stellarperceptron.network.untrusted import check_tensor_file, check_tensors

__all__ = ["load_tensors", "save_tensors", "tensor_bytes"]


def load_tensors(path: Path) -> Any:
    """Read a file of tensors and plain values; anything else in it is refused, not executed.

    Raises
    ------
    ValueError
        The file is damaged, holds more, or declares more data than it has.
    FileNotFoundError, PermissionError
        It cannot be opened.
    """
    check_tensor_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it holds more than tensors and plain values, or is damaged"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} is damaged: {error!r}") from error
    check_tensors(content, path)
    return content


def save_tensors(content: Any, path: Path) -> None:
    """Write what `load_tensors` reads.

    PyTorch says "unexpected pos" when it cannot write to a path; a file of Python's tells why.

    Raises
    ------
    OSError
        The disk is full, among others.
    """
    with open(path, "wb") as file:
        torch.save(content, file)


def tensor_bytes(content: Any) -> int:
    """Size of the tensors in nested dictionaries and lists [bytes]."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        content = content.values()
    return sum(map(tensor_bytes, content)) if isinstance(content, list | tuple | ValuesView) else 0
