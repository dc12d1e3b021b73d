"""The Makefile, and the descriptions of all scripts."""

import os
import re
import shutil
import subprocess

import pytest
from chain import ROOT, run_here

pytestmark = pytest.mark.slow

OBSERVED = {
    "--pretrained": "1_basemodel_synthetic_on_observed",
    "--finetuned": "2_realfinetune_firsthalf_on_observed",
}

BASELINES = ("quadratic_regression", "pixel_network")

# Scripts that `make reproduce` does not need.
BY_HAND = {
    "results/instruments/label_transfer.py",
    "results/instruments/matrix.py",
    "results/instruments/one_star.py",
    "results/instruments/predicted_errors.py",
    "results/instruments/real_stars.py",
    "results/instruments/surveys.py",
    "results/instruments/two_instruments.py",
    "results/baselines/compare.py",
    "results/baselines/learning_curve.py",
    "results/real_stars/few_labels.py",
}


def make(*arguments):
    program = shutil.which("make")
    if program is None:
        pytest.skip("there is no make")
    # Whatever Python runs these tests, nothing is installed: the mark of .venv counts as old.
    command = [program, "--no-print-directory", "-o", ".venv/installed", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_make_runs_every_script_in_order(tmp_path):
    # A step by itself, since `reproduce` runs make once more, which a dry run does not.
    result = make("--dry-run", tmp_path / "report.html", f"RUN={tmp_path}", "PROFILE=smoke")
    assert result.returncode == 0, result.stderr
    scripts = re.findall(r"bin/python (\S+)", result.stdout)
    assert scripts[0] == "dataset/create_mock_survey.py" and scripts[-1] == "results/report.py"
    results = {str(path.relative_to(ROOT)) for path in (ROOT / "results").glob("*/*.py")}
    assert results - set(scripts) == BY_HAND and all((ROOT / path).is_file() for path in scripts)
    stages = [path.split("/")[1][0] for path in scripts if path.startswith("training/")]
    assert [stage for stage in stages if stage.isdigit()] == ["1", "2", "3"]


def test_make_does_nothing_twice(tmp_path):
    listing = make("--dry-run", tmp_path / "report.html", f"RUN={tmp_path}", "PROFILE=smoke")
    assert listing.returncode == 0
    stages = ("1_basemodel_synthetic", "2_realfinetune_firsthalf", "3_fefinetune_chunk", "basic_NN")
    evaluation = [f"evaluation/{OBSERVED[key]}.csv" for key in OBSERVED]
    files = ["survey.h5", *(f"{stage}/complete" for stage in stages), *evaluation]
    files += ["evaluation/3_fefinetune_chunk_fehpredictions.csv", "tables/Table1.md"]
    files += ["figures/Figure2.png", "figures/Figure3.png", "figures/coverage.png"]
    files += ["figures/errors_by_range.png"]
    files += ["attention/attention_shares.csv", *(f"baselines/{name}.csv" for name in BASELINES)]
    files += ["attention/Figure4.png", "attention/sensitivity.png"]
    files += ["real_stars/predictions.csv", "report.html"]
    for second, name in enumerate(files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9 + second, 1e9 + second))
    result = make("reproduce", f"RUN={tmp_path}", "PROFILE=smoke")
    assert result.returncode == 0 and "nothing to do" in result.stdout
    assert "python" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["PROFILE=desktop"], "unknown PROFILE=desktop: smoke, laptop"),
        (["PROFILE=smoke", "DATA=nowhere.h5"], "there is no DATA=nowhere.h5"),
    ],
)
def test_make_refuses(arguments, words, tmp_path):
    result = make("reproduce", f"RUN={tmp_path / 'run'}", *arguments)
    assert result.returncode != 0 and words in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_to_its_survey(tmp_path):
    (tmp_path / "data.txt").write_text("first.h5\n")
    (tmp_path / "second.h5").touch()
    result = make("reproduce", f"RUN={tmp_path}", "PROFILE=smoke", f"DATA={tmp_path / 'second.h5'}")
    assert result.returncode != 0 and "is of the survey first.h5" in result.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("**/*.py")), ids=lambda p: p.stem)
def test_scripts_explain_themselves(path, capsys):
    assert run_here(path.relative_to(ROOT), "--help") == 0
    assert f"python {path.name}" in capsys.readouterr().out


FAKE_PIP = """#!/bin/sh
case "$*" in
  *"config list"*) echo "$CONFIGURED" ;;
  *) echo "$@" >>pip.log; case "$*" in *"$UNREACHABLE"*) exit 1 ;; esac ;;
esac
"""
FAKE_PYTHON = """#!/bin/sh
mkdir -p .venv/bin && cp pip .venv/bin/pip
"""
CPU_BUILD = "https://download.pytorch.org/whl/cpu"


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)


def install(folder, *arguments, gpu=False, system="Linux", **environment):
    """What `make install` asks of pip in a folder of its own, one line a call."""
    program = shutil.which("make")
    if program is None or os.name == "nt":
        pytest.skip("there is no make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    executable(folder / "pip", FAKE_PIP)
    executable(folder / "python", FAKE_PYTHON)
    (folder / "bin").mkdir()
    executable(folder / "bin" / "uname", f"#!/bin/sh\necho {system}\n")
    for name in ("sh", "grep", "mkdir", "cp", "touch", "env", "getconf", "nproc"):
        if found := shutil.which(name):
            (folder / "bin" / name).symlink_to(found)
    if gpu:
        executable(folder / "bin" / "nvidia-smi", "#!/bin/sh\n")
    environment = {"CONFIGURED": "", "UNREACHABLE": "nothing", **environment}
    result = subprocess.run(
        [program, "install", "PYTHON=./python", *arguments],
        cwd=folder,
        env=environment | {"PATH": str(folder / "bin")},
        capture_output=True,
        text=True,
    )
    return result, (folder / "pip.log").read_text().splitlines()


def test_without_a_gpu_the_cpu_build_is_installed(tmp_path):
    result, calls = install(tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"torch --index-url {CPU_BUILD}" in calls[0] and "-e .[dev" in calls[1]


def test_where_it_cannot_be_had_the_ordinary_build_is(tmp_path):
    result, calls = install(tmp_path, UNREACHABLE=CPU_BUILD)
    assert result.returncode == 0 and "ordinary index" in result.stdout
    assert "-e .[dev" in calls[-1] and (tmp_path / ".venv/installed").exists()


@pytest.mark.parametrize(
    "machine",
    [
        {"gpu": True},
        {"system": "Darwin"},
        {"CONFIGURED": "global.extra-index-url='https://mirror.example/simple'"},
        {"CONFIGURED": ":env:.find-links='/wheels'"},
    ],
)
def test_the_ordinary_index_serves_elsewhere(machine, tmp_path):
    _, calls = install(tmp_path, **machine)
    assert len(calls) == 1 and "-e .[dev" in calls[0]


def test_an_index_may_be_named(tmp_path):
    named = "https://download.pytorch.org/whl/cu128"
    result, calls = install(tmp_path, f"TORCH_INDEX={named}", gpu=True)
    assert result.returncode == 0 and f"--index-url {named}" in calls[0]
    again = tmp_path / "again"
    again.mkdir()
    result, calls = install(again, f"TORCH_INDEX={named}", UNREACHABLE=named)
    assert result.returncode != 0 and len(calls) == 1
