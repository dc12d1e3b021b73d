"""Locks between processes: files that one process holds, and that the system frees when it ends."""

import contextlib
import errno
import os
import platform
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    try:
        import msvcrt
    except ImportError:
        msvcrt = None

__all__ = ["BusyError", "FileLock", "machine"]

# What file systems without locks answer.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# Windows keeps others from reading locked bytes: this one lies behind all text.
_LOCKED_BYTE = 2**30


class BusyError(OSError):
    """Another process holds a lock; the message says which one."""


def machine() -> str:
    """A name of the running system, the same in all of its containers and new after a restart.

    Processes of one running system see each other's locks, so a lock that is free there belongs
    to no living process.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return boot.replace("-", "")[:12]
    except OSError:
        return "".join(letter if letter.isalnum() else "-" for letter in platform.node())


class FileLock:
    """A lock on a file of its own, which says who holds it.

    The system frees it when the process ends, however that happens. On file systems without locks
    nothing is held, and `held` is False.

    Parameters
    ----------
    path
        The file of the lock; made when it is missing, removed when the lock is released.
    what
        What is locked, for the message: "the folder runs/1".
    shared
        Any number of processes may hold it, as long as all of them share it.

    Attributes
    ----------
    held : bool
        Whether this process holds it.
    """

    def __init__(self, path: str | os.PathLike, what: str, *, shared: bool = False):
        self.path, self.what, self.shared = Path(path), what, shared
        self.held = False
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock; nothing happens where it is held already.

        Raises
        ------
        BusyError
            Another process, or another part of this one, holds it.
        """
        while not self.held:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
            file = os.open(self.path, flags, 0o666)
            try:
                if not _try_lock(file, self.shared):
                    os.close(file)
                    self._remove()
                    return
            except BlockingIOError as error:
                holder = _read(file)
                os.close(file)
                raise BusyError(
                    errno.EAGAIN,
                    f"{self.what} is in use by {holder}: wait for it to end, or choose another "
                    "output",
                ) from error
            except BaseException:
                os.close(file)
                raise
            # Whoever held it before may have removed the file between our two steps.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(self.path)):
                    self._file, self.held = file, True
            if not self.held:
                os.close(file)
        self._sign()

    def _sign(self) -> None:
        """Write who holds the lock; a full disk is no reason to stop."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"process {os.getpid()} on {platform.node()} since {since}\n"
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, text.encode("utf-8"))

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if not self.held:
            return
        self.held = False
        if not self.shared and fcntl is not None:
            self._remove()
        os.close(self._file)
        if not self.shared and fcntl is None:  # Windows removes no file that is open
            self._remove()

    def _remove(self) -> None:
        """Remove the file; one that cannot be removed does no harm."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def __enter__(self) -> "FileLock":
        self.acquire()
        return self

    def __exit__(self, *_) -> None:
        self.release()

    def __del__(self):
        if self.held and self._file is not None:
            with contextlib.suppress(OSError):
                self.release()


def _try_lock(file: int, shared: bool) -> bool:
    """Lock an open file; False where that is not possible at all.

    Raises
    ------
    BlockingIOError
        Someone else holds the lock.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        if msvcrt is None or shared:  # Windows knows no shared lock of this kind
            return False
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        return True
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if fcntl is None and error.errno in (errno.EACCES, errno.EDEADLK):
            raise BlockingIOError(*error.args) from error
        raise


def _read(file: int) -> str:
    """Process that signed a lock."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        return os.read(file, 1000).decode("utf-8", "replace").strip() or "another process"
    except OSError:
        return "another process"
