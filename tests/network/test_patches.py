"""Pixels to tokens to patches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, VALID_PIXELS
from stellarperceptron.layers import NonLinearEmbedding
from stellarperceptron.network.patches import (
    group_pixels,
    group_values,
    split_into_patches,
)


@given(st.integers(1, 60), st.integers(1, 9), st.randoms(use_true_random=False))
def test_every_pixel_is_in_one_group(pixels, per_token, random):
    wavelengths, positions = 15200 + 0.2 * np.arange(pixels), np.arange(7, 7 + pixels)
    order = list(range(pixels))
    random.shuffle(order)
    groups = group_pixels(wavelengths[order], positions[order], per_token)
    assert groups.shape[1] == per_token and (groups >= 0).any(axis=1).all()
    assert sorted(groups[groups >= 0]) == list(range(pixels))


def test_groups_do_not_depend_on_the_order_of_pixels():
    order = np.random.default_rng(0).permutation(100)
    wavelengths = APOGEE_WAVELENGTH[:100]
    np.testing.assert_array_equal(
        group_pixels(wavelengths, np.arange(100), 10),
        order[group_pixels(wavelengths[order], order, 10)],
    )


@given(st.integers(0, 7000), st.integers(1, 514))
def test_a_part_of_a_spectrum_has_the_bins_of_the_whole(first, pixels):
    positions = VALID_PIXELS
    part = slice(first, first + pixels)
    whole = group_pixels(APOGEE_WAVELENGTH, positions, 16)
    whole = np.where((whole >= part.start) & (whole < part.stop), whole - first, -1)
    np.testing.assert_array_equal(
        group_pixels(APOGEE_WAVELENGTH[part], positions[part], 16),
        whole[(whole >= 0).any(axis=1)],
    )


def test_bins_stop_at_chip_gaps():
    groups = group_pixels(APOGEE_WAVELENGTH, VALID_PIXELS, 16)
    wavelengths = np.append(APOGEE_WAVELENGTH, np.nan)[groups]
    assert (np.nanmax(wavelengths, axis=1) - np.nanmin(wavelengths, axis=1)).max() < 16 * 0.24


@pytest.mark.parametrize("pixels_per_token", [1, 4])
def test_patches_share_all_pixels_equally(pixels_per_token):
    layer = NonLinearEmbedding(100, 8, pixels_per_token=pixels_per_token)
    wavelengths = APOGEE_WAVELENGTH[:90]
    patches = split_into_patches(np.arange(1, 91), wavelengths, np.arange(90), layer, 20)
    tokens = -(-90 // pixels_per_token)
    sizes = [len(patch.ids) for patch in patches]
    assert len(sizes) == -(-tokens // 20) and max(sizes) - min(sizes) <= 1
    pixels = np.concatenate([patch.pixels.numpy().ravel() for patch in patches])
    assert sorted(pixels[pixels >= 0]) == list(range(90))
    for patch in patches:
        np.testing.assert_array_equal(patch.ids.numpy(), patch.pixels.numpy() + 1)
    if len(patches) > 1:  # shuffled: no patch is a window of the spectrum
        assert all(patch.pixels[:, 0].diff().abs().float().mean() > 10 for patch in patches)


def test_tokens_that_fit_the_context_make_one_patch_in_order():
    layer = NonLinearEmbedding(100, 8)
    (patch,) = split_into_patches(
        np.arange(1, 91), APOGEE_WAVELENGTH[:90], np.arange(90), layer, 90
    )
    assert patch.pixels[:, 0].tolist() == list(range(90))


def test_group_values_keeps_other_values_apart():
    values = np.array([[10.0, 0.1, 0.2, 0.3]], dtype=np.float32)
    wavelengths = np.array([0.0, 15202.0, 15201.0, 15203.0])
    ids, result, mean = group_values(
        values, np.array([9, 2, 1, 3]), wavelengths, np.array([8, 1, 0, 2]), 2
    )
    assert ids.tolist() == [[1, 2], [3, 0], [9, 0]]
    assert mean.tolist() == [15201.5, 15203.0, 0.0]
    np.testing.assert_array_equal(result, np.float32([[[0.2, 0.1], [0.3, np.nan], [10.0, np.nan]]]))
