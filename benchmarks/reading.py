"""Reading an archive's spectra: the package beside the published loop and Dask, and its memory.

The published loop opens one file after the other with astropy. Files are in DR17's layout with
short headers; the archive's own are longer, which costs astropy time and the package hardly any.
Dask is measured where it is installed; nothing else needs it.
"""

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from astropy.io import fits
from tests.dr17_files import write_archive

from benchmarks.common import measure_in_turn, record
from stellarperceptron.data.apogee.archive import read_star
from stellarperceptron.data.apogee.aspcap_files import ASPCAP_KINDS
from stellarperceptron.data.apogee.continuum import VALID_FLUX
from stellarperceptron.data.apogee.dr17 import CATALOGUE, FOLDER, PUBLISHED_STARS
from stellarperceptron.data.apogee.grid import VALID_PIXELS
from stellarperceptron.utils.arguments import output_file

SCRIPT = Path(__file__).resolve().parents[1] / "dataset" / "create_dataset.py"
FILES_PER_ROW = 0.88  # of the rows of the archive that is made, so many have a file
KEPT = ASPCAP_KINDS.index("observed"), ASPCAP_KINDS.index("synthetic")


def published_star(path: Path) -> np.ndarray:
    """Observed and synthetic spectrum (2, 7514) by astropy."""
    with fits.open(path) as hdus:
        return np.stack([hdus[number].data[VALID_PIXELS] for number in (1, 3)])


def published_loop(paths: list[Path]) -> np.ndarray:
    """Spectra (N, 2, 7514), one file after the other."""
    spectra = np.zeros((len(paths), 2, len(VALID_PIXELS)), np.float32)
    for i, path in enumerate(paths):
        spectra[i] = published_star(path)
    spectra[(spectra < VALID_FLUX[0]) | (spectra > VALID_FLUX[1])] = np.nan
    return spectra


def ours(paths: list[Path], workers: int) -> np.ndarray:
    """Spectra (N, 2, 7514), checked and cleaned, by threads."""
    spectra = np.empty((len(paths), 2, len(VALID_PIXELS)), np.float32)
    with ThreadPoolExecutor(workers) as pool:
        for i, star in enumerate(pool.map(read_star, paths)):
            for place, number in enumerate(KEPT):
                spectra[i, place] = star.spectra[number]
    return spectra


def by_processes(paths: list[Path], workers: int) -> list:
    """What processes instead of threads cost: spectra travel between them."""
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(read_star, paths, chunksize=64))


def dask_bag(function, paths: list[Path], scheduler: str, workers: int) -> list:
    """One Dask call."""
    from dask import bag

    files = bag.from_sequence(paths, npartitions=4 * workers)
    return files.map(function).compute(scheduler=scheduler, num_workers=workers)


def forget(paths: list[Path]) -> None:
    """Take files out of the system's cache, so that they come from the disk."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def from_disk(paths: list[Path], workers: int, repeats: int) -> dict[str, float]:
    """Seconds when nothing is in the cache, the faster of each manner's runs."""
    functions = {
        "published loop": lambda: published_loop(paths),
        "ours": lambda: ours(paths, workers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            forget(paths)
            begin = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - begin)
    return {name: min(times) for name, times in seconds.items()}


def widen_catalogue(small: Path, large: Path, rows: int, row_bytes: int = 4800) -> None:
    """Repeat the rows of a catalogue, and make them as long as the release's."""
    with fits.open(small) as hdus:
        table = hdus[1]
        padding = np.zeros((len(table.data), row_bytes - table.header["NAXIS1"]), np.uint8)
        column = fits.Column("REST", f"{padding.shape[1]}B", array=padding)
        wide = fits.BinTableHDU.from_columns([*table.columns, column])
        n_few, buffer = len(table.data), io.BytesIO()
        fits.HDUList([fits.PrimaryHDU(), wide]).writeto(buffer)
        written = buffer.getvalue()
    with fits.open(io.BytesIO(written)) as hdus:
        header, start = hdus[1].header.copy(), hdus[1].fileinfo()["datLoc"]
    block = written[start : start + n_few * row_bytes]
    header["NAXIS2"] = rows
    with open(large, "wb") as file:
        file.write(fits.PrimaryHDU().header.tostring().encode() + header.tostring().encode())
        for _ in range(rows // n_few):
            file.write(block)
        file.write(block[: rows % n_few * row_bytes])
        file.write(b"\0" * (-rows * row_bytes % 2880))


def run_alone(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds and peak memory [GB] of a few lines of Python in a process of their own."""
    code = (
        "import resource, sys, time; begin = time.perf_counter()\n"
        f"{code}\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6\n"
        "print(time.perf_counter() - begin, peak)"
    )
    command = [sys.executable, "-c", code, *arguments]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, peak = map(float, said.split())
    return seconds, peak


def whole_run(sas: Path, folder: Path, tasks: int) -> tuple[float, float]:
    """Seconds of create_dataset.py, in one run or as tasks of an array, and its memory [GB]."""
    command = [sys.executable, str(SCRIPT), "--local-sas", str(sas)]
    command += ["--output", str(folder / f"{tasks}.h5")]
    begin = time.perf_counter()
    if tasks > 1:
        array = [*command, "--array-count", str(tasks), "--array-index"]
        running = [
            subprocess.Popen([*array, str(index)], stdout=subprocess.DEVNULL)
            for index in range(tasks)
        ]
        if any(process.wait() for process in running):
            raise RuntimeError("a task failed")
        command.append("--merge")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return time.perf_counter() - begin, peak


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000, help="files of a repeat")
    parser.add_argument(
        "--many-files", type=int, default=20_000, help="files of the whole run, 0.12 MB each"
    )
    parser.add_argument(
        "--catalogue-rows",
        type=int,
        default=PUBLISHED_STARS["catalogue"],
        help="rows of the catalogue that is read, 4.8 kB each",
    )
    parser.add_argument("--repeats", type=int, default=3, help="counted repeats")
    parser.add_argument("--workers", type=int, default=8, help="threads that read")
    parser.add_argument("--folder", type=Path, help="where the files are made, and removed again")
    parser.add_argument(
        "--output", type=output_file, help="JSON file; default: benchmarks/results/"
    )
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        memory, seconds = {}, {}
        for name, n_files in (("few", arguments.files), ("many", arguments.many_files)):
            sas = folder / name
            made = write_archive(sas, round(n_files / FILES_PER_ROW) + 1, keep_spectra=False)
            files = sorted((sas / FOLDER).rglob("aspcapStar*.fits"))
            seconds[name], memory[name] = whole_run(sas, folder, tasks=1)
            print(f"{len(files)} files: {seconds[name]:.1f} s, at most {memory[name]:.2f} GB")
        array_seconds, _ = whole_run(sas, folder, tasks=2)
        large = folder / "allStar.fits"
        widen_catalogue(sas / CATALOGUE, large, arguments.catalogue_rows)
        catalogue_gb = large.stat().st_size / 1e9
        catalogue_s, catalogue_memory = run_alone(
            "from stellarperceptron.data.apogee.dr17 import read_catalogue;"
            "read_catalogue(sys.argv[1])",
            str(large),
        )
        large.unlink()
        print(f"catalogue, {catalogue_gb:.1f} GB: {catalogue_s:.1f} s, {catalogue_memory:.2f} GB")
        fates = dict(zip(made.paths, made.fate, strict=True))
        paths = [path for path in files if fates[str(path.relative_to(sas))] == "good"]
        paths = paths[: arguments.files]

        np.testing.assert_array_equal(published_loop(paths), ours(paths, arguments.workers))
        manners = {
            "published loop": lambda: published_loop(paths),
            "ours": lambda: ours(paths, arguments.workers),
            "ours, 1 thread": lambda: ours(paths, 1),
            "ours, processes": lambda: by_processes(paths, cores),
        }
        try:
            import dask  # noqa: F401
        except ImportError:
            print("Dask is not installed: it is left out")
        else:
            manners |= {
                "Dask, our reader, threads": lambda: dask_bag(read_star, paths, "threads", cores),
                "Dask, our reader, processes": lambda: dask_bag(
                    read_star, paths, "processes", cores
                ),
                "Dask, astropy, processes": lambda: dask_bag(
                    published_star, paths, "processes", cores
                ),
            }
        times = measure_in_turn(manners, arguments.repeats)
        cold = from_disk(paths, arguments.workers, arguments.repeats)

    wall = {name: clocks["wall_s"] for name, clocks in times.items()}
    results = {
        "files": len(paths),
        "load_before": load,
        "cores": cores,
        "workers": arguments.workers,
        "files_a_second": {name: len(paths) / value for name, value in wall.items()},
        "wall_s": wall,
        "ratio_to_published_loop": {name: wall["published loop"] / wall[name] for name in wall},
        "from_disk_s": cold,
        "ratio_from_disk": cold["published loop"] / cold["ours"],
        "create_dataset": {
            "files": {"few": arguments.files, "many": arguments.many_files},
            "seconds": {**seconds, "many, two tasks and merge": array_seconds},
            "peak_memory_gb": memory,
        },
        "catalogue": {
            "rows": arguments.catalogue_rows,
            "file_gb": catalogue_gb,
            "seconds": catalogue_s,
            "peak_memory_gb": catalogue_memory,
        },
    }
    for name, value in wall.items():
        ratio = results["ratio_to_published_loop"][name]
        print(f"{name:30s} {len(paths) / value:8.0f} files/s  {ratio:5.1f} times the loop")
    print(f"from disk: {results['ratio_from_disk']:.1f} times; two tasks {array_seconds:.1f} s")
    print("recorded in", record("reading", results, arguments.output))


if __name__ == "__main__":
    main()
