"""The check of everything on a GPU: what is done stays, whatever fails or is cut off."""

import csv
import os
import signal
import subprocess
import sys
import tarfile

import pytest
from chain import ROOT

pytestmark = pytest.mark.slow

SCRIPT = ["bash", str(ROOT / "benchmarks" / "gpu_check.sh")]
ENVIRONMENT = os.environ | {
    "PYTHON": sys.executable,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "model_core"), os.environ.get("PYTHONPATH", "")]),
}


def check(folder, *arguments, steps=None):
    """Run the script; the process that has ended."""
    if steps is not None:
        (folder / "list").write_text("".join(f"{line}\n" for line in steps))
        arguments = ("--steps", folder / "list", *arguments)
    command = [*SCRIPT, "--output", folder / "out", *arguments]
    return subprocess.run(
        list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=6000
    )


def results(folder):
    with open(folder / "out" / "steps.csv", encoding="utf-8") as file:
        return {row["step"]: row["result"] for row in csv.DictReader(file)}


def test_what_fails_or_lasts_too_long_stops_nothing(tmp_path):
    steps = [
        "good 9 echo fine",
        "bad 9 exit 3",
        "slow 2 sleep 60",
        "last 9 echo {} >$OUTPUT/a.json",
    ]
    done = check(tmp_path, steps=steps)
    assert done.returncode == 1
    found = {"good": "passed", "bad": "failed (3)", "slow": "cut off", "last": "passed"}
    assert results(tmp_path) == found
    assert (tmp_path / "out" / "a.json").read_text() == "{}\n"
    assert "  fine" in done.stdout and "slow: cut off" in done.stdout
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as logs:
        assert {"./good.log", "./bad.log", "./last.log"} <= set(logs.getnames())


def test_success_is_told(tmp_path):
    assert check(tmp_path, steps=["one 9 true"]).returncode == 0


def test_the_limit_of_everything(tmp_path):
    steps = ["first 60 sleep 60", "second 60 true"]
    assert check(tmp_path, "--limit", 3, steps=steps).returncode == 1
    assert results(tmp_path) == {"first": "cut off", "second": "left out"}


def test_some_steps_are_added_to_the_others(tmp_path):
    steps = ["one 9 true", "two 9 false"]
    check(tmp_path, steps=steps)
    assert check(tmp_path, "--only", "one", steps=steps).returncode == 0
    lines = (tmp_path / "out" / "steps.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "one", "two", "one"]


def test_too_large_files_stay_behind(tmp_path):
    done = check(tmp_path, steps=["one 9 truncate --size 17M $OUTPUT/large.bin"])
    assert "too large to send" in done.stdout and "large.bin" in done.stdout
    assert not (tmp_path / "out" / "large.bin").exists()


@pytest.mark.parametrize("moment", ["first: passed", "  under way", "second: passed"])
def test_killed_at_any_moment_it_leaves_what_was_done(tmp_path, moment):
    steps = ["first 60 echo 1 >$OUTPUT/first.json", "second 60 echo 2; echo under way; sleep 1"]
    steps += ["third 60 sleep 60"]
    (tmp_path / "list").write_text("".join(f"{line}\n" for line in steps))
    command = [*SCRIPT, "--output", str(tmp_path / "out"), "--steps", str(tmp_path / "list")]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for line in process.stdout:
            if moment in line:
                break
        os.killpg(process.pid, signal.SIGKILL)
        # What a step has started belongs to a group of its own, and ends with its limit.
        process.stdout.close()
    assert results(tmp_path)["first"] == "passed"
    assert (tmp_path / "out" / "first.json").read_text() == "1\n"
    if moment != "first: passed":
        with tarfile.open(tmp_path / "out" / "logs.tar.gz") as logs:
            assert "./first.log" in logs.getnames()
    again = check(tmp_path, "--only", "first", steps=steps)
    assert again.returncode == 0


def test_unknown_options_are_refused(tmp_path):
    done = check(tmp_path, "--fast")
    assert done.returncode == 2 and "unknown option --fast" in done.stderr


def test_the_dry_run(tmp_path):
    """All steps at toy size, on a CPU: everything passes and comes back."""
    done = check(tmp_path, "--small")
    assert done.returncode == 0, done.stdout
    assert results(tmp_path) == dict.fromkeys(
        ["tests", "step", "epoch", "chain", "inference"], "passed"
    )
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["benchmarks.json", "checkpoint.tar", "logs.tar.gz", "report.html", "steps.csv"]
    with tarfile.open(tmp_path / "out" / "checkpoint.tar") as archive:
        assert "checkpoint/weights.pt" in archive.getnames()
