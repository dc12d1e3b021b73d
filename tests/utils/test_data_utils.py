"""Outputs appear whole or not at all, and never in the place of something else."""

import os
import subprocess
import sys

import pytest

from stellarperceptron.utils.data_utils import atomic_output


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


def test_what_killed_processes_left_is_removed(tmp_path):
    code = """
import os, sys
from stellarperceptron.utils.data_utils import atomic_output
with atomic_output(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")])
    (leftover,) = tmp_path.iterdir()
    living = tmp_path / leftover.name.replace(leftover.name.split(".")[-2], str(os.getppid()))
    living.write_text("of a process that still writes")
    with atomic_output(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.txt", living.name])
