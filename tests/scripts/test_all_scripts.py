"""What all scripts have in common: how they end."""

import ast
import subprocess
import sys

import pytest
from chain import ROOT

from stellarperceptron.training.loop import TrainingError
from stellarperceptron.utils.arguments import run_script

SCRIPTS = [
    path
    for folder in ("dataset", "results", "training")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_end_with_one_line(path):
    """And they do without their docstrings, which -OO takes away."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    last = tree.body[-1]
    assert isinstance(last, ast.If)
    assert [call.value.func.id for call in last.body] == ["run_script"]
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "__doc__")


def test_ctrl_c_gives_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dataset/some_script.py"])

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_script(interrupted, hint="; run it again")
    assert end.value.code == 130
    assert capsys.readouterr().err == "some_script.py: interrupted; run it again\n"


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, TrainingError])
def test_invalid_input_gives_one_line(monkeypatch, error):
    monkeypatch.setattr(sys, "argv", ["dataset/some_script.py"])

    def wrong():
        raise error("no such star")

    with pytest.raises(SystemExit, match=r"^some_script\.py: no such star$"):
        run_script(wrong, errors=(TrainingError,))


def test_what_is_a_bug_keeps_its_traceback():
    def bug():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        run_script(bug)


@pytest.mark.slow
def test_no_docstrings_and_warnings_as_errors():
    script = ROOT / "results" / "real_stars" / "predict_real_stars.py"
    command = [sys.executable, "-OO", "-W", "error", str(script), "--help"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "--checkpoint" in run.stdout and not run.stderr
