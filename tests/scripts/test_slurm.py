"""The SLURM scripts, with commands of SLURM that only note how they are called."""

import os
import subprocess
from pathlib import Path

import pytest
from chain import TRAINING

FAKE = """#!/bin/bash
printf '%s\\n' "$(basename "$0") $*" >>"$CALLS"
case "$(basename "$0")" in
  srun) exec "$@" ;;
  sbatch) echo "$((100 + $(wc -l <"$CALLS")));cluster" ;;
  scontrol) echo node1 ;;
esac
"""
PYTHON = """#!/bin/bash
echo "python $*" >>"$CALLS"
mkdir -p out
touch out/complete
exit "${CODE:-0}"
"""


@pytest.fixture
def slurm(tmp_path):
    """Run a script in an empty folder; its exit status and the commands that it called."""
    commands = tmp_path / "commands"
    commands.mkdir()
    texts = dict.fromkeys(("srun", "sbatch", "scontrol"), FAKE) | {"another_python": PYTHON}
    for name, text in texts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    calls, folder = tmp_path / "calls", tmp_path / "folder"
    folder.mkdir()

    def run(script: str, *arguments, **variables):
        environment = {
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            **{"SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"},
            **variables,
        }
        command = ["bash", str(TRAINING / script), *map(str, arguments)]
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True
        )
        return result, calls.read_text().splitlines() if calls.exists() else []

    run.folder = folder
    return run


@pytest.mark.parametrize("script", ["slurm_one_gpu.sh", "slurm_nodes.sh"])
def test_any_python_runs_without_the_environment_of_make(slurm, script):
    words = ("train.py", "--data", "a survey.h5", "--output", "out")
    result, calls = slurm(script, *words, PYTHON="another_python")
    assert result.returncode == 0, result.stderr
    assert calls[-1] == "python train.py --data a survey.h5 --output out"
    assert not any("requeue" in call for call in calls)


def test_the_environment_of_make_is_the_default(slurm):
    (slurm.folder / ".venv/bin").mkdir(parents=True)
    python = slurm.folder / ".venv/bin/python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    result, calls = slurm("slurm_one_gpu.sh", "train.py", "--output", "out")
    assert result.returncode == 0, result.stderr
    assert calls[-1] == "python train.py --output out"


@pytest.mark.parametrize(("code", "requeued"), [(0, True), (138, True), (1, False)])
def test_what_was_told_to_stop_is_queued_again(slurm, code, requeued):
    words = ("train.py", "--output=elsewhere")
    result, calls = slurm("slurm_one_gpu.sh", *words, PYTHON="another_python", CODE=str(code))
    assert result.returncode == code
    assert ("scontrol requeue 7" in calls) == requeued


def test_each_stage_waits_for_the_one_before(slurm):
    (slurm.folder / "survey.h5").touch()
    result, calls = slurm("slurm_chain.sh", "gpu", "survey.h5", "runs/gpu", "--account=stars")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "stages 1 to 3: jobs 101, 102, 103; baseline: job 104\n"
    waits = [[word for word in call.split() if word.startswith("--dep")] for call in calls]
    assert waits == [[], ["--dependency=afterok:101"], ["--dependency=afterok:102"], []]
    assert all("--account=stars" in call and "--data survey.h5" in call for call in calls)
    assert calls[1].endswith(
        "--output runs/gpu/2_realfinetune_firsthalf --checkpoint runs/gpu/1_basemodel_synthetic"
    )
    for call in calls:
        script = next(word for word in call.split() if word.endswith(".py"))
        assert Path(script).is_file()


def test_a_chain_without_a_survey_is_refused(slurm):
    result, calls = slurm("slurm_chain.sh", "gpu", "nowhere.h5", "runs/gpu")
    assert result.returncode == 1 and "there is no survey nowhere.h5" in result.stderr
    assert not calls
    assert slurm("slurm_chain.sh", "gpu")[0].returncode == 2
