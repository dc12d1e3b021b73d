"""The numbered scripts, end to end at toy size, and what their profiles say."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from chain import ROOT, STAGES, TRAINING, make_survey, run_here, script, stage

from stellarperceptron import ModelConfig, StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.labels import PUBLISHED_LABELS
from stellarperceptron.network.baselines.published import BaselineNetwork
from stellarperceptron.network.checkpoint import weights_sha256
from stellarperceptron.training.profiles import STAGES as SECTIONS
from stellarperceptron.training.profiles import find_profile, read_profile
from stellarperceptron.training.run.script import mark_complete, resolve_checkpoint, stage_folder
from stellarperceptron.training.stages import (
    five_folds,
    new_model,
    read_stars,
    require_labels,
    require_same_instrument,
    split_rows,
)
from stellarperceptron.utils.distributed import Process
from stellarperceptron.utils.locks import BusyError

FOLDER = TRAINING / "profiles"
PROFILES = ("smoke", "laptop", "laptop_pixel", "instruments", "paper", "gpu")


def test_stage_1_knows_all_pixels_and_labels(chain, survey):
    model = StellarPerceptron.load(chain / "1" / "epoch_1", device="cpu")
    assert model.vocab_size == 7519
    assert model.embed_map.tolist() == list(range(7520))  # bins: an embedding for each pixel
    with SpectraDataset.open(survey) as dataset:
        synthetic = dataset.train.read("synthetic")
    np.testing.assert_allclose(
        model.standardizer.center[1:7515], np.nanmedian(synthetic, 0), atol=1e-6
    )


def test_stage_2_keeps_the_standardization_of_stage_1(chain):
    one, two = (StellarPerceptron.load(resolve_checkpoint(chain / n), device="cpu") for n in "12")
    np.testing.assert_array_equal(one.standardizer.center, two.standardizer.center)
    weights = [m.torch_model.torch_decoder.decoder_out.weight for m in (one, two)]
    assert not torch.equal(*weights)


def test_stage_3_trains_the_embeddings_only(chain):
    two, three = (
        StellarPerceptron.load(resolve_checkpoint(chain / n), device="cpu").torch_model.state_dict()
        for n in "23"
    )
    moved = {name for name in two if not torch.equal(two[name], three[name])}
    assert moved and all(name.startswith("embedding_layer.") for name in moved)


def test_chain_predicts(chain, survey):
    with SpectraDataset.open(survey) as dataset:
        chunk = dataset.test.read("observed", pixels="fe_chunk")
        model = StellarPerceptron.load(chain / "3" / "selected", device="cpu")
        start = model.predict(chunk, dataset.wavelength[4107:4619], ["FE_H"])
    baseline = BaselineNetwork.load(chain / "nn" / "selected").predict(chunk)
    assert baseline.columns.tolist() == ["FE_H", "FE_H_error"]
    assert start.columns.tolist() == [*baseline.columns, "flags"]
    assert np.isfinite(start).all(axis=None) and np.isfinite(baseline).all(axis=None)


def test_folds_choose_the_epoch_within_the_hundred(chain, survey, tmp_path):
    """Which epoch they choose is tested with losses that are known: test_training_stars.py."""
    folds = ("--set", "selection.name=folds", "--set", "training.epochs=2")
    stage("baseline", survey, tmp_path / "nn", *folds)
    content = json.loads((tmp_path / "nn" / "selection.json").read_text())
    assert content["epochs"] == BaselineNetwork.load(tmp_path / "nn" / "selected").epoch
    assert np.isfinite(content["validation_rmse"]).all() and len(content["validation_rmse"]) == 2
    stage(3, survey, tmp_path / "3", "--checkpoint", chain / "2", *folds)
    names = {path.name for path in (tmp_path / "3").iterdir()}
    folds = {f"fold_{i}" for i in range(1, 6)}
    others = {"all_hundred", "complete", "configuration.json", "selected", "selection.json"}
    assert names == others | folds
    content = json.loads((tmp_path / "3" / "selection.json").read_text())
    model = StellarPerceptron.load(tmp_path / "3" / "selected", device="cpu")
    assert content["epoch"] == model.epoch and len(content["validation_loss"]) == 2


def test_published_selection_is_an_option(chain, survey, tmp_path):
    published = ("--set", "selection.name=published", "--set", "training.epochs=2")
    stage(3, survey, tmp_path / "3", "--checkpoint", chain / "2", *published)
    losses = pd.read_csv(tmp_path / "3" / "training_metrics.csv")["val_loss"]
    content = json.loads((tmp_path / "3" / "selection.json").read_text())
    assert (content["selection"], content["epoch"]) == ("published", 1 + losses.argmin())
    best, selected = (
        StellarPerceptron.load(tmp_path / "3" / name, device="cpu").torch_model.state_dict()
        for name in ("best", "selected")
    )
    assert all(torch.equal(best[name], selected[name]) for name in best)
    stage("baseline", survey, tmp_path / "nn", *published)
    rmse = pd.read_csv(tmp_path / "nn/validated_on_test_stars/training_metrics.csv")["val_mse_loss"]
    content = json.loads((tmp_path / "nn" / "selection.json").read_text())
    assert (content["selection"], content["epochs"]) == ("published", 1 + rmse.argmin())


def test_folds_are_a_partition():
    folds = five_folds(100, seed=3)
    assert sorted(np.concatenate([validation for _, validation in folds])) == list(range(100))
    assert all(len(training) == 80 for training, _ in folds)
    assert all(not set(a) & set(b) for a, b in folds)


def test_metal_poor_stars_come_several_times_in_training_only(survey):
    profile = read_profile(FOLDER / "smoke.toml", "stage_1", ["data.metal_poor_copies=3"])
    with SpectraDataset.open(survey) as dataset:
        iron = dataset.train.labels[:, -1]
        training, validation = split_rows(dataset, profile)
    rows, copies = np.unique(training, return_counts=True)
    np.testing.assert_array_equal(copies, np.where(iron[rows] < -1, 3, 1))
    assert (copies == 3).any()
    np.testing.assert_array_equal(np.union1d(rows, validation), np.arange(len(iron)))
    assert len(np.unique(validation)) == len(validation)


def test_stages_say_when_they_are_complete(chain):
    assert all((chain / name / "complete").exists() for name in ("1", "2", "3", "nn"))


def test_other_data_are_refused(chain, tmp_path):
    other = tmp_path / "other.h5"
    make_survey(other, seed=4)
    result = script(
        f"training/{STAGES[1]}",
        *("--profile", "smoke", "--data", other, "--output", chain / "1"),
        *("--set", "training.epochs=1"),
    )
    assert result.returncode != 0 and "inputs.data.provenance" in result.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.pixels=ultraviolet", "unknown APOGEE pixel range 'ultraviolet': known are blue"),
        ("data.labels=['FE_H', 'C_FE']", "no label 'C_FE'; known are TEFF, LOGG"),
    ],
)
def test_a_profile_that_does_not_fit_the_survey_is_refused(survey, setting, message):
    profile = read_profile(FOLDER / "smoke.toml", "stage_1", [setting])
    with SpectraDataset.open(survey) as dataset, pytest.raises(ValueError, match=message):
        new_model(dataset, profile, torch.device("cpu"))
        read_stars(dataset, profile)


def test_labels_that_the_checkpoint_lacks_are_refused(survey):
    profile = read_profile(FOLDER / "smoke.toml", "stage_1", ["data.labels=['TEFF', 'FE_H']"])
    with SpectraDataset.open(survey) as dataset:
        model = new_model(dataset, profile, torch.device("cpu"))
        require_labels(model, ["FE_H"])
        with pytest.raises(ValueError, match="checkpoint has no labels LOGG, only TEFF, FE_H"):
            require_labels(model, dataset.label_names[:2])


def test_a_model_without_instrument_fits_no_survey(survey):
    model = StellarPerceptron(["a", "b"], device="cpu")
    assert model.instrument is None
    with (
        SpectraDataset.open(survey) as dataset,
        pytest.raises(ValueError, match=r"APOGEE \(7514 .* checkpoint is for no known instrument"),
    ):
        require_same_instrument(model, dataset)


def test_the_selected_checkpoint_or_the_last_is_taken(tmp_path):
    for name in ("epoch_9", "epoch_10", "epoch_10.damaged", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.pt").touch()
    assert resolve_checkpoint(tmp_path).name == "epoch_10"
    assert resolve_checkpoint(tmp_path / "epoch_9").name == "epoch_9"
    (tmp_path / "selected").mkdir()
    (tmp_path / "selected" / "weights.pt").touch()
    assert resolve_checkpoint(tmp_path).name == "selected"


def test_missing_checkpoint_names_the_command(tmp_path, survey):
    result = script(
        f"training/{STAGES[2]}",
        *("--data", survey, "--output", tmp_path / "2", "--checkpoint", tmp_path / "1"),
    )
    assert result.returncode == 2
    assert "run the stage before" in result.stderr


# --- whose results they are -------------------------------------------------------------------


@pytest.fixture
def stages_1_and_2(chain, tmp_path):
    """Copies of the first two stages; gives a function that runs stage 2 here."""
    for name in ("1", "2"):
        shutil.copytree(chain / name, tmp_path / name)

    def run(data, *more, start="1"):
        arguments = ("--data", data, "--output", tmp_path / "2", "--checkpoint", tmp_path / start)
        return run_here(
            f"training/{STAGES[2]}",
            *("--profile", "smoke", *arguments, "--set", "training.epochs=1", *more),
        )

    return run


def train_stage_1_again(folder):
    """As with another seed: other weights under the same path."""
    model = StellarPerceptron.load(folder / "selected", device="cpu")
    with torch.no_grad():
        model.torch_model.torch_decoder.decoder_out.bias.add_(0.5)
    model.save(folder / "new")
    shutil.copy(folder / "new" / "weights.pt", folder / "selected" / "weights.pt")
    return weights_sha256(folder / "selected")


def test_other_weights_to_start_from_are_noticed(stages_1_and_2, survey, tmp_path):
    sha256 = train_stage_1_again(tmp_path / "1")
    message = stages_1_and_2(survey)
    assert "belongs to another configuration (inputs.checkpoint_sha256" in message
    assert "--no-resume trains this stage anew" in message
    assert "Traceback" not in message and (tmp_path / "2" / "complete").exists()
    before = weights_sha256(tmp_path / "2" / "epoch_1")
    assert stages_1_and_2(survey, "--retrain-if-stale") is None
    configuration = json.loads((tmp_path / "2" / "configuration.json").read_text())
    assert configuration["inputs"]["checkpoint_sha256"] == sha256
    assert weights_sha256(tmp_path / "2" / "epoch_1") != before
    assert (tmp_path / "2" / "complete").exists()


def test_equal_weights_elsewhere_are_not_trained_anew(stages_1_and_2, survey, tmp_path):
    (tmp_path / "1").rename(tmp_path / "moved")
    before = weights_sha256(tmp_path / "2" / "epoch_1")
    assert stages_1_and_2(survey, "--retrain-if-stale", start="moved") is None
    assert weights_sha256(tmp_path / "2" / "epoch_1") == before
    assert "going on from" in (tmp_path / "2" / "training.log").read_text().splitlines()[-2]


def test_make_retrains_what_follows():
    lines = (ROOT / "Makefile").read_text().splitlines()
    stale = [line for line in lines if "--checkpoint $(STAGE_" in line and "retrain" in line]
    assert len(stale) == 3  # stages 2 and 3, and stage 3 as published
    assert "$(STAGE_2)/complete: $(STAGE_1)/complete" in lines  # newer than: anew


ALONE = Process(0, 1, torch.device("cpu"))


def test_a_stage_that_starts_anew_is_not_complete(tmp_path):
    (tmp_path / "selected").mkdir()
    (tmp_path / "complete").touch()
    with stage_folder(tmp_path, ALONE, fresh=False, configuration={"seed": 0}):
        assert not (tmp_path / "complete").exists()  # whose was it?
        mark_complete(tmp_path, ALONE)
    with stage_folder(tmp_path, ALONE, fresh=False, configuration={"seed": 0}):
        assert (tmp_path / "complete").exists()
    other = pytest.raises(ValueError, match="belongs to another configuration")
    with other, stage_folder(tmp_path, ALONE, fresh=False, configuration={"seed": 5}):
        pass
    assert (tmp_path / "complete").exists() and (tmp_path / "selected").exists()
    with stage_folder(tmp_path, ALONE, fresh=True, configuration={"seed": 5}):
        assert not (tmp_path / "complete").exists() and not (tmp_path / "selected").exists()


def test_a_stage_has_its_folder_for_itself(tmp_path):
    with (
        stage_folder(tmp_path, ALONE, fresh=False),
        pytest.raises(BusyError, match=f"in use by process {os.getpid()} on"),
        stage_folder(tmp_path, ALONE, fresh=True),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nothing.h5"), "nothing.h5: there is no such file"),
        (("--threads", "0"), "--threads: 0 is not at least 1"),
        (("--seed", str(2**32)), "--seed: 4294967296 is not within 0 and 4294967295"),
        (("--seed", "5"), "belongs to another configuration (profile.training.seed: 0 -> 5)"),
        (("--device", "mps"), "device mps: PyTorch finds no Metal"),
        (("--device", "xpu"), "device 'xpu' is none of auto, cpu"),
        (("--output", "FILE"), "file is a file: give the name of a folder"),
        ("damaged", "configuration.json is damaged"),
    ],
)
def test_wrong_input_ends_with_one_line(chain, survey, tmp_path, capsys, arguments, message):
    shutil.copytree(chain / "1", tmp_path / "1")
    (tmp_path / "file").touch()
    if arguments == "damaged":
        file = tmp_path / "1" / "configuration.json"
        file.write_text(file.read_text()[:100])
        arguments = ()
    given = {"--data": survey, "--output": tmp_path / "1", "--profile": "smoke"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    given = {key: tmp_path / "file" if value == "FILE" else value for key, value in given.items()}
    pairs = [text for pair in given.items() for text in pair]
    ended = run_here(f"training/{STAGES[1]}", *pairs, "--set", "training.epochs=1")
    said = ended if isinstance(ended, str) else capsys.readouterr().err.splitlines()[-1]
    assert message in said and "\n" not in said


# --- profiles ---------------------------------------------------------------------------------


def write(folder, text):
    """A profile of stage 1 alone, its sections written without the stage."""
    path = folder / "p.toml"
    path.write_text("[stage_1]\n" + re.sub(r"^\[", "[stage_1.", text, flags=re.MULTILINE))
    return path


@pytest.mark.parametrize("stage", SECTIONS)
@pytest.mark.parametrize("name", PROFILES)
def test_profiles_see_the_spectra_of_their_stage(name, stage):
    data = read_profile(FOLDER / f"{name}.toml", stage).data
    observed = ("observed", "first_half" if stage == "stage_2" else "fe_chunk")
    assert (data.kind, data.pixels) == (("synthetic", "full") if stage == "stage_1" else observed)
    assert data.labels == (("FE_H",) if data.pixels == "fe_chunk" else PUBLISHED_LABELS)


def test_every_profile_is_one_file():
    # `optical` and `low_resolution` are for stage 1 only, `surveys` for stages 1 and 2.
    others = {"optical", "low_resolution", "surveys"}
    assert {path.stem for path in TRAINING.rglob("*.toml")} == {*PROFILES, *others}
    assert {path.parent for path in TRAINING.rglob("*.toml")} == {FOLDER}


def test_paper_profile_is_the_published_one():
    one, two, three = (
        read_profile(FOLDER / "paper.toml", stage) for stage in ("stage_1", "stage_2", "stage_3")
    )
    assert one.model == ModelConfig()
    assert (one.training.epochs, one.training.batch_size) == (325, 64)
    assert {p.training.learning_rate for p in (one, two, three)} == {1e-4}
    assert (one.schedule.name, one.schedule.restart_epochs) == ("cosine_warm_restarts", 50)
    assert one.schedule.minimum_lr == 1e-10
    assert (two.data.kind, two.data.pixels) == ("observed", "first_half")
    assert two.schedule.restart_epochs == 500
    assert (three.data.pixels, three.data.labels) == ("fe_chunk", ("FE_H",))
    assert three.freeze.freeze_decoder and three.freeze.freeze_encoder_second_layer
    assert three.training.epochs == 120


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[training]\nepoch = 3", ["epoch", "epochs"]),
        ("[trainings]\nepochs = 3", ["trainings", "training"]),
        ("[training]\nepochs = 3.5\nbatch_size = 0", ["training.epochs", "batch_size"]),
        ("[data]\nkind = 'real'\n[schedule]\nname = 'step'", ["data.kind", "schedule.name"]),
        ("[model]\nembedding_dim = 30\n[training]\nlearning_rate = -1", ["head_num", "learning"]),
        ("[data]\nvalidation_split = 1.0", ["validation_split"]),
        ("[data]\nlabels = []", ["data.labels"]),
        ("[training]\nseed = -1\nkeep_checkpoints = -2", ["seed", "keep_checkpoints"]),
        ("[training", ["no TOML"]),
    ],
)
def test_all_mistakes_in_a_profile_are_named(tmp_path, text, named):
    with pytest.raises(ValueError) as error:
        read_profile(write(tmp_path, text), "stage_1")
    assert all(name in str(error.value) for name in [*named, "p.toml"])


def test_mistakes_name_the_stage(tmp_path):
    path = write(tmp_path, "[training]\nepochs = 3\nseed = true")
    with pytest.raises(ValueError, match=r"p\.toml, stage_1: training\.seed = True .* int"):
        read_profile(path, "stage_1")
    with pytest.raises(ValueError, match=r"p\.toml, stage_2: it has no sections \[stage_2\.data\]"):
        read_profile(path, "stage_2")
    path.write_text("[stage1.training]\nepochs = 3\n[stage_1.data]")
    with pytest.raises(ValueError, match=r"unknown stage 'stage1' \(nearest known: stage_1"):
        read_profile(path, "stage_1")


def test_a_byte_order_mark_is_no_part_of_a_profile(tmp_path):
    (tmp_path / "p.toml").write_bytes(b"\xef\xbb\xbf[stage_1.training]\r\nepochs = 3\r\n")
    assert read_profile(tmp_path / "p.toml", "stage_1").training.epochs == 3


def test_overrides_win_and_are_checked(tmp_path):
    path = write(tmp_path, "[training]\nepochs = 3")
    profile = read_profile(
        path,
        "stage_1",
        [
            "training.epochs=7",
            "data.kind=observed",
            'data.labels=["FE_H"]',
            "model.context_length=9",
        ],
    )
    assert profile.training.epochs == 7 and profile.data.kind == "observed"
    assert profile.data.labels == ("FE_H",) and profile.model.context_length == 9
    with pytest.raises(ValueError, match=r"section\.entry=value"):
        read_profile(path, "stage_1", ["epochs"])


def test_profiles_are_found_by_name_or_path(tmp_path):
    (tmp_path / "laptop.toml").write_text("")
    assert find_profile("laptop", tmp_path) == tmp_path / "laptop.toml"
    assert find_profile(tmp_path / "laptop.toml", FOLDER) == tmp_path / "laptop.toml"
    for unknown in ("desktop", tmp_path / "desktop.toml"):
        with pytest.raises(FileNotFoundError, match="known are laptop"):
            find_profile(unknown, tmp_path)


def test_help_lists_the_entries_of_a_profile(capsys):
    assert run_here(f"training/{STAGES[1]}", "--help") == 0
    lines = {line.strip() for line in capsys.readouterr().out.splitlines()}
    for line in (
        "training.batch_size=64  int [stars]",
        'data.kind="synthetic"  synthetic | observed',
        "model.wavelength_range=[15000.0, 17000.0]  tuple[float, float] [Angstrom]",
        "schedule.warmup_steps=200  int [optimizer steps]",
        "freeze.freeze_decoder=false  bool",
    ):
        assert line in lines


@pytest.mark.slow
def test_paper_profile_runs_on_a_cpu(survey, tmp_path):
    result = script(
        f"training/{STAGES[1]}",
        *("--profile", "paper", "--data", survey, "--output", tmp_path),
        *("--set", "training.epochs=2", "--set", "data.stars=16"),
        *("--set", "training.checkpoint_every_n_epochs=0"),
    )
    assert result.returncode == 0, result.stderr
    log = (tmp_path / "training.log").read_text()
    assert "11870722 trainable parameters" in log
    metrics = pd.read_csv(tmp_path / "training_metrics.csv")
    assert metrics["epoch"].tolist() == [1, 2] and np.isfinite(metrics["loss"]).all()
    cosine = 0.5e-4 * (1 + np.cos(np.pi * np.arange(2) / 50))
    np.testing.assert_allclose(metrics["lr"], cosine, rtol=1e-4)
    assert StellarPerceptron.load(tmp_path / "epoch_2", device="cpu").epoch == 2
