"""Spectra of SDSS-V's Milky Way Mapper: mwmStar, mwmVisit and astraStar files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stellarperceptron.data.apogee.grid import VALID_PIXELS
from stellarperceptron.data.apogee.spectra import RVFit, Spectrum
from stellarperceptron.data.apogee.spectrum_files import Part, header_number
from stellarperceptron.data.readers.conversion import Arm, error_of, on_pixels
from stellarperceptron.instruments import APOGEE, APOGEE_GRID, LOW_RESOLUTION
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.utils.arrays import as_array, sentinels_to_nan

__all__ = ["is_sdss5", "read_sdss5"]

COLUMNS = {"ivar", "pixel_flags"}
# FULLREJECT, NOSKY, BRIGHTSKY, NODATA of SPPIXMASK, https://www.sdss4.org/dr17/algorithms/bitmasks
BAD_IN_BOSS = 1 << 18 | 1 << 22 | 1 << 23 | 1 << 24


def is_sdss5(parts: Sequence[Part]) -> bool:
    """Whether a file has tables of spectra with SDSS-V's columns."""
    return any(_columns(part) >= COLUMNS for part in parts)


def _columns(part: Part) -> set[str]:
    return set(getattr(getattr(part.data, "dtype", None), "names", None) or ())


def read_sdss5(
    path: Path, parts: Sequence[Part], row: int = 0, instrument: Instrument | None = None
) -> Spectrum:
    """Read one spectrum of an mwmStar, mwmVisit or astraStar file.

    Each part is a table with a row a spectrum: BOSS (Apache Point, Las Campanas), then APOGEE. All
    are at rest, in vacuum, on one grid an instrument
    (https://sdss-astra.readthedocs.io/en/latest/user/datamodels/mwm.html), which a column
    `wavelength` or CRVAL, CDELT and NPIXELS of the header give.

    Parameters
    ----------
    path, parts
        The file, and what was read of it.
    row
        Which of the file's spectra, of those of one instrument, counted through all parts.
    instrument
        The instrument; None: that of the first part that is not empty.

    Raises
    ------
    ValueError
        There is no such spectrum, the file holds models without fluxes, or it does not fit the
        format.
    """
    found: list[tuple[Instrument, Part, int]] = []
    for part in parts:
        if _columns(part) >= COLUMNS and len(part.data):
            if "flux" not in _columns(part):
                raise ValueError("it holds models and no fluxes: use the star's mwmStar file")
            kind = APOGEE if _wavelength(part)[0] > 14_000 else LOW_RESOLUTION
            found += [(kind, part, i) for i in range(len(part.data))]
    if not found:
        raise ValueError("all of its parts are empty: the star has no spectrum")
    wanted = instrument or found[0][0]
    of_instrument = [entry for entry in found if entry[0] == wanted]
    if not 0 <= row < len(of_instrument):
        has = ", ".join(sorted({entry[0].name for entry in found}))
        raise ValueError(
            f"it has {len(of_instrument)} spectra of {wanted.name} and no row {row} of them; its "
            f"spectra are of {has}"
        )
    return _spectrum(path, *of_instrument[row])


def _wavelength(part: Part) -> np.ndarray:
    """Wavelengths (n,) of a part [A, vacuum]."""
    if "wavelength" in _columns(part):
        return np.asarray(part.data["wavelength"][0], dtype=np.float64)
    start, step, pixels = (
        header_number(part.header, name, kind="flux") for name in ("CRVAL", "CDELT", "NPIXELS")
    )
    if start is None or step is None or pixels is None:
        raise ValueError(f"its part {part.name} has no wavelengths (CRVAL, CDELT, NPIXELS)")
    return 10.0 ** (start + step * np.arange(int(pixels)))


def _spectrum(path: Path, instrument: Instrument, part: Part, row: int) -> Spectrum:
    """A row of a part."""
    columns, wavelength = _columns(part), _wavelength(part)
    flux, variance = (
        as_array(part.data[name][row], unit=None, name=name) for name in ("flux", "ivar")
    )
    flags = np.asarray(part.data["pixel_flags"][row]).astype(np.int64)
    if not len(flux) == len(wavelength) == len(variance) == len(flags):
        raise ValueError(f"arrays of its part {part.name} differ in length")

    def number(name: str, kind: str = "flux") -> float | None:
        if name not in columns:
            return None
        value = float(sentinels_to_nan(np.array(float(part.data[name][row])), kind))
        return value if np.isfinite(value) else None

    kind = "mwmVisit" if "mjd" in columns else "mwmStar"
    if "model_flux" in columns:
        kind = "astraStar"
    about: dict[str, Any] = {
        "star_id": str(part.data["sdss_id"][row]) if "sdss_id" in columns else path.stem,
        "kind": kind,
        "snr": number("snr"),
        "rv": RVFit(vhelio=number("v_rad", "velocity")),
    }
    bad = flags & BAD_IN_BOSS != 0
    if instrument != APOGEE:
        return on_pixels(instrument, [Arm(wavelength, flux, error_of(variance), bad)], **about)
    same = len(wavelength) == len(APOGEE_GRID) and np.allclose(wavelength, APOGEE_GRID, rtol=3e-7)
    if not same:
        raise ValueError("its wavelengths are not those of APOGEE's 8,575 pixels")
    values = (np.asarray(sentinels_to_nan(part)) for part in (flux, error_of(variance)))
    flux, error, flags = (part[VALID_PIXELS] for part in (*values, flags))
    return Spectrum(flux=flux, error=error, mask=flags, **about)
