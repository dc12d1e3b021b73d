"""HDF5 files of strangers: everything must be in the file itself, as long as it is declared."""

import math
from pathlib import Path

import h5py

__all__ = ["MOST_COMPRESSED", "own_dataset", "own_group"]

MOST_COMPRESSED = 100
"""How many times longer than its stored bytes a compressed data set may be."""


def _require_own_link(group: h5py.Group, name: str, path: Path) -> None:
    """Check that a name is there and means an object of this file.

    Raises
    ------
    KeyError
        There is none.
    ValueError
        It is a link to another place or file, which is not followed.
    """
    link = group.get(name, getlink=True)
    if link is None:
        raise KeyError(name)
    if isinstance(link, h5py.ExternalLink):
        raise ValueError(
            f"{path}: '{name}' leads to another file ({link.filename}), which is not opened: copy "
            "the data into one file"
        )
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{path}: '{name}' is a link ({link.path}), which is not followed")


def own_group(file: h5py.Group, name: str, path: Path) -> h5py.Group:
    """Group of a file that is no link to another one.

    Raises
    ------
    KeyError
        There is none.
    ValueError
        It is a link, or no group.
    """
    _require_own_link(file, name, path)
    group = file[name]
    if not isinstance(group, h5py.Group):
        raise ValueError(f"{path}: '{name}' is no group")
    return group


def own_dataset(group: h5py.Group, name: str, path: Path) -> h5py.Dataset:
    """Data set that has all its data in its own file.

    Raises
    ------
    KeyError
        There is none.
    ValueError
        It is a link, a virtual data set, has its data in other files, or declares more than it
        has.
    """
    _require_own_link(group, name, path)
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{path}: '{name}' is no data set")
    name = dataset.name.lstrip("/")
    if dataset.is_virtual or dataset.external:
        kind = "virtual" if dataset.is_virtual else "stored outside"
        raise ValueError(
            f"{path}: '{name}' is {kind}: its data lie in other files, which are not opened; copy "
            "them into this one"
        )
    declared = math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    # Filters other than checksums may make the data shorter.
    filters = dataset.id.get_create_plist()
    codes = {filters.get_filter(i)[0] for i in range(filters.get_nfilters())}
    compressed = bool(codes - {h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SHUFFLE})
    if stored * (MOST_COMPRESSED if compressed else 1) < declared:
        limit = f", more than {MOST_COMPRESSED} times as many" if compressed else ""
        raise ValueError(
            f"{path}: '{name}' declares {declared} bytes{limit}, but the file has {stored} of them"
        )
    return dataset
