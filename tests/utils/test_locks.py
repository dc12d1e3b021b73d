"""Locks between processes."""

import pytest

from stellarperceptron.utils import locks
from stellarperceptron.utils.locks import BusyError, FileLock


def test_a_lock_is_held_once_and_leaves_no_file(tmp_path):
    with FileLock(tmp_path / "lock", "the folder"):
        with pytest.raises(BusyError, match="the folder is in use by process"):
            FileLock(tmp_path / "lock", "the folder").acquire()
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


def test_file_systems_without_locks_keep_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_try_lock", lambda file, shared: False)
    with FileLock(tmp_path / "lock", "the folder") as lock:
        assert not lock.held
        assert not list(tmp_path.iterdir())
