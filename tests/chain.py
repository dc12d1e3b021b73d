"""The numbered scripts as programs: run them, and train all stages at toy size."""

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / "training"
STAGES = {
    1: "1_basemodel_synthetic/trainingAPOGEEGPU.py",
    2: "2_realfinetune_firsthalf/finetuningAPOGEE.py",
    3: "3_fefinetune_chunk/finetuningAPOGEE.py",
    "baseline": "basic_NN/TrainingNN.py",
}


def script(path, *arguments):
    """Run a script as a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / path), *map(str, arguments)], capture_output=True, text=True
    )


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


def stage(which, data, output, *arguments):
    """Train a stage at toy size."""
    result = script(
        f"training/{STAGES[which]}",
        *("--profile", "smoke", "--data", data, "--output", output, *arguments),
    )
    assert result.returncode == 0, result.stderr
    return output
