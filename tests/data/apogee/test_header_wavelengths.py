"""APOGEE files whose headers give other wavelengths than the survey's."""

import numpy as np
import pytest
from apogee_files import absorption, apstar_hdus, apvisit_hdus
from astropy.io import fits

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH, FULL_WAVELENGTH
from stellarperceptron.data.apogee.spectra import read_spectrum


def star_on(wavelength, header, kind="apStar"):
    """HDUs of a star at other wavelengths [A]; the header goes into the first image."""
    flux = absorption(wavelength)
    third = np.zeros(flux.shape, np.int16) if kind == "apStar" else flux.astype(np.float32)
    scale = 500 if kind == "apStar" else 1
    images = [fits.ImageHDU(a) for a in (scale * flux, np.full(flux.shape, scale / 200.0), third)]
    images[0].header.update(header)
    return fits.HDUList([fits.PrimaryHDU(), *images])


GRIDS = {
    "other start": (
        10 ** (4.18 + 6e-6 * np.arange(8575)),
        {"CRVAL1": 4.18, "CDELT1": 6e-6, "CTYPE1": "LOG-LINEAR"},
    ),
    "other step": (
        10 ** (4.179 + 5e-6 * np.arange(9000)),
        {"CRVAL1": 4.179, "CDELT1": 5e-6, "DC-FLAG": 1},
    ),
    "other reference pixel": (
        10 ** (4.179 + 6e-6 * (np.arange(8575) - 99)),
        {"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 100},
    ),
    "falling": (
        10 ** (4.23 - 6e-6 * np.arange(8575)),
        {"CRVAL1": 4.23, "CDELT1": -6e-6},
    ),
    "linear": (np.linspace(15100, 17000, 9501), {"CRVAL1": 15100.0, "CDELT1": 0.2}),
    "nanometres": (
        np.linspace(15100, 17000, 9501),
        {"CRVAL1": 1510.0, "CDELT1": 0.02, "CUNIT1": "nm", "CTYPE1": "WAVE"},
    ),
    "coefficients": (
        10 ** (4.18 + 6e-6 * np.arange(8575)),
        {"COEFF0": 4.18, "COEFF1": 6e-6},
    ),
    "logarithmic as FITS has it": (
        15100 * np.exp(0.2 * np.arange(9000) / 15100),
        {"CRVAL1": 15100.0, "CD1_1": 0.2, "CTYPE1": "WAVE-LOG"},
    ),
}


@pytest.mark.parametrize("kind", ["apStar", "aspcapStar"])
@pytest.mark.parametrize("grid", GRIDS)
def test_wavelengths_of_the_header_are_followed(tmp_path, grid, kind):
    wavelength, header = GRIDS[grid]
    star_on(wavelength, header, kind).writeto(tmp_path / f"{kind}.fits")
    with pytest.warns(UserWarning, match="are not the survey's; it was resampled"):
        spectrum = read_spectrum(tmp_path / f"{kind}.fits")
    assert spectrum.kind == kind
    good = np.flatnonzero(~spectrum.bad())[3:-3]
    assert len(good) > 5000
    scale = 500 if kind == "apStar" else 1
    wanted = scale * absorption(APOGEE_WAVELENGTH)[good]
    np.testing.assert_allclose(spectrum.flux[good], wanted, atol=5e-3 * scale)
    if kind == "aspcapStar":
        np.testing.assert_allclose(spectrum.model[good], spectrum.flux[good], atol=1e-6)


@pytest.mark.parametrize(
    "said", [{"CTYPE1": "AWAV"}, {"AIRORVAC": "air"}, {"VACUUM": False}, {"VACUUM": 0}]
)
def test_air_wavelengths_of_the_header_are_followed(tmp_path, said):
    air = np.linspace(15200, 16900, 8501)
    vacuum = air * 1.000273  # refractive index of air in the H band
    hdus = star_on(vacuum, {"CRVAL1": 15200.0, "CDELT1": 0.2, **said})
    hdus.writeto(tmp_path / "apStar.fits")
    with pytest.warns(UserWarning, match="resampled"):
        spectrum = read_spectrum(tmp_path / "apStar.fits")
    good = np.flatnonzero(~spectrum.bad())[3:-3]
    np.testing.assert_allclose(
        spectrum.flux[good], 500 * absorption(APOGEE_WAVELENGTH)[good], atol=3
    )


@pytest.mark.parametrize(
    ("wavelength", "header", "reason"),
    [
        (np.linspace(4000, 5000, 8575), {"CRVAL1": 4000.0, "CDELT1": 0.1166}, "do not reach"),
        (np.arange(15100.0, 17000), {"CRVAL1": 15100.0, "CDELT1": 1.0}, "too coarse"),
        (FULL_WAVELENGTH, {"CRVAL1": 15100.0, "CDELT1": -3.0}, "no wavelengths"),
        (FULL_WAVELENGTH, {"CRVAL1": 4.179, "CDELT1": 6e-6, "CUNIT1": "K"}, "no length"),
        (FULL_WAVELENGTH, {"CRVAL1": 4.18}, "CRVAL1 = 4.18: not both a first"),
        (FULL_WAVELENGTH, {"CDELT1": 5e-6}, "CDELT1 = 5e-06: not both a first"),
        (FULL_WAVELENGTH, {"CRVAL1": "4.18", "CDELT1": 6e-6}, "not both a first"),
        (FULL_WAVELENGTH, {"CRVAL1": -9999.0, "CDELT1": 6e-6}, "not both a first"),
    ],
)
def test_wavelengths_that_cannot_be_used_are_refused(tmp_path, wavelength, header, reason):
    star_on(wavelength, header).writeto(tmp_path / "star.fits")
    with pytest.raises(ValueError, match=rf"star\.fits: .*{reason}"):
        read_spectrum(tmp_path / "star.fits")


def test_number_of_wavelengths_has_to_be_that_of_the_pixels(tmp_path):
    hdus = apstar_hdus()
    hdus[0].header["NWAVE"] = 8000
    hdus.writeto(tmp_path / "star.fits")
    with pytest.raises(ValueError, match="NWAVE = 8000, its images 8575 pixels"):
        read_spectrum(tmp_path / "star.fits")


def test_visits_wavelengths_may_have_another_unit(tmp_path):
    apvisit_hdus().writeto(tmp_path / "angstrom.fits")
    hdus = apvisit_hdus()
    hdus[4].data = hdus[4].data / 10
    hdus[4].header["BUNIT"] = "Wavelength (nm)"
    hdus.writeto(tmp_path / "nm.fits")
    one, other = (read_spectrum(tmp_path / f"{name}.fits") for name in ("angstrom", "nm"))
    np.testing.assert_allclose(other.flux, one.flux, rtol=1e-9)
    del hdus[4].header["BUNIT"]
    hdus.writeto(tmp_path / "unknown.fits")
    with pytest.raises(ValueError, match="check the unit"):
        read_spectrum(tmp_path / "unknown.fits")
