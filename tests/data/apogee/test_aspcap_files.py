"""Lean reading of aspcapStar files, and the check of any FITS file."""

import warnings

import numpy as np
import pytest
from astropy.io import fits
from dr17_files import N_PIXELS, aspcap_hdus, make_spectra

from stellarperceptron.data.apogee.aspcap_files import ASPCAP_KINDS, check_fits, read_aspcap
from stellarperceptron.data.apogee.grid import VALID_PIXELS
from stellarperceptron.data.apogee.spectra import read_spectrum


@pytest.fixture
def spectra():
    return make_spectra(np.random.default_rng(3))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "star.fits"


def test_values_are_those_that_astropy_reads(path, spectra):
    aspcap_hdus(spectra).writeto(path)
    read = read_aspcap(path)
    with fits.open(path) as hdus:
        for number in range(3):
            expected = hdus[number + 1].data[VALID_PIXELS]
            np.testing.assert_array_equal(read[number], expected)
    slow = read_spectrum(path)
    named = dict(zip(ASPCAP_KINDS, read, strict=True))
    np.testing.assert_array_equal(named["observed"], slow.flux)
    np.testing.assert_array_equal(named["observed_errors"], slow.error)
    np.testing.assert_array_equal(named["synthetic"], slow.model)


@pytest.mark.parametrize("kind", ["double", "one row", "scaled", "long header"])
def test_unusual_but_legal_files_are_read(path, spectra, kind):
    images = [*spectra]
    if kind == "double":
        images = [image.astype(float) for image in images]
    if kind == "one row":
        images = [image[None] for image in images]
    if kind == "scaled":
        images = [np.round(np.nan_to_num(image) * 1000).astype(np.int16) for image in images]
    hdus = aspcap_hdus(images)
    if kind == "scaled":
        for hdu in hdus[1:4]:
            hdu.header["BSCALE"] = 0.001
    if kind == "long header":
        hdus[0].header["COMMENT"] = "END" + " " * 60 + "of nothing " * 300
    hdus.writeto(path)
    expected = read_spectrum(path).flux
    np.testing.assert_array_equal(read_aspcap(path)[0], expected.astype(np.float32))


def test_header_with_keywords_in_another_order_is_read(path, spectra):
    """The standard demands PCOUNT and GCOUNT after the axes; some writers put them elsewhere."""
    aspcap_hdus(spectra).writeto(path)
    data = path.read_bytes()
    place = data.index(b"PCOUNT")
    pcount, gcount = data[place : place + 80], data[place + 80 : place + 160]
    assert gcount.startswith(b"GCOUNT")
    moved = data.replace(pcount + gcount, b"COMMENT".ljust(80) + pcount)
    assert moved != data
    path.write_bytes(moved)
    np.testing.assert_array_equal(read_aspcap(path)[2], spectra[2][VALID_PIXELS])


def test_wavelengths_of_the_header_are_followed(path, spectra):
    hdus = aspcap_hdus(spectra)
    for hdu in hdus[1:4]:
        hdu.header["CRVAL1"] = 4.179 + 10 * 6e-6
    hdus.writeto(path)
    with pytest.warns(UserWarning, match="resampled"):
        read = read_aspcap(path)
    # Ten pixels up: what lay at pixel 260 of the file is pixel 270 of the grid.
    np.testing.assert_allclose(read[2, 100:200], spectra[2, 336:436], rtol=1e-4)


@pytest.mark.parametrize(
    ("hdu", "entries"),
    [
        (1, {"CRPIX1": -9}),
        (1, {"CRVAL1": "4.17906"}),
        (1, {"CUNIT1": "nm"}),
        (0, {"COEFF0": 4.17906, "COEFF1": 6e-6}),
        (0, {"CRVAL1": 4.17906, "CDELT1": 6e-6}),
    ],
)
def test_no_other_grid_is_taken_for_the_surveys(path, spectra, hdu, entries):
    """Ten pixels up, or what cannot be: never read as if nothing were said."""
    hdus = aspcap_hdus(spectra)
    if hdu == 0:
        for image in hdus[1:4]:
            for name in ("CRVAL1", "CDELT1", "CRPIX1"):
                image.header.remove(name, ignore_missing=True)
    hdus[hdu].header.update(entries)
    hdus.writeto(path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            read = read_aspcap(path)
        except ValueError as error:
            assert "its header has" in str(error) or "do not reach" in str(error)
        else:
            assert "resampled" in str(said[0].message)
            np.testing.assert_allclose(read[2, 100:200], spectra[2, 336:436], rtol=1e-4)


def test_marks_for_no_error_are_missing(path, spectra):
    spectra[1, VALID_PIXELS[:2]] = -9999, 9999
    aspcap_hdus(spectra).writeto(path)
    error = read_aspcap(path)[1]
    assert np.isnan(error[:2]).all()
    assert np.isfinite(error[2:]).all()


def test_truncated_anywhere_is_noticed(path, spectra):
    aspcap_hdus(spectra).writeto(path)
    data = path.read_bytes()
    assert check_fits(path) == 5
    for length in (1, 79, 2879, 2881, 30_000, 60_000, 100_000, len(data) - 2880):
        path.write_bytes(data[:length])
        for read in (read_aspcap, check_fits):
            with pytest.raises(ValueError, match=r"truncated|no FITS file|has no header"):
                read(path)


def test_columns_of_variable_length_are_followed(path, spectra):
    """What they hold lies behind the rows of their table (PCOUNT)."""
    lists = np.empty(2, dtype=object)
    lists[:] = [np.ones(2000), np.ones(1000)]
    column = fits.Column("VISITS", "PD()", array=lists)
    hdus = [*aspcap_hdus(spectra), fits.BinTableHDU.from_columns([column]), fits.ImageHDU()]
    fits.HDUList(hdus).writeto(path)
    assert check_fits(path) == 7


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"<html></html>", "is no FITS file"),
        (b"\0" * 5760, "is no FITS file"),
    ],
)
def test_what_is_no_fits_file_is_said(path, data, reason):
    path.write_bytes(data)
    for read in (read_aspcap, check_fits):
        with pytest.raises(ValueError, match=reason):
            read(path)


def test_zeros_after_the_end_are_noticed(path, spectra):
    """What a crash leaves: the length is there, the data are not."""
    aspcap_hdus(spectra).writeto(path)
    data = path.read_bytes()
    start = data.index(b"XTENSION", 60_000)
    path.write_bytes(data[:start] + b"\0" * (len(data) - start))
    with pytest.raises(ValueError, match="has no header in HDU 3"):
        read_aspcap(path)


def test_another_number_of_pixels_is_said(path):
    aspcap_hdus([np.ones(N_PIXELS - 1, np.float32)] * 3).writeto(path)
    with pytest.raises(ValueError, match="wrong length"):
        read_aspcap(path)


def test_apstar_file_is_told_apart(path):
    images = [np.ones(N_PIXELS, np.float32)] * 2 + [np.zeros(N_PIXELS, np.int32)]
    aspcap_hdus(images).writeto(path)
    with pytest.raises(ValueError, match="is an apStar file"):
        read_aspcap(path)


def test_damaged_header_is_said(path, spectra):
    aspcap_hdus(spectra).writeto(path)
    data = path.read_bytes()
    for damaged in (b"NAXIS1  =                 x575", b"NAXIS1  =                -8575"):
        path.write_bytes(data.replace(b"NAXIS1  =                 8575", damaged))
        with pytest.raises(ValueError, match=r"NAXIS1 is no number|negative length"):
            read_aspcap(path)
