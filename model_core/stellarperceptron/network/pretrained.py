"""Trained models by name: one comes with the package, others are downloaded once.

A place on the web that publishes checkpoints has a folder for each, and a file `registry.txt` with
their checksums, which ``pooch.make_registry`` writes.
"""

import os
import re
import tempfile
from pathlib import Path

from stellarperceptron.network.checkpoint import CARD
from stellarperceptron.utils.arguments import with_nearest
from stellarperceptron.utils.data_utils import atomic_output, user_cache

__all__ = ["ADDRESS_VARIABLE", "REGISTRY", "SHIPPED", "find_pretrained", "shipped_names"]

SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"
"""Folder of the checkpoints that come with the package."""
ADDRESS_VARIABLE = "STELLARPERCEPTRON_CHECKPOINTS"
"""Environment variable with the address where other checkpoints are published."""
REGISTRY = "registry.txt"
"""File with the checksums of what is published there."""

_NEEDED = ("config.json", "weights.pt")
_FILES = (*_NEEDED, "embed_map.npz", "reference.npz", CARD)
_NAME = re.compile(r"\w[\w.-]*")  # of a model, and of its folder


def shipped_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def find_pretrained(name: str, address: str | None = None) -> Path:
    """Find the checkpoint of a trained model, and download it if need be.

    Parameters
    ----------
    name
        Of a model that comes with the package, or that is published at `address`.
    address
        Where checkpoints are published. None: the environment variable `ADDRESS_VARIABLE`.
        Without either, nothing is downloaded.

    Returns
    -------
    Path
        Folder of the checkpoint. What was downloaded is kept in the user's cache.

    Raises
    ------
    ValueError
        The name is unknown (the message lists the known ones), the address has no list of
        checksums, or a file has another checksum than that list says.
    ModuleNotFoundError
        Something must be downloaded, and pooch is not installed.
    OSError
        The address cannot be reached.
    """
    shipped = shipped_names()
    if name in shipped:
        return SHIPPED / name
    address = (address or os.environ.get(ADDRESS_VARIABLE, "")).rstrip("/")
    if not address:
        raise ValueError(
            f"no pretrained model {with_nearest(name, shipped)}: this package comes with "
            f"{', '.join(shipped)}; name the address of others in {ADDRESS_VARIABLE}"
        )
    cache = user_cache() / "checkpoints" / re.sub(r"[^\w.-]+", "_", address)
    if _NAME.fullmatch(name) and (cache / name).is_dir():
        return cache / name
    published = _read_registry(address)
    if name not in published:
        raise ValueError(
            f"no pretrained model {with_nearest(name, [*shipped, *published])}: this package comes "
            f"with {', '.join(shipped)}; {address} has {', '.join(published)}"
        )
    with atomic_output(cache / name) as temporary:
        _fetch(address, name, published[name], temporary)
    return cache / name


def _pooch():
    """The library that downloads."""
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "models that do not come with the package are downloaded with pooch: "
            "pip install 'stellarperceptron[download]'"
        ) from error
    return pooch


def _read_registry(address: str) -> dict[str, dict[str, str]]:
    """Checksums of the files of each model that is published at an address."""
    pooch, url = _pooch(), f"{address}/{REGISTRY}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / REGISTRY
        registry = pooch.create(path=folder, base_url=address)
        try:
            pooch.HTTPDownloader()(url, str(path), registry)
        except (OSError, ValueError) as error:
            raise OSError(f"{url} cannot be read: {error}") from error
        try:
            registry.load_registry(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{url} is no list of checksums: {error}") from error
    published: dict[str, dict[str, str]] = {}
    for entry, checksum in registry.registry.items():
        name, _, file = entry.partition("/")
        if _NAME.fullmatch(name) and file in _FILES:
            published.setdefault(name, {})[file] = checksum
    published = {name: files for name, files in published.items() if files.keys() >= {*_NEEDED}}
    if not published:
        raise ValueError(f"{url} lists no model: lines such as 'NAME/{_NEEDED[0]} SHA256'")
    return published


def _fetch(address: str, name: str, checksums: dict[str, str], folder: Path) -> None:
    """Download the files of a model into a folder and check them."""
    remote = _pooch().create(folder, f"{address}/{name}/", registry=checksums)
    for file in checksums:
        try:
            remote.fetch(file)
        except OSError as error:
            raise OSError(f"{address}/{name}/{file} cannot be read: {error}") from error
        except ValueError as error:
            raise ValueError(f"{address}/{name}/{file} is not what {REGISTRY} says: {error}") from (
                error
            )
