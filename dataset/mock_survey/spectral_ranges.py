"""
Ranges of wavelength that the grids cover, and what their syntheses need.

A range is one window or several. The spectra of a window are stored in the rest frame in vacuum at
log10(wavelength / Angstrom) = start + step * i, one window after another: in steps of 3e-6 at
R = 60,000, and for spectrographs of low resolving power in steps of 1.8e-5 at R = 10,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["APOGEE", "LOG10_STEP", "RANGES", "RESOLUTION", "SpectralRange", "Window"]

LOG10_STEP = 3.0e-6  # of the stored spectra, where a window has no other
RESOLUTION = 60_000.0

# CH and MgH, SiH, C2, CN, TiO.
OPTICAL_MOLECULES = {
    "mooghyd": (106, 112),
    "moogsih": (114,),
    "moogc2": (606,),
    "moogcn": (607,),
    "moogtio": (822,),
}


@dataclass(frozen=True)
class Window:
    """
    One contiguous window.

    Attributes
    ----------
    start, pixels
        log10 of the first stored wavelength [Angstrom, vacuum] and the number of pixels.
    synthesis
        Vacuum wavelengths between which Synspec computes [Angstrom].
    lines
        Air wavelengths between which lines are read [Angstrom].
    step
        Largest step of the synthesis [Angstrom].
    log10_step, resolution
        Step of log10 of the stored wavelengths, and resolving power of the stored spectra; the same
        in all windows of a range.
    """

    start: float
    pixels: int
    synthesis: tuple[float, float]
    lines: tuple[float, float]
    step: float
    log10_step: float = LOG10_STEP
    resolution: float = RESOLUTION

    @classmethod
    def around(
        cls,
        start: float,
        pixels: int,
        step: float,
        log10_step: float = LOG10_STEP,
        resolution: float = RESOLUTION,
    ) -> Window:
        """Window with the usual margins: 3 A for the synthesis, 40 A for the lines."""
        low, high = 10.0**start, 10.0 ** (start + log10_step * (pixels - 1))
        synthesis = (round(low - 3.0, 1), round(high + 3.0, 1))
        lines = (round(low - 43.0), round(high + 41.0))
        return cls(start, pixels, synthesis, lines, step, log10_step, resolution)

    @cached_property
    def wavelength(self) -> np.ndarray:
        """Stored wavelengths, (pixels,) [Angstrom, vacuum]."""
        return 10.0 ** (self.start + self.log10_step * np.arange(self.pixels))


@dataclass(frozen=True)
class SpectralRange:
    """
    Windows that are synthesized together, with their molecules and the settings of Synspec.

    Attributes
    ----------
    name
        Key of `RANGES`.
    windows
        In order of wavelength.
    molecules
        File of linemake -> Synspec's codes of the molecules that are read from it.
    damping
        Whether van der Waals widths are computed (`damping.py`); otherwise Synspec's classical
        ones are used.
    mixed_c2
        Weight of 12C13C relative to the product of the isotopes' fractions. The right value is 2,
        since either atom may be the 13C; the H band's grids were made with 1.
    frequencies
        Number of frequencies that Synspec treats as a set; None: its default, 120.
    least_opacity
        Lines are computed as far out as their opacity exceeds this fraction of the continuum's.
    least_teff
        Cooler stars are left out [K].
    """

    name: str
    windows: tuple[Window, ...]
    molecules: dict[str, tuple[int, ...]]
    damping: bool = False
    mixed_c2: float = 1.0
    frequencies: int | None = None
    least_opacity: float = 1e-4
    least_teff: float = 0.0

    @property
    def pixels(self) -> int:
        """Number of stored pixels of all windows."""
        return sum(window.pixels for window in self.windows)

    @cached_property
    def wavelength(self) -> np.ndarray:
        """Stored wavelengths of all windows [Angstrom, vacuum]."""
        return np.concatenate([window.wavelength for window in self.windows])


APOGEE = SpectralRange(
    "apogee",
    (Window(4.18015, 16510, (15138.0, 16972.0), (15100.0, 17010.0), 0.08),),
    {"mooghyd": (108,), "moogc2": (606,), "moogcn": (607,), "moogco": (608,)},
)

# TiO of giants below 4200 K is too weak by 0.4 to 0.8 dex, and linemake lacks 48TiO.
_OPTICAL = {
    "molecules": OPTICAL_MOLECULES,
    "damping": True,
    "mixed_c2": 2.0,
    "frequencies": 400,
    "least_teff": 4200.0,
}
GAIA_RVS = SpectralRange("rvs", (Window.around(3.92724, 4210, 0.025),), **_OPTICAL)
HERMES = SpectralRange(
    "hermes",
    (
        Window.around(3.67315, 5890, 0.015),
        Window.around(3.75179, 5800, 0.02),
        Window.around(3.81136, 5800, 0.02),
        Window.around(3.87991, 5760, 0.025),
    ),
    **_OPTICAL,
)
# NH matters below 3700 A. The window holds the pixels of LAMOST, BOSS and DESI, which see it at
# R = 1,800 to 5,000. With sets of 1,500 frequencies and weaker lines cut off at 5e-4, a spectrum
# takes half as long, and at R = 2,000 the flux of the Sun changes by 0.0006 rms, that of Arcturus
# by 0.0012.
LOW_RESOLUTION = SpectralRange(
    "low_resolution",
    (Window.around(3.5551, 24_280, 0.05, log10_step=1.8e-5, resolution=10_000.0),),
    **{
        **_OPTICAL,
        "molecules": {**OPTICAL_MOLECULES, "mooghyd": (106, 107, 112)},
        "frequencies": 1500,
        "least_opacity": 5e-4,
    },
)
RANGES = {one.name: one for one in (APOGEE, GAIA_RVS, HERMES, LOW_RESOLUTION)}
