"""Two processes that make the same thing at once: one wins, the other says so, nothing is mixed."""

import json
import multiprocessing
import os
import shutil
import sys

import h5py
import numpy as np
import pytest
import torch
from chain import run_here
from dr17_files import write_archive
from train_tiny import main as train_tiny

from stellarperceptron.data.mock import survey
from stellarperceptron.network.checkpoint import read_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked"),
]
REPEATS = int(os.environ.get("REPEATS", "2"))


def child(number, barrier, work, folder):
    """Do some work together with another process; write down how it ended."""
    with open(folder / f"said_{number}.txt", "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        torch.set_num_threads(1)
        barrier.wait()
        try:
            end = work(number)
        except SystemExit as error:
            end = error.code
        except (OSError, ValueError) as error:
            end = str(error)
    (folder / f"end_{number}.json").write_text(json.dumps(end))


def two_at_once(work, folder):
    """How two processes ended: None, or what they said."""
    folder.mkdir()
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    both = [fork.Process(target=child, args=(i, barrier, work, folder)) for i in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    return [json.loads((folder / f"end_{i}.json").read_text()) for i in range(2)]


def check_ends(ends, losers=("is in use by",)):
    """Number of the winner. The other one has said why it lost, or came when all was done."""
    won = [i for i, end in enumerate(ends) if end is None]
    assert won, ends
    for end in ends:
        assert end is None or any(loser in end for loser in losers), end
    print(f"{len(won)} of 2 went to their end")
    return won


def leftovers(folder):
    return [p.name for p in folder.rglob("*") if p.suffix in (".partial", ".previous", ".lock")]


@pytest.mark.parametrize("repeat", range(REPEATS))
def test_two_trainings(tmp_path_factory, tmp_path, repeat):
    rates = ("0.001", "0.002")
    alone = [tmp_path_factory.getbasetemp() / f"alone_{rate}" for rate in rates]
    for path, rate in zip(alone, rates, strict=True):
        if not path.exists():
            train_tiny(path, "epochs=2", f"learning_rate={rate}")

    def work(number):
        return train_tiny(tmp_path / "run", "epochs=2", f"learning_rate={rates[number]}")

    ends = two_at_once(work, tmp_path / "ends")
    won = check_ends(ends, ("is in use by", "belongs to another configuration"))
    assert len(won) == 1  # whoever comes later finds another configuration
    configuration = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert configuration == {"learning_rate": float(rates[won[0]])}
    expected = read_checkpoint(alone[won[0]] / "final").weights
    for folder in ("final", "epoch_2"):
        weights = read_checkpoint(tmp_path / "run" / folder).weights
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert not leftovers(tmp_path / "run")


@pytest.mark.parametrize("repeat", range(REPEATS))
def test_two_surveys(tmp_path_factory, tmp_path, repeat, monkeypatch):
    monkeypatch.setattr(survey, "BLOCK", 4)  # a block is always computed whole

    def make(seed, output):
        stars = ("--stars", 3, "--test-stars", 2, "--workers", 1)
        script = "dataset/create_mock_survey.py"
        return run_here(script, *stars, "--seed", seed, "--output", output)

    alone = [tmp_path_factory.getbasetemp() / f"alone_{seed}.h5" for seed in range(2)]
    for seed, path in enumerate(alone):
        if not path.exists():
            assert make(seed, path) is None
    output = tmp_path / "out" / "survey.h5"
    won = check_ends(two_at_once(lambda seed: make(seed, output), tmp_path / "ends"))
    assert output.read_bytes() in [alone[seed].read_bytes() for seed in won]
    assert not leftovers(output.parent)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("archive") / "sas"
    write_archive(root, 60, seed=1, keep_spectra=False)
    return root


def contents(path):
    """All data sets of a file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda n, o: found.update({n: o[()]} if isinstance(o, h5py.Dataset) else {})
        )
    return found


@pytest.mark.parametrize("repeat", range(REPEATS))
def test_two_runs_of_create_dataset(archive, tmp_path_factory, tmp_path, repeat):
    """One keeps the error spectra, the other does not."""

    def make(number, output):
        options = ("--local-sas", archive, "--output", output)
        errors = ("--errors",) if number else ()
        return run_here("dataset/create_dataset.py", *options, *errors)

    alone = [tmp_path_factory.getbasetemp() / f"alone_{i}" / "d.h5" for i in range(2)]
    for number, path in enumerate(alone):
        if not path.exists():
            assert make(number, path) is None
    output = tmp_path / "out" / "d.h5"
    won = check_ends(two_at_once(lambda number: make(number, output), tmp_path / "ends"))
    result, expected = contents(output), [contents(alone[number]) for number in won]
    same = [
        result.keys() == other.keys()
        and all(np.array_equal(v, other[n], v.dtype.kind == "f") for n, v in result.items())
        for other in expected
    ]
    assert any(same)
    assert not leftovers(output.parent)
    assert sorted(p.name for p in output.parent.iterdir()) == [
        "d.h5",
        "rejected.csv",
        "spectra_all_zeroes_flag.npy",
    ]
    shutil.rmtree(tmp_path / "out")
