"""Checkpoints of strangers that declare more than they have, or lead to no network."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import make_model

from stellarperceptron import StellarPerceptron
from stellarperceptron.evaluation.evaluate import load_network
from stellarperceptron.network.baselines.published import BaselineNetwork
from stellarperceptron.network.checkpoint import read_embed_map, weights_sha256
from stellarperceptron.network.tensor_files import check_tensors


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "saved")
    return tmp_path / "saved"


def refused(folder, message):
    with pytest.raises(ValueError, match=message):
        StellarPerceptron.load(folder, device="cpu")


def change_config(folder, section, **entries):
    config = json.loads((folder / "config.json").read_text())
    config[section].update(entries)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "entries",
    [
        {"encoder_dense_num": 10**9},
        {"encoder_dense_num": 2000},
        {"decoder_dense_num": 8 * 10**8},
        {"embedding_dim": 2**20},
    ],
)
def test_a_network_larger_than_its_weights_is_not_made(saved, entries):
    change_config(saved, "nn_config", **entries)
    refused(saved, r"config\.json: nn_config .* asks for \d+ parameters or more, but weights\.pt")


def test_the_file_of_the_weights_is_named(model, tmp_path):
    pytest.importorskip("safetensors")
    model.save(tmp_path / "both", safetensors=True)
    (tmp_path / "both/weights.pt").unlink()
    change_config(tmp_path / "both", "nn_config", encoder_dense_num=10**9)
    refused(tmp_path / "both", r"asks for \d+ parameters or more, but weights\.safetensors has \d+")


def test_tokens_of_too_many_pixels_are_refused(saved):
    change_config(saved, "stellarperceptron", pixels_per_token=10**9)
    refused(saved, "pixels_per_token = 1000000000 is above")


def test_baselines_of_too_many_pixels_are_not_made(tmp_path):
    BaselineNetwork(8, "FE_H").save(tmp_path / "nn")
    change = json.loads((tmp_path / "nn" / "config.json").read_text()) | {"pixels": 10**9}
    (tmp_path / "nn" / "config.json").write_text(json.dumps(change))
    with pytest.raises(ValueError, match="fewer weights than 1000000000 pixels"):
        BaselineNetwork.load(tmp_path / "nn")


def test_nested_too_deeply_is_damaged(saved):
    (saved / "config.json").write_text('{"nn_config": ' + "[" * 100_000)
    refused(saved, r"config\.json is damaged")


def test_a_byte_order_mark_is_no_damage(saved):
    text = (saved / "config.json").read_text()
    (saved / "config.json").write_text(text, encoding="utf-8-sig")
    StellarPerceptron.load(saved, device="cpu")
    load_network(saved, device="cpu")


@pytest.mark.parametrize("text", ["[1, 2]", '"baseline"', "[" * 100_000, "{"])
def test_config_of_something_else_is_no_checkpoint(saved, text):
    (saved / "config.json").write_text(text)
    for load in (StellarPerceptron.load, load_network):
        with pytest.raises(ValueError, match=r"config\.json (is damaged|has no section)"):
            load(saved, device="cpu")


@pytest.mark.parametrize("shape", [(10**9,), (3, 10**9)])
def test_embedding_maps_are_refused_by_their_headers(tmp_path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(tmp_path / "embed_map.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("keys.npy", "values.npy"):
            archive.writestr(name, header.getvalue() + bytes(1000))
    with pytest.raises(ValueError, match=r"declares .* values .* at most 1000000"):
        read_embed_map(tmp_path / "embed_map.npz")


def test_compressed_weights_are_refused(saved):
    """3 MB that become 3 GB: torch.save does not compress."""
    path = saved / "weights.pt"
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    refused(saved, r"weights\.pt is refused: it declares \d+ bytes of data, but has \d+")


class _Names:
    """Pickles as a call of something that PyTorch's reader would allow."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(10**9), r"shape \(1000000000,\) has 4000000000 bytes, but only 4"),
        (torch.zeros(10**10, device="meta"), "more than tensors and plain values.*meta"),
        (torch.zeros(2, 2).to_sparse(), "more than tensors and plain values.*sparse"),
        (_Names(bytearray, 10**10), "more than tensors and plain values.*bytearray"),
    ],
)
def test_tensors_without_their_values_are_refused(saved, tensor, message):
    torch.save({"model_state_dict": {"a": tensor}}, saved / "weights.pt")
    refused(saved, rf"weights\.pt is refused: .*{message}")


@pytest.mark.parametrize("tensor", [torch.zeros(10**10, device="meta"), torch.eye(2).to_sparse()])
def test_tensors_that_are_sparse_or_without_data_are_refused(tmp_path, tensor):
    """Even if a file got so far, as with another version of PyTorch."""
    with pytest.raises(ValueError, match=r"weights\.pt is refused: .* sparse or without data"):
        check_tensors({"a": [torch.zeros(1), tensor]}, tmp_path / "weights.pt")


def test_old_files_without_an_archive_are_refused(saved):
    content = {"model_state_dict": {"a": torch.zeros(1)}}
    torch.save(content, saved / "weights.pt", _use_new_zipfile_serialization=False)
    refused(saved, r"weights\.pt is damaged, or no file of torch\.save")
    (saved / "weights.pt").write_bytes(pickle.dumps(content))
    refused(saved, r"weights\.pt is damaged, or no file of torch\.save")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_diverged_networks_are_neither_loaded_nor_saved(saved, tmp_path, value):
    content = torch.load(saved / "weights.pt", weights_only=True)
    content["model_state_dict"]["torch_decoder.decoder_out.bias"][0] = value
    torch.save(content, saved / "weights.pt")
    refused(saved, r"weights\.pt: torch_decoder\.decoder_out\.bias has values that are NaN")
    model = make_model()
    with torch.no_grad():
        model.torch_model.torch_decoder.decoder_out.bias[0] = value
    with pytest.raises(ValueError, match="is not written: torch_decoder"):
        model.save(tmp_path / "diverged")
    assert not (tmp_path / "diverged").exists()


def test_weights_that_half_precision_cannot_hold_are_not_saved(model, tmp_path):
    with torch.no_grad():
        model.torch_model.torch_decoder.decoder_out.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"not finite as torch\.float16"):
        model.save(tmp_path / "half", dtype=torch.float16)


def test_files_beside_a_checkpoint_are_not_deleted(saved, model):
    (saved / "._config.json").write_text("of a file browser")
    model.save(saved, overwrite=True)
    (saved / "notes.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds more than a checkpoint.*notes\.txt"):
        model.save(saved, overwrite=True)
    assert (saved / "notes.txt").exists()


def test_baselines_replace_checkpoints_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is no checkpoint"):
        BaselineNetwork(8, "FE_H").save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_permission_denied_is_no_damage(saved, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(saved / "weights.pt"))

    monkeypatch.setattr(zipfile, "ZipFile", denied)
    with pytest.raises(PermissionError, match="Permission denied"):
        StellarPerceptron.load(saved, device="cpu")


def test_the_hash_is_of_the_weights_alone(saved, model, tmp_path):
    model.epoch = 9
    model.save(tmp_path / "later", optimizer=torch.optim.SGD(model.torch_model.parameters()))
    assert weights_sha256(saved) == weights_sha256(tmp_path / "later")
    with torch.no_grad():
        model.torch_model.torch_decoder.decoder_out.bias[0] += 1e-3
    model.save(tmp_path / "other")
    assert weights_sha256(saved) != weights_sha256(tmp_path / "other")
