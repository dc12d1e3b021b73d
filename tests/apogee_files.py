"""APOGEE spectrum files of made-up stars."""

import numpy as np
from astropy.io import fits

from stellarperceptron.data.apogee.grid import FULL_WAVELENGTH
from stellarperceptron.data.apogee.spectrum_files import PixelMask
from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT


def absorption(wavelength, spacing=8.0, depth=0.3, width=0.3):
    """A made-up spectrum: flux 1 with a line every few Angstrom."""
    distance = (wavelength + spacing / 2) % spacing - spacing / 2
    return 1 - depth * np.exp(-0.5 * (distance / width) ** 2)


# --- grid -----------------------------------------------------------------------------------------


def apstar_hdus(n_visits=2):
    """HDUs of an apStar file: two combined spectra, then the visits."""
    header = fits.Header()
    header["CRVAL1"], header["CDELT1"], header["NWAVE"] = 4.179, 6e-6, 8575
    header["OBJID"], header["SNR"], header["VHELIO"] = "2M00000000+0000000", 210.5, 12.5
    header["RV_TEFF"], header["RV_LOGG"], header["RV_FEH"] = 4750.0, 2.5, -9999.0
    header["NVISITS"] = n_visits
    for visit in range(1, n_visits + 1):
        header[f"SNRVIS{visit}"] = 100.0 + visit
    rows = 2 + n_visits
    flux = np.tile(500 * absorption(FULL_WAVELENGTH), (rows, 1)) * np.arange(1, rows + 1)[:, None]
    error = np.full(flux.shape, 4.0)
    mask = np.zeros(flux.shape, dtype=np.int64)
    mask[0, 246 + 7] = PixelMask.BADPIX
    mask[0, 246 + 8] = PixelMask.SIG_SKYLINE
    images = [fits.ImageHDU(array) for array in (flux, error, mask)]
    return fits.HDUList([fits.PrimaryHDU(header=header), *images])


def apvisit_hdus(velocity=50.0, wavelength_step=0.12):
    """HDUs of an apVisit file: three chips, red first, wavelengths falling and Doppler-shifted."""
    header = fits.Header()
    header["OBJID"], header["VRAD"], header["RVTEFF"] = "2M00000000+0000000", velocity, 5000.0
    first = np.array([16475.0, 15860.0, 15150.0])[:, None]
    wavelength = first + wavelength_step * np.arange(4096)[::-1]
    flux = 300 * absorption(wavelength / (1 + velocity / SPEED_OF_LIGHT))
    mask = np.zeros(flux.shape, dtype=np.int16)
    arrays = [flux.astype(np.float32), np.full(flux.shape, 3.0, np.float32), mask, wavelength]
    return fits.HDUList([fits.PrimaryHDU(header=header), *map(fits.ImageHDU, arrays)])
