"""Files of GALAH, Gaia, LAMOST, SDSS-V and DESI: one conversion, and what is refused."""

import gzip
import math

import numpy as np
import pytest
from apogee_files import absorption, apstar_hdus
from astropy import units as u
from astropy.io import fits
from astropy.io.votable import from_table
from astropy.io.votable.tree import Param
from astropy.table import Table, vstack
from hypothesis import given, settings
from hypothesis import strategies as st
from spectrum_files import (
    OBSERVATION,
    SOURCE,
    broad,
    desi_hdus,
    gaia_table,
    galah_camera,
    lamost_arrays,
    lamost_rows,
    lamost_table,
    mwm_hdus,
    write_gaia,
    write_galah,
)

from stellarperceptron.data.apogee.spectrum_files import NoVelocityError
from stellarperceptron.data.mock.line_spread import FWHM
from stellarperceptron.data.readers.files import read_spectrum_file
from stellarperceptron.instruments import APOGEE, GAIA_RVS, GALAH, LOW_RESOLUTION


def good(spectrum):
    """Pixels with a measurement."""
    return ~spectrum.bad()


# --- GALAH ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", [3, 4])
def test_galah_cameras_become_one_spectrum_at_rest_in_vacuum(tmp_path, release):
    path = write_galah(tmp_path, velocity=42.0, release=release)
    spectrum = read_spectrum_file(path)
    assert spectrum.instrument == GALAH
    assert (spectrum.star_id, spectrum.kind, spectrum.velocity) == (OBSERVATION, "GALAH", 42.0)
    assert (spectrum.rv.teff, spectrum.rv.vhelio) == (4750.0, 42.0)
    seen = good(spectrum)
    assert seen.mean() > 0.97
    expected = 1000 * absorption(GALAH.wavelength)
    np.testing.assert_allclose(spectrum.flux[seen], expected[seen], atol=1.5)
    np.testing.assert_allclose(spectrum.error[seen] / spectrum.flux[seen], 0.02, rtol=0.1)


def test_galah_spectra_are_normalized_camera_by_camera(tmp_path):
    spectrum = read_spectrum_file(write_galah(tmp_path))
    flux = spectrum.normalized()
    for chip in GALAH.chips.values():
        assert np.nanmean(flux[chip]) == pytest.approx(1, abs=2e-3)


def test_galah_without_a_camera_has_bad_pixels(tmp_path):
    spectrum = read_spectrum_file(write_galah(tmp_path, cameras=(1, 2, 3)))
    lost = [(~good(spectrum)[chip]).mean() for chip in GALAH.chips.values()]
    assert lost[:3] == pytest.approx([0, 0, 0], abs=0.02) and lost[3] == 1


@pytest.mark.parametrize(
    ("entry", "value", "error", "message"),
    [
        ("RVCOM", None, NoVelocityError, "no radial velocity.*RVCOM"),
        ("RVCOM_OK", 0, NoVelocityError, "no radial velocity"),
        ("RVCOM", -9999.0, NoVelocityError, "no radial velocity"),
        ("RVCOM_OK", -1, NoVelocityError, "no radial velocity"),
        ("WAV_OK", 0, ValueError, "its wavelengths are wrong .*move this camera's file away"),
        ("CDELT1", None, ValueError, "lacks CRVAL1 and CDELT1"),
    ],
)
def test_what_a_galah_header_says_is_heeded(tmp_path, entry, value, error, message):
    hdus = galah_camera(2)
    if value is None:
        del hdus[0].header[entry]
    else:
        hdus[0].header[entry] = value
    hdus.writeto(tmp_path / f"{OBSERVATION}2.fits")
    with pytest.raises(error, match=message) as raised:
        read_spectrum_file(tmp_path / f"{OBSERVATION}2.fits")
    assert f"{OBSERVATION}2.fits" in str(raised.value)


def test_spectra_through_the_slit_mask_are_smoothed(tmp_path):
    """They have R = 42,000: smoothed to 28,000, lines become shallower."""
    depths = []
    for mask in ("OUT", "IN"):
        hdus = galah_camera(2)
        hdus[0].header["SLITMASK"] = mask
        hdus.writeto(tmp_path / f"{mask}.fits")
        depths.append(np.nanstd(read_spectrum_file(tmp_path / f"{mask}.fits").flux))
    assert depths[1] < 0.995 * depths[0]


def test_a_velocity_may_be_given(tmp_path):
    path = write_galah(tmp_path, velocity=0.0, cameras=(2,))
    spectrum = read_spectrum_file(path, radial_velocity=-0.03 * u.Unit("Mm/s"))
    seen = good(spectrum)
    shifted = 1000 * absorption(GALAH.wavelength * (1 - 30 / 299792.458))
    np.testing.assert_allclose(spectrum.flux[seen], shifted[seen], atol=1.5)


# --- Gaia -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["xml", "ecsv", "csv", "fits"])
@pytest.mark.parametrize("packed", [False, True])
def test_rvs_spectra_in_all_formats_of_the_archive(tmp_path, kind, packed):
    path = write_gaia(tmp_path, kind)
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = path.with_name(f"{path.name}.gz")
    spectrum = read_spectrum_file(path)
    assert spectrum.instrument == GAIA_RVS
    assert (spectrum.star_id, spectrum.kind) == (str(SOURCE), "RVS_MEAN_SPECTRUM")
    assert np.flatnonzero(~good(spectrum)).tolist() == list(range(20))
    expected = absorption(GAIA_RVS.wavelength)
    np.testing.assert_allclose(spectrum.flux[20:], expected[20:], rtol=1e-6)
    np.testing.assert_allclose(spectrum.error[20:], 0.01, rtol=1e-6)


def test_units_of_wavelengths_are_followed(tmp_path):
    paths = [tmp_path / f"{unit}.ecsv" for unit in ("nm", "Angstrom")]
    for path in paths:
        gaia_table(path.stem).write(path)
    one, other = (read_spectrum_file(path).flux for path in paths)
    np.testing.assert_allclose(one[20:], other[20:], rtol=1e-9)


@pytest.mark.parametrize("kind", ["csv", "xml"])
def test_a_star_of_a_bulk_file(tmp_path, kind):
    flux = np.array([np.ones(2401), absorption(GAIA_RVS.wavelength)])
    path = tmp_path / f"RvsMeanSpectrum.{kind}"
    if kind == "csv":
        rows = ["[" + ", ".join(map(str, row.round(6))) + "]" for row in flux]
        errors = ["[" + ", ".join(["0.01"] * 2400) + ", null]"] * 2
        Table({"source_id": [5, SOURCE], "flux": rows, "flux_error": errors}).write(path)
    else:
        table = {"source_id": [5, SOURCE], "flux": flux, "flux_error": np.full(flux.shape, 0.01)}
        Table(table).write(path, format="votable")
    spectrum = read_spectrum_file(path, row=1)
    assert spectrum.star_id == str(SOURCE)
    np.testing.assert_allclose(spectrum.flux[:-1], flux[1, :-1], atol=1e-6)
    with pytest.raises(ValueError, match="has 2 stars: say which one"):
        read_spectrum_file(path)
    with pytest.raises(ValueError, match="has 2 stars: there is no row 2"):
        read_spectrum_file(path, row=2)
    with pytest.raises(ValueError, match="has 2 stars: there is no row -1"):
        read_spectrum_file(path, row=-1)


def test_samples_that_a_table_lacks_are_bad(tmp_path):
    table = gaia_table()
    table.remove_rows(slice(1000, 1050))
    table.write(tmp_path / "gap.ecsv")
    bad = np.flatnonzero(read_spectrum_file(tmp_path / "gap.ecsv").bad())
    assert bad.tolist() == [*range(20), *range(1000, 1050)]


def test_stars_of_one_votable_with_a_table_each(tmp_path):
    document = from_table(gaia_table())
    document.resources[0].tables.append(from_table(gaia_table()).get_first_table())
    for number, one in enumerate(document.iter_tables()):
        one.params.append(Param(document, name="source_id", datatype="long", value=SOURCE + number))
    document.to_xml(str(tmp_path / "combined.xml"))
    assert read_spectrum_file(tmp_path / "combined.xml", row=1).star_id == str(SOURCE + 1)
    with pytest.raises(ValueError, match=r"combined\.xml: it has 2 stars: say which one"):
        read_spectrum_file(tmp_path / "combined.xml")


def test_samples_of_two_stars_are_not_mixed(tmp_path):
    table = vstack([gaia_table(), gaia_table()])
    table["flux"][2401:] *= 2
    table.write(tmp_path / "unnamed.ecsv")
    with pytest.raises(ValueError, match="wavelengths more than once, and no source_id"):
        read_spectrum_file(tmp_path / "unnamed.ecsv")
    table["source_id"] = np.repeat([SOURCE, SOURCE + 1], 2401)
    table.write(tmp_path / "named.ecsv")
    one, other = (read_spectrum_file(tmp_path / "named.ecsv", row=row) for row in (0, 1))
    assert [one.star_id, other.star_id] == [str(SOURCE), str(SOURCE + 1)]
    np.testing.assert_allclose(other.flux, 2 * one.flux, rtol=1e-9)


# --- LAMOST ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hdus",
    [
        lamost_rows(60.0),
        lamost_rows(60.0, lamost_arrays(0.0)[0]),
        lamost_table(60.0),
    ],
    ids=["rows without wavelengths", "rows", "table"],
)
def test_lamost_spectra_are_brought_to_rest(tmp_path, hdus):
    hdus.writeto(tmp_path / "spec-55862-B6212_sp06-003.fits")
    spectrum = read_spectrum_file(tmp_path / "spec-55862-B6212_sp06-003.fits")
    assert spectrum.instrument == LOW_RESOLUTION
    assert spectrum.star_id == "LAMOST J064726.39+223431.6"
    assert spectrum.velocity == pytest.approx(60.0)
    assert spectrum.snr == 55.5
    seen = good(spectrum)
    assert 0.99 < seen.mean() < 1
    expected = 500 * broad(LOW_RESOLUTION.wavelength)
    np.testing.assert_allclose(spectrum.flux[seen], expected[seen], atol=2.0)
    np.testing.assert_allclose(spectrum.error[seen], 5.0)
    rest = 10 ** np.array([3.6682, 3.6987]) / (1 + 60 / 299792.458)  # of pixels 1000 and 1305
    assert seen[LOW_RESOLUTION.nearest_pixels(rest)].tolist() == [False, True]


@settings(max_examples=5, deadline=None)
@given(velocity=st.floats(-500, 500))
def test_rest_spectra_do_not_depend_on_the_velocity(tmp_path_factory, velocity):
    folder = tmp_path_factory.mktemp("lamost")
    moving, still = (folder / name for name in ("moving.fits", "still.fits"))
    lamost_rows(velocity).writeto(moving)
    lamost_rows(0.0).writeto(still)
    one, other = (read_spectrum_file(path) for path in (moving, still))
    both = good(one) & good(other)
    np.testing.assert_allclose(one.flux[both], other.flux[both], atol=2.0)


def test_lamost_without_a_redshift(tmp_path):
    hdus = lamost_rows()
    hdus[0].header["Z"] = -9999.0
    hdus.writeto(tmp_path / "star.fits")
    with pytest.raises(NoVelocityError, match=r"star\.fits: .*Z in its header"):
        read_spectrum_file(tmp_path / "star.fits")


def test_spectra_of_sdss_are_not_taken_for_lamost(tmp_path):
    hdus = lamost_rows()
    hdus[0].header["TELESCOP"] = "SDSS 2.5-M"
    hdus.writeto(tmp_path / "spSpec-52059-0597-008.fits")
    with pytest.raises(ValueError, match="of no known kind"):
        read_spectrum_file(tmp_path / "spSpec-52059-0597-008.fits")


def test_medium_resolution_spectra_of_lamost_are_refused(tmp_path):
    hdus = lamost_table()
    hdus[1].name = "COADD_B"
    hdus.append(hdus[1].copy())
    hdus[2].name = "COADD_R"
    hdus.writeto(tmp_path / "med-58407-TD0624_sp06-003.fits")
    with pytest.raises(ValueError, match=r"med-58407.*medium-resolution survey"):
        read_spectrum_file(tmp_path / "med-58407-TD0624_sp06-003.fits")


# --- SDSS-V ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mwmStar", "mwmVisit"])
def test_mwm_files_hold_two_instruments(tmp_path, name):
    path = tmp_path / f"{name}-0.6.0-54321.fits"
    mwm_hdus(name).writeto(path)
    boss, apogee = read_spectrum_file(path), read_spectrum_file(path, instrument=APOGEE)
    assert (boss.instrument, apogee.instrument) == (LOW_RESOLUTION, APOGEE)
    for spectrum, made in ((boss, broad), (apogee, absorption)):
        assert (spectrum.star_id, spectrum.kind, spectrum.snr) == ("54321", name, 80.0)
        assert (spectrum.velocity, spectrum.rv.vhelio) == (0.0, -12.5)
        seen = good(spectrum)
        assert 0 < (~seen).sum() < 4
        expected = 100 * made(spectrum.wavelength)
        np.testing.assert_allclose(spectrum.flux[seen], expected[seen], rtol=1e-4)
        np.testing.assert_allclose(spectrum.error[seen], 2.0)


def test_visits_are_rows(tmp_path):
    path = tmp_path / "mwmVisit-0.6.0-54321.fits"
    mwm_hdus("mwmVisit", visits=3).writeto(path)
    flux = [np.nanmax(read_spectrum_file(path, row=row).flux) for row in range(3)]
    np.testing.assert_allclose(flux, [100, 200, 300], rtol=1e-3)
    with pytest.raises(ValueError, match="has 3 spectra of APOGEE and no row 3"):
        read_spectrum_file(path, row=3, instrument=APOGEE)


def test_apogee_spectra_on_another_grid_are_refused(tmp_path):
    hdus = mwm_hdus()
    hdus[3].data["wavelength"] += 0.1
    hdus.writeto(tmp_path / "mwmStar-0.6.0-54321.fits")
    with pytest.raises(ValueError, match=r"mwmStar.*not those of APOGEE's 8,575 pixels"):
        read_spectrum_file(tmp_path / "mwmStar-0.6.0-54321.fits", instrument=APOGEE)


def test_models_without_fluxes_are_refused(tmp_path):
    hdus = mwm_hdus()
    for hdu in hdus[1:]:
        hdu.columns.change_name("flux", "model_flux")
    hdus.writeto(tmp_path / "astraStarASPCAP-0.6.0-54321.fits")
    with pytest.raises(ValueError, match=r"astraStar.*holds models and no fluxes: use .*mwmStar"):
        read_spectrum_file(tmp_path / "astraStarASPCAP-0.6.0-54321.fits")


# --- DESI -----------------------------------------------------------------------------------------


def test_desi_spectra_are_smoothed_to_the_instrument(tmp_path):
    desi_hdus().writeto(tmp_path / "coadd.fits")
    spectrum = read_spectrum_file(tmp_path / "coadd.fits", radial_velocity=0.0)
    assert (spectrum.star_id, spectrum.kind) == ("39627000", "DESI")
    for center in (4500.0, 6600.0, 7800.0):
        near = np.abs(LOW_RESOLUTION.wavelength - center) < 25
        absorbed = 1 - spectrum.flux[near]
        offset = LOW_RESOLUTION.wavelength[near] - center
        weight = LOW_RESOLUTION.pixel_width[near]
        width = math.sqrt((absorbed * offset**2 * weight).sum() / (absorbed * weight).sum())
        expected = math.hypot(4.0, center / 1800 / FWHM)
        assert width == pytest.approx(expected, rel=0.003)


def test_stars_of_a_coadd(tmp_path):
    desi_hdus(stars=3).writeto(tmp_path / "coadd.fits")
    one = read_spectrum_file(tmp_path / "coadd.fits", row=2, radial_velocity=10.0)
    assert (one.star_id, one.velocity) == ("39627002", 10.0)
    with pytest.raises(ValueError, match="has 3 stars: say which one"):
        read_spectrum_file(tmp_path / "coadd.fits", radial_velocity=10.0)
    with pytest.raises(NoVelocityError, match=r"coadd\.fits"):
        read_spectrum_file(tmp_path / "coadd.fits", row=0)


def test_a_star_of_a_coadd_has_its_own_pixels(tmp_path):
    """Flux, errors, bad pixels and line spread are those of its row."""
    hdus = desi_hdus(stars=2)
    for arm in "BRZ":
        hdus[f"{arm}_FLUX"].data[1] *= 3
        hdus[f"{arm}_IVAR"].data[1] /= 4
        hdus[f"{arm}_MASK"].data[1, 1000:1100] = 2
        hdus[f"{arm}_FLUX"].data[1, 1000:1100] = 1e4
        hdus[f"{arm}_RESOLUTION"].data[0] = np.eye(11)[5][:, None]  # as sharp as can be
    hdus.writeto(tmp_path / "coadd.fits")
    desi_hdus().writeto(tmp_path / "alone.fits")
    one = read_spectrum_file(tmp_path / "coadd.fits", row=1, radial_velocity=0.0)
    other = read_spectrum_file(tmp_path / "alone.fits", radial_velocity=0.0)
    lost = good(other) & ~good(one)
    assert 0.03 < lost.mean() < 0.08
    np.testing.assert_allclose(one.flux[good(one)], 3 * other.flux[good(one)], rtol=0.01)
    np.testing.assert_allclose(one.error[good(one)], 2 * other.error[good(one)], rtol=1e-6)


def test_pixels_without_flux_are_bad(tmp_path):
    table = gaia_table()
    table["flux"][500:600] = 0
    table.write(tmp_path / "star.ecsv")
    bad = ~good(read_spectrum_file(tmp_path / "star.ecsv"))
    assert np.flatnonzero(bad).tolist() == [*range(20), *range(500, 600)]


# --- others ---------------------------------------------------------------------------------------


def test_apogee_files_of_any_name_are_recognised(tmp_path):
    apstar_hdus().writeto(tmp_path / "star.fits")
    assert read_spectrum_file(tmp_path / "star.fits").kind == "apStar"


@pytest.mark.parametrize(
    "content", [b"", b"wavelength,counts\n1,2\n", b"\x89PNG\r\n", b"SIMPLE = "]
)
def test_other_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "photo.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"photo\.csv"):
        read_spectrum_file(tmp_path / "photo.csv")


def test_what_is_called_a_fits_file_and_is_none_is_damaged(tmp_path):
    (tmp_path / "star.fits.gz").write_bytes(b"flux, wavelength")
    with pytest.raises(ValueError, match=r"star\.fits\.gz is no FITS file or is damaged"):
        read_spectrum_file(tmp_path / "star.fits.gz")


def test_fits_files_of_another_kind_are_refused_by_name(tmp_path):
    fits.HDUList([fits.PrimaryHDU(np.zeros((5, 5))), fits.ImageHDU(np.zeros(7))]).writeto(
        tmp_path / "dark.fits"
    )
    with pytest.raises(ValueError, match=r"dark\.fits is of no known kind: apStar, aspcapStar"):
        read_spectrum_file(tmp_path / "dark.fits")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.fits"):
        read_spectrum_file(tmp_path / "nowhere.fits")


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_wavelengths_in_a_wrong_unit_are_refused(tmp_path, factor):
    hdus = galah_camera(2)
    hdus[0].header["CRVAL1"] *= factor
    hdus[0].header["CDELT1"] *= factor
    hdus.writeto(tmp_path / "star.fits")
    with pytest.raises(ValueError, match=r"star\.fits: its good pixels.*check the unit"):
        read_spectrum_file(tmp_path / "star.fits")


def test_pixels_that_are_too_coarse_are_refused(tmp_path):
    table = gaia_table()[::12]
    table.write(tmp_path / "coarse.ecsv")
    with pytest.raises(ValueError, match="too coarse for the lines that GAIA_RVS resolves"):
        read_spectrum_file(tmp_path / "coarse.ecsv")
