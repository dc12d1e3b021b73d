"""Files that are written whole or not at all, their origin, the user's cache, safe texts."""

import ctypes
import errno
import functools
import glob
import os
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stellarperceptron.utils.locks import FileLock, machine

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

__all__ = [
    "atomic_output",
    "check_output_file",
    "check_output_folder",
    "escaped",
    "plain_text",
    "require_arrays",
    "require_names",
    "room_to_close",
    "user_cache",
    "written_by",
]

# The disk, the user's share of it, or the size of a file.
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}


def user_cache() -> Path:
    """Cache folder of the user for everything that this package downloads."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).expanduser() / "stellarperceptron"


def written_by() -> dict[str, str]:
    """Origin of a file: `version` of this package and, run from a checkout, its git `commit`.

    A commit with changes that are not committed ends in "-dirty".
    """
    commit = _commit()
    return {"version": version("stellarperceptron")} | ({"commit": commit} if commit else {})


@functools.cache
def _commit() -> str:
    """Commit of the checkout that holds this file; empty for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not ((root / ".git").exists() and (root / "model_core").is_dir()):
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    unlocked = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            [*command, "--abbrev=12"], env=unlocked, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):  # no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.2f} MB"


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove what processes left beside `path` when they were killed; we hold its lock.

    Only processes of this very system: it is certain that none of them writes to `path`.
    """
    name = f"{glob.escape(path.name)}.{machine()}.*"
    for previous in path.parent.glob(f"{name}.previous"):
        if path.exists():
            _remove(previous)
        else:  # killed between the two renamings: nothing else is there
            os.replace(previous, path)
    for leftover in path.parent.glob(f"{name}.partial"):
        _remove(leftover)


@contextmanager
def _ended_by_exception() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a closed terminal) raise `SystemExit` where they would kill.

    So nothing half-written is left.
    """
    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    mine = [n for n in numbers if n is not None and signal.getsignal(n) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        mine = []

    def end(number: int, *_: object) -> None:
        for one in mine:
            signal.signal(one, signal.SIG_IGN)  # not while we clean up
        raise SystemExit(128 + number)

    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def _check_place(path: Path) -> None:
    """Check that a file or folder can lie at `path`.

    Raises
    ------
    NotADirectoryError
        Something above it is a file.
    """
    above = next(folder for folder in path.parents if folder.exists() or folder.is_symlink())
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{above} is no folder")


def check_output_file(path: str | os.PathLike) -> None:
    """Check that a file can be written, before any work is done.

    Raises
    ------
    IsADirectoryError
        There is a folder at `path`.
    NotADirectoryError
        Something above it is a file.
    PermissionError
        Its folder cannot be written to.
    """
    path = Path(path).resolve()
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{path} is a folder: give the name of a file")
    _check_place(path)
    _check_writable(path.parent)


def check_output_folder(path: str | os.PathLike) -> None:
    """Check that files can be written into a folder, before any work is done.

    Raises
    ------
    NotADirectoryError
        There is a file at `path`, or above it.
    PermissionError
        It cannot be written to.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is a file: give the name of a folder")
    _check_place(path)
    _check_writable(path)


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            errno.EACCES, f"{there} belongs to someone else: choose a folder that you may write to"
        )


@contextmanager
def atomic_output(path: str | os.PathLike, *, expected_bytes: int | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well.

    A block that raises, or a process that dies, leaves what was at `path` before. The block may
    write a file or make a folder. It works in a folder of its own with a random name, which no
    other process can have, and holds a lock: of two that write the same output at once, the second
    one fails. What killed processes of this machine left behind is removed.

    Parameters
    ----------
    path
        Where the result belongs. Its parent folder is made when it is missing.
    expected_bytes
        Size of the result, when it is known beforehand [bytes]. The free space is checked first.

    Yields
    ------
    pathlib.Path
        The temporary path to write to.

    Raises
    ------
    BusyError
        Another process is writing the same output; an `OSError` that says which one.
    OSError
        When the disk is too full; the message says how much is needed. The temporary file is
        removed.
    IsADirectoryError
        When a file was made and `path` is a folder, which is left as it is.
    NotADirectoryError
        When the parent of `path` is a file.
    """
    path = Path(path).resolve()  # what a link points to is replaced, not the link
    _check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if expected_bytes is not None:
        free = shutil.disk_usage(path.parent).free
        if free < expected_bytes:
            raise OSError(
                errno.ENOSPC,
                f"{path} needs {_size(expected_bytes)}, but its disk has {_size(free)} free: make "
                "room or choose another folder",
            )
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0] if resource is not None else -1
        if 0 <= limit < expected_bytes:
            raise OSError(
                errno.EFBIG,
                f"the disk is full, or a limit is reached (files may have {_size(limit)}, ulimit "
                f"-f): {path} needs {_size(expected_bytes)}; nothing was written",
            )
    with (
        FileLock(path.with_name(f".{path.name}.lock"), f"{path}, which is being written,") as lock,
        _ended_by_exception(),
    ):
        if lock.held:
            _remove_abandoned(path)
        unique = f"{path.name}.{machine()}.{secrets.token_hex(8)}"
        own = path.with_name(f"{unique}.partial")
        try:
            own.mkdir()  # fails where the name is taken
            temporary = own / path.name
            yield temporary
            _replace(temporary, path, path.with_name(f"{unique}.previous"))
        except OSError as error:
            if error.errno not in _FULL:
                raise
            need = _size(expected_bytes) if expected_bytes else "more space"
            raise OSError(
                errno.ENOSPC,
                f"the disk is full, or a limit is reached ({error.strerror}): {path} needs {need}; "
                "nothing was written",
            ) from error
        finally:
            _remove(own)


@contextmanager
def room_to_close(folder: Path, size: int = 32_000_000) -> Iterator[None]:
    """Hold room on a disk until the block ends, so that HDF5 can close its file in any case.

    HDF5 crashes if it cannot write what it still holds when a file is closed. Put this context
    within that of the file.

    Parameters
    ----------
    folder
        Folder of the file; a temporary file takes the room.
    size
        What HDF5 may hold [bytes].

    Raises
    ------
    OSError
        The disk has no such room.
    """
    reserve = folder / "room.reserve"
    try:
        with open(reserve, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))
        yield
    finally:
        reserve.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step, where the system can (Linux); False where it cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <linux/fs.h>
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _replace(temporary: Path, path: Path, previous: Path) -> None:
    """Put `temporary` in the place of `path`, which may be a folder that holds something.

    `previous` is where such a folder lies meanwhile, on systems that cannot exchange two.
    """
    if not path.is_dir():
        os.replace(temporary, path)
        return
    if not temporary.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{path} is a folder: give the name of a file")
    # A folder that is not empty cannot be renamed over.
    if _exchange(temporary, path):
        return
    os.replace(path, previous)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(previous, path)
        raise
    _remove(previous)


# --- texts in tables ------------------------------------------------------------------------------

# What begins a formula in spreadsheets.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain_text(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: such texts get an apostrophe in front.

    Numbers stay as they are, as texts too. Bytes of a name that are no text become escapes.

    Examples
    --------
    >>> plain_text("=1+1"), plain_text("-9999"), plain_text("2M00000000+0000000")
    ("'=1+1", '-9999', '2M00000000+0000000')
    """
    if not isinstance(value, str):
        return value
    value = value.encode("utf-8", "backslashreplace").decode("utf-8")
    if not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def escaped(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts are plain ones; see `plain_text`."""
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    return table.assign(**{name: table[name].map(plain_text) for name in texts})


def require_names(what: str, arrays: Mapping[str, np.ndarray], names: Collection[str]) -> None:
    """Refuse arrays of a file that are not exactly those with these names.

    Raises
    ------
    ValueError
        Some are missing, or there are others; `what` says whose they are.
    """
    if set(arrays) != set(names):
        raise ValueError(f"{what} has {sorted(arrays)}, not {sorted(names)}")


def require_arrays(
    what: str,
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    vocab_size: int,
) -> None:
    """Refuse arrays of a file that have other shapes, or numbers that are not finite.

    Parameters
    ----------
    what
        Whose they are, for the message.
    arrays, shapes
        The arrays, and the shape of each. Those whose names end in "tokens" are integers.
    vocab_size
        The largest token.

    Raises
    ------
    ValueError
        An array is not as it must be; the message names it.
    """
    for name, shape in shapes.items():
        array, whole = arrays[name], name.endswith("tokens")
        if array.shape != shape or array.dtype.kind not in ("iu" if whole else "f"):
            raise ValueError(f"{name} of {what} is not an array of {shape} numbers")
        if whole and array.size and not 1 <= array.min() <= array.max() <= vocab_size:
            raise ValueError(f"{name} of {what} are not tokens of this model")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} of {what} is not finite")
