"""The folder of a training: whose it is, what it belongs to, and what is found in it again."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import make_model
from test_loop import SCRIPT, train_here

from stellarperceptron.training.run.folder import RunFolder
from stellarperceptron.utils.data_utils import written_by
from stellarperceptron.utils.locks import BusyError


def test_a_folder_in_use_says_by_whom(tmp_path):
    folder = RunFolder(tmp_path / "run", {"seed": 0})
    with pytest.raises(BusyError, match=f"in use by process {os.getpid()} on .* since"):
        RunFolder(tmp_path / "run", {"seed": 5}, fresh=True)
    assert json.loads((tmp_path / "run" / "configuration.json").read_text()) == {"seed": 0}
    folder.close()
    RunFolder(tmp_path / "run", {"seed": 5}, fresh=True)


@pytest.mark.slow
def test_two_trainings_in_one_folder_do_not_mix(tmp_path):
    """Started together: one wins and is whole, the other says so."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    rates = (1e-3, 2e-3)
    both = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), "epochs=2", f"learning_rate={rate}"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rate in rates
    ]
    errors = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 1], errors
    loser = errors[codes.index(1)]
    assert "is in use by" in loser or "belongs to another configuration" in loser
    rate = json.loads((tmp_path / "configuration.json").read_text())["learning_rate"]
    assert rate == rates[codes.index(0)]
    assert len(json.loads((tmp_path / "history_0.json").read_text())) == 2


def test_a_used_folder_is_not_mixed_with_a_new_training(tmp_path):
    train_here(make_model(), folder=RunFolder(tmp_path / "run", {}), epochs=3)
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(FileExistsError, match=r"epoch_3 of an earlier training.*resume=True"):
        RunFolder(tmp_path / "run", {}, resume=False)
    with pytest.raises(FileExistsError, match="of an earlier training"):
        train_here(make_model(), folder=RunFolder(tmp_path / "run", {}), epochs=1, resume=False)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("file", ["training_state.pt", "weights.pt", "config.json"])
def test_a_damaged_newest_checkpoint_is_set_aside(tmp_path, file):
    folder = RunFolder(tmp_path / "run", {})
    train_here(make_model(), folder=folder, epochs=3)
    damaged = tmp_path / "run" / "epoch_3" / file
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert len(train_here(make_model(), folder=folder, epochs=3)) == 3
    assert (tmp_path / "run" / "epoch_3.damaged").is_dir()
    log = (tmp_path / "run" / "training.log").read_text()
    assert f"epoch_3 is damaged and set aside as epoch_3.damaged: {damaged}" in log.replace(
        "Expecting", f"{damaged}: Expecting"
    )
    assert "going on from" in log and "epoch 2, batch 0" in log


def test_log_says_how_far_it_is(tmp_path):
    train_here(make_model(), folder=RunFolder(tmp_path / "run", {}), epochs=3)
    log = (tmp_path / "run" / "training.log").read_text()
    assert f"stellarperceptron {', commit '.join(written_by().values())}: " in log
    assert re.findall(r"epoch (\d/\d), [\d:]+ left  time", log) == ["1/3", "2/3", "3/3"]
    assert "epoch 3/3, 0:00:00 left" in log


def test_nothing_is_forgotten_when_all_checkpoints_are_damaged(tmp_path):
    folder = RunFolder(tmp_path / "run", {})
    train_here(make_model(), folder=folder, epochs=1)
    (tmp_path / "run" / "epoch_1" / "weights.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .*weights\.pt.*start anew"):
        train_here(make_model(), folder=folder, epochs=2)
    assert (tmp_path / "run" / "epoch_1").is_dir()


def test_other_weights_to_start_from_are_refused_but_not_other_places(tmp_path):
    inputs = {"checkpoint": "runs/1/epoch_2", "checkpoint_sha256": "ab"}
    RunFolder(tmp_path / "run", {"inputs": inputs}).close()
    (tmp_path / "run" / "complete").touch()
    RunFolder(tmp_path / "run", {"inputs": inputs | {"checkpoint": "elsewhere"}}).close()
    assert (tmp_path / "run" / "complete").exists()
    with pytest.raises(ValueError, match=r"have changed.*--no-resume"):
        RunFolder(tmp_path / "run", {"inputs": inputs | {"checkpoint_sha256": "cd"}})


def test_a_damaged_configuration_is_named(tmp_path):
    RunFolder(tmp_path / "run", {"seed": 1}).close()
    (tmp_path / "run" / "configuration.json").write_text('{"seed"')
    with pytest.raises(ValueError, match=r"configuration\.json is damaged.*--no-resume"):
        RunFolder(tmp_path / "run", {"seed": 1})


def test_a_file_is_no_training_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NotADirectoryError, match="run is a file"):
        RunFolder(tmp_path / "run", {})


def test_another_configuration_is_refused(tmp_path):
    RunFolder(tmp_path / "run", {"batch_size": 8, "seed": 1})
    RunFolder(tmp_path / "run", {"batch_size": 8, "seed": 1})
    with pytest.raises(ValueError, match=r"\(batch_size: 8 -> 16\)"):
        RunFolder(tmp_path / "run", {"batch_size": 16, "seed": 1})


def test_differing_entries_are_named_alone(tmp_path):
    RunFolder(tmp_path / "run", {"profile": {"training": {"epochs": 1, "seed": 1}}})
    with pytest.raises(ValueError, match=r"\(profile\.training\.epochs: 1 -> 2\)"):
        RunFolder(tmp_path / "run", {"profile": {"training": {"epochs": 2, "seed": 1}}})


@pytest.mark.slow
def test_epochs_may_be_added_to_a_run(tmp_path):
    whole, parts = make_model(), make_model()
    train_here(whole, folder=RunFolder(tmp_path / "whole", {"epochs": 3}), epochs=3)
    train_here(make_model(), folder=RunFolder(tmp_path / "run", {"epochs": 1}), epochs=1)
    (tmp_path / "run" / "complete").touch()
    folder = RunFolder(tmp_path / "run", {"epochs": 3}, grows="epochs")
    assert not (tmp_path / "run" / "complete").exists()
    assert len(train_here(parts, folder=folder, epochs=3)) == 3
    for name, tensor in whole.torch_model.state_dict().items():
        assert torch.equal(parts.torch_model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("new", "fixed", "message"),
    [
        ({"epochs": 1, "seed": 1}, "", r"epochs: 2 -> 1\)"),
        ({"epochs": 3, "seed": 2}, "", r"epochs: 2 -> 3; seed: 1 -> 2\)"),
        ({"epochs": 3, "seed": 1}, "one cosine", r"remove this one \(one cosine\)"),
    ],
)
def test_nothing_else_may_change(tmp_path, new, fixed, message):
    RunFolder(tmp_path / "run", {"epochs": 2, "seed": 1})
    with pytest.raises(ValueError, match=message):
        RunFolder(tmp_path / "run", new, grows="epochs", fixed=fixed)


@pytest.mark.slow
def test_starting_anew_forgets_the_training_before(tmp_path):
    folder = RunFolder(tmp_path / "run", {"seed": 1})
    train_here(make_model(), folder=folder, epochs=2)
    folder = RunFolder(tmp_path / "run", {"seed": 2}, fresh=True)
    assert folder.newest_checkpoint() is None
    train_here(make_model(), folder=folder, epochs=1)
    assert folder.newest_checkpoint() == tmp_path / "run" / "epoch_1"


@pytest.mark.slow
@pytest.mark.parametrize(("epoch", "newest"), [(1, "epoch_2"), (2, "interrupted")])
def test_the_newest_checkpoint_is_the_one_that_got_furthest(tmp_path, epoch, newest):
    folder = RunFolder(tmp_path / "run", {})
    train_here(make_model(), folder=folder, epochs=2)
    interrupted = folder.path / "interrupted"
    shutil.copytree(folder.path / "epoch_2", interrupted)
    state = torch.load(interrupted / "training_state.pt", weights_only=True)
    torch.save(state | {"epoch": epoch, "batch": 3}, interrupted / "training_state.pt")
    assert folder.newest_checkpoint().name == newest


def test_a_finished_training_knows_its_epochs(tmp_path):
    folder = RunFolder(tmp_path / "run", {})
    train_here(make_model(), folder=folder, epochs=2)
    again = make_model()
    assert len(train_here(again, folder=folder, epochs=2)) == 2
    assert again.epoch == 2


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, small_files):
    folder = RunFolder(tmp_path / "run", {})
    train_here(make_model(), folder=folder, epochs=1)
    small_files(60_000)
    with pytest.raises(OSError, match=r"the disk is full.*best needs 0\.\d\d MB"):
        train_here(make_model(), folder=folder, epochs=2)
    assert folder.newest_checkpoint() == tmp_path / "run" / "epoch_1"
