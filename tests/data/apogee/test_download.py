"""Fetching from a server on localhost that cuts, stalls, refuses, lies and comes back."""

import dataclasses
import hashlib
import re
import time
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from dr17_files import aspcap_bytes, make_spectra
from dr17_server import serve

from stellarperceptron.data.apogee.download import Archive, fetch_all
from stellarperceptron.utils.server import AbsentError, DownloadError, Manners, _moved, _retry_after

QUICK = Manners(rate=1e6, timeout=0.3, attempts=3, wait=0.001)
PATH = "dr17/a+b/star.fits"


@pytest.fixture
def server(tmp_path):
    """A server with one sound file."""
    file = tmp_path / "server" / PATH
    file.parent.mkdir(parents=True)
    file.write_bytes(aspcap_bytes(make_spectra(np.random.default_rng(0))))
    with serve(tmp_path / "server") as running:
        running.content = file.read_bytes()
        yield running


@pytest.fixture
def target(tmp_path):
    return tmp_path / "sas" / PATH


def archive_of(server, **options):
    """The archive; only where the server is slow on purpose is it given up soon."""
    slow = {"stall", "crawl", "drip"}.intersection(server.faults[PATH])
    manners = QUICK if slow else dataclasses.replace(QUICK, timeout=30)
    return Archive(server.url, manners, **{"checksums": False, **options})


def list_sums(server, sha1=None):
    """Put a list of checksums beside the file."""
    folder = server.root / Path(PATH).parent
    digest = sha1 or hashlib.sha1(server.content).hexdigest()
    (folder / "dr17_a+b.sha1sum").write_text(f"{digest}  star.fits\n{'0' * 40}  other.fits\n")


# --- one file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        ["cut"],
        ["cut"] * 8,
        ["crawl"],
        ["stall"],
        ["503"],
        ["503 0.05", "429"],
        ["html"],
        ["500", "cut", "stall"],
        ["moved /dr17/a+b/star.fits"],
    ],
    ids=" ".join,
)
def test_file_is_whole_in_the_end(server, target, faults):
    server.faults[PATH] = list(faults)
    archive_of(server).fetch(PATH, target)
    assert target.read_bytes() == server.content
    assert [path.name for path in target.parent.iterdir()] == ["star.fits"]
    assert not server.faults[PATH]


def test_only_the_rest_is_fetched(server, target):
    server.faults[PATH] = ["cut"] * 3
    archive_of(server).fetch(PATH, target)
    assert server.sent["/" + PATH] == len(server.content)
    first, *further = [asked for *_, asked in server.requests]
    assert first is None
    assert all(asked.startswith("bytes=") for asked in further)


def test_another_range_than_asked_for_is_refused(server, target):
    """A byte too few within the last data would be a sound file to its headers."""
    target.parent.mkdir(parents=True)
    target.with_name("star.fits.part").write_bytes(server.content[:-2700])
    server.faults[PATH] = ["shift"]
    archive_of(server).fetch(PATH, target)
    assert target.read_bytes() == server.content


def test_weak_tags_are_not_relied_on(server, target):
    server.weak = True
    server.faults[PATH] = ["cut"]
    archive_of(server).fetch(PATH, target)
    assert target.read_bytes() == server.content
    assert server.sent["/" + PATH] == len(server.content)


def test_server_without_ranges_sends_all_again(server, target):
    server.ranges = False
    server.faults[PATH] = ["cut"]
    archive_of(server).fetch(PATH, target)
    assert target.read_bytes() == server.content


def test_file_that_changed_meanwhile_is_fetched_anew(server, target):
    server.faults[PATH] = ["cut", "404"]
    with pytest.raises(AbsentError):
        archive_of(server).fetch(PATH, target)
    assert target.with_name("star.fits.part").stat().st_size > 0
    changed = aspcap_bytes(make_spectra(np.random.default_rng(1)))
    (server.root / PATH).write_bytes(changed)
    archive_of(server).fetch(PATH, target)
    assert target.read_bytes() == changed


def test_killed_when_a_changed_file_begins_anew(server, target, monkeypatch):
    """The new file's tag must not stand beside the old one's first half."""
    server.faults[PATH] = ["cut", "404"]
    with pytest.raises(AbsentError):
        archive_of(server).fetch(PATH, target)
    changed = aspcap_bytes(make_spectra(np.random.default_rng(1)))
    (server.root / PATH).write_bytes(changed)

    def write_and_die(path, text, really=Path.write_text, **options):
        really(path, text, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", write_and_die)
        archive_of(server).fetch(PATH, target)
    archive_of(server).fetch(PATH, target)
    assert target.read_bytes() == changed


@pytest.mark.parametrize("extra", [0, 2880])
def test_part_that_is_whole_or_too_long(server, target, extra):
    """Killed between the last byte and the new name; or a file that became shorter."""
    target.parent.mkdir(parents=True)
    target.with_name("star.fits.part").write_bytes(server.content + b"\0" * extra)
    archive_of(server).fetch(PATH, target)
    assert target.read_bytes() == server.content
    assert server.sent["/" + PATH] == (len(server.content) if extra else 0)


def test_checksum_of_the_archive_is_compared(server, target):
    list_sums(server)
    server.faults[PATH] = ["flip"]
    archive = archive_of(server, checksums=True)
    archive.fetch(PATH, target)
    assert target.read_bytes() == server.content
    assert archive.checked == 1


def test_wrong_checksum_is_said(server, target):
    list_sums(server, "1" * 40)
    with pytest.raises(DownloadError, match=r"SHA-1 .* the archive lists 1111.* after 3 tries"):
        archive_of(server, checksums=True).fetch(PATH, target)
    assert not list(target.parent.glob("*.fits"))


def test_progress_counts_what_is_kept(server, target):
    server.faults[PATH] = ["cut", "html"]
    counted = []
    server.ranges = False
    archive_of(server).fetch(PATH, target, counted.append)
    assert sum(counted) == len(server.content)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("503", "answers 503 .* given up after 3 tries"),
        ("stall", "silent for 0.3 s; given up after 3 tries"),
        ("html", "what came is no FITS file; given up"),
        ("403", "answers 403"),
        ("moved /dr17/a+b/star.fits", "in circles"),
        ("moved ftp://127.0.0.1/star.fits", "redirects to ftp:.* not secure"),
    ],
)
def test_what_does_not_end_is_given_up_with_its_reason(server, target, fault, message):
    server.faults[PATH] = [fault] * 20
    with pytest.raises(DownloadError, match=message):
        archive_of(server).fetch(PATH, target)
    assert not target.exists()


def test_wrong_checksum_on_a_link_that_cuts_is_given_up(server, target):
    """Each transfer brings something, but nothing that was not there before."""
    list_sums(server, "1" * 40)
    server.faults[PATH] = ["cut"] * 10_000
    with pytest.raises(DownloadError, match="given up after 3 tries"):
        archive_of(server, checksums=True).fetch(PATH, target)
    assert len([path for _, path, _ in server.requests if path == PATH]) < 60


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("416", "answers 416 to a request for all"),
        ("part", "another range than asked for"),
        ("moved http://[::1", "is no address"),
        ("moved http://f\xfcr.example/", "is no address"),
        ("moved http://a..b/", "leads nowhere"),
        ("endless", "longer than 2 MB"),
        ("drip", "bytes a second; given up after 3 tries"),
    ],
)
def test_a_strange_answer_ends_that_file_alone(server, target, fault, message):
    """Neither the others, nor memory, disk and patience."""
    other = server.root / "dr17/other.fits"
    other.write_bytes(server.content)
    server.faults[PATH] = [fault] * 20
    archive = archive_of(server)
    archive.manners = dataclasses.replace(archive.manners, slowest=1000.0)
    fetch = archive.fetch
    archive.fetch = lambda path, target, progress: fetch(path, target, progress, most=2_000_000)
    files = [(PATH, target), ("dr17/other.fits", target.with_name("other.fits"))]
    ended = dict(fetch_all(archive, files, workers=1))
    assert isinstance(ended[PATH], DownloadError) and re.search(message, str(ended[PATH]))
    assert ended["dr17/other.fits"] is None
    assert target.with_name("other.fits").read_bytes() == server.content


def test_an_endless_refusal_or_index_is_not_read_to_its_end(server, target):
    server.faults[PATH] = ["endless 404"]
    with pytest.raises(AbsentError):
        archive_of(server).fetch(PATH, target)
    server.faults[PATH] = ["moved /dr17/a+b/star.fits long"]
    archive_of(server).fetch(PATH, target)
    server.faults["dr17/a+b/"] = ["endless"]
    with pytest.raises(DownloadError, match="longer than 32 MB"):
        archive_of(server).text("dr17/a+b/")
    assert server.sent["/dr17/a+b/"] < 100_000_000


def test_https_never_becomes_http():
    for url in ("https://archive.example/a", "https://archive.example/b/c"):
        with pytest.raises(DownloadError, match="not secure"):
            _moved(url, "http://archive.example/a")
        assert _moved(url, "/d") == "https://archive.example/d"
    assert _moved("http://archive.example/a", "https://b.example/") == "https://b.example/"


@pytest.mark.parametrize("value", ["nan", "Fri, 99 Foo 0000", ""])
def test_waiting_times_that_are_none(value):
    assert _retry_after(value) is None


def test_absent_file_is_asked_for_once(server, target):
    with pytest.raises(AbsentError, match="404"):
        archive_of(server).fetch("dr17/nothing.fits", target)
    assert len(server.requests) == 1


def test_idle_connection_that_was_closed_is_no_failure(server, target):
    server.faults[PATH] = ["hang up"]
    archive = Archive(server.url, Manners(rate=1e6, attempts=1), checksums=False)
    archive.fetch(PATH, target)
    target.unlink()
    archive.fetch(PATH, target)
    assert target.read_bytes() == server.content


def test_nobody_there(target):
    with pytest.raises(DownloadError, match="connection failed"):
        Archive("http://127.0.0.1:9", QUICK).fetch(PATH, target)


def test_full_disk_is_no_reason_to_try_again(server, target, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        archive_of(server).fetch(PATH, target)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("data.sdss.org/sas", "no address"),
        ("ftp://host/", "no address"),
        ("file:///etc", "no address"),
        ("http://", "no address"),
        ("http://host:port/", "Port"),
        ("https://name:word@host/", "not only a host and a folder"),
        ("https://host/?folder=sas", "not only a host and a folder"),
    ],
)
def test_wrong_address_is_refused(address, message):
    with pytest.raises(ValueError, match=message):
        Archive(address)


# --- manners --------------------------------------------------------------------------------------


def test_requests_are_no_more_than_the_rate_allows(server, target):
    archive = Archive(server.url, Manners(rate=50), checksums=False)
    files = [(PATH, target.with_name(f"{i}.fits")) for i in range(10)]
    begin = time.monotonic()
    assert all(error is None for _, error in fetch_all(archive, files, workers=5))
    assert len(server.times) == 10 and max(server.times) - begin >= 0.99 * 9 / 50


def test_all_wait_when_the_server_asks_for_it(server, target):
    server.faults[PATH] = ["503 0.4"]
    files = [(PATH, target.with_name(f"{i}.fits")) for i in range(3)]
    begin = time.monotonic()
    assert all(error is None for _, error in fetch_all(archive_of(server), files, workers=1))
    assert time.monotonic() - begin > 0.4


def test_server_says_in_seconds_or_as_a_date_when_to_come_back():
    now = time.time()
    assert _retry_after("3") == 3
    assert 0 < _retry_after(formatdate(now + 100, usegmt=True)) <= 101
    assert _retry_after(formatdate(now - 100, usegmt=True)) == 0
    assert _retry_after("soon") is None


def test_connection_is_kept(server, target):
    files = [(PATH, target.with_name(f"{i}.fits")) for i in range(5)]
    opened = []
    accept = server.get_request
    server.get_request = lambda: opened.append(1) or accept()
    list(fetch_all(archive_of(server), files, workers=1))
    assert len(opened) == 1
