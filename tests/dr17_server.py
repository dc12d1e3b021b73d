"""An archive served on localhost, which can be told to misbehave."""

import os
import re
import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class ArchiveServer(ThreadingHTTPServer):
    """Serve the files below `root`, with ranges, tags and an index of folders.

    `faults` holds for a path a list of what happens to its next requests: "cut" and "crawl" (half
    of the answer, then an end or silence), "stall", "html", "flip" (a wrong byte), "hang up" (after
    the answer), "shift" (a range that begins a byte late), "moved /path", or a status, with or
    without seconds to wait ("503 0.2"); "endless" and "endless 404" (bodies without an end), "drip"
    (a byte at a time), "part" (a range, though all was asked for). `ranges` is whether it knows
    ranges, `weak` whether its tags are weak, so that only the date promises equal bytes.
    `requests` holds what was asked for: method, path, range; `sent` the bytes of each path.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.faults = defaultdict(list)
        self.requests = []
        self.times = []
        self.sent = Counter()
        self.ranges = True
        self.weak = False
        self.over = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_):
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _send(self, status, data=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.server.sent[self.path] += len(data)
            self.wfile.write(data)

    def _pour(self, status, piece, pause):
        """An answer without an end: pieces, with pauses, until the client has had enough."""
        self.send_response(status)
        self.end_headers()
        self.close_connection = True
        try:
            while not self.server.over.wait(pause):
                self.wfile.write(piece)
                self.server.sent[self.path] += len(piece)
        except OSError:
            pass

    def _answer(self, body):
        server, path = self.server, unquote(self.path).lstrip("/")
        asked = self.headers.get("Range")
        server.requests.append((self.command, path, asked))
        server.times.append(time.monotonic())
        faults = server.faults[path] if body else []
        fault = faults.pop(0) if faults else ""
        file = server.root / path
        if fault.startswith("endless"):
            return self._pour(int(fault[8:] or 200), bytes(1 << 16), 0)
        if fault == "drip":
            return self._pour(200, b"S", 0.02)
        if fault == "part":
            length = file.stat().st_size
            return self._send(206, b"x" * 9, Content_Range=f"bytes {length - 9}-{length}/{length}")
        if fault[:3].isdecimal():
            status, _, wait = fault.partition(" ")
            return self._send(int(status), b"not now", **({"Retry_After": wait} if wait else {}))
        if fault == "html":
            return self._send(200, b"<html>We are sorry</html>" * 100)
        if fault.startswith("moved"):
            return self._send(
                302, b"moved" * int(fault.endswith("long")) * 100_000, Location=fault.split()[1]
            )
        if fault == "stall":
            server.over.wait(20)
            self.close_connection = True
            return None
        if file.is_dir() and path.endswith("/"):
            links = [f'<a href="{entry.name}">{entry.name}</a>' for entry in file.iterdir()]
            return self._send(200, "\n".join(links).encode())
        if not file.is_file():
            return self._send(404, b"not here")
        data, tag = file.read_bytes(), f'"{file.stat().st_mtime_ns:x}"'
        if fault == "flip":  # damaged on the way
            data = data[:-1] + bytes([data[-1] ^ 1])
        first, headers, status = 0, {"ETag": tag}, 200
        if server.weak:
            headers = {"ETag": f"W/{tag}", "Last-Modified": formatdate(file.stat().st_mtime)}
            tag = headers["Last-Modified"]
        found = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if found and server.ranges and self.headers.get("If-Range", tag) == tag:
            first, status = int(found[1]) + (fault == "shift"), 206
            if first >= len(data):
                return self._send(416, Content_Range=f"bytes */{len(data)}")
            headers["Content_Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        if fault in ("cut", "crawl"):
            part = data[first : first + max((len(data) - first) // 2, 1)]
            self.send_response(status)
            self.send_header("Content-Length", str(len(data) - first))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            server.sent[self.path] += len(part)
            self.wfile.write(part)
            self.wfile.flush()
            if fault == "crawl":
                server.over.wait(20)
            self.close_connection = True
            return None
        self.close_connection = fault == "hang up"
        return self._send(status, data[first:], **headers)


@contextmanager
def serve(root):
    """A server of the files below `root`."""
    server = ArchiveServer(root)
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = "127.0.0.1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        os.environ.pop("no_proxy") if before is None else os.environ.update(no_proxy=before)
        server.over.set()
        server.shutdown()
        server.server_close()
