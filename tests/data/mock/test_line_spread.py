"""Finely sampled spectra in several windows."""

import math

import numpy as np
import pytest
import torch

from stellarperceptron.data.mock.line_spread import FineGrid, rotation_profile

BOTH = FineGrid((3.70, 3.75), (1500, 2500), 3e-6, 60_000)
SINGLE = [FineGrid((3.70,), (1500,), 3e-6, 60_000), FineGrid((3.75,), (2500,), 3e-6, 60_000)]
SPECTRA = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_wavelengths_of_windows_follow_one_another():
    expected = np.concatenate([grid.wavelength for grid in SINGLE])
    np.testing.assert_array_equal(BOTH.wavelength, expected)
    assert BOTH.size == 4000


def test_every_window_is_sampled_by_itself():
    """Two windows give what each gives alone, in any order of the wavelengths."""
    apart = SPECTRA[:1500], SPECTRA[1500:]
    wanted = [np.linspace(g.wavelength[0] + 1e-6, g.wavelength[-1] - 1e-6, 300) for g in SINGLE]
    mixed = np.random.default_rng(0).permutation(600)
    together = BOTH.sample(SPECTRA, np.concatenate(wanted)[mixed], 28_000)
    expected = [g.sample(s, w, 28_000) for g, s, w in zip(SINGLE, apart, wanted, strict=True)]
    assert torch.allclose(together, torch.cat(expected)[mixed])


def test_windows_do_not_smear_into_each_other():
    profile = rotation_profile(15.0, BOTH.step * math.log(10.0) * 299_792.458)
    ones = torch.ones(4000, 1, dtype=torch.float64)
    ones[1500:] = 0.0
    assert torch.allclose(BOTH.broaden(ones, profile), ones)


@pytest.mark.parametrize("wavelength", [5000.0, 5300.0, 5800.0])
def test_wavelengths_between_windows_are_refused(wavelength):
    with pytest.raises(ValueError, match=r"within 5011\.9 and 5064\.0 or 5623\.4 and 5721\.3 A"):
        BOTH.sample(SPECTRA, np.array([5020.0, wavelength]), 28_000)
