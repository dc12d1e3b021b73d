"""The configuration refuses what cannot be built, all at once."""

import dataclasses

import numpy as np
import pytest

from stellarperceptron import ModelConfig


def test_defaults_are_the_published_sizes():
    config = ModelConfig()
    assert (config.context_length, config.embedding_dim) == (512, 256)
    assert (config.encoder_head_num, config.encoder_dense_num) == (16, 2048)
    assert config.pixels_per_token == 1


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().embedding_dim = 64


def test_lists_all_problems_at_once():
    with pytest.raises(ValueError) as error:
        ModelConfig(context_length=0, encoder_head_num=5, decoder_dropout_rate=1.5)
    named = ("context_length", "encoder_head_num", "decoder_dropout_rate")
    assert all(name in str(error.value) for name in named)


def test_numbers_of_numpy_are_numbers():
    config = ModelConfig(embedding_dim=np.int64(64), encoder_dropout_rate=np.float32(0.5))
    assert type(config.embedding_dim) is int and type(config.encoder_dropout_rate) is float


@pytest.mark.parametrize(
    "entries",
    [
        {"embedding_dim": 0},
        {"embedding_dim": 25.6},
        {"embedding_dim": 33, "encoder_head_num": 2},
        {"context_length": True},
        {"encoder_head_num": 5},
        {"decoder_head_num": 2},
        {"encoder_dense_num": 31},
        {"decoder_dense_num": 36},
        {"encoder_dropout_rate": -0.1},
        {"encoder_activation": "gleu"},
        {"wavelength_range": (17000.0, 15000.0)},
        {"wavelength_range": (15000.0, float("nan"))},
        {"wavelength_range": 15000.0},
        {"pixels_per_token": 0},
    ],
)
def test_impossible_entries_are_named(entries):
    with pytest.raises(ValueError, match=next(iter(entries))):
        ModelConfig(**entries)


def test_unknown_entries_name_the_nearest():
    with pytest.raises(ValueError, match=r"embeding_dim.*embedding_dim"):
        ModelConfig.from_dict({"embeding_dim": 64})
