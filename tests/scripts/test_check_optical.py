"""Comparison of syntheses with real stars in the HERMES windows."""

import sys

import numpy as np
import pytest
import torch
from chain import ROOT

FOLDER = ROOT / "dataset" / "mock_survey"
sys.path.insert(0, str(FOLDER))

import check_optical  # noqa: E402
from line_lists import vacuum_to_air  # noqa: E402

from stellarperceptron.data.mock.line_spread import FineGrid  # noqa: E402

GRID = FineGrid((3.674, 3.753), (3000, 3000), 3e-6, 60_000.0)


@pytest.fixture(scope="module")
def flux():
    """Lines of R = 60,000 at random places."""
    rng = np.random.default_rng(0)
    depth = np.where(rng.random(GRID.size) < 0.02, rng.random(GRID.size), 0.0)
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 1.03) ** 2)
    return 1 - 0.5 * np.clip(np.convolve(depth, kernel, mode="same"), 0, 1.5)


def observe(flux, resolution, velocity):
    """A star at that velocity [km/s], its continuum tilted, in both windows."""
    star = []
    for first, last, _ in GRID.windows:
        vacuum = np.linspace(10**first + 3, 10**last - 3, 1500)
        shifted = vacuum * (1 - velocity / 299_792.458)
        seen = GRID.sample(torch.from_numpy(flux)[:, None], shifted, resolution)[:, 0].numpy()
        star.append((vacuum_to_air(vacuum), seen * np.linspace(0.97, 1.02, len(seen))))
    return star


def test_velocity_width_and_continuum_are_fitted(flux):
    windows = check_optical.compare(observe(flux, 22_000.0, 1.0), flux, GRID)
    for window in windows:
        assert window["rms"] < 0.002 and window["correlation"] > 0.999


def test_another_star_agrees_less(flux):
    other = 1 - 0.7 * (1 - np.roll(flux, 40))
    windows = check_optical.compare(observe(other, 22_000.0, 1.0), flux, GRID)
    assert all(window["correlation"] < 0.5 for window in windows)


def test_cores_of_balmer_lines_are_left_out():
    air = 6470.0 + 0.05 * np.arange(5400)
    file = {"S_red_flux": np.ones(5400), "S_red_wavelength_start_step": np.array([6470.0, 0.05])}
    file["S_red_flux"][100] = np.nan
    seen, flux = check_optical.read_star(file, "S", "red")
    assert len(seen) == len(flux) and np.isfinite(flux).all()
    assert np.abs(seen - 6562.8).min() > 2.0
    low, high = check_optical.COMPARED["red"]
    assert seen[0] > low and seen[-1] < high and len(air) > len(seen) > 4900
