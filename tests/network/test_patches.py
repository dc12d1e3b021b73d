"""Pixels to tokens to patches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarperceptron.data.apogee.spectra import APOGEE_WAVELENGTH
from stellarperceptron.layers import NonLinearEmbedding
from stellarperceptron.network.patches import (
    deal_patches,
    group_pixels,
    group_values,
)


@given(st.integers(1, 60), st.integers(1, 9), st.booleans(), st.randoms(use_true_random=False))
def test_every_pixel_is_in_one_group(pixels, per_token, ascending, random):
    wavelengths = 15200 + 0.2 * np.arange(pixels)
    tokens = np.arange(7, 7 + pixels) if ascending else np.ones(pixels, dtype=int)
    order = list(range(pixels))
    random.shuffle(order)
    groups = group_pixels(wavelengths[order], tokens[order], per_token)
    assert groups.shape[1] == per_token and (groups >= 0).any(axis=1).all()
    assert sorted(groups[groups >= 0]) == list(range(pixels))


def test_groups_do_not_depend_on_the_order_of_pixels():
    tokens = np.random.default_rng(0).permutation(100) + 1
    wavelengths = APOGEE_WAVELENGTH[:100]
    np.testing.assert_array_equal(
        group_pixels(wavelengths, np.arange(1, 101), 10),
        tokens[group_pixels(wavelengths[tokens - 1], tokens, 10)] - 1,
    )


@given(st.integers(0, 7000), st.integers(1, 514))
def test_a_narrow_range_has_the_groups_of_the_whole(first, pixels):
    all_tokens = np.arange(1, 7515)
    part = slice(first, first + pixels)
    whole = group_pixels(APOGEE_WAVELENGTH, all_tokens, 16)
    whole = np.where((whole >= part.start) & (whole < part.stop), whole - first, -1)
    np.testing.assert_array_equal(
        group_pixels(APOGEE_WAVELENGTH[part], all_tokens[part], 16),
        whole[(whole >= 0).any(axis=1)],
    )


@pytest.mark.parametrize("ascending", [True, False])
def test_groups_stop_at_chip_gaps(ascending):
    tokens = np.arange(1, 7515) if ascending else np.ones(7514, dtype=int)
    groups = group_pixels(APOGEE_WAVELENGTH, tokens, 16)
    wavelengths = np.append(APOGEE_WAVELENGTH, np.nan)[groups]
    assert (np.nanmax(wavelengths, axis=1) - np.nanmin(wavelengths, axis=1)).max() < 16 * 0.24
    # Three chips of 3028, 2495 and 1991 pixels; two groups reach over a gap and are cut there.
    alone = sum(-(-chip // 16) for chip in (3028, 2495, 1991))
    assert len(groups) == (-(-7514 // 16) + 2 if ascending else alone)


@pytest.mark.parametrize("pixels_per_token", [1, 4])
def test_patches_share_all_pixels_equally(pixels_per_token):
    layer = NonLinearEmbedding(100, 8, pixels_per_token=pixels_per_token)
    wavelengths = APOGEE_WAVELENGTH[:90]
    patches = deal_patches(np.arange(1, 91), wavelengths, layer, context_length=20)
    tokens = -(-90 // pixels_per_token)
    sizes = [len(patch.tokens) for patch in patches]
    assert len(sizes) == -(-tokens // 20) and max(sizes) - min(sizes) <= 1
    pixels = np.concatenate([patch.pixels.numpy().ravel() for patch in patches])
    assert sorted(pixels[pixels >= 0]) == list(range(90))
    # Dealt at random: no patch is a stretch of the spectrum.
    assert all(patch.pixels[:, 0].diff().abs().float().mean() > 10 for patch in patches)
    for patch in patches:
        np.testing.assert_array_equal(patch.tokens.numpy(), patch.pixels[:, 0].numpy() + 1)


def test_group_values_keeps_other_values_apart():
    values = np.array([[10.0, 0.1, 0.2, 0.3]], dtype=np.float32)
    wavelengths = np.array([0.0, 15202.0, 15201.0, 15203.0])
    tokens, mean, inputs, pixels = group_values(values, np.array([9, 2, 1, 3]), wavelengths, 2)
    assert tokens.tolist() == [1, 3, 9]
    assert mean.tolist() == [15201.5, 15203.0, 0.0]
    np.testing.assert_array_equal(inputs, np.float32([[np.nan, np.nan, 10.0]]))
    np.testing.assert_array_equal(
        pixels, np.float32([[[0.2, 0.1], [0.3, np.nan], [np.nan, np.nan]]])
    )
