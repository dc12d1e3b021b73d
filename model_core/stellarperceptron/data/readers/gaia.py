"""Mean spectra of Gaia's Radial Velocity Spectrometer: RVS_MEAN_SPECTRUM."""

import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from stellarperceptron.data.apogee.spectra import Spectrum
from stellarperceptron.data.apogee.spectrum_files import Part, file_content, readable
from stellarperceptron.data.readers.conversion import Arm, chosen_row, on_pixels
from stellarperceptron.instruments import GAIA_RVS
from stellarperceptron.utils.arrays import as_array

__all__ = ["is_gaia", "is_gaia_text", "read_gaia", "read_gaia_text"]

NAMES = {"flux", "flux_error"}
_SOURCE = re.compile(r"\d{10,20}")


def is_gaia_text(content: bytes) -> bool:
    """Whether a file that is no FITS file may be a table of the archive: VOTable, ECSV or CSV."""
    start = content[:2000].lstrip().lower()
    text = start.startswith((b"<?xml", b"<votable", b"# %ecsv")) or b"," in start.split(b"\n")[0]
    return text and b"flux" in content[:200_000].lower()


def is_gaia(parts: list[Part]) -> bool:
    """Whether a FITS file has a table of the archive."""
    return len(parts) > 1 and _columns(parts[1].data) >= NAMES


def _columns(table: Any) -> set[str]:
    names = getattr(getattr(table, "dtype", None), "names", None) or ()
    return {str(name).lower() for name in names}


def read_gaia_text(path: Path, row: int | None = None) -> Spectrum:
    """Read a spectrum of a VOTable, ECSV or CSV file; see `read_gaia`."""
    with readable(path, "table of the Gaia archive"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # units and types that the archive spells its own way
        content = file_content(path).getvalue()
        start = content[:100].lstrip().lower()
        if start.startswith((b"<?xml", b"<votable")):
            table = Table.read(io.BytesIO(content), format="votable")
        elif start.startswith(b"# %ecsv"):
            table = Table.read(content.decode("utf-8").splitlines(), format="ascii.ecsv")
        else:
            table = Table.read(content.decode("utf-8").splitlines(), format="ascii.csv")
    if not _columns(table) >= NAMES:
        raise ValueError(f"its columns are {', '.join(table.colnames)}: flux and flux_error lack")
    return read_gaia(path, table, row)


def read_gaia(path: Path, table: Any, row: int | None = None) -> Spectrum:
    """Read a spectrum of the archive: a sample a row, or a star a row.

    A sample a row (DataLink) has the columns wavelength [nm unless the unit is given], flux,
    flux_error. A star a row (the table's bulk files) has 2,401 fluxes and errors in each row. Flux
    is at rest, in vacuum, normalized (Gaia DR3 documentation, section 20.12.1).

    Parameters
    ----------
    path
        The file, whose name has the star's source_id where the table has none.
    table
        An astropy or FITS table.
    row
        Which star of a file that has a star a row; None: the only one.

    Raises
    ------
    ValueError
        There is no such row, or the columns do not fit the format.
    """
    columns = {str(name).lower(): table[str(name)] for name in table.dtype.names}
    source = _SOURCE.search(path.name)
    star = source[0] if source else path.name.split(".")[0]
    if "wavelength" in columns and np.ndim(columns["wavelength"]) == 1:
        chosen_row(row, 1)
        wavelength = as_array(columns["wavelength"], unit="Angstrom", name="wavelength")
        if len(wavelength) and np.nanmedian(wavelength) < 2000:  # without a unit it is nm
            wavelength = 10 * wavelength
        values = columns["flux"], columns["flux_error"]
    else:
        row = chosen_row(row, len(columns["flux"]))
        wavelength = GAIA_RVS.wavelength
        values = _numbers(columns["flux"][row]), _numbers(columns["flux_error"][row])
        if "source_id" in columns:
            star = str(columns["source_id"][row])
    flux, error = (
        as_array(value, unit=None, name=name)
        for value, name in zip(values, ("flux", "flux_error"), strict=True)
    )
    if not wavelength.shape == flux.shape == error.shape:
        raise ValueError(
            f"it has {len(wavelength)} wavelengths, {flux.size} fluxes and {error.size} errors"
        )
    return on_pixels(
        GAIA_RVS,
        [Arm(wavelength, flux, error, np.zeros(len(flux), dtype=bool))],
        star_id=star,
        kind="RVS_MEAN_SPECTRUM",
    )


def _numbers(value: Any) -> Any:
    """Numbers of an entry, which CSV files hold as a text: "[0.98, null, ...]" or "(0.98, ...)"."""
    if isinstance(value, str):
        text = value.strip().replace("(", "[").replace(")", "]")
        return json.loads(re.sub(r"\bnan\b", "null", text, flags=re.IGNORECASE))
    return value
