"""Mock surveys: two at once, and what is left when one is stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest
from chain import ROOT, run_here

SCRIPT = "dataset/create_mock_survey.py"


@pytest.fixture
def running(tmp_path):
    """A survey that is being written."""
    command = [sys.executable, str(ROOT / SCRIPT), "--stars", "50000", "--output"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "survey.h5")], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    while not list(tmp_path.glob("survey.h5.*.partial")):
        assert process.poll() is None
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_the_second_says_so_and_the_first_leaves_nothing(running, tmp_path):
    said = run_here(SCRIPT, "--stars", 2, "--test-stars", 1, "--output", tmp_path / "survey.h5")
    assert f"survey.h5, which is being written, is in use by process {running.pid}" in said
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_is_refused_beforehand(tmp_path):
    (tmp_path / "file").touch()
    for output, message in ((tmp_path, "is a folder"), (tmp_path / "file/a.h5", "is no folder")):
        assert message in run_here(SCRIPT, "--stars", 10**8, "--output", output)
