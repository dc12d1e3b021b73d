"""Read a spectrum from a file of any known kind, which is recognised by its content."""

import os
from pathlib import Path
from typing import Any

from astropy.io.fits import VerifyError

from stellarperceptron.data.apogee.spectra import Spectrum, read_spectrum
from stellarperceptron.data.apogee.spectrum_files import (
    NoVelocityError,
    file_content,
    read_parts,
    readable,
)
from stellarperceptron.data.readers.desi import is_desi, read_desi
from stellarperceptron.data.readers.gaia import is_gaia, is_gaia_text, read_gaia, read_gaia_text
from stellarperceptron.data.readers.galah import is_galah, read_galah
from stellarperceptron.data.readers.lamost import is_lamost, read_lamost
from stellarperceptron.data.readers.sdss5 import is_sdss5, read_sdss5
from stellarperceptron.instruments.spectrograph import Instrument

__all__ = ["KINDS", "read_spectrum_file"]

KINDS = (
    "apStar, aspcapStar or apVisit of APOGEE; mwmStar, mwmVisit or astraStar of SDSS-V; a camera's "
    "file of GALAH; RVS_MEAN_SPECTRUM of Gaia (VOTable, ECSV, CSV, FITS); a low-resolution "
    "spectrum of LAMOST; a coadd of DESI"
)
"""The kinds of files that are read, for messages."""

_APOGEE = ("apstar", "aspcapstar", "asstar", "apvisit")


def read_spectrum_file(
    path: str | os.PathLike,
    *,
    row: int | None = None,
    radial_velocity: Any = None,
    instrument: Instrument | None = None,
) -> Spectrum:
    """Read a spectrum from a file of any of the known surveys.

    Air wavelengths are converted to vacuum, the star's velocity is taken out, and the spectrum is
    resampled to the pixels of its instrument. Bad pixels are marked in its mask; missing values
    become NaN.

    Parameters
    ----------
    path
        File, gzipped or not.
    row
        Which spectrum of a file that has several, counted from 0: a row of an apStar file, a
        spectrum of an mwmStar or mwmVisit file, a star of a DESI coadd or of a Gaia table. None:
        the first spectrum of a star; a file of several stars is refused.
    radial_velocity
        Velocity of a spectrum that is not at rest [km/s, or a Quantity], in place of the file's.
    instrument
        Which instrument's spectrum of a file with several (SDSS-V); None: the first one's.

    Returns
    -------
    Spectrum

    Raises
    ------
    OSError
        There is no such file, or it cannot be read.
    NoVelocityError
        The spectrum is not at rest, and its velocity is not known.
    ValueError
        The file is damaged, of a kind that is not known, or does not fit its format; the message
        names the file.
    """
    path = Path(path)
    if path.name.lower().startswith(_APOGEE):
        return read_spectrum(path, row=row or 0, radial_velocity=radial_velocity)
    with readable(path, "file of a spectrum"):
        content = file_content(path).getvalue()
    try:
        if not content.startswith(b"SIMPLE") and ".fit" not in path.name.lower():
            if is_gaia_text(content):
                return read_gaia_text(path, row)
            raise ValueError(f"it is of no known kind: {KINDS}")
        parts = read_parts(path)
        if is_galah(parts):
            return read_galah(path, parts, radial_velocity)
        if is_lamost(parts):
            return read_lamost(path, parts, radial_velocity)
        if is_desi(parts):
            return read_desi(parts, row, radial_velocity)
        if is_sdss5(parts):
            return read_sdss5(path, parts, row or 0, instrument)
        if is_gaia(parts):
            return read_gaia(path, parts[1].data, row)
    except NoVelocityError as error:
        raise NoVelocityError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, IndexError, VerifyError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error
    images = [part for part in parts[1:5] if getattr(part.data, "ndim", 0) in (1, 2)]
    if len(images) >= 3:
        return read_spectrum(path, row=row or 0, radial_velocity=radial_velocity)
    raise ValueError(f"{path} is of no known kind: {KINDS}")
