"""The readers of APOGEE files."""

import gzip
import math
import os

import numpy as np
import pytest
from apogee_files import absorption, apstar_hdus, apvisit_hdus
from astropy import units as u
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarperceptron.data.apogee import spectra
from stellarperceptron.data.apogee.continuum import normalize
from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, CHIP_PIXELS, FULL_WAVELENGTH
from stellarperceptron.data.apogee.spectra import read_spectrum
from stellarperceptron.data.apogee.spectrum_files import PixelMask

SPEED_OF_LIGHT = 299_792.458


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
    np.testing.assert_allclose(spectrum.normalized(), normalize(spectrum.flux))


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


# --- odd files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("faint", [1, 500])
def test_mask_stored_as_floats_is_a_mask(tmp_path, faint):
    hdus = apstar_hdus()
    hdus[3].data = hdus[3].data.astype(np.float32)
    for hdu in hdus[1:3]:
        hdu.data = hdu.data / faint
    hdus.writeto(tmp_path / "star.fits")
    spectrum = read_spectrum(tmp_path / "star.fits")
    assert spectrum.kind == "apStar"
    assert spectrum.model is None
    assert np.flatnonzero(spectrum.mask).tolist() == [7, 8]


@pytest.mark.parametrize(
    ("name", "scale", "kind"),
    [
        ("apStar-x.fits", 1, "apStar"),
        ("aspcapStar-x.fits", 500, "aspcapStar"),
        ("x.fits", 500, "apStar"),
        ("x.fits", 1, "aspcapStar"),
    ],
)
def test_third_image_that_is_zero_everywhere_leaves_it_to_name_and_flux(
    tmp_path, name, scale, kind
):
    hdus = apstar_hdus()
    hdus[1].data = scale * hdus[1].data / 500
    hdus[3].data = np.zeros(hdus[3].data.shape, np.float32)
    hdus.writeto(tmp_path / name)
    assert read_spectrum(tmp_path / name).kind == kind


@pytest.mark.parametrize("hdus", [apstar_hdus, apvisit_hdus])
def test_axes_of_length_one_do_not_matter(tmp_path, hdus):
    plain, deep = hdus(), hdus()
    for hdu in deep[1:]:
        hdu.data = hdu.data[None, None]
    plain.writeto(tmp_path / "plain.fits")
    deep.writeto(tmp_path / "deep.fits")
    one, other = (read_spectrum(tmp_path / f"{name}.fits") for name in ("plain", "deep"))
    np.testing.assert_array_equal(other.flux, one.flux)


def test_cubes_are_refused(tmp_path):
    hdus = apstar_hdus()
    for hdu in hdus[1:]:
        hdu.data = np.stack([hdu.data, hdu.data])
    hdus.writeto(tmp_path / "cube.fits")
    with pytest.raises(ValueError, match=r"cube\.fits holds arrays of shapes \[\(2, 4, 8575\)"):
        read_spectrum(tmp_path / "cube.fits")


@pytest.mark.parametrize("value", [0.0, np.nan, -9999.0])
@pytest.mark.parametrize("flagged", [True, False])
def test_dead_chips_leave_the_good_one(tmp_path, value, flagged):
    hdus = apstar_hdus()
    hdus[1].data[:, 3400:], hdus[2].data[:, 3400:] = value, 1e10
    hdus[3].data[:, 3400:] = PixelMask.BADPIX if flagged else 0
    hdus.writeto(tmp_path / "apStar.fits")
    good = ~read_spectrum(tmp_path / "apStar.fits").bad()
    blue = CHIP_PIXELS["blue"]
    assert good[blue].sum() == 3028 - 1  # `apstar_hdus` has a bad pixel
    assert good.sum() == good[blue].sum()


def test_gzipped_files_are_read(tmp_path):
    apstar_hdus().writeto(tmp_path / "a.fits")
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress((tmp_path / "a.fits").read_bytes()))
    one, other = (read_spectrum(tmp_path / name) for name in ("a.fits", "a.fits.gz"))
    np.testing.assert_array_equal(one.flux, other.flux)


@pytest.mark.filterwarnings("ignore")
def test_damaged_gzip_is_never_read(tmp_path):
    apstar_hdus(n_visits=0).writeto(tmp_path / "a.fits")
    packed = gzip.compress((tmp_path / "a.fits").read_bytes(), 1)
    path = tmp_path / "damaged.fits.gz"
    random = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(packed)
        damaged[random.integers(20, len(packed) - 8)] ^= random.integers(1, 256)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.fits\.gz is no FITS file or is damaged"):
            read_spectrum(path)
    for length in (2, 15, len(packed) // 2, len(packed) - 4):
        path.write_bytes(packed[:length])
        with pytest.raises(ValueError, match=r"damaged\.fits\.gz is no FITS file or is damaged"):
            read_spectrum(path)


def test_file_that_unpacks_to_far_too_much_is_refused(tmp_path, monkeypatch):
    from stellarperceptron.data.apogee import spectrum_files

    apstar_hdus().writeto(tmp_path / "a.fits")
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress((tmp_path / "a.fits").read_bytes()))
    monkeypatch.setattr(spectrum_files, "LARGEST_FILE", 10_000)
    for name in ("a.fits", "a.fits.gz"):
        with pytest.raises(ValueError, match="more than 10,000 bytes"):
            read_spectrum(tmp_path / name)


def test_folder_and_unreadable_file_are_named(tmp_path, monkeypatch):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_spectrum(tmp_path)
    path = tmp_path / "secret.fits"
    apstar_hdus().writeto(path)
    if os.access(path, os.R_OK) and os.geteuid() == 0:  # nothing is unreadable for root

        def refuse(*arguments, **options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
    else:
        path.chmod(0)
    with pytest.raises(PermissionError, match=r"secret\.fits cannot be read.*chmod"):
        read_spectrum(path)


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("velocity", [-9999.0, 9999.0, 9999.99, 99999.0, 999999.0])
def test_velocities_that_no_star_has_are_none(tmp_path, velocity):
    hdus = apvisit_hdus()
    hdus[0].header["VRAD"] = hdus[0].header["VHELIO"] = velocity
    hdus.writeto(tmp_path / "apVisit.fits")
    with pytest.raises(ValueError, match="pass radial_velocity"):
        read_spectrum(tmp_path / "apVisit.fits")
    given = read_spectrum(tmp_path / "apVisit.fits", radial_velocity=50_000 * u.m / u.s)
    assert given.rv.vrad is None
    assert given.rv.vhelio is None
    apvisit_hdus().writeto(tmp_path / "known.fits")  # 50 km/s
    np.testing.assert_allclose(given.flux, read_spectrum(tmp_path / "known.fits").flux)
    with pytest.raises(ValueError, match="is no velocity of a star"):
        read_spectrum(tmp_path / "apVisit.fits", radial_velocity=velocity)


@pytest.mark.parametrize(
    ("header", "file", "name"),
    [
        ({"OBJID": "2M1", "OBJ": "2M2"}, "a.fits", "2M1"),
        ({"OBJ": "2M2"}, "a.fits", "2M2"),
        ({}, "apStar-r6-2M17334253-1654573.fits", "2M17334253-1654573"),
        ({"OBJID": " "}, "apVisit-r13-9518-57729-104.fits", "apVisit-r13-9518-57729-104"),
    ],
)
def test_star_has_the_name_of_the_header_or_the_file(tmp_path, header, file, name):
    hdus = apstar_hdus()
    del hdus[0].header["OBJID"]
    hdus[0].header.update(header)
    hdus.writeto(tmp_path / file)
    assert read_spectrum(tmp_path / file).star_id == name


# --- other data releases --------------------------------------------------------------------------


def test_continuum_of_another_release_does_not_matter(tmp_path):
    """One star, divided by different continua, with zeros where pixels are missing."""
    flux = absorption(FULL_WAVELENGTH)
    flux[300:304] = 0
    slope = np.linspace(-1, 1, 8575)
    results = []
    for number, continuum in enumerate((1.0, 1.09 + 0.03 * slope - 0.02 * slope**2)):
        images = [flux / continuum, np.full(8575, 0.005), absorption(FULL_WAVELENGTH)]
        path = tmp_path / f"{number}.fits"
        hdus = [fits.ImageHDU(image.astype(np.float32)) for image in images]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
        results.append(read_spectrum(path).normalized())
    np.testing.assert_allclose(results[1], results[0], atol=1e-3)
    assert np.isnan(results[0][54:58]).all()


@pytest.mark.reference
def test_both_files_of_a_giant_of_data_release_13_agree(shared):
    folder = shared / "real" / "dr13_giant"
    paths = sorted(folder.glob("*.fits"))
    star, normalized = (read_spectrum(path) for path in paths)
    assert (star.kind, normalized.kind) == ("apStar", "aspcapStar")
    assert star.star_id == normalized.star_id == "2M17334253-1654573"
    difference = star.normalized() - normalized.normalized()
    # Its noise is 0.005 a pixel; as the files have it, the flux differs by 0.09.
    assert np.nanmedian(np.abs(difference)) < 3e-3
    assert np.nanquantile(np.abs(difference), 0.99) < 1e-2
