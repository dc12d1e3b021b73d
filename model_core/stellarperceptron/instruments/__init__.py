"""The instruments that are known by name, a row each; `Instrument` says what a row holds.

Wavelengths are vacuum wavelengths in Angstrom. Survey files and checkpoints store the complete
description of any instrument that is not in this table. Grids of optical instruments are given by
the ends of their windows in vacuum, which are 1.3 to 2.7 Angstrom above those in air.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from stellarperceptron.instruments.spectrograph import Continuum, Instrument
from stellarperceptron.utils.arguments import with_nearest

__all__ = [
    "APOGEE",
    "APOGEE_GRID",
    "GAIA_RVS",
    "GALAH",
    "IGRINS_H",
    "INSTRUMENTS",
    "LOW_RESOLUTION",
    "MOONS_H",
    "instrument",
]

APOGEE_GRID = 10.0 ** (4.179 + 6e-6 * np.arange(8575))
"""Wavelengths of all pixels of an apStar spectrum [A, vacuum] (CRVAL1, CDELT1 and NWAVE in the
header of every apStar file; Nidever et al. 2015, AJ 150, 173, section 9)."""
APOGEE_GRID.flags.writeable = False


def _apogee() -> Instrument:
    """The pixels that ASPCAP uses since data release 16 (Jonsson et al. 2020, AJ 160, 120).

    The named ranges are those of the SpectraFM paper for fine-tuning (15,152 to 16,028 A) and for
    [Fe/H] (16,106 to 16,220 A). The resolving power is that of an average fibre
    (Majewski et al. 2017, AJ 154, 94). The pseudo-continuum is described where it is computed, in
    `stellarperceptron.data.apogee.continuum`.
    """
    on_grid = {"blue": (246, 3274), "green": (3585, 6080), "red": (6344, 8335)}
    chips, start = {}, 0
    for name, (first, stop) in on_grid.items():
        chips[name] = slice(start, start + stop - first)
        start = chips[name].stop
    pixels = np.concatenate([np.arange(first, stop) for first, stop in on_grid.values()])
    return Instrument(
        "APOGEE",
        APOGEE_GRID[pixels],
        chips=chips,
        ranges={"first_half": slice(0, 3757), "fe_chunk": slice(4107, 4619)},
        resolving_power=22_500.0,
        continuum=Continuum(order=4, clip_high=5.0, iterations=1),
        valid_flux=(0.05, 1.2),
        pixel_prefix="syn_apogee",
        encoding_range=(15_000.0, 17_000.0),
        grid_index=pixels,
    )


def _logarithmic(
    windows: Mapping[str, tuple[float, float]],
    step: float,
    left_out: tuple[tuple[float, float], ...] = (),
) -> dict[str, Any]:
    """Wavelengths, chips and grid index of windows that are sampled in one logarithmic grid.

    Parameters
    ----------
    windows
        First and last wavelength of each [A]; a chip each.
    step
        Step of log10 of the wavelength. The grid begins at the first window's first wavelength.
    left_out
        Wavelengths between which there are no pixels [A].
    """
    start = np.log10(next(iter(windows.values()))[0])
    chips, parts, first = {}, [], 0
    for name, (low, high) in windows.items():
        # A hair wider, so that rounding decides about no pixel.
        ends = (np.log10([low, high]) - start) / step + [-1e-6, 1e-6]
        index = np.arange(np.ceil(ends[0]), np.floor(ends[1]) + 1)
        wavelength = 10.0 ** (start + step * index)
        for gap in left_out:
            index = index[(wavelength < gap[0]) | (wavelength > gap[1])]
            wavelength = 10.0 ** (start + step * index)
        chips[name] = slice(first, first + len(index))
        first += len(index)
        parts.append(index)
    index = np.concatenate(parts)
    return {"wavelength": 10.0 ** (start + step * index), "chips": chips, "grid_index": index}


def _galah() -> Instrument:
    """HERMES at the Anglo-Australian Telescope, as GALAH uses it (Sheinis et al. 2015, JATIS 1,
    035002; Buder et al. 2021, MNRAS 506, 150).

    In air the four cameras see 4713-4903, 5648-5873, 6478-6737 and 7585-7887 A. The fourth begins
    at 7700 A here, behind the telluric A band of oxygen. The cores of H-beta (+-1.2 A) and H-alpha
    (+-2 A) are left out: they form far from local thermodynamic equilibrium, and synthetic spectra
    do not match them. The cameras' pixels are 2.8 to 2.9 km/s wide; the grid's are 2.9 km/s. The
    pipeline normalizes each camera by itself; the order of the polynomial is a nominal value.
    """
    windows = {
        "blue": (4714.32, 4904.36),
        "green": (5649.57, 5874.62),
        "red": (6479.80, 6738.85),
        "infrared": (7702.13, 7889.16),
    }
    return Instrument(
        "GALAH",
        **_logarithmic(windows, 4.2e-6, left_out=((4861.49, 4863.89), (6562.61, 6566.61))),
        resolving_power=28_000.0,
        continuum=Continuum(order=4, clip_high=5.0, iterations=1),
        valid_flux=(0.02, 1.3),
    )


def _gaia_rvs() -> Instrument:
    """Gaia's Radial Velocity Spectrometer, as in RVS_MEAN_SPECTRUM of data release 3.

    2,401 samples from 846 to 870 nm, in vacuum and at rest (Gaia DR3 documentation, sections
    20.12.1 and 6.4.9); R = 11,500 (Cropper et al. 2018, A&A 616, A5). A detector's pixel is 2.45
    samples wide. The archive's spectra are normalized already, but those of cool stars by a
    constant, so we normalize them once more. The order of the polynomial is a nominal value.
    """
    return Instrument(
        "GAIA_RVS",
        8460.0 + 0.1 * np.arange(2401),
        resolving_power=11_500.0,
        continuum=Continuum(order=2, clip_high=5.0, iterations=1),
        valid_flux=(0.02, 1.3),
    )


def _low_resolution() -> Instrument:
    """Two-armed spectra of R = 1,800 such as those of LAMOST, BOSS and, smoothed, DESI.

    The grid has pixels of LAMOST (10^(3.5682 + 1e-4 i) A, i = 0 to 3903: documentation of its data
    release 8) and of BOSS (steps of 1e-4, too: Smee et al. 2013, AJ 146, 32). R = 1,800 at 5500 A
    is LAMOST's; that of the others is somewhat higher in the red. The arms meet at 5900 A, a
    nominal value, as is the order of the polynomials.

    All that is fitted by a polynomial must be there in every spectrum, or observed and synthetic
    spectra have different continua, in the blue by some per cent. So the grid begins at 3850 A,
    below which there is little light, and ends at 8690 A. It leaves out telluric bands (O2 and H2O)
    and night-sky lines (O I 5577, 6300 and 6364 A, bands of OH), with some 5 A on either side for
    the stars' velocities, and the border of the arms with interstellar Na D.

    The cores of H-alpha (+-5 A), H-beta (+-4 A), H-gamma and H-delta (+-3 A) and of Ca II H and K
    (+-3 A, with H-epsilon) are left out: they form far from local thermodynamic equilibrium or in
    the chromosphere, and synthetic spectra do not match them. The widths are those of the cores in
    GALAH's spectra and, on either side, about a resolution element.
    """
    sky = (
        *((5573.0, 5586.0), (5870.0, 5930.0), (6295.0, 6309.0), (6359.0, 6373.0)),
        *((6860.0, 6965.0), (7160.0, 7450.0), (7585.0, 7710.0), (8105.0, 8480.0)),
    )
    cores = (
        *((3931.8, 3937.8), (3966.6, 3974.2), (4099.9, 4105.9), (4338.7, 4344.7)),
        *((4858.7, 4866.7), (6559.6, 6569.6)),
    )
    arms = {"blue": (10**3.5855, 5900.0), "red": (5900.0, 8690.0)}
    return Instrument(
        "LOW_RESOLUTION",
        **_logarithmic(arms, 1e-4, left_out=sky + cores),
        resolving_power=1_800.0,
        continuum=Continuum(order=8, clip_high=5.0, iterations=1),
        valid_flux=(0.02, 2.0),
    )


def _moons_h() -> Instrument:
    """MOONS at the Very Large Telescope, high resolution in the H band.

    1.521 to 1.641 um (Cirasuolo et al. 2020, The Messenger 180, 10), R = 19,700 (Gonzalez et al.
    2020, The Messenger 180, 18).

    There are no spectra yet. The sampling (2.8 pixels a resolution element: 4,096 pixels of
    0.29 A) and the order of the polynomial are nominal values.
    """
    return Instrument(
        "MOONS_H",
        **_logarithmic({"all": (15_210.0, 16_410.0)}, 8e-6),
        resolving_power=19_700.0,
        continuum=Continuum(order=4, clip_high=5.0, iterations=1),
        valid_flux=(0.05, 1.2),
    )


def _igrins_h() -> Instrument:
    """IGRINS in the H band (Park et al. 2014, SPIE 9147, 91471D): 1.49 to 1.80 um, R = 45,000.

    Each chip is an echelle order, cut where it meets its neighbours halfway between the blaze
    wavelengths. The product of order and blaze wavelength (1.794e6 A), the sampling (3.4 pixels a
    resolution element) and the order of the polynomials are nominal values: the pipeline does not
    normalize.
    """
    borders = 1.794e6 / (np.arange(121, 99, -1) - 0.5)  # between the orders m and m - 1
    ends = [14_900.0, *borders[(borders > 14_950) & (borders < 17_950)].tolist(), 18_000.0]
    orders = {
        f"order_{round(1.794e6 / (0.5 * (low + high)))}": (low, high)
        for low, high in zip(ends[:-1], np.array(ends[1:]) * (1 - 1e-9), strict=True)
    }
    return Instrument(
        "IGRINS_H",
        **_logarithmic(orders, 2.8e-6),
        resolving_power=45_000.0,
        continuum=Continuum(order=2, clip_high=5.0, iterations=1),
        valid_flux=(0.05, 1.2),
    )


APOGEE = _apogee()
"""The pixels of the APOGEE survey, with their names in the published vocabulary."""

GALAH = _galah()
"""The windows of HERMES, as the GALAH survey uses it."""

GAIA_RVS = _gaia_rvs()
"""Gaia's Radial Velocity Spectrometer."""

LOW_RESOLUTION = _low_resolution()
"""Optical spectra of R = 1,800: LAMOST, BOSS, DESI."""

MOONS_H = _moons_h()
"""MOONS at the Very Large Telescope, H band, high resolution."""

IGRINS_H = _igrins_h()
"""IGRINS, H band."""

INSTRUMENTS: Mapping[str, Instrument] = MappingProxyType(
    {one.name: one for one in (APOGEE, GALAH, GAIA_RVS, LOW_RESOLUTION, MOONS_H, IGRINS_H)}
)
"""The instruments that files refer to by name."""


def instrument(name: str) -> Instrument:
    """Look an instrument up by its name.

    Raises
    ------
    ValueError
        It is unknown; the message lists the known ones.
    """
    if name not in INSTRUMENTS:
        raise ValueError(
            f"unknown instrument {with_nearest(name, INSTRUMENTS)}: known are "
            f"{', '.join(INSTRUMENTS)}"
        )
    return INSTRUMENTS[name]
