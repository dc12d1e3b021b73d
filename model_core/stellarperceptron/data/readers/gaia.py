"""Mean spectra of Gaia's Radial Velocity Spectrometer: RVS_MEAN_SPECTRUM."""

import io
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io.votable import parse
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
            tables = list(_votables(content))
        elif start.startswith(b"# %ecsv"):
            tables = [Table.read(content.decode("utf-8").splitlines(), format="ascii.ecsv")]
        else:
            tables = [Table.read(content.decode("utf-8").splitlines(), format="ascii.csv")]
    spectra = [table for table in tables if _columns(table) >= NAMES]
    if not spectra:
        names = ", ".join(name for table in tables for name in table.colnames)
        raise ValueError(f"its columns are {names}: flux and flux_error are missing")
    if len(spectra) == 1:
        return read_gaia(path, spectra[0], row)
    return read_gaia(path, spectra[chosen_row(row, len(spectra))])


def _votables(content: bytes) -> Iterator[Table]:
    """Tables of a VOTable file, with the parameter source_id of each among their metadata."""
    for one in parse(io.BytesIO(content)).iter_tables():
        table = one.to_table()
        for param in one.params:
            if param.name.lower() == "source_id":
                table.meta["source_id"] = param.value
        yield table


def read_gaia(path: Path, table: Any, row: int | None = None) -> Spectrum:
    """Read a spectrum of the archive, whose table has a row for each sample or for each star.

    Tables of samples (DataLink, "INDIVIDUAL" or "COMBINED") have the columns wavelength (in nm if
    they have no unit), flux and flux_error. Tables of stars (DataLink "RAW", bulk download) have
    2,401 fluxes and errors in each row. Spectra are normalized, at rest, at vacuum wavelengths
    (Gaia DR3 documentation, section 20.12.1).

    Parameters
    ----------
    path
        The file, whose name has the star's source_id where the table has none.
    table
        An astropy or FITS table.
    row
        Which star, counted from 0; None: the only one.

    Raises
    ------
    ValueError
        There is no such star, or the columns do not fit the format.
    """
    columns = {str(name).lower(): table[str(name)] for name in table.dtype.names}
    source = _SOURCE.search(path.name)
    star = source[0] if source else path.name.split(".")[0]
    star = str(getattr(table, "meta", {}).get("source_id", star))
    if "wavelength" in columns and np.ndim(columns["wavelength"]) == 1:
        sources = list(dict.fromkeys(columns.get("source_id", [star])))
        star = sources[chosen_row(row, len(sources))]
        if "source_id" in columns:
            own = np.asarray(columns["source_id"]) == star
            columns, star = {name: column[own] for name, column in columns.items()}, str(star)
        wavelength = as_array(columns["wavelength"], unit="Angstrom", name="wavelength")
        if len(wavelength) and np.nanmedian(wavelength) < 2000:  # without a unit it is nm
            wavelength = 10 * wavelength
        if len(np.unique(wavelength)) < len(wavelength):
            raise ValueError("it has wavelengths more than once, and no source_id to tell stars by")
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
