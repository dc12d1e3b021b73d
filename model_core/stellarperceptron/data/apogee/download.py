"""Parallel, resumed and verified downloads of FITS files from an archive.

A file is downloaded as `FILE.part`. It is renamed when its length, its structure and, if the
archive lists one, its SHA-1 are right.
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import unquote

from stellarperceptron.data.apogee.aspcap_files import check_fits
from stellarperceptron.utils.server import (
    AbsentError,
    DownloadError,
    Manners,
    Server,
    StoppedError,
    TryAgainError,
)

__all__ = ["Archive", "fetch_all"]

_FOLDERS_TRIED = 5  # without a list of checksums, before an archive is taken to have none
_LISTS = 10  # of checksums that are read of a folder; the archive has one or two
_LONGEST_FILE = 100_000_000  # bytes; an aspcapStar file has 140,000


class Archive(Server):
    """An archive of FITS files, from which any number of threads fetch.

    Parameters
    ----------
    base_url
        Address below which the files lie, http or https.
    manners
        Limits on rate, waiting times and attempts.
    checksums
        Whether to look for lists of SHA-1 sums (`*.sha1sum`) in the folders of the archive.

    Attributes
    ----------
    checked : int
        Number of files so far whose SHA-1 agreed with the archive's.
    """

    def __init__(self, base_url: str, manners: Manners | None = None, *, checksums: bool = True):
        super().__init__(base_url, manners)
        self.checked = 0
        self._sums: dict[str, dict[str, str]] = {}
        self._folder_locks: dict[str, threading.Lock] = {}
        self._folders_without_sums = 0 if checksums else _FOLDERS_TRIED

    def checksum(self, path: str) -> str:
        """SHA-1 of a file in the lists of the archive; empty if it is not listed.

        The archive keeps a list (`*.sha1sum`) in each folder, under names that differ between
        releases: it is found in the folder's index.
        """
        folder, _, name = path.rpartition("/")
        with self._lock:
            folder_lock = self._folder_locks.setdefault(folder, threading.Lock())
        with folder_lock:
            if folder not in self._sums:
                if self._folders_without_sums >= _FOLDERS_TRIED:
                    return ""
                self._sums[folder] = self._read_sums(folder)
                with self._lock:
                    found = bool(self._sums[folder])
                    self._folders_without_sums = 0 if found else self._folders_without_sums + 1
        return self._sums[folder].get(name, "")

    def _read_sums(self, folder: str) -> dict[str, str]:
        """Lists of checksums of a folder."""
        sums: dict[str, str] = {}
        try:
            index = self.text(folder + "/")
            links = sorted(set(re.findall(r'href="([^"/?]+\.sha1sum)"', index)))
            for link in links[:_LISTS]:
                for line in self.text(f"{folder}/{unquote(link)}").splitlines():
                    entry = re.fullmatch(r"([0-9a-fA-F]{40}) [ *](?:.*/)?([^/]+)", line.strip())
                    if entry:
                        sums[entry[2]] = entry[1].lower()
        except (AbsentError, DownloadError):
            pass  # no index, no list: length and structure are still checked
        return sums

    def check(self, path: str, file: Path) -> None:
        """Check the structure of a file, and its SHA-1 where the archive has a list.

        Raises
        ------
        ValueError
            The message, without the path, says what is wrong.
        """
        check_fits(file)
        expected = self.checksum(path)
        if expected:
            with open(file, "rb") as opened:
                found = hashlib.file_digest(opened, "sha1").hexdigest()
            if found != expected:
                raise ValueError(f"has the SHA-1 {found}, the archive lists {expected}")
            with self._lock:
                self.checked += 1

    def fetch(
        self,
        path: str,
        target: Path,
        progress: Callable[[int], object] = lambda n: None,
        most: int = _LONGEST_FILE,
    ) -> None:
        """Fetch a file, or the rest of it.

        Parameters
        ----------
        path
            Path below the archive's address.
        target
            Where the file belongs; until it is whole and checked, it is ``target.part``.
        progress
            Called with the number of bytes received; negative if earlier bytes are discarded.
        most
            Largest length of the file [bytes].

        Raises
        ------
        AbsentError
            The archive does not have the file.
        DownloadError
            The download was given up.
        OSError
            When the disk is full or cannot be written to.
        StoppedError
            After `stop`.
        """
        part = target.with_name(target.name + ".part")
        tag = target.with_name(target.name + ".part.tag")
        target.parent.mkdir(parents=True, exist_ok=True)
        wrong = 0

        def attempt() -> int:
            nonlocal wrong
            self._transfer(path, part, tag, progress, most)
            try:
                self.check(path, part)
            except ValueError as error:
                progress(-part.stat().st_size)
                part.unlink()
                wrong += 1
                if wrong >= self.manners.attempts:
                    raise DownloadError(
                        f"what came {error}; given up after {wrong} tries"
                    ) from error
                raise TryAgainError(f"what came {error}") from error
            os.replace(part, target)
            tag.unlink(missing_ok=True)
            return target.stat().st_size

        def there() -> int:
            return part.stat().st_size if part.exists() else 0

        self.persist(attempt, there)

    def _transfer(
        self, path: str, part: Path, tag: Path, progress: Callable[[int], object], most: int
    ) -> None:
        """Download the rest of a file; the tag shows whether the file is still the same."""
        have = part.stat().st_size if part.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and tag.exists() and (known := tag.read_text(encoding="utf-8")):
            headers["If-Range"] = known
        with self.open(path, **headers) as response:
            total = response.length
            found = re.match(
                r"bytes (?:(\d{1,18})-\d+|\*)/(\d{1,18}|\*)",
                response.headers.get("Content-Range", ""),
            )
            if response.status == 416:
                if not have:
                    raise TryAgainError("the server answers 416 to a request for all of the file")
                if found and found[2] == str(have):
                    return  # all of it was there
                progress(-have)
                part.unlink()
                raise TryAgainError("the file on the server became shorter")
            if response.status == 206:
                if not found or found[1] != str(have):
                    progress(-have)
                    part.unlink(missing_ok=True)
                    raise TryAgainError("the server sends another range than asked for")
                total = int(found[2]) if found[2] != "*" else None
            else:
                progress(-have)
                have = 0
            etag = response.headers.get("ETag", "")
            if etag.startswith("W/") or not etag:  # a weak tag does not promise equal bytes
                etag = response.headers.get("Last-Modified", "")
            if total is not None and total > most:
                raise DownloadError(f"the file has {total / 1e6:g} MB, more than {most / 1e6:g} MB")
            # What has come is written at once, so that a silence or a kill loses nothing; the tag
            # only after what belongs to another is gone.
            with open(part, "ab" if have else "wb", buffering=0) as file:
                tag.write_text(etag, encoding="utf-8")
                for chunk in self.body(response, most - have):
                    file.write(chunk)
                    have += len(chunk)
                    progress(len(chunk))
            response.read(1)  # nothing is left; the connection is free for the next request
        if total is not None and have != total:
            raise TryAgainError(f"the answer is cut off at {have} of {total} bytes")


def fetch_all(
    archive: Archive,
    files: Iterable[tuple[str, Path]],
    workers: int,
    progress: Callable[[int], object] = lambda n: None,
) -> Iterator[tuple[str, Exception | None]]:
    """Fetch many files with threads.

    Parameters
    ----------
    files
        Paths in the archive, and paths of the local files.
    workers
        Number of threads, each with a connection.
    progress
        Called with numbers of bytes, from all threads.

    Yields
    ------
    path : str
        Path in the archive, in the order in which the downloads end.
    error : AbsentError, DownloadError or None
        Why the file could not be downloaded; None if it was.

    Raises
    ------
    OSError
        When the disk is full or cannot be written to.
    """
    waiting = iter(files)
    lock = threading.Lock()
    done: SimpleQueue = SimpleQueue()

    def work() -> None:
        while True:
            with lock:
                item = next(waiting, None)
            if item is None:
                break
            try:
                archive.fetch(*item, progress)
                done.put((item[0], None))
            except (AbsentError, DownloadError) as error:
                done.put((item[0], error))
            except ValueError as error:  # what the server sends about one file is no end of all
                done.put((item[0], DownloadError(str(error))))
            except BaseException as error:  # the disk, or a stop: nothing further makes sense
                archive.stop()
                done.put(error)
                break
        done.put(None)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    running, fatal = workers, None
    try:
        while running:
            result = done.get()
            if result is None:
                running -= 1
            elif isinstance(result, BaseException):
                fatal = result if fatal is None or isinstance(fatal, StoppedError) else fatal
            else:
                yield result
    finally:
        if running:  # the caller has had enough, or was interrupted
            archive.stop()
            for thread in threads:
                thread.join(timeout=5.0)
    if fatal is not None:
        raise fatal
