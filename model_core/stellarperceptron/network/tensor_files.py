"""Untrusted files of tensors and arrays: checked by their headers, never executed."""

import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping, ValuesView
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "MOST_TOKENS",
    "check_network_size",
    "check_tensor_file",
    "check_tensors",
    "load_safetensors",
    "load_tensors",
    "not_finite",
    "save_safetensors",
    "save_tensors",
    "tensor_bytes",
]

MOST_TOKENS = 1_000_000
"""Largest number of tokens in an embedding map; APOGEE's pixels and labels are 7,519."""

# Names that the pickle of plain tensors and values may contain; none allocates memory or acts.
_PLAIN = re.compile(
    r"collections (OrderedDict|Counter)|builtins (set|complex)|torch (Size|device)|"
    r"torch._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|torch.storage UntypedStorage|"
    r"torch (b?float|u?int|complex)\d+|torch bool"
)


def check_tensor_file(path: Path) -> None:
    """Check a file of `torch.save` before it is read.

    Raises
    ------
    ValueError
        It is damaged, holds more than tensors and plain values, or declares more bytes than it
        holds.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            declared = sum(record.file_size for record in records)
            packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
            if packed or declared > size:
                raise ValueError(
                    f"{path} is refused: it declares {declared} bytes of data, but has {size} "
                    "(torch.save does not compress)"
                )
            (pickled,) = (record for record in records if record.filename.endswith("/data.pkl"))
            code = archive.read(pickled)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged, or no file of torch.save: {error}") from error
    except ValueError as error:
        if "refused" in str(error):
            raise
        raise ValueError(f"{path} is damaged: it has no single data.pkl") from error
    try:
        for instruction, argument, _ in pickletools.genops(code):
            named = argument if instruction.name == "GLOBAL" else instruction.name
            if "GLOBAL" in instruction.name and not _PLAIN.fullmatch(str(named)):
                raise ValueError(
                    f"{path} is refused: it holds more than tensors and plain values ({named})"
                )
    except ValueError as error:
        if "refused" in str(error):
            raise
        raise ValueError(f"{path} is damaged: {error}") from error


def check_tensors(content: Any, path: Path) -> None:
    """Check that all tensors of a file are dense and have their values in the file.

    Raises
    ------
    ValueError
        A tensor is sparse, without data, or larger than its storage.
    """
    for tensor in _tensors(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{path} is refused: it holds tensors that are sparse or without data")
        size, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        if size > stored:
            raise ValueError(
                f"{path} is refused: a tensor of the shape {tuple(tensor.shape)} has {size} "
                f"bytes, but only {stored} are in the file"
            )


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in nested dictionaries and lists, which may contain themselves."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping | list | tuple | set) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, Mapping) else item


def check_network_size(
    nn_config: Mapping[str, Any],
    tokens: int,
    weights: Mapping[str, Tensor],
    path: Path,
    held_in: str,
) -> None:
    """Check, before a network is built, that it is not larger than its weights.

    Parameters
    ----------
    nn_config
        Sizes of the network; `ModelConfig` checks everything else.
    tokens
        Number of tokens in the vocabulary.
    weights
        Weights for the network.
    path
        File of the configuration, for the message.
    held_in
        Name of the file of the weights, for the message.

    Raises
    ------
    ValueError
        The configuration needs more parameters than there are.
    """
    names = ("embedding_dim", "encoder_dense_num", "decoder_dense_num")
    values = [nn_config.get(name, 1) for name in names]
    dim, *widths = (value if isinstance(value, int) else 1 for value in values)
    # The largest matrices; the whole network has some more.
    asked = dim * (tokens + 1 + dim + sum(widths))
    held = sum(tensor.numel() for tensor in weights.values())
    if asked > held:
        raise ValueError(
            f"{path}: nn_config ({', '.join(names)}) asks for {asked} parameters or more, but "
            f"{held_in} has {held}: the two do not belong together"
        )


def not_finite(weights: Mapping[str, Tensor]) -> str:
    """Name of the first tensor with a NaN or an infinite number; empty if there is none."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return ""


def load_tensors(path: Path) -> Any:
    """Read a file of tensors and plain values; anything else in it is refused, not executed.

    Raises
    ------
    ValueError
        The file is damaged, holds other objects, or declares more data than it holds.
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
    """Write a file that `load_tensors` can read.

    The file is opened here because PyTorch's own error ("unexpected pos") does not give a reason.

    Raises
    ------
    OSError
        The disk is full, among others.
    """
    with open(path, "wb") as file:
        torch.save(content, file)


def load_safetensors(path: Path) -> dict[str, Any]:
    """Read a file of the safetensors format, which holds tensors and texts, and never code.

    Returns
    -------
    dict
        `model_state_dict`, the tensors by name, and `epoch`, as in the published `weights.pt`.

    Raises
    ------
    ValueError
        The file is damaged.
    ModuleNotFoundError
        safetensors is not installed.
    """
    library = _safetensors()
    try:
        with library.safe_open(path, framework="pt", device="cpu") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {"model_state_dict": state, "epoch": int(about.get("epoch", 0))}
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # of the library, or a damaged header
        raise ValueError(f"{path} is damaged: {error}") from error


def save_safetensors(weights: Mapping[str, Tensor], epoch: int, path: Path) -> None:
    """Write a file that `load_safetensors` can read.

    Raises
    ------
    ModuleNotFoundError
        safetensors is not installed.
    OSError
        The disk is full, among others.
    """
    _safetensors()
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    path.write_bytes(save(tensors, metadata={"epoch": str(epoch)}))


def _safetensors() -> Any:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "safetensors is not installed: pip install 'stellarperceptron[safetensors]'"
        ) from error
    return safetensors


def tensor_bytes(content: Any) -> int:
    """Size of the tensors in nested dictionaries and lists [bytes]."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        content = content.values()
    return sum(map(tensor_bytes, content)) if isinstance(content, list | tuple | ValuesView) else 0
