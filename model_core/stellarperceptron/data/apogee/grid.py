"""APOGEE's pixels under the names that readers and writers of its published files use.

The survey samples its spectra in equal steps of log10 of the vacuum wavelength [Angstrom] and keeps
7,514 of 8,575 pixels: those that its three detectors ("chips") see. The numbers are those of
`stellarperceptron.instruments.APOGEE`.
"""

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from stellarperceptron.instruments import APOGEE, APOGEE_GRID
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

FULL_WAVELENGTH = APOGEE_GRID
"""Wavelengths of all 8,575 pixels of an apStar spectrum [A, vacuum]."""

APOGEE_WAVELENGTH = APOGEE.wavelength
"""Wavelengths of the 7,514 valid pixels, the chips one after another [A, vacuum]."""

VALID_PIXELS = APOGEE.grid_index
"""The 7,514 valid pixels of the full grid."""

CHIP_PIXELS: Mapping[str, slice] = APOGEE.chips
"""Pixels of each chip among the 7,514 valid ones."""

CHIPS: Mapping[str, slice] = MappingProxyType(
    {
        name: slice(int(VALID_PIXELS[chip.start]), int(VALID_PIXELS[chip.stop - 1]) + 1)
        for name, chip in CHIP_PIXELS.items()
    }
)
"""Pixels of each chip on the full grid."""

PIXEL_RANGES: Mapping[str, slice] = APOGEE.ranges
"""Parts of the 7,514 pixels by name."""


def pixel_range(pixels: str | slice | Sequence[int], n_pixels: int = len(APOGEE)) -> slice:
    """Turn the name of a pixel range, or its two ends, into a slice; see `Instrument.pixel_range`.

    Raises
    ------
    ValueError
        For an unknown name, and for a range that is empty or outside the spectrum.
    """
    return APOGEE.pixel_range(pixels, n_pixels)


def write_wavelength(path: str | os.PathLike) -> None:
    """Write the 7,514 wavelengths [A], one a line, as in `dataset/apogee_wavelength_sol.csv`."""
    with atomic_output(path) as temporary:
        np.savetxt(temporary, APOGEE_WAVELENGTH, fmt="%.18e")
