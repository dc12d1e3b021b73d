"""The spectrograph and the sky."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, CHIP_PIXELS
from stellarperceptron.data.mock import observation
from stellarperceptron.data.mock.observation import (
    RIPPLE_ORDERS,
    broadening_index,
    broadening_velocity,
    continuum_ripple,
    resolving_power,
    sky_templates,
    sky_windows,
    vary_line_spread,
)


def test_resolving_power_is_that_of_the_spectrograph():
    power = resolving_power()
    assert power.mean() == pytest.approx(22_500, rel=0.01)
    assert 19_000 < power.min() < power.max() < 26_000


def test_giants_get_macroturbulence_and_dwarfs_rotation():
    labels = np.array([[4500, 2, 0, 0, -2.0], [6500, 4.2, 0, 0, 0]])
    velocity = broadening_velocity(labels, np.random.default_rng(0))
    index = broadening_index(labels, velocity)
    assert velocity[0] > 6
    assert index[0] < len(observation.MACROTURBULENCE) <= index[1]


def test_changing_the_line_spread_keeps_the_mean_and_changes_the_depth():
    x = torch.arange(len(APOGEE_WAVELENGTH)) % 40 - 20.0
    flux = (1 - 0.4 * torch.exp(-0.5 * (x / 2.0) ** 2)).repeat(2, 1)
    wide, narrow = vary_line_spread(flux, torch.tensor([0.2, -0.2]))
    assert wide.mean() == pytest.approx(flux.mean().item(), abs=1e-5)
    assert narrow.min() < flux.min() < wide.min()


def test_line_spread_beside_a_bad_pixel_is_left_alone():
    flux = torch.rand(1, len(APOGEE_WAVELENGTH))
    flux[0, 100] = math.nan
    out = vary_line_spread(flux, torch.tensor([0.1]))
    assert torch.isnan(out).sum() == 1
    assert out[0, 99] == flux[0, 99]


@given(st.floats(0.001, 0.01), st.integers(0, 2**31))
def test_ripple_has_its_rms_on_every_chip_and_no_slope(rms, seed):
    g = torch.Generator().manual_seed(seed)
    normal = torch.randn(1, 3, RIPPLE_ORDERS[1] - RIPPLE_ORDERS[0], generator=g)
    ripple = continuum_ripple(torch.tensor([rms]), normal)[0]
    for chip in CHIP_PIXELS.values():
        assert ripple[chip].square().mean().sqrt().item() == pytest.approx(rms, rel=1e-3)
        assert abs(ripple[chip].mean().item()) < 1e-4


def test_the_sky_moves_with_the_star():
    still, moving = sky_windows(sky_templates()["OH"], np.array([0.0, 25.0]))
    assert torch.equal(still[25:1000], moving[:975])


def test_sky_lines_lie_at_their_places():
    sky = sky_windows(sky_templates()["OH"], np.zeros(1))[0].numpy()
    for line in (15332.4, 15655.0, 16030.8, 16128.6, 16692.4):  # OH doublets, vacuum
        near = np.abs(APOGEE_WAVELENGTH - line) < 3
        peak = APOGEE_WAVELENGTH[near][sky[near].argmax()]
        assert peak == pytest.approx(line, abs=0.5)
