"""The numbered scripts as programs: run them, and train all stages at toy size."""

import importlib.util
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from unittest import mock

from stellarperceptron.data.mock import survey

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / "training"
STAGES = {
    1: "1_basemodel_synthetic/trainingAPOGEEGPU.py",
    2: "2_realfinetune_firsthalf/finetuningAPOGEE.py",
    3: "3_fefinetune_chunk/finetuningAPOGEE.py",
    "baseline": "basic_NN/TrainingNN.py",
}


def script(path, *arguments):
    """Run a script as a process of its own.

    On Linux it is a copy of this process, which has imported PyTorch already.
    """
    command = [sys.executable, str(ROOT / path), *map(str, arguments)]
    if sys.platform != "linux":
        return subprocess.run(command, capture_output=True, text=True)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as error:
        child = os.fork()
        if child == 0:
            os._exit(_forked(path, arguments, output, error))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = [file.seek(0) or file.read() for file in (output, error)]
    return subprocess.CompletedProcess(command, code, *said)


def _forked(path, arguments, output, error):
    """Run a script in a forked process, with its output in files; the exit status."""
    os.dup2(output.fileno(), 1)
    os.dup2(error.fileno(), 2)
    sys.stdout, sys.stderr = output, error
    try:
        end = run_here(path, *arguments)
        if isinstance(end, str):
            print(end, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        end = 1
    output.flush()
    error.flush()
    return end if isinstance(end, int) else int(end is not None)


def run_here(path, *arguments):
    """Run a script within this process, which has imported PyTorch already; its exit message."""
    with mock.patch.object(sys, "argv", [str(path), *map(str, arguments)]):
        try:
            runpy.run_path(str(ROOT / path), run_name="__main__")
        except SystemExit as end:
            return end.code
    return None


def load(path):
    """A script as a module."""
    specification = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def make_survey(path, seed):
    """Write a mock survey of 240 + 40 stars."""
    stars = ("--stars", 240, "--test-stars", 40, "--workers", 1)
    # A block is always computed whole: it need not be larger.
    with mock.patch.object(survey, "BLOCK", 240):
        end = run_here("dataset/create_mock_survey.py", *stars, "--seed", seed, "--output", path)
    assert end is None


def stage(which, data, output, *arguments):
    """Train a stage at toy size."""
    result = script(
        f"training/{STAGES[which]}",
        *("--profile", "smoke", "--data", data, "--output", output, *arguments),
    )
    assert result.returncode == 0, result.stderr
    return output
