"""Files of spectra of made-up stars, in the formats of the surveys besides APOGEE's own."""

import numpy as np
from apogee_files import absorption
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from stellarperceptron.data.wavelengths import SPEED_OF_LIGHT, vacuum_to_air
from stellarperceptron.instruments import APOGEE_GRID, GAIA_RVS

OBSERVATION = "170418003701205"  # of GALAH
SOURCE = 4111834567779557376  # of Gaia
CAMERAS = ((4713.5, 0.0459), (5648.5, 0.0547), (6477.0, 0.0632), (7584.5, 0.0736))


def broad(wavelength, width=4.0):
    """A made-up spectrum of low resolution: a line every 60 Angstrom."""
    return absorption(wavelength, spacing=60.0, depth=0.4, width=width)


# --- GALAH ----------------------------------------------------------------------------------------


def galah_camera(camera, velocity=0.0, release=4):
    """HDUs of a camera's file: 1,000 counts, errors of 2 %, wavelengths in air."""
    start, step = CAMERAS[camera - 1]
    air = start + step * np.arange(4096)
    vacuum = air * 1.0
    for _ in range(3):  # the vacuum wavelengths whose air wavelengths these are
        vacuum += air - vacuum_to_air(vacuum)
    flux = (1000 * absorption(vacuum / (1 + velocity / SPEED_OF_LIGHT))).astype(np.float32)
    header = fits.Header()
    header["CRVAL1"], header["CDELT1"], header["CRPIX1"] = start, step, 0
    header["RVCOM"], header["RVCOM_OK"], header["WAV_OK"] = velocity, 1, 1
    header["TEFF_R"], header["SLITMASK"] = 4750.0, "OUT"
    error = np.full(4096, 0.02, np.float32)
    others = [("input_sigma", error), ("no_sky", flux), ("no_sky_sigma", error), ("normed", flux)]
    if release == 4:
        others = [("normalized", flux / 1000), ("relative_error", error), ("sky", 0 * flux)]
    hdus = [fits.ImageHDU(data, name=name) for name, data in others]
    return fits.HDUList([fits.PrimaryHDU(flux, header), *hdus])


def write_galah(folder, velocity=0.0, release=4, cameras=(1, 2, 3, 4)):
    """Write the files of some cameras; the path of the first."""
    paths = [folder / f"{OBSERVATION}{camera}.fits" for camera in cameras]
    for camera, path in zip(cameras, paths, strict=True):
        galah_camera(camera, velocity, release).writeto(path)
    return paths[0]


# --- Gaia -----------------------------------------------------------------------------------------


def gaia_table(unit="nm"):
    """A sample a row; the first 20 have no flux."""
    wavelength = GAIA_RVS.wavelength / 10 if unit == "nm" else GAIA_RVS.wavelength
    flux = MaskedColumn(absorption(GAIA_RVS.wavelength), mask=np.arange(2401) < 20)
    table = Table({"wavelength": wavelength, "flux": flux, "flux_error": np.full(2401, 0.01)})
    table["wavelength"].unit = u.Unit(unit)
    return table


def write_gaia(folder, kind):
    """Write an RVS spectrum: "xml" (VOTable), "ecsv", "csv", "fits"."""
    path = folder / f"RVS_MEAN_SPECTRUM-Gaia DR3 {SOURCE}.{kind}"
    table = gaia_table()
    if kind == "csv":
        table["flux"] = table["flux"].filled(np.nan)
    formats = {"xml": "votable", "ecsv": "ascii.ecsv", "csv": "ascii.csv", "fits": "fits"}
    table.write(path, format=formats[kind])
    return path


# --- LAMOST ---------------------------------------------------------------------------------------


def lamost_arrays(velocity):
    """Wavelength, flux, inverse variance, and-mask and or-mask (3904,).

    Pixel 1000 is bad in all exposures, and pixels 1300 to 1309 in one of them.
    """
    wavelength = 10.0 ** (3.5682 + 1e-4 * np.arange(3904))
    flux = 500 * broad(wavelength / (1 + velocity / SPEED_OF_LIGHT))
    masks = np.zeros((2, 3904))
    masks[:, 1000], masks[1, 1300:1310] = 1, 1
    return wavelength, flux, np.full(3904, 0.04), *masks


def lamost_rows(velocity=0.0, wavelength=None):
    """HDUs as of data release 1: rows of an image, by default with wavelengths of 1.0."""
    _, flux, variance, *masks = lamost_arrays(velocity)
    wavelength = np.ones(3904) if wavelength is None else wavelength
    rows = np.array([flux, variance, wavelength, *masks], dtype=np.float32)
    return fits.HDUList([fits.PrimaryHDU(rows, _lamost_header(velocity))])


def lamost_table(velocity=0.0):
    """HDUs as since data release 8: a table of one row."""
    wavelength, flux, variance, *masks = lamost_arrays(velocity)
    names = ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK")
    columns = [
        fits.Column(name, "3904E", array=values[None])
        for name, values in zip(names, (flux, variance, wavelength, *masks), strict=True)
    ]
    table = fits.BinTableHDU.from_columns(columns, name="COADD")
    return fits.HDUList([fits.PrimaryHDU(header=_lamost_header(velocity)), table])


def _lamost_header(velocity):
    header = fits.Header()
    header["TELESCOP"], header["DESIG"] = "LAMOST", "LAMOST J064726.39+223431.6"
    header["COEFF0"], header["COEFF1"] = 3.5682, 1e-4
    header["Z"], header["SNRG"] = velocity / SPEED_OF_LIGHT, 55.5
    return header


# --- SDSS-V ---------------------------------------------------------------------------------------


def mwm_hdus(name="mwmStar", visits=1):
    """HDUs of an mwmStar or mwmVisit file: BOSS from the north, none from the south, APOGEE."""
    boss = 10.0 ** (3.5523 + 1e-4 * np.arange(4648))
    parts = (
        ("BOSS/APO", boss, broad(boss), visits),
        ("BOSS/LCO", boss, broad(boss), 0),
        ("APOGEE/APO", APOGEE_GRID, absorption(APOGEE_GRID), visits),
        ("APOGEE/LCO", APOGEE_GRID, absorption(APOGEE_GRID), 0),
    )
    tables = [_mwm_part(*part, in_header=name == "mwmVisit") for part in parts]
    return fits.HDUList([fits.PrimaryHDU(), *tables])


def _mwm_part(name, wavelength, flux, rows, in_header):
    size = len(wavelength)
    flags = np.zeros((rows, size), np.int64)
    flags[:, 1000] = 1 | 1 << 24  # bad in either survey's bits
    number = np.arange(1, rows + 1)[:, None]
    arrays = {
        "sdss_id": ("K", np.full(rows, 54321)),
        "snr": ("E", np.full(rows, 80.0)),
        "v_rad": ("E", np.full(rows, -12.5)),
        "flux": (f"{size}E", 100 * number * flux),
        "ivar": (f"{size}E", np.full((rows, size), 0.25)),
        "pixel_flags": (f"{size}K", flags),
    }
    if in_header:
        arrays["mjd"] = "K", np.arange(60_000, 60_000 + rows)
    else:
        arrays["wavelength"] = (f"{size}D", np.tile(wavelength, (rows, 1)))
    columns = [fits.Column(key, form, array=values) for key, (form, values) in arrays.items()]
    table = fits.BinTableHDU.from_columns(columns, name=name, nrows=rows)
    if in_header:
        log = np.log10(wavelength)
        table.header["CRVAL"], table.header["CDELT"] = log[0], round(log[1] - log[0], 12)
        table.header["NPIXELS"] = size
    return table


# --- DESI -----------------------------------------------------------------------------------------


def desi_hdus(stars=1, sigma=0.9):
    """HDUs of a coadd whose line spread has a standard deviation of `sigma` Angstrom.

    The star's own lines have 4 Angstrom.
    """
    hdus = [fits.PrimaryHDU()]
    targets = fits.Column("TARGETID", "K", array=39627000 + np.arange(stars))
    hdus.append(fits.BinTableHDU.from_columns([targets], name="FIBERMAP"))
    offset = np.arange(-5, 6)
    for arm, first, last in (("B", 3600, 5800), ("R", 5760, 7620), ("Z", 7520, 9824)):
        wavelength = np.arange(first, last, 0.8)
        profile = np.exp(-0.5 * (offset * 0.8 / sigma) ** 2)
        matrix = np.repeat((profile / profile.sum())[:, None], len(wavelength), axis=1)
        # Depth falls as the line spread widens the lines, which keep their equivalent widths.
        width = np.hypot(4.0, sigma)
        flux = 1 - (1 - broad(wavelength, width)) * 4.0 / width
        arrays = {
            "WAVELENGTH": wavelength,
            "FLUX": np.tile(flux, (stars, 1)),
            "IVAR": np.full((stars, len(wavelength)), 400.0),
            "MASK": np.zeros((stars, len(wavelength)), np.int32),
            "RESOLUTION": np.tile(matrix, (stars, 1, 1)),
        }
        hdus += [fits.ImageHDU(data, name=f"{arm}_{name}") for name, data in arrays.items()]
    return fits.HDUList(hdus)
