"""Requests to a server: polite, through one connection a thread, repeated when that may help.

All threads together start at most so many requests a second, and all wait when the server asks for
it (Retry-After).
"""

import email.utils
import errno
import http.client
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

__all__ = ["AbsentError", "DownloadError", "Manners", "Server", "StoppedError", "TryAgainError"]

_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
_REDIRECTS = {301, 302, 303, 307, 308}
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_LONGEST_WAIT = 600.0  # for a server that says when to come back [s]
_CHUNK = 1 << 18
_SHORT = 1 << 16  # of an answer that is not wanted, so much is read to keep the connection [bytes]
_LONGEST_TEXT = 32_000_000  # bytes


class AbsentError(Exception):
    """The archive does not have a file (404 or 410)."""


class DownloadError(Exception):
    """A file was given up; the message says why."""


class StoppedError(Exception):
    """`Server.stop` was called."""


class TryAgainError(Exception):
    """A failure that may not happen again.

    Attributes
    ----------
    wait : float or None
        Seconds that the server asks to wait.
    slow : bool
        Whether the answer came too slowly: then the few bytes that came are no progress.
    """

    def __init__(self, reason: str, wait: float | None = None, slow: bool = False):
        super().__init__(reason)
        self.wait, self.slow = wait, slow


@dataclass(frozen=True)
class Manners:
    """Limits that requests to a server respect.

    Attributes
    ----------
    rate
        Requests that are started in a second, by all threads together.
    timeout
        A connection that is silent for so long is given up [s].
    attempts
        Tries in a row that may fail without a byte of progress.
    wait
        Before the second try [s]; doubled for each further one, up to `longest_wait`, and half of
        it at random, so that threads do not come back all at once.
    longest_wait
        Between two tries [s], unless the server asks for more.
    slowest
        A connection that brings fewer bytes a second during `timeout` is given up.
    """

    rate: float = 20.0
    timeout: float = 60.0
    attempts: int = 6
    wait: float = 1.0
    longest_wait: float = 60.0
    slowest: float = 100.0


class Server:
    """A server, or a folder of one, that any number of threads ask.

    Parameters
    ----------
    base_url
        Address below which everything lies, http or https.
    manners
        How the server is treated.

    Raises
    ------
    ValueError
        For what is no such address.
    """

    def __init__(self, base_url: str, manners: Manners | None = None):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{base_url}' is no address that begins with https:// or http://")
        if parts.username is not None or parts.query or parts.fragment or parts.port == 0:
            raise ValueError(f"'{base_url}' is not only a host and a folder: leave the rest away")
        self.base_url = base_url.rstrip("/") + "/"
        self.manners = manners or Manners()
        self._lock = threading.Lock()
        self._next_start = 0.0
        self._stopped = threading.Event()
        self._local = threading.local()

    def stop(self) -> None:
        """End all threads' work soon."""
        self._stopped.set()

    def go_on(self) -> None:
        """Raise `StoppedError` after `stop`."""
        if self._stopped.is_set():
            raise StoppedError

    def _pause(self, seconds: float) -> None:
        """Wait, unless everything is stopped."""
        if self._stopped.wait(max(seconds, 0.0)):
            raise StoppedError

    def _take_turn(self) -> None:
        """Wait until the next request may be started."""
        with self._lock:
            start = max(self._next_start, time.monotonic())
            self._next_start = start + 1.0 / self.manners.rate
        self._pause(start - time.monotonic())

    def _connection(self, scheme: str, host: str) -> http.client.HTTPConnection:
        """Connection of a thread to a host, through a proxy where the environment names one."""
        connections = self._local.__dict__.setdefault("connections", {})
        if (scheme, host) not in connections:
            secure = scheme == "https"
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            proxy = urlsplit(getproxies().get(scheme, ""))
            if proxy.hostname and not proxy_bypass(host):
                connection = kind(proxy.hostname, proxy.port, timeout=self.manners.timeout)
                connection.set_tunnel(host)
            else:
                connection = kind(host, timeout=self.manners.timeout)
            connections[scheme, host] = connection
        return connections[scheme, host]

    def _send(self, method: str, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Send a request, follow redirections, and give what the server answers."""
        headers = {
            "User-Agent": f"stellarperceptron/{version('stellarperceptron')}",
            "Accept-Encoding": "identity",
            **headers,
        }
        for _ in range(6):
            parts = urlsplit(url)
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            self._take_turn()
            connection = self._connection(parts.scheme, parts.netloc)
            reused = connection.sock is not None
            try:
                connection.request(method, target, headers=headers)
                response = connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionError):
                connection.close()
                if not reused:
                    raise
                # The server closed a connection that was idle: that is no failure.
                connection.request(method, target, headers=headers)
                response = connection.getresponse()
            if response.status not in _REDIRECTS or not response.headers.get("Location"):
                return response
            if not _drained(response):
                connection.close()
            url = _moved(url, response.headers["Location"])
        raise DownloadError("the server redirects in circles")

    @contextmanager
    def open(
        self, path: str, *, method: str = "GET", **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        """Answer to a request for a path below the address: 200, 206 or 416.

        Raises
        ------
        AbsentError
            When the server does not have it.
        TryAgainError
            For what `persist` repeats.
        DownloadError
            For what would not go right the next time.
        OSError
            When the disk cannot be written to within the block.
        """
        url = urljoin(self.base_url, quote(path, safe="/+"))
        clean = False
        try:
            try:
                response = self._send(method, url, headers)
            except ValueError as error:  # such as a host that cannot be one
                raise DownloadError(f"the server leads nowhere ({error})") from error
            if response.status in (404, 410):
                clean = _drained(response)
                raise AbsentError(f"the archive does not have it ({response.status})")
            if response.status in _TEMPORARY:
                raise TryAgainError(
                    f"the server answers {response.status} {response.reason}",
                    _retry_after(response.headers.get("Retry-After")),
                )
            if response.status not in (200, 206, 416):
                raise DownloadError(f"the server answers {response.status} {response.reason}")
            yield response
            clean = response.isclosed()
        except TimeoutError as error:
            seconds = self.manners.timeout
            raise TryAgainError(f"the server was silent for {seconds:g} s") from error
        except http.client.HTTPException as error:
            raise TryAgainError(f"the answer is cut off ({type(error).__name__})") from error
        except OSError as error:
            if error.errno in _DISK or error.filename is not None:
                raise
            raise TryAgainError(f"the connection failed ({error})") from error
        finally:
            if not clean:  # an answer that was not read to its end blocks the next one
                for connection in self._local.__dict__.get("connections", {}).values():
                    connection.close()

    def body(self, response: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
        """Pieces of an answer, which must neither be too long nor come too slowly.

        Parameters
        ----------
        response
            From `open`.
        most
            Length that it may have [bytes].

        Raises
        ------
        DownloadError
            It is longer.
        TryAgainError
            It is too slow.
        StoppedError
            After `stop`.
        """
        if response.length is not None and response.length > most:
            raise DownloadError(_too_long(most))
        received, since, before = 0, time.monotonic(), 0
        while chunk := response.read1(_CHUNK):
            received += len(chunk)
            if received > most:
                raise DownloadError(_too_long(most))
            yield chunk
            self.go_on()
            seconds = time.monotonic() - since
            if seconds > self.manners.timeout:
                if received - before < self.manners.slowest * seconds:
                    rate = (received - before) / seconds
                    raise TryAgainError(f"the server sends {rate:.3g} bytes a second", slow=True)
                since, before = time.monotonic(), received

    def persist(self, attempt: Callable[[], int | bytes], progress: Callable[[], int]) -> Any:
        """Repeat an attempt, with growing pauses, until it succeeds or nothing moves any more.

        Parameters
        ----------
        attempt
            Raises `TryAgainError` when it should be repeated.
        progress
            What has been reached; beyond the furthest point so far, failures are counted anew.

        Raises
        ------
        DownloadError
            After so many failures in a row as the manners allow.
        """
        failures, furthest = 0, progress()
        while True:
            self.go_on()
            try:
                return attempt()
            except TryAgainError as error:
                now = progress()
                failures = 0 if now > furthest and not error.slow else failures + 1
                furthest = max(furthest, now)
                if failures >= self.manners.attempts:
                    tries = f"{failures} tries" if failures > 1 else "one try"
                    raise DownloadError(f"{error}; given up after {tries}") from error
                if error.wait is not None:
                    with self._lock:
                        later = time.monotonic() + min(error.wait, _LONGEST_WAIT)
                        self._next_start = max(self._next_start, later)
                wait = self.manners.wait * 2.0 ** max(failures - 1, 0)
                self._pause(min(wait, self.manners.longest_wait) * random.uniform(0.5, 1.0))

    def size(self, path: str) -> int:
        """Length of a file, which is not fetched [bytes].

        Raises
        ------
        AbsentError, DownloadError
        """

        def attempt() -> int:
            with self.open(path, method="HEAD") as response:
                length = response.headers.get("Content-Length", "")
                response.read()  # nothing follows a HEAD
                return int(length) if length.isdecimal() and len(length) < 19 else 0

        return self.persist(attempt, lambda: 0)

    def text(self, path: str) -> str:
        """Text of a short file.

        Raises
        ------
        AbsentError, DownloadError
        """

        def attempt() -> bytes:
            with self.open(path) as response:
                return b"".join(self.body(response, _LONGEST_TEXT))

        return self.persist(attempt, lambda: 0).decode("utf-8", "replace")


def _too_long(most: int) -> str:
    return f"the answer is longer than {most / 1e6:g} MB, which no such file is"


def _drained(response: http.client.HTTPResponse) -> bool:
    """Read an answer that is not wanted; False where it is too long to be read to its end."""
    response.read(_SHORT)
    return response.isclosed()


def _moved(url: str, location: str) -> str:
    """Address that a server redirects to.

    Raises
    ------
    DownloadError
        It is no address, or a step from https to http.
    """
    try:
        moved = urljoin(url, location)
        parts = urlsplit(moved)
        known = bool(parts.hostname) and parts.port != 0 and moved.isascii()
    except ValueError:
        known = False
    if not known:
        raise DownloadError(f"the server redirects to {location[:200]!a}, which is no address")
    if parts.scheme not in ("https", urlsplit(url).scheme):
        raise DownloadError(f"the server redirects to {moved}, which is not secure")
    return moved


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait: a number or a date; None when it does not."""
    if value is None:
        return None
    try:
        seconds = float(value)
        return max(seconds, 0.0) if not math.isnan(seconds) else None
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None
