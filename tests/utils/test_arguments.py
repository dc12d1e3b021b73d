"""Types of command-line arguments."""

import argparse

import pytest
from chain import run_here

from stellarperceptron.utils.arguments import output_file, output_folder


@pytest.mark.parametrize("kind", [output_file, output_folder])
def test_the_home_of_the_user_may_be_written_as_a_tilde(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    assert kind("~/results") == tmp_path / "results"


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(argparse.ArgumentTypeError, match="is a file: give the name of a folder"):
        output_folder(str(tmp_path / "file"))
    with pytest.raises(argparse.ArgumentTypeError, match="is a folder: give the name of a file"):
        output_file(str(tmp_path))
    with pytest.raises(argparse.ArgumentTypeError, match="is no folder"):
        output_file(str(tmp_path / "file" / "picture.png"))


@pytest.mark.parametrize(
    "path",
    [
        "attention/extract_attention",
        "baselines/train_baselines",
        "fe/EvaluateFeFT",
        "instruments/real_stars",
        "real_stars/few_labels",
        "real_stars/predict_real_stars",
    ],
)
def test_scripts_refuse_an_unusable_output_before_any_work(tmp_path, capsys, path):
    (tmp_path / "file").touch()
    assert run_here(f"results/{path}.py", "--output", tmp_path / "file") == 2
    assert "is a file: give the name of a folder" in capsys.readouterr().err
