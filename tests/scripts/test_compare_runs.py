"""Runs side by side."""

from chain import run_here

from stellarperceptron.evaluation.predictions import metrics_of_predictions, read_predictions

SCRIPT = "results/compare_runs.py"


def test_runs_stand_side_by_side(evaluated, tmp_path):
    other = tmp_path / "other"
    other.symlink_to(evaluated)
    assert run_here(SCRIPT, evaluated, other, "--output", tmp_path / "runs.md") is None
    lines = (tmp_path / "runs.md").read_text().splitlines()
    (scratch,) = [line for line in lines if line.startswith("| from scratch |")]
    table = read_predictions(evaluated / "evaluation/basic_NN_fehpredictions.csv", "")
    found = metrics_of_predictions(table).query("subset == 'all'")["rmse"].item()
    assert scratch.count(f"{found:.3f} (") == 2
    assert [line.split(",")[0] for line in lines if line.startswith("| stage 2,")] == [
        "| stage 2",
        "| stage 2",
    ]


def test_missing_runs_name_the_command(tmp_path):
    assert "make reproduce RUN=" in run_here(SCRIPT, tmp_path / "none")
