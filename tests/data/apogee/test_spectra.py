"""The wavelength grid and the pseudo-continuum."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from apogee_files import absorption
from astropy import units as u
from astropy.utils.masked import Masked
from chain import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarperceptron.data.apogee.continuum import normalize, pseudo_continuum
from stellarperceptron.data.apogee.grid import (
    APOGEE_WAVELENGTH,
    CHIP_PIXELS,
    CHIPS,
    FULL_WAVELENGTH,
    VALID_PIXELS,
    pixel_range,
    write_wavelength,
)


def test_grid_has_the_size_of_the_survey():
    assert APOGEE_WAVELENGTH.shape == (7514,)
    assert FULL_WAVELENGTH.shape == (8575,)


def test_grid_is_equidistant_in_the_logarithm():
    steps = np.diff(np.log10(FULL_WAVELENGTH))
    np.testing.assert_allclose(steps, 6e-6, rtol=1e-8)


def test_chips_lie_one_after_another_in_the_valid_pixels():
    for name, chip in CHIPS.items():
        np.testing.assert_array_equal(APOGEE_WAVELENGTH[CHIP_PIXELS[name]], FULL_WAVELENGTH[chip])


def test_grid_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        APOGEE_WAVELENGTH[0] = 0


def test_written_grid_is_read_back_exactly(tmp_path):
    write_wavelength(tmp_path / "grid.csv")
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "grid.csv"), APOGEE_WAVELENGTH)


def test_shipped_grid_is_the_one_of_the_package():
    shipped = ROOT / "dataset" / "apogee_wavelength_sol.csv"
    # Powers differ in their last bit between processors with and without AVX-512.
    np.testing.assert_array_max_ulp(np.loadtxt(shipped), APOGEE_WAVELENGTH, maxulp=1)


@pytest.mark.reference
def test_grid_agrees_with_the_published_one(shared):
    published = np.loadtxt(shared / "published" / "apogee_wavelength_sol.csv")
    np.testing.assert_allclose(APOGEE_WAVELENGTH, published, rtol=2e-12)


@pytest.mark.parametrize(
    ("name", "ends"),
    [("full", (0, 7514)), ("first_half", (0, 3757)), ("fe_chunk", (4107, 4619)), ("5:9", (5, 9))],
)
def test_pixel_ranges_by_name(name, ends):
    assert pixel_range(name) == slice(*ends)


@pytest.mark.parametrize("pixels", ["nonsense", "9:5", "0:7515", (5, 5), slice(0, 10, 2), "-3:4"])
def test_wrong_pixel_ranges_are_refused(pixels):
    with pytest.raises(ValueError, match="pixel range"):
        pixel_range(pixels)


def test_named_pixel_range_needs_the_apogee_grid():
    with pytest.raises(ValueError, match="belongs to 7514 pixels"):
        pixel_range("fe_chunk", 64)


# --- pseudo-continuum -----------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    coefficients=st.lists(st.floats(-0.2, 0.2), min_size=4, max_size=4),
    scale=st.sampled_from([1e-15, 1.0, 1e4]),
)
def test_continuum_of_a_quartic_is_the_quartic(coefficients, scale):
    flux = np.empty(7514)
    for chip in CHIP_PIXELS.values():
        pixels = np.linspace(-1, 1, chip.stop - chip.start)
        flux[chip] = scale * np.polynomial.polynomial.polyval(pixels, [2.0, *coefficients])
    np.testing.assert_allclose(pseudo_continuum(flux), flux, rtol=1e-8)


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(1e-3, 1e5), seed=st.integers(0, 2**31))
def test_normalization_does_not_depend_on_the_unit(factor, seed):
    noise = np.random.default_rng(seed).normal(0, 0.01, 7514)
    flux = absorption(APOGEE_WAVELENGTH) + noise
    np.testing.assert_allclose(normalize(flux * factor), normalize(flux), rtol=1e-9)


def test_every_chip_has_mean_one():
    normalized = normalize(absorption(APOGEE_WAVELENGTH) * (APOGEE_WAVELENGTH / 16000) ** -3)
    for chip in CHIP_PIXELS.values():
        assert np.mean(normalized[chip]) == pytest.approx(1, abs=1e-3)


def test_bad_pixels_do_not_move_the_others():
    flux = absorption(APOGEE_WAVELENGTH)
    bad = np.zeros(7514, dtype=bool)
    bad[100:110] = True
    spoilt = np.where(bad, 1e13, flux)
    result = normalize(spoilt, bad)
    assert np.isnan(result[bad]).all()
    np.testing.assert_allclose(result[~bad], normalize(flux)[~bad], atol=2e-3)


def test_emission_spikes_leave_the_fit():
    flux = absorption(APOGEE_WAVELENGTH)
    spoilt = flux.copy()
    spoilt[1000:1003] = 40.0
    difference = pseudo_continuum(spoilt) / pseudo_continuum(flux) - 1
    assert np.abs(difference).max() < 2e-3


def test_lower_clip_raises_the_continuum():
    flux = absorption(APOGEE_WAVELENGTH)
    clipped = pseudo_continuum(flux, clip_low=1.0, iterations=5)
    assert np.median(clipped) > np.median(pseudo_continuum(flux)) + 0.01


def test_flux_out_of_range_becomes_nan():
    flux = absorption(APOGEE_WAVELENGTH, depth=0.1)
    flux[[10, 20]] = 0.01, 1.3
    assert np.flatnonzero(np.isnan(normalize(flux))).tolist() == [10, 20]


def test_range_can_be_kept():
    flux = absorption(APOGEE_WAVELENGTH, depth=0.1)
    flux[10] = 1.3
    assert normalize(flux, valid_flux=None)[10] == pytest.approx(1.3, rel=0.02)


def test_chip_without_pixels_is_nan_and_spoils_no_other():
    flux = np.tile(absorption(APOGEE_WAVELENGTH), (2, 1))
    whole = normalize(flux[0])
    flux[0, CHIP_PIXELS["green"]] = np.nan
    result = normalize(flux)
    assert np.isnan(result[0, CHIP_PIXELS["green"]]).all()
    np.testing.assert_allclose(result[0, CHIP_PIXELS["red"]], whole[CHIP_PIXELS["red"]], rtol=1e-9)
    np.testing.assert_allclose(result[1], whole, rtol=1e-9)


def test_many_spectra_give_what_each_gives_alone():
    rng = np.random.default_rng(0)
    flux = absorption(APOGEE_WAVELENGTH) * rng.uniform(1, 9, (300, 1))
    flux += rng.normal(0, 0.02, flux.shape)
    together = pseudo_continuum(flux)
    alone = np.stack([pseudo_continuum(row) for row in flux[::50]])
    np.testing.assert_allclose(together[::50], alone, rtol=1e-10)


def test_tensors_stay_tensors_of_their_type():
    flux = torch.ones(3, 7514, dtype=torch.float32)
    result = normalize(flux)
    assert isinstance(result, torch.Tensor)
    assert result.dtype == torch.float32


def test_single_precision_agrees_with_double():
    flux = absorption(APOGEE_WAVELENGTH) * 800
    single = normalize(flux.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, normalize(flux), atol=1e-6)


def test_rounding_does_not_decide_which_pixels_are_clipped():
    rng = np.random.default_rng(1)
    flux = absorption(APOGEE_WAVELENGTH) + rng.normal(0, 0.05, 7514)
    flux[rng.integers(0, 7514, 100)] += 0.6
    moved = flux * (1 + 1e-7 * rng.standard_normal(7514))
    change = pseudo_continuum(moved) / pseudo_continuum(flux) - 1
    assert np.abs(change).max() < 1e-7


# --- what holds no measurement --------------------------------------------------------------------


@pytest.mark.parametrize("number", [0.0, 1.0, 480.0, -5.0, -9999.0, 9999.0, math.nan])
def test_constant_spectra_have_no_flux(number):
    flux = np.full((2, 7514), number)
    flux[0, 100:120] = 3.0  # a few pixels that are not like the others
    assert np.isnan(normalize(flux)).all()
    assert normalize(torch.from_numpy(flux)).isnan().all()


def test_spectrum_below_zero_is_not_turned_over():
    flux = 500 * absorption(APOGEE_WAVELENGTH)
    noise = np.random.default_rng(0).normal(-20, 2, 7514)
    assert np.isnan(normalize(np.stack([-flux, noise]))).all()


def test_one_chip_below_zero_leaves_the_others():
    flux = absorption(APOGEE_WAVELENGTH)
    wanted = normalize(flux)
    flux[CHIP_PIXELS["green"]] *= -1
    wanted[CHIP_PIXELS["green"]] = np.nan
    np.testing.assert_allclose(normalize(flux), wanted)


@pytest.mark.parametrize("mark", [-9999.0, 9999.0, -999.99])
def test_marks_for_no_value_take_no_part(mark):
    flux = 500 * absorption(APOGEE_WAVELENGTH)
    hidden = np.random.default_rng(0).random(7514) < 0.1
    wanted = normalize(flux, hidden)
    np.testing.assert_array_equal(normalize(np.where(hidden, mark, flux)), wanted)


# --- containers and grids -------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["masked", "Masked", "frame", "rows", "quantity"])
def test_masked_pixels_take_no_part(container):
    flux = 500 * np.tile(absorption(APOGEE_WAVELENGTH), (2, 1))
    hidden = np.random.default_rng(0).random(flux.shape) < 0.05
    wanted = normalize(flux, hidden)
    below = np.where(hidden, 0.0, flux)
    given = {
        "masked": lambda: np.ma.array(below, mask=hidden),
        "Masked": lambda: Masked(below, mask=hidden),
        "frame": lambda: pd.DataFrame(below).mask(hidden),
        "rows": lambda: [np.ma.array(below[i], mask=hidden[i]) for i in range(2)],
        "quantity": lambda: Masked(below, mask=hidden) * u.Unit("1e-17 erg / (s cm2 AA)"),
    }[container]()
    result = normalize(given)
    assert type(result) is np.ndarray
    np.testing.assert_allclose(result, wanted, rtol=1e-12)


def test_bad_pixels_may_be_masked_and_of_any_kind():
    flux = absorption(APOGEE_WAVELENGTH)
    bad = np.zeros(7514, dtype=np.int16)
    bad[5] = 4
    hidden = np.arange(7514) == 9
    result = normalize(flux, np.ma.array(bad, mask=hidden))
    assert np.flatnonzero(np.isnan(result)).tolist() == [5, 9]
    result = normalize(torch.from_numpy(flux), torch.from_numpy(bad)).numpy()
    assert np.flatnonzero(np.isnan(result)).tolist() == [5]


def test_all_pixels_of_the_survey_are_normalized_chip_by_chip():
    flux = np.full((2, 8575), np.nan)
    flux[:, VALID_PIXELS] = 500 * absorption(APOGEE_WAVELENGTH)
    result = normalize(flux)
    assert result.shape == flux.shape
    np.testing.assert_array_equal(result[:, VALID_PIXELS], normalize(flux[:, VALID_PIXELS]))


@pytest.mark.parametrize("n_pixels", [7214, 3757, 3028])
def test_other_grids_need_their_chips(n_pixels):
    flux = absorption(APOGEE_WAVELENGTH[:n_pixels])
    with pytest.raises(ValueError, match=f"{n_pixels} pixels, not 7514 or 8575"):
        normalize(flux)
    assert np.isfinite(normalize(flux, chips={"all": slice(0, n_pixels)})).all()
    with pytest.raises(ValueError, match="does not lie within"):
        normalize(flux, chips={"all": slice(0, n_pixels + 1)})


@pytest.mark.reference
def test_scale_is_that_of_the_real_survey(shared):
    """Normalized again, the median spectrum of the real survey stays as it is."""
    config = json.loads((shared / "published" / "epoch_325" / "config.json").read_text())
    median = np.array(config["norm_config"]["_input_mean"][1:7515])
    again = normalize(median, valid_flux=None)
    assert np.median(again) == pytest.approx(np.median(median), abs=2e-3)
    assert np.abs(again / median - 1).max() < 0.01
