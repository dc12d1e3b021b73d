"""Files written whole or not at all."""

import ctypes
import errno
import glob
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_output"]


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove what processes of this machine left beside `path` when they were killed."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.{platform.node()}.*.partial"):
        number = leftover.name.split(".")[-2]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            _remove(leftover)
        except (ValueError, PermissionError):
            continue


@contextmanager
def atomic_output(path: str | os.PathLike, *, expected_bytes: int | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well.

    A block that raises, or a process that dies, leaves what stood at `path` untouched. The block
    may write a file or make a folder.

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
    OSError
        When the disk is too full; the message says how much is needed. The temporary file is
        removed.
    IsADirectoryError
        When a file was made and `path` is a folder, which is left as it is.
    NotADirectoryError
        When the parent of `path` is a file.
    """
    path = Path(path).resolve()  # what a link points to is replaced, not the link
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, f"{path.parent} is no folder") from error
    if expected_bytes is not None:
        free = shutil.disk_usage(path.parent).free
        if free < expected_bytes:
            raise OSError(
                errno.ENOSPC,
                f"{path} needs {expected_bytes / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB "
                "free: make room or choose another folder",
            )
    _remove_abandoned(path)
    temporary = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.partial")
    _remove(temporary)
    try:
        yield temporary
        _replace(temporary, path)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            need = f"{expected_bytes / 1e9:.2f} GB" if expected_bytes else "more space"
            raise OSError(
                errno.ENOSPC, f"the disk is full: {path} needs {need}; nothing was written"
            ) from error
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step, where the system can (Linux); False where it cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <linux/fs.h>
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _replace(temporary: Path, path: Path) -> None:
    """Put `temporary` in the place of `path`, which may be a folder that holds something."""
    if not path.is_dir():
        os.replace(temporary, path)
        return
    if not temporary.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{path} is a folder: give the name of a file")
    # A folder that is not empty cannot be renamed over.
    if _exchange(temporary, path):
        _remove(temporary)
        return
    previous = path.with_name(f"{path.name}.{os.getpid()}.previous")
    _remove(previous)
    os.replace(path, previous)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(previous, path)
        raise
    _remove(previous)
