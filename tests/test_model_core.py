"""Vocabulary and standardization."""

import numpy as np
import pytest
import torch
from astropy.stats import mad_std
from conftest import LABELS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stellarperceptron import ModelConfig
from stellarperceptron.data.standardizer import _by_sorting, _median_and_scale
from stellarperceptron.model_core import StellarPerceptronCore

VOCABS = [*(f"syn_apogee{i}" for i in range(20)), *LABELS]


@pytest.fixture
def core():
    return StellarPerceptronCore(VOCABS, ModelConfig(context_length=8))


@given(hnp.arrays(np.int64, hnp.array_shapes(max_dims=3), elements=st.integers(0, len(VOCABS))))
def test_tokenize_inverts_detokenize(tokens):
    core = StellarPerceptronCore(VOCABS)
    np.testing.assert_array_equal(core.tokenize(core.detokenize(tokens)), tokens)


def test_first_name_has_token_1_and_padding_0(core):
    assert core.tokenize(["syn_apogee0", "[pad]", "FE_H"]).tolist() == [1, 0, 23]


def test_unknown_name_names_the_nearest(core):
    with pytest.raises(ValueError, match=r"'TEF'.*TEFF"):
        core.tokenize(["LOGG", "TEF"])


@pytest.mark.parametrize("tokens", [[-1], [24]])
def test_tokens_outside_the_vocabulary(core, tokens):
    with pytest.raises(ValueError, match=r"0\.\.23"):
        core.tokenize(tokens)


@pytest.mark.parametrize("vocabs", [["a", "b", "a"], ["[pad]"], []])
def test_impossible_vocabularies(vocabs):
    with pytest.raises(ValueError, match=r"twice|empty"):
        StellarPerceptronCore(vocabs)


def test_padding_fills_the_context(core):
    np.testing.assert_array_equal(core.padding([[1, 2]]), [[1, 2, 0, 0, 0, 0, 0, 0]])


def test_padding_refuses_more_than_the_context(core):
    with pytest.raises(ValueError, match="9 tokens"):
        core.padding(np.zeros((2, 9)))


def test_standardization_is_median_and_mad_std(core):
    values = np.random.default_rng(0).normal(5, 2, size=(30, 2))
    values[3, 0] = np.nan
    core.fit_standardization(values, ["TEFF", "LOGG"])
    tokens = core.tokenize(["TEFF", "LOGG"])
    np.testing.assert_allclose(core.standardizer.center[tokens], np.nanmedian(values, axis=0))
    np.testing.assert_allclose(
        core.standardizer.scale[tokens], mad_std(values, axis=0, ignore_nan=True)
    )


def test_standardization_is_set_once(core):
    core.fit_standardization([[1.0], [2.0]], ["TEFF"])
    before = core.standardizer.center.copy()
    core.fit_standardization([[7.0], [9.0]], ["TEFF"])
    np.testing.assert_array_equal(core.standardizer.center, before)


def test_standardization_skips_columns_in_between(core):
    core.fit_standardization([[1.0], [2.0]], ["syn_apogee1"])
    core.fit_standardization(
        [[3.0, 0.0, 5.0], [5.0, 0.0, 7.0]], [f"syn_apogee{i}" for i in range(3)]
    )
    assert core.standardizer.center[1:4].tolist() == [4.0, 1.5, 6.0]


def test_columns_without_values_pass_through(core):
    core.fit_standardization([[np.nan, 1.0], [np.nan, 3.0]], ["TEFF", "LOGG"])
    tokens = core.tokenize(["TEFF", "LOGG"])
    np.testing.assert_allclose(
        core.standardizer.standardize(np.array([[4800.0, 2.0]]), tokens), [[4800.0, 0.0]]
    )


def test_far_values_become_nan(core):
    core.fit_standardization([[0.0], [1.0], [2.0]], ["TEFF"])
    spread = core.standardizer.scale[core.tokenize(["TEFF"])][0]
    values = 1 + spread * np.array([[9.99], [10.01], [-10.01], [np.inf]])
    z = core.standardizer.standardize(values, core.tokenize(["TEFF"]))
    assert np.isnan(z[:, 0]).tolist() == [False, True, True, True]


def test_infinity_is_never_a_value(core):
    core.fit_standardization([[1.0], [1.0]], ["TEFF"])  # no spread: values pass through
    assert np.isnan(core.standardizer.standardize(np.array([[np.inf]]), core.tokenize(["TEFF"])))
    tensor = core.standardizer.standardize(torch.tensor([[-torch.inf]]), core.tokenize(["TEFF"]))
    assert tensor.isnan().all()


def test_standardization_of_many_columns():
    names = [f"p{i}" for i in range(600)]
    core = StellarPerceptronCore(names)
    values = np.random.default_rng(0).normal(size=(11, 600))
    core.fit_standardization(values, names)
    np.testing.assert_allclose(core.standardizer.center[1:], np.median(values, axis=0))


@given(st.integers(0, 2**32 - 1))
def test_inverse_standardize_inverts(seed):
    random = np.random.default_rng(seed)
    core = StellarPerceptronCore(VOCABS)
    values = random.normal(10 ** random.uniform(-3, 4), 1, size=(20, 3))
    core.fit_standardization(values, LABELS)
    tokens = core.tokenize(LABELS)
    back = core.standardizer.inverse_standardize(
        core.standardizer.standardize(values, tokens).astype(float), tokens
    )
    finite = np.isfinite(back)
    np.testing.assert_allclose(back[finite], values[finite], rtol=1e-5, atol=1e-5)


def test_errors_are_scaled_without_shift(core):
    core.fit_standardization([[10.0], [12.0], [20.0]], ["TEFF"])
    tokens = core.tokenize(["TEFF"])
    scaled = core.standardizer.standardize_error(np.array([[3.0]]), tokens)
    np.testing.assert_allclose(scaled, 3.0 / core.standardizer.scale[tokens[0]])
    np.testing.assert_allclose(core.standardizer.inverse_standardize_error(scaled, tokens), [[3.0]])


def test_tensors_and_arrays_are_standardized_alike(core):
    values = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    core.fit_standardization(values, LABELS)
    tokens = core.tokenize(LABELS)
    tensor = core.standardizer.standardize(torch.from_numpy(values), tokens)
    np.testing.assert_allclose(
        tensor.numpy(), core.standardizer.standardize(values, tokens), rtol=1e-5, atol=1e-6
    )


def test_missing_standardization_is_named(core):
    with pytest.raises(ValueError, match="LOGG"):
        core.require_standardization(core.tokenize(["LOGG"]))


@pytest.mark.parametrize(
    "embed_map",
    [np.zeros(5, int), np.arange(24.0), np.arange(1, 25), np.full(24, 24)],
)
def test_impossible_embed_maps(embed_map):
    with pytest.raises(ValueError, match="embed_map"):
        StellarPerceptronCore(VOCABS, embed_map=embed_map)


def test_embed_map_by_name():
    core = StellarPerceptronCore(VOCABS, embed_map={"syn_apogee4": "syn_apogee0"})
    assert core.embed_map.tolist() == [0, 1, 2, 3, 4, 1, *range(6, 24)]


def test_embed_map_follows_the_row_that_the_target_uses():
    core = StellarPerceptronCore(VOCABS, embed_map={"syn_apogee4": "TEFF", "LOGG": "syn_apogee4"})
    assert core.embed_map[[5, 22]].tolist() == [21, 21]


@pytest.mark.parametrize("embed_map", [{"[pad]": "TEFF"}, {"TEFF": "[pad]"}])
def test_padding_has_its_own_row(embed_map):
    with pytest.raises(ValueError, match="row of its own"):
        StellarPerceptronCore(VOCABS, embed_map=embed_map)


@pytest.mark.parametrize("stars", [1, 2, 7, 8])
def test_medians_of_a_gpu_are_those_of_a_cpu(stars):
    values = np.random.default_rng(stars).normal(size=(stars, 50)).astype(np.float32)
    values[np.random.default_rng(1).random(values.shape) < 0.3] = np.nan
    values[:, 3] = np.nan
    expected = _median_and_scale(values, torch.device("cpu"))
    found = _by_sorting(torch.from_numpy(values))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


@pytest.mark.parametrize("sort", [False, True])
def test_values_that_are_mostly_the_same_are_scaled_by_their_standard_deviation(sort):
    values = np.full((200, 2), 0.1)
    values[120:, 0] = np.linspace(4000, 6000, 80)
    values[:120, 0] = 5000.0
    if sort:
        center, scale = _by_sorting(torch.from_numpy(values))
    else:
        center, scale = _median_and_scale(values, torch.device("cpu"))
    np.testing.assert_allclose(center, [5000.0, 0.1])
    np.testing.assert_allclose(scale, [values[:, 0].std(), 0.0])  # what never varies passes through
