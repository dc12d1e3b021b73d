"""Checkpoints: round trips, exchange with the published code, and what is refused."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import LABELS, make_model

from stellarperceptron import StellarPerceptron
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.network.checkpoint import read_checkpoint, weights_sha256
from stellarperceptron.utils import data_utils

NAMES = [f"syn_apogee{i}" for i in range(40)]


@pytest.fixture
def saved(model, tmp_path):
    model.epoch = 7
    model.save(tmp_path / "epoch_7")
    return tmp_path / "epoch_7"


def answers(model, spectra, wavelengths):
    return model.predict(spectra, wavelengths, LABELS, names=NAMES).to_numpy()


def rewrite_weights(folder, change):
    file = torch.load(folder / "weights.pt", weights_only=True)
    change(file)
    torch.save(file, folder / "weights.pt")


@pytest.mark.parametrize("pixels_per_token", [1, 3])
def test_round_trip_is_exact(tmp_path, spectra, wavelengths, pixels_per_token):
    model = make_model(pixels_per_token=pixels_per_token, wavelength_range=(15100.0, 16900.0))
    model.epoch = 3
    model.save(tmp_path / "epoch_3")
    loaded = StellarPerceptron.load(tmp_path / "epoch_3", device="cpu")
    assert loaded.epoch == 3 and loaded.config == model.config
    np.testing.assert_array_equal(
        answers(loaded, spectra, wavelengths), answers(model, spectra, wavelengths)
    )


def test_half_precision_keeps_the_weights_to_its_rounding(model, saved, tmp_path):
    model.save(tmp_path / "half", dtype=torch.float16)
    loaded = StellarPerceptron.load(tmp_path / "half", device="cpu")
    for name, value in loaded.torch_model.state_dict().items():
        expected = model.torch_model.state_dict()[name]
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=2**-11, atol=1e-7)
    assert (tmp_path / "half/weights.pt").stat().st_size < (saved / "weights.pt").stat().st_size


def test_safetensors_hold_the_same(model, tmp_path, spectra, wavelengths):
    pytest.importorskip("safetensors")
    model.epoch = 5
    model.save(tmp_path / "both", safetensors=True)
    (tmp_path / "both/weights.pt").unlink()
    loaded = StellarPerceptron.load(tmp_path / "both", device="cpu")
    assert loaded.epoch == 5
    np.testing.assert_array_equal(
        answers(loaded, spectra, wavelengths), answers(model, spectra, wavelengths)
    )
    model.save(tmp_path / "both", overwrite=True)  # a checkpoint like any other
    assert weights_sha256(tmp_path / "both")


def test_damaged_safetensors_are_refused(model, tmp_path):
    pytest.importorskip("safetensors")
    model.save(tmp_path / "both", safetensors=True)
    (tmp_path / "both/weights.pt").unlink()
    path = tmp_path / "both/weights.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-7], content[: len(content) // 2], b"", b"{" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
            StellarPerceptron.load(tmp_path / "both", device="cpu")


def test_safetensors_are_checked_as_other_weights(model, tmp_path):
    torch_files = pytest.importorskip("safetensors.torch")
    model.save(tmp_path / "both", safetensors=True)
    (tmp_path / "both/weights.pt").unlink()
    path = tmp_path / "both/weights.safetensors"
    tensors = torch_files.load_file(path)
    name = next(iter(tensors))
    for wrong, message in (
        (torch.full_like(tensors[name], torch.nan), "are NaN or infinite"),
        (tensors[name].long(), "is not the name of a plain tensor"),
        (tensors[name][..., :1].clone(), "has shape"),
    ):
        torch_files.save_file({**tensors, name: wrong}, path)
        with pytest.raises(ValueError, match=message):
            StellarPerceptron.load(tmp_path / "both", device="cpu")


def test_a_checkpoint_says_what_it_is(model, tmp_path):
    model = make_model(7514, ["TEFF", "FE_H"], context_length=64, pixels_per_token=16)
    model.trained_on = {"stars": 3, "provenance": {"generator": "by hand"}}
    model.save(tmp_path / "c")
    about = json.loads((tmp_path / "c/config.json").read_text())["stellarperceptron"]
    assert about["units"] == {"TEFF": "K", "FE_H": "dex"}
    assert about["written_by"] == data_utils.written_by()
    loaded = StellarPerceptron.load(tmp_path / "c", device="cpu")
    assert loaded.trained_on == about["trained_on"] == model.trained_on


def test_files_are_the_published_ones(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "embed_map.npz", "weights.pt"]
    config = json.loads((saved / "config.json").read_text())
    assert {"nn_config", "tokenizer_config", "norm_config"} < set(config)
    assert config["tokenizer_config"]["vocab_tokens"][0] == 1
    weights = torch.load(saved / "weights.pt", weights_only=True)
    assert set(weights) == {"model_state_dict", "optimizer_state_dict", "optimizer", "epoch"}
    with np.load(saved / "embed_map.npz", allow_pickle=False) as file:
        assert file["keys"].tolist() == [*range(1, 44), 0]
        assert file["values"].tolist() == [*[1] * 40, 41, 42, 43, 0]


def test_optimizer_state_is_kept(model, tmp_path):
    optimizer = torch.optim.AdamW(model.torch_model.parameters(), lr=3e-4)
    model.save(tmp_path / "c", optimizer=optimizer)
    checkpoint = read_checkpoint(tmp_path / "c")
    assert checkpoint.optimizer == "AdamW"
    assert checkpoint.optimizer_state["param_groups"][0]["lr"] == 3e-4


def test_optimizer_state_may_be_absent(saved, spectra, wavelengths, model):
    rewrite_weights(saved, lambda file: [file.pop(k) for k in list(file) if "optim" in k])
    loaded = StellarPerceptron.load(saved, device="cpu")
    np.testing.assert_array_equal(
        answers(loaded, spectra, wavelengths), answers(model, spectra, wavelengths)
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_saved_by_wrappers(saved, spectra, wavelengths, model, prefix):
    def add_prefix(file):
        state = file["model_state_dict"]
        file["model_state_dict"] = {prefix + name: tensor for name, tensor in state.items()}

    rewrite_weights(saved, add_prefix)
    loaded = StellarPerceptron.load(saved, device="cpu")
    np.testing.assert_array_equal(
        answers(loaded, spectra, wavelengths), answers(model, spectra, wavelengths)
    )


def test_without_embed_map_every_token_has_its_own_row(saved):
    (saved / "embed_map.npz").unlink()
    loaded = StellarPerceptron.load(saved, device="cpu")
    assert loaded.embed_map.tolist() == list(range(44))


# --- fine-tuning ------------------------------------------------------------------------------


def test_new_tokens_keep_the_old_rows(saved, model, spectra, wavelengths):
    tuned = StellarPerceptron.load_for_finetuning(
        saved, ["real_apogee0", "C_FE"], {"real_apogee0": "syn_apogee0"}, device="cpu", seed=2
    )
    assert tuned.vocabs == [*model.vocabs, "real_apogee0", "C_FE"]
    assert tuned.embed_map.tolist() == [*model.embed_map, 1, 45]
    np.testing.assert_array_equal(
        answers(tuned, spectra, wavelengths), answers(model, spectra, wavelengths)
    )
    rows = tuned.torch_model.embedding_layer.embeddings
    assert torch.equal(rows[:44], model.torch_model.embedding_layer.embeddings)
    assert rows[44:].abs().sum(dim=1).gt(0).all()


def test_new_tokens_are_standardized_by_new_data_only(saved, model):
    tuned = StellarPerceptron.load_for_finetuning(saved, ["C_FE"], device="cpu")
    with pytest.raises(ValueError, match="C_FE"):
        tuned.require_standardization(tuned.tokenize(["TEFF", "C_FE"]))
    tuned.fit_standardization([[1.0, 0.1], [2.0, 0.3]], ["TEFF", "C_FE"])
    assert tuned.standardizer.center[44] == pytest.approx(0.2)
    np.testing.assert_array_equal(tuned.standardizer.center[:44], model.standardizer.center)


def test_new_names_must_be_new(saved):
    with pytest.raises(ValueError, match="TEFF"):
        StellarPerceptron.load_for_finetuning(saved, ["TEFF"], device="cpu")


# --- refused ----------------------------------------------------------------------------------


def test_existing_checkpoints_are_kept(saved, model):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(saved)
    model.epoch = 8
    model.save(saved, overwrite=True)
    assert StellarPerceptron.load(saved, device="cpu").epoch == 8
    assert [p.name for p in saved.parent.iterdir()] == ["epoch_7"]


def test_a_save_that_dies_leaves_the_previous_one(saved, model, small_files):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    assert len(before["config.json"]) < 10_000 < len(before["weights.pt"])
    small_files(10_000)
    with pytest.raises(OSError, match=r"disk is full.*epoch_7 needs 0\.\d\d MB"):
        model.save(saved, overwrite=True)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["epoch_7"]


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json and no weights\.pt"):
        StellarPerceptron.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        StellarPerceptron.load(tmp_path / "epoch_1")


def test_tensors_that_do_not_fit_are_named(saved):
    def damage(file):
        state = file["model_state_dict"]
        del state["torch_decoder.decoder_out.bias"]
        state["surplus"] = torch.zeros(1)
        state["embedding_layer.bias"] = torch.zeros(3, 3)

    rewrite_weights(saved, damage)
    with pytest.raises(ValueError) as error:
        StellarPerceptron.load(saved, device="cpu")
    message = str(error.value)
    assert "missing: torch_decoder.decoder_out.bias" in message
    assert "extra: surplus" in message
    assert "embedding_layer.bias has shape (3, 3), expected (44, 16)" in message


def test_pickles_with_more_than_tensors_are_not_executed(saved, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model_state_dict": Payload()}, saved / "weights.pt")
    with pytest.raises(ValueError, match="refused"):
        StellarPerceptron.load(saved, device="cpu")
    assert not (tmp_path / "executed").exists()


def test_pickled_embed_maps_are_refused(saved):
    np.savez(saved / "embed_map.npz", keys=np.array([{}], dtype=object), values=np.zeros(1))
    with pytest.raises(ValueError, match=r"embed_map\.npz"):
        StellarPerceptron.load(saved, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "weights.pt", "embed_map.npz"])
def test_truncated_files_are_named(saved, name):
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=name):
        StellarPerceptron.load(saved, device="cpu")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.pop("norm_config"), "norm_config"),
        (lambda c: c["nn_config"].update(embedding_dim=18), "embedding_dim"),
        (lambda c: c.update(nn_config=[]), "nn_config"),
        (lambda c: c["tokenizer_config"].update(vocabs=[1, 2]), "vocabs"),
        (lambda c: c["norm_config"]["_input_std"].__setitem__(3, -1.0), "_input_std"),
        (lambda c: c["norm_config"]["_input_mean"].__setitem__(3, float("nan")), "_input_mean"),
        (lambda c: c["norm_config"].update(_input_standardized=["no"] * 44), "_standardized"),
        (lambda c: c["tokenizer_config"]["vocab_tokens"].reverse(), "vocab_tokens"),
        (lambda c: c["norm_config"]["_input_std"].pop(), "_input_std"),
    ],
)
def test_impossible_configurations_are_named(saved, change, named):
    config = json.loads((saved / "config.json").read_text())
    change(config)
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=named):
        StellarPerceptron.load(saved, device="cpu")


def test_entries_of_other_versions_are_said_and_left_out(saved):
    config = json.loads((saved / "config.json").read_text())
    config["nn_config"]["built"] = True
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="built"):
        StellarPerceptron.load(saved, device="cpu")


@pytest.mark.parametrize(
    "content",
    [
        {"model_state_dict": {"a": 1}},
        {"model_state_dict": {3: torch.zeros(1)}},
        {"model_state_dict": {"a": torch.zeros(1, dtype=torch.int64)}},
        {"model_state_dict": {"a": torch.zeros(2, 2).to_sparse()}},
        {"model_state_dict": {}, "epoch": [1]},
        {"weights": {}},
    ],
)
def test_states_that_are_no_weights(saved, content):
    torch.save(content, saved / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt"):
        StellarPerceptron.load(saved, device="cpu")


def test_a_text_file_is_no_weights(saved):
    (saved / "weights.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"weights\.pt"):
        StellarPerceptron.load(saved, device="cpu")


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (np.arange(44.0), np.arange(44)),
        (np.arange(44), np.arange(44.0)),
        (np.array(3), np.array(3)),
        (np.arange(1, 45), np.arange(44)),
        (np.arange(43), np.arange(43)),
    ],
)
def test_impossible_embed_maps(saved, keys, values):
    np.savez(saved / "embed_map.npz", keys=keys, values=values)
    with pytest.raises(ValueError, match="embed_map"):
        StellarPerceptron.load(saved, device="cpu")


def test_new_names_may_follow_any_pixel(saved):
    tuned = StellarPerceptron.load_for_finetuning(
        saved, ["real_apogee5"], {"real_apogee5": "syn_apogee5"}, device="cpu"
    )
    # syn_apogee5 uses the row of syn_apogee0: so does what follows it.
    assert tuned.embed_map[-1] == tuned.embed_map[6] == 1
    assert tuned.torch_model.embedding_layer.embed_map.tolist() == tuned.embed_map.tolist()


def test_one_new_name_is_one_name(saved):
    assert StellarPerceptron.load_for_finetuning(saved, "C_FE", device="cpu").vocabs[-1] == "C_FE"


def test_finetuning_knows_the_epochs_before(saved):
    assert StellarPerceptron.load_for_finetuning(saved, device="cpu").epoch == 7


@pytest.mark.parametrize("overwrite", [True, False])
def test_other_folders_are_never_replaced(model, tmp_path, overwrite):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="no checkpoint"):
        model.save(tmp_path / "thesis", overwrite=overwrite)
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_a_link_to_a_checkpoint_stays_a_link(saved, model, tmp_path):
    (tmp_path / "newest").symlink_to(saved)
    model.epoch = 9
    model.save(tmp_path / "newest", overwrite=True)
    assert (tmp_path / "newest").is_symlink()
    assert StellarPerceptron.load(saved, device="cpu").epoch == 9


def test_folders_are_replaced_without_exchange_too(saved, model, monkeypatch):
    monkeypatch.setattr(data_utils, "_exchange", lambda one, other: False)
    model.epoch = 9
    model.save(saved, overwrite=True)
    assert StellarPerceptron.load(saved, device="cpu").epoch == 9
    assert [p.name for p in saved.parent.iterdir()] == ["epoch_7"]


KILLED = """
import os, signal, sys
from stellarperceptron import StellarPerceptron
from stellarperceptron.network import tensor_files
model = StellarPerceptron.load(sys.argv[1], device="cpu")
model.epoch = 8
save = tensor_files.torch.save
def die(*arguments):
    save(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
tensor_files.torch.save = die
model.save(sys.argv[1], overwrite=True)
"""


@pytest.mark.slow
def test_a_killed_save_leaves_the_previous_one(saved):
    run = subprocess.run([sys.executable, "-c", KILLED, str(saved)])
    assert run.returncode == -signal.SIGKILL
    assert StellarPerceptron.load(saved, device="cpu").epoch == 7


# --- instrument -------------------------------------------------------------------------------


def made_up_model():
    spot = Instrument("SPOT", np.linspace(8460.0, 8700.0, 30), resolving_power=20_000.0)
    sizes = {"context_length": 16, "embedding_dim": 8, "encoder_head_num": 2}
    sizes |= {"decoder_head_num": 4, "encoder_dense_num": 8, "decoder_dense_num": 8}
    names = [*spot.pixel_names(), "TEFF", "C_FE"]
    return StellarPerceptron(names, device="cpu", instrument=spot, **sizes)


def test_a_checkpoint_holds_its_instrument(tmp_path):
    model = made_up_model()
    model.save(tmp_path / "a")
    for loaded in (
        StellarPerceptron.load(tmp_path / "a", device="cpu"),
        StellarPerceptron.load_for_finetuning(tmp_path / "a", ["N_FE"], device="cpu"),
    ):
        assert loaded.instrument == model.instrument
        assert loaded.label_names[:2] == ["TEFF", "C_FE"]


def test_known_instruments_are_named_only(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["stellarperceptron"]["instrument"] == {"name": "APOGEE", "pixels": 7514}


def test_a_checkpoint_without_instrument_is_apogees_by_its_pixels(saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    del config["stellarperceptron"]
    path.write_text(json.dumps(config))
    assert StellarPerceptron.load(saved, device="cpu").instrument is APOGEE


def test_pixels_of_no_instrument_are_given_by_name():
    model = StellarPerceptron(["a", "b", "TEFF"], device="cpu")
    assert model.instrument is None and model.label_names == ["a", "b", "TEFF"]
    model.fit_standardization(np.eye(3), ["a", "b", "TEFF"])
    with pytest.raises(ValueError, match="has no instrument to find pixels by wavelength"):
        model.predict(np.ones((1, 2)), [16000.0, 16001.0], ["TEFF"])


@pytest.mark.parametrize(
    "instrument", [{"name": "SPOT", "pixels": 30}, {"name": "SPOT", "wavelength": [2, 1]}, 5]
)
def test_an_instrument_that_cannot_be_used_is_named(saved, instrument):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    config["stellarperceptron"]["instrument"] = instrument
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"checkpoint .*epoch_7: .*(SPOT|5 describes no)"):
        StellarPerceptron.load(saved, device="cpu")
