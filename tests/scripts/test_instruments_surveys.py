"""results/instruments/surveys.py and label_transfer.py, on small surveys of made-up instruments."""

import numpy as np
import pandas as pd
import pytest
from chain import run_here
from two_surveys import BLUE, LABELS, RED, train, write

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.instruments.spectrograph import Instrument

pytestmark = pytest.mark.slow

SCRIPT = "results/instruments/surveys.py"
TRANSFER = "results/instruments/label_transfer.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two surveys of the same labels, and stage 1 on both."""
    folder = tmp_path_factory.mktemp("run")
    files = [
        write(folder / "blue.h5", BLUE, LABELS["RED"], 0),
        write(folder / "red.h5", RED, LABELS["RED"], 10),
    ]
    assert not train(1, files, folder / "1")
    return folder


def test_errors_of_each_instrument_and_of_both(run, tmp_path):
    files = run / "blue.h5", run / "red.h5"
    stem = tmp_path / "new" / "errors"
    assert not run_here(SCRIPT, "--checkpoint", run / "1", "--data", *files, "--output", stem)
    table = pd.read_csv(f"{stem}.csv")
    assert table["instruments"].unique().tolist() == ["BLUE", "RED", "BLUE + RED"]
    assert table.groupby("instruments")["label"].apply(list).tolist() == [list(LABELS["RED"])] * 3
    assert (table["stars"] == 30).all()  # of 40, those that both have seen
    alone = table[table["number"] == 1]
    np.testing.assert_allclose(alone["mad_std"], alone["mean_mad_std"])
    with SpectraDataset.open(files[0]) as dataset:
        spread = dataset.test.labels.std(axis=0)
    scatter = table.set_index(["instruments", "label"])["mad_std"]
    assert scatter["BLUE + RED", "FE_H"] < spread[2]
    for name in ("errors.png", "errors.pdf", "errors_alone.md", "errors_together.md"):
        assert (tmp_path / "new" / name).stat().st_size > 100
    rows = (tmp_path / "new" / "errors_together.md").read_text().splitlines()
    assert len(rows) == 2 + 3 and all("BLUE + RED" in row for row in rows[2:])


def test_a_specialist_stands_beside_its_survey_only(run, tmp_path):
    assert not train(1, [run / "red.h5"], run / "red", "data.combined_share=0.0")
    given = ("--data", run / "blue.h5", run / "red.h5", "--output", tmp_path / "o")
    assert not run_here(SCRIPT, "--checkpoint", run / "1", "--specialists", run / "red", *given)
    table = pd.read_csv(tmp_path / "o.csv").set_index(["instruments", "label"])
    names = table.index.unique(0).tolist()
    assert names == ["BLUE", "RED", "BLUE + RED", "RED, its specialist"]
    special = table.loc["RED, its specialist"]
    assert (special["mad_std"] != table.loc["RED", "mad_std"]).all()
    assert "RED, its specialist" in (tmp_path / "o_alone.md").read_text()
    ended = run_here(SCRIPT, "--checkpoint", run / "1", "--specialists", run / "1", *given)
    assert "none of the surveys: BLUE, RED" in ended


def test_labels_are_carried_over(run, tmp_path):
    given = ("--labelled", run / "blue.h5", "--data", run / "red.h5", "--checkpoint", run / "1")
    few = ("--stars", 100, "--splits", 1, "--steps", 60, "--output", tmp_path / "transfer")
    assert not run_here(TRANSFER, *given, *few)
    table = pd.read_csv(tmp_path / "transfer.csv")
    assert table["method"].unique().tolist() == [
        "pre-trained only",
        "pre-trained, fine-tuned on 100",
        "plain network, 100",
        "plain network, 150",
    ]
    assert (table["stars"] == 40).all() and np.isfinite(table["mad_std"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stars", "151"), "150 stars are in both surveys, fewer than 151"),
        (("--data", "green.h5"), "green.h5 holds spectra of GREEN"),
        (("--checkpoint", "nothing"), "there is no checkpoint in nothing"),
    ],
)
def test_what_does_not_fit_is_refused(run, tmp_path, arguments, message):
    green = Instrument("GREEN", np.linspace(6000.0, 6100.0, 400))
    write(tmp_path / "green.h5", green, LABELS["RED"], 5)
    given = {
        "--labelled": run / "blue.h5",
        "--data": run / "red.h5",
        "--checkpoint": run / "1",
        "--output": tmp_path / "out",
    }
    given[arguments[0]] = tmp_path / arguments[1] if ".h5" in arguments[1] else arguments[1]
    ended = run_here(TRANSFER, *(word for pair in given.items() for word in pair))
    assert message in ended and not list(tmp_path.glob("out*"))


def test_surveys_without_common_stars_are_refused(run, tmp_path):
    other = write(tmp_path / "far.h5", RED, LABELS["RED"], 45)
    files = run / "blue.h5", other
    ended = run_here(
        SCRIPT, "--checkpoint", run / "1", "--data", *files, "--output", tmp_path / "o"
    )
    assert "no test star in common" in ended
