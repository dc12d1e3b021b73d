"""The training loop: what it learns, and that nothing is lost, whatever happens to it."""

import csv
import functools
import json
import math
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import train_tiny
from chain import ROOT
from conftest import make_model
from train_tiny import STARS, tiny_data

from stellarperceptron import StellarPerceptron
from stellarperceptron.training import loop
from stellarperceptron.training.loop import TrainingError
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.run.folder import RunFolder
from stellarperceptron.training.step import Trainer
from stellarperceptron.training.tasks import PerceptronTask, train
from stellarperceptron.utils.distributed import Process

ALONE = Process(0, 1, torch.device("cpu"))
SCRIPT = ROOT / "tests" / "train_tiny.py"


def run(folder, *options, processes=1):
    """Train as a script would, in a process of its own only where there must be one."""
    if processes == 1 and not any(option.startswith("kill_at") for option in options):
        try:
            train_tiny.main(folder, *options)
        except SystemExit as end:
            return SimpleNamespace(returncode=end.code, stderr="")
        return SimpleNamespace(returncode=0, stderr="")
    command = [sys.executable, str(SCRIPT), str(folder), *options]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command[1:1] = launcher
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def weights(folder):
    return torch.load(folder / "weights.pt", weights_only=True)["model_state_dict"]


def train_here(model, rows=64, folder=None, resume=True, **options):
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3} | options
    return train(
        model,
        tiny_data(model),
        np.arange(rows),
        np.arange(64, STARS),
        TrainingOptions(**options),
        ALONE,
        folder=folder,
        resume=resume,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_training_learns():
    model = make_model(encoder_dropout_rate=0.0, decoder_dropout_rate=0.0)
    history = train_here(model, epochs=15, learning_rate=3e-3, labels_per_star="all")
    assert history[-1]["loss"] < history[0]["loss"] - 0.5
    assert history[-1]["val_mse_loss"] < history[0]["val_mse_loss"]


def test_batches_that_are_made_ahead_are_the_same(monkeypatch):
    trained = []
    for cores in (0, 1):
        monkeypatch.setattr(loop, "spare_cores", lambda processes, cores=cores: cores)
        model = make_model()
        train_here(model, epochs=2)
        trained.append(model.torch_model.state_dict())
    for name, tensor in trained[0].items():
        assert torch.equal(tensor, trained[1][name]), name


@pytest.mark.parametrize("kill_at", [5, 20])
def test_killed_and_resumed_equals_uninterrupted(uninterrupted, tmp_path, kill_at):
    assert run(tmp_path, f"kill_at={kill_at}").returncode == -signal.SIGKILL
    assert run(tmp_path).returncode == 0
    for name, tensor in weights(uninterrupted / "final").items():
        assert torch.equal(weights(tmp_path / "final")[name], tensor), name


def test_terminated_saves_and_exits_with_0(uninterrupted, tmp_path):
    result = run(tmp_path, "terminate_at=12")
    assert result.returncode == 0, result.stderr
    state = torch.load(tmp_path / "interrupted" / "training_state.pt", weights_only=True)
    assert (state["epoch"], state["batch"]) == (1, 4)
    assert run(tmp_path).returncode == 0
    for name, tensor in weights(uninterrupted / "final").items():
        assert torch.equal(weights(tmp_path / "final")[name], tensor), name
    whole, resumed = (
        json.loads((folder / "history_0.json").read_text()) for folder in (uninterrupted, tmp_path)
    )
    for one, other in zip(whole, resumed, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-12)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-12)


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    options = ("dropout=0", "epochs=5", "max_gradient_norm=1.0", "schedule=steps")
    alone = run(tmp_path / "one", *options, "batch_size=16")
    together = run(tmp_path / "two", *options, "batch_size=8", processes=2)
    assert alone.returncode == together.returncode == 0, together.stderr
    one, first, second = (
        json.loads((tmp_path / name).read_text())
        for name in ("one/history_0.json", "two/history_0.json", "two/history_1.json")
    )
    for a, b, c in zip(one, first, second, strict=True):  # 4 steps an epoch
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["val_loss"] == pytest.approx(a["val_loss"], abs=1e-4)
        assert b["lr"] == c["lr"] == a["lr"]
        assert b["val_loss"] == c["val_loss"]
    rates = [
        json.loads((tmp_path / name).read_text())
        for name in ("one/rates_0.json", "two/rates_0.json", "two/rates_1.json")
    ]
    assert rates[0] == rates[1] == rates[2] and len(set(rates[0])) == len(rates[0]) - 1 == 19
    # Before the first step the two have the same weights: validation must agree to rounding.
    before = run(tmp_path / "three", "dropout=0", "epochs=1", "learning_rate=1e-30")
    shared = run(tmp_path / "four", "dropout=0", "epochs=1", "learning_rate=1e-30", processes=2)
    assert before.returncode == shared.returncode == 0
    values = [
        json.loads((tmp_path / name / "history_0.json").read_text())[0]["val_loss"]
        for name in ("three", "four")
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("processes_with_stars", [1, 2])
def test_processes_may_have_no_validation_stars(tmp_path, processes_with_stars):
    options = ("dropout=0", "epochs=1", f"validation={processes_with_stars}")
    assert run(tmp_path / "one", *options).returncode == 0
    assert run(tmp_path / "two", *options, "batch_size=4", processes=2).returncode == 0
    one, two = (
        json.loads((tmp_path / name / "history_0.json").read_text())[0]["val_loss"]
        for name in ("one", "two")
    )
    assert one == pytest.approx(two, abs=1e-4)


@pytest.mark.slow
def test_all_processes_stop_together_and_go_on(tmp_path):
    options = ("dropout=0", "epochs=2")
    assert run(tmp_path / "whole", *options, processes=2).returncode == 0
    assert run(tmp_path / "parts", *options, "terminate_at=2", processes=2).returncode == 0
    state = torch.load(tmp_path / "parts/interrupted/training_state.pt", weights_only=True)
    assert (state["epoch"], state["batch"]) == (0, 4)
    again = run(tmp_path / "parts", *options, processes=2)
    assert again.returncode == 0, again.stderr
    whole, parts = (
        json.loads((tmp_path / name / "history_0.json").read_text()) for name in ("whole", "parts")
    )
    assert whole[0]["loss"] == pytest.approx(parts[0]["loss"], rel=1e-9)
    for name, tensor in weights(tmp_path / "whole" / "final").items():
        torch.testing.assert_close(weights(tmp_path / "parts" / "final")[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_all_processes_stop_together_after_the_last_validation(tmp_path, processes):
    options = ("epochs=2", "terminate_validation=2")  # of the last process
    result = run(tmp_path, *options, processes=processes)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "epoch_2").is_dir() and not list(tmp_path.glob("history_*"))


def test_an_interrupted_epoch_needs_as_many_stars_a_batch(tmp_path):
    assert run(tmp_path, "terminate_at=3").returncode == 0
    with pytest.raises(ValueError, match="go on with as many"):
        run(tmp_path, "batch_size=16")


@pytest.mark.slow
def test_termination_waits_for_gathered_gradients(tmp_path):
    options = ("gradient_accumulation=3", "epochs=2")
    assert run(tmp_path / "whole", *options).returncode == 0
    assert run(tmp_path / "parts", *options, "terminate_at=4").returncode == 0
    state = torch.load(tmp_path / "parts/interrupted/training_state.pt", weights_only=True)
    assert state["batch"] == 6
    assert run(tmp_path / "parts", *options).returncode == 0
    for name, tensor in weights(tmp_path / "whole" / "final").items():
        assert torch.equal(weights(tmp_path / "parts" / "final")[name], tensor), name


def test_a_smaller_last_group_is_not_scaled_down():
    # 5 batches in groups of 4: the last step must be that of a batch of its own.
    model = make_model(encoder_dropout_rate=0.0, decoder_dropout_rate=0.0)
    norms = []
    step = torch.optim.AdamW.step

    def spy(self, *arguments, **options):
        gradients = [p.grad for p in self.param_groups[0]["params"] if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
        return step(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        for accumulation in (4, 1):
            model = make_model(encoder_dropout_rate=0.0, decoder_dropout_rate=0.0)
            train_here(
                model, rows=40, epochs=1, learning_rate=1e-30, gradient_accumulation=accumulation
            )
    assert len(norms) == 2 + 5
    assert norms[1] == pytest.approx(norms[-1], rel=1e-4)


def test_gradient_accumulation_equals_a_larger_batch():
    losses = []
    for batch_size, accumulation in ((16, 1), (8, 2)):
        model = make_model(encoder_dropout_rate=0.0, decoder_dropout_rate=0.0)
        history = train_here(
            model, batch_size=batch_size, gradient_accumulation=accumulation, epochs=3
        )
        losses.append([row["val_loss"] for row in history])
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ({"freeze_decoder": True}, ("torch_decoder",)),
        ({"freeze_encoder": True}, ("torch_encoder",)),
        (
            {"freeze_decoder": True, "freeze_encoder_second_layer": True},
            ("torch_decoder", "torch_encoder.encoder_transformer_block_2"),
        ),
    ],
)
def test_frozen_parts_stay_and_others_move(freeze, frozen):
    model = make_model()
    before = {k: v.clone() for k, v in model.torch_model.state_dict().items()}
    model.set_trainable(**freeze)
    train_here(model)
    moved = {
        name.rsplit(".", 2)[0] if "block" not in name else ".".join(name.split(".")[:2])
        for name, tensor in model.torch_model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert moved and not any(name.startswith(frozen) for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_learns_as_well(precision):
    quiet = {"encoder_dropout_rate": 0.0, "decoder_dropout_rate": 0.0}
    options = {"epochs": 6, "learning_rate": 3e-3, "labels_per_star": "all"}
    exact, rounded = (
        train_here(make_model(**quiet), precision=kind, **options)
        for kind in ("float32", precision)
    )
    assert exact[-1]["loss"] != rounded[-1]["loss"]  # it did change the arithmetic
    gained = exact[0]["val_loss"] - exact[-1]["val_loss"]
    # (float16 loses its first steps to the search for a scale.)
    assert rounded[0]["val_loss"] - rounded[-1]["val_loss"] > 0.8 * gained > 0.1


@pytest.mark.slow
def test_compiled_networks_leave_plain_checkpoints(tmp_path, monkeypatch):
    # Tracing without a code generator: no compiler is needed, and no minutes.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    quiet = {"encoder_dropout_rate": 0.0, "decoder_dropout_rate": 0.0}
    options = {"epochs": 1, "rows": 61}  # so that the last batch has to be filled up
    plain = train_here(make_model(**quiet), **options)
    folder = RunFolder(tmp_path, {})
    compiled = train_here(make_model(**quiet), compile=True, folder=folder, **options)
    for name in ("loss", "val_loss"):
        assert compiled[0][name] == pytest.approx(plain[0][name], rel=1e-4)
    assert set(weights(tmp_path / "epoch_1")) == set(make_model().torch_model.state_dict())


@pytest.mark.slow
def test_windows_of_any_length_are_compiled_once(monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    quiet = {"encoder_dropout_rate": 0.0, "decoder_dropout_rate": 0.0, "context_length": 40}
    windows = {"choice": "batch", "window_share": 0.7, "window_tokens": 4, "epochs": 3}
    plain, compiled = (
        train_here(make_model(**quiet), compile=compile, **windows) for compile in (False, True)
    )
    assert compiled[-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=1e-4)
    # One shape, in training and in validation.
    assert len(graphs) <= 2


def test_only_the_seed_decides():
    histories = [train_here(make_model(), seed=seed)[-1]["loss"] for seed in (0, 0, 1)]
    assert histories[0] == histories[1] != histories[2]


def test_the_global_generator_is_left_alone():
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    train_here(make_model())
    assert torch.equal(torch.rand(2), expected)


def test_metrics_and_logs(tmp_path):
    folder = RunFolder(tmp_path / "run", {"a": 1})
    history = train_here(make_model(), folder=folder, epochs=4, keep_checkpoints=2)
    with open(tmp_path / "run" / "training_metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["time", "loss", "mse_loss", "val_loss", "val_mse_loss", "lr"]
    assert float(rows[3]["val_loss"]) == history[3]["val_loss"]
    assert [float(row["lr"]) for row in rows] == [1e-3] * 4
    names = {path.name for path in (tmp_path / "run").iterdir()}
    logs = {"training.log", "training_system_info.log", "loss.png", "configuration.json"}
    assert logs | {"epoch_3", "epoch_4", "best"} <= names
    assert "epoch_1" not in names and "epoch_2" not in names
    assert "effective batch 8" in (tmp_path / "run" / "training.log").read_text()


@pytest.mark.slow
def test_the_best_network_is_that_of_the_least_validation_loss(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, math.nan, 0.5, 0.7])
    validate = Trainer.validate
    monkeypatch.setattr(Trainer, "validate", lambda self: validate(self) | {"loss": next(losses)})
    folder = RunFolder(tmp_path, {})
    for epochs, best in ((1, 1), (2, 2), (4, 2), (6, 5)):  # resumed three times
        train_here(make_model(), folder=folder, epochs=epochs, keep_checkpoints=0)
        loaded = StellarPerceptron.load(tmp_path / "best", device="cpu")
        assert loaded.epoch == best
        for name, tensor in weights(tmp_path / f"epoch_{best}").items():
            assert torch.equal(weights(tmp_path / "best")[name], tensor), name


def test_the_best_network_keeps_its_epoch_until_the_next_checkpoint(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    validate = Trainer.validate
    monkeypatch.setattr(Trainer, "validate", lambda self: validate(self) | {"loss": next(losses)})
    folder = RunFolder(tmp_path, {})
    train_here(make_model(), folder=folder, epochs=3, checkpoint_every_n_epochs=3)
    assert not (tmp_path / "epoch_2").exists()
    assert StellarPerceptron.load(tmp_path / "best", device="cpu").epoch == 2
    best, last = (weights(tmp_path / name) for name in ("best", "epoch_3"))
    assert any(not torch.equal(best[name], tensor) for name, tensor in last.items())


def test_a_nan_stops_training_and_names_the_last_checkpoint(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run", {})
    train_here(make_model(), folder=folder, epochs=1)
    load = PerceptronTask.load

    def load_diverged(self, path):
        state = load(self, path)
        with torch.no_grad():
            self.network.torch_decoder.decoder_out.bias.fill_(torch.nan)
        return state

    monkeypatch.setattr(PerceptronTask, "load", load_diverged)
    with pytest.raises(TrainingError, match=r"NaN since epoch 2, batch 1; .*epoch_1"):
        train_here(make_model(), folder=folder, epochs=2)


@pytest.mark.parametrize("last_batch", [15, 16])
def test_a_last_step_that_diverges_is_not_saved(tmp_path, monkeypatch, last_batch):
    """Its loss, that of the weights before the step, is a good one."""
    taken, train_batch = [], Trainer.train_batch

    def diverging(self, batch):
        stepped = train_batch(self, batch)
        taken.append(stepped)
        if len(taken) == last_batch:
            if last_batch == 15:  # interrupted right after the step
                os.kill(os.getpid(), signal.SIGTERM)
            with torch.no_grad():
                self.network.torch_decoder.decoder_out.bias.fill_(torch.inf)
        return stepped

    monkeypatch.setattr(Trainer, "train_batch", diverging)
    folder = RunFolder(tmp_path / "run", {})
    message = r"diverged in epoch 2: torch_decoder\.decoder_out\.bias is not finite; .*epoch_1"
    with pytest.raises(TrainingError, match=message):
        train_here(make_model(), folder=folder, epochs=2)
    assert not list(folder.path.glob("epoch_2")) + list(folder.path.glob("interrupted"))


def test_ctrl_c_saves_as_a_termination_does(uninterrupted, tmp_path, monkeypatch):
    kill = os.kill
    monkeypatch.setattr(train_tiny.os, "kill", lambda pid, _: kill(pid, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "terminate_at=12")
    state = torch.load(tmp_path / "interrupted" / "training_state.pt", weights_only=True)
    assert (state["epoch"], state["batch"]) == (1, 4)
    monkeypatch.undo()
    assert run(tmp_path).returncode == 0
    for name, tensor in weights(uninterrupted / "final").items():
        assert torch.equal(weights(tmp_path / "final")[name], tensor), name
