"""The wavelength grid, the pseudo-continuum and the readers of APOGEE files."""

import json
import math

import numpy as np
import pytest
import torch
from apogee_files import absorption, apstar_hdus, apvisit_hdus
from astropy.io import fits
from chain import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarperceptron.data.apogee import spectra
from stellarperceptron.data.apogee.spectra import (
    APOGEE_WAVELENGTH,
    CHIP_PIXELS,
    CHIPS,
    FULL_WAVELENGTH,
    PixelMask,
    normalize,
    pixel_range,
    pseudo_continuum,
    read_spectrum,
)

SPEED_OF_LIGHT = 299_792.458


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
    spectra.write_wavelength(tmp_path / "grid.csv")
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
    flux = np.ones(7514)
    flux[[10, 20]] = 0.01, 1.3
    assert np.flatnonzero(np.isnan(normalize(flux))).tolist() == [10, 20]


def test_range_can_be_kept():
    flux = np.ones(7514)
    flux[10] = 1.3
    assert normalize(flux, valid_flux=None)[10] == pytest.approx(1.3, rel=0.01)


def test_chip_without_pixels_is_nan_and_spoils_no_other():
    flux = np.ones((2, 7514))
    flux[0, CHIP_PIXELS["green"]] = np.nan
    result = normalize(flux)
    assert np.isnan(result[0, CHIP_PIXELS["green"]]).all()
    np.testing.assert_allclose(result[0, CHIP_PIXELS["red"]], 1, rtol=1e-9)
    np.testing.assert_allclose(result[1], 1, rtol=1e-9)


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


@pytest.mark.reference
def test_scale_is_that_of_the_real_survey(shared):
    """Normalized again, the median spectrum of the real survey stays as it is."""
    config = json.loads((shared / "published" / "epoch_325" / "config.json").read_text())
    median = np.array(config["norm_config"]["_input_mean"][1:7515])
    again = normalize(median, valid_flux=None)
    assert np.median(again) == pytest.approx(np.median(median), abs=2e-3)
    assert np.abs(again / median - 1).max() < 0.01


# --- files ----------------------------------------------------------------------------------------


def test_apstar_gives_the_combined_spectrum_on_the_valid_pixels(tmp_path):
    apstar_hdus().writeto(tmp_path / "apStar.fits")
    spectrum = read_spectrum(tmp_path / "apStar.fits")
    assert spectrum.kind == "apStar"
    np.testing.assert_allclose(spectrum.flux, 500 * absorption(APOGEE_WAVELENGTH))


def test_apstar_visits_are_rows(tmp_path):
    apstar_hdus().writeto(tmp_path / "apStar.fits")
    combined, visit = (read_spectrum(tmp_path / "apStar.fits", row=row) for row in (0, 2))
    np.testing.assert_allclose(visit.flux, 3 * combined.flux)


def test_visits_have_signal_to_noise_ratios_of_their_own(tmp_path):
    apstar_hdus().writeto(tmp_path / "apStar.fits")
    snr = [read_spectrum(tmp_path / "apStar.fits", row=row).snr for row in range(4)]
    assert snr == [210.5, 210.5, 101.0, 102.0]


def test_single_visit_follows_one_combined_spectrum(tmp_path):
    hdus = apstar_hdus(n_visits=0)
    hdus[0].header["NVISITS"], hdus[0].header["SNRVIS1"] = 1, 99.0
    hdus.writeto(tmp_path / "apStar.fits")
    snr = [read_spectrum(tmp_path / "apStar.fits", row=row).snr for row in range(2)]
    assert snr == [210.5, 99.0]


@pytest.mark.parametrize("noted", [0.0, -9999.0, None])
def test_visit_without_a_signal_to_noise_ratio_has_none(tmp_path, noted):
    hdus = apstar_hdus()
    del hdus[0].header["SNRVIS2"]
    if noted is not None:
        hdus[0].header["SNRVIS2"] = noted
    hdus.writeto(tmp_path / "apStar.fits")
    assert read_spectrum(tmp_path / "apStar.fits", row=3).snr is None


def test_visits_are_told_from_combined_spectra_without_their_number(tmp_path):
    hdus = apstar_hdus()
    del hdus[0].header["NVISITS"]
    hdus.writeto(tmp_path / "apStar.fits")
    assert read_spectrum(tmp_path / "apStar.fits", row=2).snr == 101.0


def test_apstar_without_that_row_is_refused(tmp_path):
    apstar_hdus().writeto(tmp_path / "apStar.fits")
    with pytest.raises(ValueError, match="there is no row 7"):
        read_spectrum(tmp_path / "apStar.fits", row=7)


def test_header_gives_the_radial_velocity_fit(tmp_path):
    apstar_hdus().writeto(tmp_path / "apStar.fits")
    spectrum = read_spectrum(tmp_path / "apStar.fits")
    assert (spectrum.rv.teff, spectrum.rv.logg, spectrum.rv.fe_h) == (4750.0, 2.5, None)
    assert (spectrum.star_id, spectrum.snr) == ("2M00000000+0000000", 210.5)


def test_flagged_pixels_are_bad_and_uncertain_ones_are_not(tmp_path):
    apstar_hdus().writeto(tmp_path / "apStar.fits")
    spectrum = read_spectrum(tmp_path / "apStar.fits")
    assert np.flatnonzero(spectrum.bad()).tolist() == [7]
    assert np.flatnonzero(np.isnan(spectrum.normalized())).tolist() == [7]


def test_pixels_with_a_hopeless_error_are_bad(tmp_path):
    hdus = apstar_hdus()
    hdus[2].data[0, 246 + 20] = 1e12
    hdus[2].data[0, 246 + 30] = 0
    hdus.writeto(tmp_path / "apStar.fits")
    assert np.flatnonzero(read_spectrum(tmp_path / "apStar.fits").bad()).tolist() == [7, 20, 30]


def test_apstar_with_a_single_row_is_read(tmp_path):
    hdus = apstar_hdus(n_visits=0)
    for hdu in hdus[1:]:
        hdu.data = hdu.data[0]
    hdus.writeto(tmp_path / "apStar.fits")
    assert read_spectrum(tmp_path / "apStar.fits").kind == "apStar"


def test_aspcapstar_holds_normalized_flux_and_model(tmp_path):
    arrays = [absorption(FULL_WAVELENGTH), np.full(8575, 0.005), absorption(FULL_WAVELENGTH) + 0.01]
    images = [fits.ImageHDU(array.astype(np.float32)) for array in arrays]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "aspcapStar.fits")
    spectrum = read_spectrum(tmp_path / "aspcapStar.fits")
    assert spectrum.kind == "aspcapStar"
    np.testing.assert_allclose(spectrum.model - spectrum.flux, 0.01, atol=1e-6)
    np.testing.assert_array_equal(spectrum.normalized(), spectrum.flux)


def test_apvisit_is_sorted_shifted_to_rest_and_resampled(tmp_path):
    apvisit_hdus().writeto(tmp_path / "apVisit.fits")
    spectrum = read_spectrum(tmp_path / "apVisit.fits")
    inner = slice(20, 2200)
    assert spectrum.kind == "apVisit"
    np.testing.assert_allclose(
        spectrum.flux[inner], 300 * absorption(APOGEE_WAVELENGTH)[inner], rtol=2e-3
    )


def test_apvisit_pixels_beyond_the_chip_are_nan_and_bad(tmp_path):
    apvisit_hdus().writeto(tmp_path / "apVisit.fits")
    spectrum = read_spectrum(tmp_path / "apVisit.fits")
    beyond = (APOGEE_WAVELENGTH > 15650) & (APOGEE_WAVELENGTH < 15850)
    assert np.isnan(spectrum.flux[beyond]).all()
    assert spectrum.bad()[beyond].all()


def test_apvisit_bad_pixel_does_not_spoil_its_neighbours(tmp_path):
    hdus = apvisit_hdus(velocity=0.0)
    hdus[1].data[2, 2000] = 1e9
    hdus[3].data[2, 2000] = PixelMask.CRPIX
    hdus.writeto(tmp_path / "apVisit.fits")
    spectrum = read_spectrum(tmp_path / "apVisit.fits")
    bad = spectrum.bad() & np.isfinite(spectrum.flux)
    assert 1 <= bad.sum() <= 3
    assert np.nanmax(spectrum.flux) < 310


def test_apvisit_without_velocity_asks_for_one(tmp_path):
    hdus = apvisit_hdus(velocity=0.0)
    del hdus[0].header["VRAD"]
    hdus.writeto(tmp_path / "apVisit.fits")
    with pytest.raises(ValueError, match="radial_velocity"):
        read_spectrum(tmp_path / "apVisit.fits")
    assert read_spectrum(tmp_path / "apVisit.fits", radial_velocity=0.0).kind == "apVisit"


@settings(max_examples=15, deadline=None)
@given(velocity=st.floats(-400, 400), step=st.floats(0.1, 0.17))
def test_resampled_lines_lie_at_their_rest_wavelengths(velocity, step):
    wavelength = 15150 + step * np.arange(4096)[::-1]
    shift = 1 + velocity / SPEED_OF_LIGHT
    flux = absorption(wavelength / shift)
    rest = (wavelength / shift)[None]
    zeros = np.zeros(rest.shape, dtype=np.int64)
    result, _, _ = spectra.resample(rest, flux[None], np.ones(rest.shape), zeros)
    # The first and last pixels of a chip have neighbours on one side only.
    covered = np.flatnonzero(np.isfinite(result))[3:-3]
    np.testing.assert_allclose(result[covered], absorption(APOGEE_WAVELENGTH)[covered], atol=2e-3)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.fits"):
        read_spectrum(tmp_path / "nowhere.fits")


@pytest.mark.filterwarnings("ignore:Error validating header")
@pytest.mark.parametrize("content", [b"", b"not a FITS file", b"SIMPLE  =                    T"])
def test_no_fits_file_is_named(tmp_path, content):
    (tmp_path / "broken.fits").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.fits"):
        read_spectrum(tmp_path / "broken.fits")


@pytest.mark.filterwarnings("ignore:.*truncated.*")
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_file_cut_off_is_named(tmp_path, share):
    apstar_hdus().writeto(tmp_path / "apStar.fits")
    content = (tmp_path / "apStar.fits").read_bytes()
    (tmp_path / "apStar.fits").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"apStar\.fits"):
        read_spectrum(tmp_path / "apStar.fits")


@pytest.mark.filterwarnings("ignore")
@given(position=st.integers(0, 4 * 2880), value=st.integers(0, 255), visit=st.booleans())
def test_changed_byte_gives_a_spectrum_or_names_the_file(tmp_path_factory, position, value, visit):
    path = tmp_path_factory.getbasetemp() / "changed.fits"
    (apvisit_hdus() if visit else apstar_hdus()).writeto(path, overwrite=True)
    content = bytearray(path.read_bytes())
    content[position] = value
    path.write_bytes(content)
    try:
        assert read_spectrum(path).flux.shape == (7514,)
    except ValueError as error:
        assert "changed.fits" in str(error)


def test_other_fits_files_are_refused(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones((4, 4)))]).writeto(tmp_path / "a.fits")
    with pytest.raises(ValueError, match="neither apStar"):
        read_spectrum(tmp_path / "a.fits")


def test_header_numbers_that_are_none(tmp_path):
    hdus = apstar_hdus()
    hdus[0].header["SNR"] = "unknown"
    hdus.writeto(tmp_path / "apStar.fits")
    snr = read_spectrum(tmp_path / "apStar.fits").snr
    assert snr is None or math.isnan(snr)
