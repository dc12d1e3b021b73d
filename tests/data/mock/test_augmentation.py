"""Augmentation of spectra."""

import math

import numpy as np
import pytest
import torch

from stellarperceptron.data.mock.observation import (
    Augmentation,
    correlate_noise,
    vary_line_spread,
)
from stellarperceptron.instruments.spectrograph import Instrument


def test_augmentation_adds_what_it_says():
    flux = torch.full((4, 7514), 0.95)
    change = Augmentation(snr=(100.0, 100.0), ripple=(0.004, 0.004))(flux) - flux
    rms = torch.nan_to_num(change).square().mean().sqrt().item()
    assert rms == pytest.approx(math.hypot(0.01, 0.004), rel=0.15)


def test_the_signal_to_noise_ratio_changes_along_the_spectrum():
    rising = Augmentation((30.0, 100.0), ripple=(0, 0), line_spread=0, snr_slope=(4.0, 9.0))
    flux = torch.ones(200, 2000)
    changed, noise = rising.with_noise(flux, torch.Generator().manual_seed(1), slice(0, 2000))
    slope = noise[:, 0] / noise[:, -1]
    assert 4 <= slope.min() < 4.3 and 8.7 < slope.max() <= 9
    assert ((noise[:, 999] > 0.0099) & (noise[:, 999] < 0.034)).all()
    pulls = (changed - flux) / noise
    for part in (slice(0, 200), slice(1800, 2000)):
        assert pulls[:, part].std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.65])
def test_noise_of_neighbours_correlates(correlation):
    normal = torch.randn(4, 7514, generator=torch.Generator().manual_seed(1))
    noise = correlate_noise(normal, torch.full((4,), correlation))[:, 1:-1]
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)
    assert (noise[:, 1:] * noise[:, :-1]).mean().item() == pytest.approx(correlation, abs=0.02)


@pytest.mark.parametrize(
    "entries",
    [
        {"snr": (0.0, 100.0)},
        {"correlation": (0.2, 0.9)},
        {"ripple": (0.01, 0.0)},
        {"snr_slope": (0.0, 1.0)},
    ],
)
def test_impossible_augmentation(entries):
    with pytest.raises(ValueError, match=next(iter(entries))):
        Augmentation(**entries)


def test_augmentation_repeats_with_its_generator_and_keeps_type_and_bad_pixels():
    flux = torch.rand(3, 7514).half()
    flux[1, 50] = math.nan
    first, second = (Augmentation()(flux, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.nan_to_num(), second.nan_to_num())
    assert first.dtype == torch.float16
    assert torch.isnan(first).sum() == 1


@pytest.mark.parametrize("pixels", [slice(0, 3757), slice(4107, 4619), slice(3000, 3040)])
def test_augmentation_of_a_part_of_the_pixels(pixels):
    flux = torch.ones(2, pixels.stop - pixels.start)
    out = Augmentation()(flux, torch.Generator().manual_seed(1), pixels)
    assert out.shape == flux.shape
    assert 0 < (out - 1).abs().max() < 0.1


def test_augmentation_follows_the_instruments_chips():
    grid = np.linspace(8460.0, 8700.0, 801)
    parts = {"chips": {"low": (0, 400), "high": (400, 801)}, "resolving_power": 2000.0}
    both, quiet = Instrument("SPOT", grid, **parts), {"snr": (1e9, 1e9), "line_spread": 0.0}
    flux = torch.ones(2, 801)
    ripple = Augmentation(**quiet)(flux, torch.Generator().manual_seed(1), instrument=both) - 1
    for chip in both.chips.values():
        assert ripple[:, chip].square().mean().sqrt().item() == pytest.approx(0.004, abs=0.002)
        assert ripple[:, chip].mean().item() == pytest.approx(0, abs=1e-4)
    part = Augmentation(**quiet)(
        flux[:, 300:500], torch.Generator().manual_seed(1), slice(300, 500), both
    )
    assert torch.allclose(part - 1, ripple[:, 300:500], atol=1e-6)


def test_line_spread_is_varied_where_the_resolving_power_is_known():
    grid = np.linspace(8460.0, 8700.0, 801)
    flux = torch.from_numpy(1 - np.exp(-0.5 * ((grid - 8600) / 2.5) ** 2))[None].float()
    change = torch.tensor([0.2])
    unknown = Instrument("SPOT", grid)
    assert torch.equal(vary_line_spread(flux, change, instrument=unknown), flux)
    for power in (2000.0, np.full(801, 2000.0)):
        known = Instrument("SPOT", grid, resolving_power=power)
        wide = vary_line_spread(flux, change, instrument=known)
        # A Gaussian whose variance grows by 0.2 sigma^2, sigma = 8600 / 2000 / 2.355 = 1.83.
        assert wide[0, 467].item() - flux[0, 467].item() == pytest.approx(0.048, abs=0.006)
