"""The wavelengths at which APOGEE samples its spectra, and names for stretches of them.

Wavelengths are vacuum wavelengths in Angstrom. The survey samples them in equal steps of log10 and
keeps 7,514 of 8,575 pixels: those that its three detectors ("chips") see.
"""

import os
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from stellarperceptron.utils.data_utils import atomic_output

__all__ = [
    "APOGEE_WAVELENGTH",
    "CHIPS",
    "CHIP_PIXELS",
    "FULL_WAVELENGTH",
    "PIXEL_RANGES",
    "VALID_PIXELS",
    "pixel_range",
    "write_wavelength",
]

FULL_WAVELENGTH = 10.0 ** (4.179 + 6e-6 * np.arange(8575))
"""Wavelengths of all 8,575 pixels of an apStar spectrum [A, vacuum] (CRVAL1, CDELT1 and NWAVE in
the header of every apStar file; Nidever et al. 2015, AJ 150, 173, section 9)."""

CHIPS: Mapping[str, slice] = MappingProxyType(
    {"blue": slice(246, 3274), "green": slice(3585, 6080), "red": slice(6344, 8335)}
)
"""Pixels of the full grid that each chip sees and ASPCAP uses since data release 16 (Jonsson et
al. 2020, AJ 160, 120; the same three stretches in aspcapStar files of data release 17)."""

VALID_PIXELS = np.concatenate([np.arange(chip.start, chip.stop) for chip in CHIPS.values()])
"""The 7,514 valid pixels of the full grid."""

APOGEE_WAVELENGTH = FULL_WAVELENGTH[VALID_PIXELS]
"""Wavelengths of the 7,514 valid pixels, the chips one after another [A, vacuum]."""


def _chip_pixels() -> dict[str, slice]:
    """Where each chip lies among the valid pixels."""
    pixels, start = {}, 0
    for name, chip in CHIPS.items():
        pixels[name] = slice(start, start + chip.stop - chip.start)
        start = pixels[name].stop
    return pixels


CHIP_PIXELS: Mapping[str, slice] = MappingProxyType(_chip_pixels())
"""Pixels of each chip among the 7,514 valid ones."""

PIXEL_RANGES: Mapping[str, slice] = MappingProxyType(
    {"full": slice(0, 7514), "first_half": slice(0, 3757), "fe_chunk": slice(4107, 4619)}
)
"""Stretches of the 7,514 pixels by name: what the networks of the SpectraFM paper see in
pre-training, in fine-tuning (15,152 to 16,028 A) and for [Fe/H] (16,106 to 16,220 A)."""

for _array in (FULL_WAVELENGTH, APOGEE_WAVELENGTH, VALID_PIXELS):
    _array.flags.writeable = False


def pixel_range(pixels: str | slice | Sequence[int], n_pixels: int = 7514) -> slice:
    """Turn the name of a pixel range, or its two ends, into a slice.

    Parameters
    ----------
    pixels
        A name of `PIXEL_RANGES` or `CHIP_PIXELS`, text like "4107:4619", a slice of step 1, or a
        pair (start, stop).
    n_pixels
        Length of the spectra. Names of chips and of parts of the grid belong to 7,514 pixels;
        "full" fits any length.

    Raises
    ------
    ValueError
        For an unknown name, and for a range that is empty or outside the spectrum.
    """
    if isinstance(pixels, str):
        names = {**CHIP_PIXELS, **PIXEL_RANGES}
        ends = re.fullmatch(r"(\d*):(\d*)", pixels)
        if pixels == "full":
            part = slice(0, n_pixels)
        elif pixels in names:
            if n_pixels != len(APOGEE_WAVELENGTH):
                raise ValueError(
                    f"pixel range '{pixels}' belongs to {len(APOGEE_WAVELENGTH)} pixels, not to "
                    f"{n_pixels}: give it as 'start:stop'"
                )
            part = names[pixels]
        elif ends:
            part = slice(*(int(end) if end else None for end in ends.groups()))
        else:
            raise ValueError(
                f"unknown pixel range '{pixels}': known are {', '.join(names)} and 'start:stop'"
            )
    else:
        part = pixels if isinstance(pixels, slice) else slice(*pixels)
    start = 0 if part.start is None else int(part.start)
    stop = n_pixels if part.stop is None else int(part.stop)
    if part.step not in (None, 1) or not 0 <= start < stop <= n_pixels:
        raise ValueError(f"pixel range {start}:{stop} does not lie within 0:{n_pixels}")
    return slice(start, stop)


def write_wavelength(path: str | os.PathLike) -> None:
    """Write the 7,514 wavelengths [A], one a line, as in `dataset/apogee_wavelength_sol.csv`."""
    with atomic_output(path) as temporary:
        np.savetxt(temporary, APOGEE_WAVELENGTH, fmt="%.18e")
