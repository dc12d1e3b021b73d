"""
The line list of GALAH DR3 (Buder et al. 2021), which *nature* has in the HERMES windows.

The file ``galah_dr3_linelist.h5`` is part of Korg.jl (github.com/ajwheeler/Korg.jl, folder
``data/linelists/GALAH_DR3``, BSD-3 license). Isotopes are included in log gf: they are those of the
Sun in all stars. It is independent of linemake in its atomic data and in its molecules, and it
holds 48TiO and hyperfine structure.
"""

from __future__ import annotations

from math import gamma, pi
from pathlib import Path

import h5py
import numpy as np
from line_lists import TIO, LineList, is_weak_tio, vacuum_to_air
from spectral_ranges import SpectralRange

__all__ = ["WHERE", "abo_width", "read_galah"]

WHERE = "galah_dr3_linelist.h5 of Korg.jl, github.com/ajwheeler/Korg.jl, data/linelists/GALAH_DR3"
COLUMNS = ("wl", "log_gf", "E_lo", "ionization", "formula", "gamma_rad", "gamma_stark", "vdW")
MOLECULES = (106, 107, 108, 112, 114, 126, 606, 607, TIO)  # Synspec's codes: no ZrO, VO, CaH

ATOMIC_UNIT = 2.80028e-17  # cm2
REFERENCE_SPEED = 1e6  # cm/s
BOLTZMANN, HYDROGEN_MASS = 1.380649e-16, 1.67353e-24  # erg/K, g


def abo_width(packed: np.ndarray, element: np.ndarray) -> np.ndarray:
    """
    log10 of the van der Waals width [rad/s] per hydrogen atom at 10,000 K.

    The full width at half maximum, twice the half width of Anstee & O'Mara (1995, MNRAS 276, 859).

    Parameters
    ----------
    packed : ndarray
        Sum of the cross-section at 10 km/s, a whole number of squared Bohr radii, and of the
        exponent of its dependence on velocity, below 1: 407.273 means 407 and 0.273.
    element : ndarray of int
        Atomic number, from which the mass follows closely enough.
    """
    section, exponent = np.floor(packed), packed - np.floor(packed)
    mass = np.where(element == 1, 1.0, 2.1 * element) * HYDROGEN_MASS
    reduced = mass * HYDROGEN_MASS / (mass + HYDROGEN_MASS)
    speed = np.sqrt(8 * BOLTZMANN * 1e4 / (pi * reduced))
    shape = (4 / pi) ** (exponent / 2) * np.array([gamma((4 - a) / 2) for a in exponent])
    speeds = REFERENCE_SPEED * (speed / REFERENCE_SPEED) ** (1 - exponent)
    return np.log10(2 * shape * speeds * section * ATOMIC_UNIT)


def read_galah(path: Path, band: SpectralRange) -> LineList:
    """
    Read the lines within the windows of a range.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file, or it lacks a column; the message says where to get it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such line list ({WHERE})")
    try:
        with h5py.File(path) as file:
            wavelength, loggf, ep, ion, formula, radiative, stark, vdw = (
                file[name][:].astype(np.float64) for name in COLUMNS
            )
    except (OSError, KeyError) as error:
        raise ValueError(f"{path}: not the line list of GALAH ({WHERE}): {error}") from error
    air = vacuum_to_air(wavelength)
    parts = np.sort(formula.astype(int), axis=1)
    atom = parts[:, 1] == 0
    species = np.where(atom, parts[:, 2] + 0.01 * (ion - 1), 100 * parts[:, 1] + parts[:, 2])
    # Two numbers of one column: log10 of the width if negative, a cross-section if large.
    width = np.where((vdw < 0) & (vdw > -9.5), vdw, 0.0)
    packed = np.flatnonzero(vdw > 20)
    width[packed] = abo_width(vdw[packed], parts[packed, 2])
    lines = LineList(
        air,
        species,
        loggf,
        ep,
        np.where(atom, width, 0.0),
        np.full(len(air), "", dtype="U8"),
        np.where(atom & (radiative > 3), radiative, 0.0),
        np.where(atom & (stark > -9) & (stark < -3), stark, 0.0),
    )
    inside = np.zeros(len(air), bool)
    for window in band.windows:
        inside |= (air >= window.lines[0]) & (air <= window.lines[1])
    known = np.where(atom, parts[:, 2] >= 2, np.isin(species, MOLECULES))
    lines = lines.take(inside & known & ~is_weak_tio(lines))
    return lines.take(np.lexsort((lines.species, lines.air)))
