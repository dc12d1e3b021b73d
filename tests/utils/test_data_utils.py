"""Outputs appear whole or not at all, and never in the place of something else."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

from stellarperceptron.utils import data_utils, locks
from stellarperceptron.utils.data_utils import (
    atomic_output,
    check_output_file,
    check_output_folder,
    room_to_close,
)
from stellarperceptron.utils.locks import BusyError


def test_a_checkout_knows_its_commit(tmp_path, monkeypatch):
    made = data_utils.written_by()
    assert made["version"] == version("stellarperceptron")
    root = Path(__file__).parents[2]
    git = shutil.which("git")
    if git and (root / ".git").exists():
        head = subprocess.check_output([git, "-C", root, "rev-parse", "HEAD"], text=True)
        assert head.startswith(made["commit"].removesuffix("-dirty"))
    data_utils._commit.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert data_utils.written_by() == {"version": made["version"]}
    data_utils._commit.cache_clear()


def test_a_file_appears_when_it_is_whole(tmp_path):
    with atomic_output(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text() == "whole"
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_previous_file(tmp_path, error):
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(error), atomic_output(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "before"


def test_a_file_never_replaces_a_folder(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    path = tmp_path / "thesis"
    with pytest.raises(IsADirectoryError, match="name of a file"), atomic_output(path) as temporary:
        temporary.write_text("survey")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.txt"
    with pytest.raises(NotADirectoryError, match="file is no folder"), atomic_output(path):
        path.write_text("never reached")


def test_too_little_room_is_said_beforehand(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(OSError, match=r"1000000\.00"), atomic_output(path, expected_bytes=10**15):
        path.write_text("never reached")


def test_a_limit_on_files_is_said_beforehand(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with (
            pytest.raises(OSError, match=r"a limit is reached .*ulimit -f.*a needs 0\.01 MB"),
            atomic_output(tmp_path / "a", expected_bytes=10_000) as temporary,
        ):
            temporary.write_text("never reached")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_room_to_close_is_given_back_before_the_file_is_closed(tmp_path):
    """HDF5 crashes if it cannot write what it holds when it closes a file."""

    @contextmanager
    def file():
        try:
            yield
        finally:
            assert not list(tmp_path.iterdir())

    with pytest.raises(OSError, match="full"), file(), room_to_close(tmp_path, 1000):
        (held,) = tmp_path.iterdir()
        assert held.stat().st_size == 1000
        raise OSError("full")


WRITER = """
import sys, time
from stellarperceptron.utils.data_utils import atomic_output
with atomic_output(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextmanager
def writer(path):
    """A process that has written half of `path` and waits for the end of its input."""
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "writing\n", process.stderr.read()
        yield process
        if process.poll() is None:
            process.communicate("")


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_ended_processes_left_is_removed(tmp_path, stop):
    if signal.getsignal(stop) == signal.SIG_IGN:
        pytest.skip("the signal is ignored, as under nohup")
    with writer(tmp_path / "a.txt") as process:
        process.send_signal(stop)
        process.wait()
    left = [path.name for path in tmp_path.iterdir()]
    assert bool(left) == (stop == signal.SIGKILL)
    foreign = tmp_path / "a.txt.another-machine.0123456789abcdef.partial"
    foreign.mkdir()
    with atomic_output(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", foreign.name]


def test_of_two_writers_the_second_says_who_the_first_is(tmp_path):
    with writer(tmp_path / "a.txt") as process:
        with (
            pytest.raises(BusyError, match=f"a.txt.*in use by process {process.pid} on .* since"),
            atomic_output(tmp_path / "a.txt") as temporary,
        ):
            temporary.write_text("never")
        process.communicate("")
    assert (tmp_path / "a.txt").read_text() == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_equal_process_numbers_do_not_share_a_name(tmp_path, monkeypatch):
    """As in two containers: without locks, and both of the same number."""
    monkeypatch.setattr(locks, "_try_lock", lambda file, shared: False)
    with atomic_output(tmp_path / "a.txt") as one:
        one.write_text("half")
        with atomic_output(tmp_path / "a.txt") as other:
            assert one != other
            other.write_text("whole")
        assert one.read_text() == "half"
        assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_folder_set_aside_by_a_killed_process_comes_back(tmp_path):
    aside = tmp_path / f"epoch_1.{locks.machine()}.0123456789abcdef.previous"
    aside.mkdir()
    (aside / "weights.pt").write_text("the only ones")
    with pytest.raises(ValueError), atomic_output(tmp_path / "epoch_1"):
        raise ValueError
    assert (tmp_path / "epoch_1" / "weights.pt").read_text() == "the only ones"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_outputs_of_the_wrong_kind_are_refused_beforehand(tmp_path, kind):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    check, path = (
        (check_output_folder, tmp_path / "file")
        if kind == "file"
        else (check_output_file, tmp_path / "folder")
    )
    with pytest.raises(OSError, match=f"is a {kind}: give the name of a"):
        check(path)
    with pytest.raises(NotADirectoryError, match="file is no folder"):
        check(tmp_path / "file" / "a" / "b")
    check_output_file(tmp_path / "new" / "file")
    check_output_folder(tmp_path / "new" / "folder")


def test_someone_elses_folder_is_refused_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    for check in (check_output_file, check_output_folder):
        with pytest.raises(PermissionError, match="someone else"):
            check(tmp_path / "new")
