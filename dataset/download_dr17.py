"""
Download DR17's catalogue and the aspcapStar files of the stars that the paper selects.

Files are saved below --local-sas in the folders of the archive. Files that exist are not downloaded
again, and partial files are resumed. The script checks length and structure of every file, and its
SHA-1 where the archive lists one. It lists failed downloads in missing.csv, with reasons; run it
again to retry them.

    python dataset/download_dr17.py --local-sas ~/sas --dry-run
    python dataset/download_dr17.py --local-sas ~/sas
"""

import argparse
import csv
import fcntl
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tqdm import tqdm

from stellarperceptron.data.apogee.download import Archive, fetch_all
from stellarperceptron.data.apogee.dr17 import (
    ARCHIVE,
    CATALOGUE,
    SAS_VARIABLE,
    aspcap_path,
    read_catalogue,
)
from stellarperceptron.data.apogee.selection import catalogue_cuts, cut_table
from stellarperceptron.utils.arguments import positive, positive_float, run_script
from stellarperceptron.utils.data_utils import atomic_output, plain_text
from stellarperceptron.utils.server import AbsentError, DownloadError, Manners, StoppedError

LONGEST_CATALOGUE = 20_000_000_000  # bytes; the catalogue has 4 GB
SAMPLE = 20  # files whose length is requested to estimate the total: they hardly differ
GIVEN_UP_IN_A_ROW = 20  # failures after which the server counts as out of order


def arguments(command_line: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--local-sas",
        type=Path,
        default=os.environ.get(SAS_VARIABLE),
        help=f"folder of the copy, in which dr17/ is made (default: ${SAS_VARIABLE})",
    )
    parser.add_argument(
        "--base-url", default=ARCHIVE, help="the archive or a mirror of it (default %(default)s)"
    )
    parser.add_argument(
        "--limit",
        type=positive,
        help="only so many candidates, the first in the catalogue (default: all)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say how many files and bytes, fetch nothing"
    )
    parser.add_argument(
        "--catalogue-only", action="store_true", help="fetch the catalogue (4 GB) and stop"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check files that are there already, too, and fetch damaged ones anew",
    )
    parser.add_argument(
        "--no-checksums",
        action="store_true",
        help="do not look for the archive's lists of SHA-1 sums (two requests a folder)",
    )
    server = parser.add_argument_group("manners")
    server.add_argument(
        "--workers", type=positive, default=4, help="connections (default %(default)s)"
    )
    server.add_argument(
        "--rate",
        type=positive_float,
        default=Manners.rate,
        help="requests a second, all connections together (default %(default)g)",
    )
    server.add_argument(
        "--timeout",
        type=positive_float,
        default=Manners.timeout,
        help="seconds of silence after which a connection is given up (default %(default)g)",
    )
    server.add_argument(
        "--attempts",
        type=positive,
        default=Manners.attempts,
        help="tries in a row without progress before a file is given up (default %(default)s)",
    )
    server.add_argument(
        "--wait",
        type=positive_float,
        default=Manners.wait,
        help="seconds before the second try, doubled for each further one, at most "
        f"{Manners.longest_wait:g} (default %(default)g)",
    )
    options = parser.parse_args(command_line)
    if options.local_sas is None:
        parser.error(f"give --local-sas DIR, or set {SAS_VARIABLE}")
    options.local_sas = Path(options.local_sas).expanduser()
    return options


def fetch_catalogue(archive: Archive, target: Path) -> None:
    """Download the catalogue, with its own progress bar: it is as large as 30,000 stars' files."""
    size = archive.size(CATALOGUE)
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    check_room(target.parent, size - have)
    with tqdm(
        total=size, initial=have, unit="B", unit_scale=True, desc="catalogue", disable=None
    ) as bar:
        archive.fetch(CATALOGUE, target, bar.update, most=LONGEST_CATALOGUE)


def wanted_files(local_sas: Path, limit: int | None) -> tuple[list[str], list[tuple[str, str]]]:
    """Paths of the candidates' files, and invalid names with what is wrong with them."""
    catalogue = read_catalogue(local_sas / CATALOGUE)
    stars, cuts = catalogue_cuts(catalogue)
    print(cut_table(len(catalogue), cuts))
    if limit is not None:
        stars = stars[:limit]
    paths, wrong = [], []
    for names in zip(stars.telescope, stars.field, stars.apogee_id, strict=True):
        try:
            paths.append(aspcap_path(*names))
        except ValueError as error:
            wrong.append((names[-1].decode("ascii", "replace"), str(error)))
    # Folder by folder, since each folder has its list of checksums.
    return sorted(set(paths)), wrong


def is_there(archive: Archive, path: str, target: Path, verify: bool) -> bool:
    """Whether a file exists and is complete; a damaged one is removed."""
    if not target.exists():
        return False
    if not verify:
        return True
    try:
        archive.check(path, target)
    except ValueError as error:
        tqdm.write(f"{target} {error}: it is fetched anew")
        target.unlink()
        return False
    return True


def estimate(archive: Archive, paths: list[str]) -> int:
    """Estimate the size of all files [bytes] from a few; 0 if the server gives no lengths."""
    sizes = []
    for path in paths[:: -(-len(paths) // SAMPLE)]:
        try:
            sizes.append(archive.size(path))
        except AbsentError:
            continue
        except DownloadError:
            break
    return round(sum(sizes) / max(len(sizes), 1) * len(paths))


def check_room(folder: Path, size: int) -> None:
    """Check that a disk has room for this many bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(f"{folder} has {free / 1e9:.1f} GB free, {size / 1e9:.1f} GB are needed")


def write_missing(path: Path, missing: list[tuple[str, bool, str]], asked: set[str]) -> None:
    """List the failed downloads; write no list when nothing is missing.

    Entries of earlier runs are kept for files that this run did not request (--limit). An entry
    that the archive lacks a file is kept until the file has been downloaded, because a server that
    is out of order gives no new information.
    """
    rows = {name: [name, "yes" if absent else "no", reason] for name, absent, reason in missing}
    if path.exists():
        with open(path, newline="", encoding="utf-8-sig") as file:
            earlier = [row for row in list(csv.reader(file))[1:] if len(row) == 3]
        for row in earlier:
            if row[0] not in asked or (row[0] in rows and row[1] == "yes"):
                rows[row[0]] = row
    if not rows:
        path.unlink(missing_ok=True)
        return
    with (
        atomic_output(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "absent", "reason"])
        table.writerows([plain_text(cell) for cell in row] for row in sorted(rows.values()))


def fetch_stars(archive: Archive, options: argparse.Namespace, paths: list[str]):
    """Download the missing files; returns the failures: path, absent from the archive, reason."""
    n_bytes, lock = 0, threading.Lock()
    missing: list[tuple[str, bool, str]] = []
    in_a_row = 0

    def count(n: int) -> None:
        nonlocal n_bytes
        with lock:
            n_bytes += n

    targets = [(path, options.local_sas / path) for path in paths]
    with tqdm(total=len(paths), unit=" files", desc="spectra", disable=None) as bar:
        for path, error in fetch_all(archive, targets, options.workers, count):
            in_a_row = in_a_row + 1 if isinstance(error, DownloadError) else 0
            if error is not None:
                missing.append((path, isinstance(error, AbsentError), str(error)))
            bar.update()
            seconds = bar.format_dict["elapsed"]
            bar.set_postfix_str(f"{n_bytes / 1e6 / max(seconds, 1e-3):.1f} MB/s", refresh=False)
            if in_a_row >= GIVEN_UP_IN_A_ROW:
                break
    done = {path for path, *_ in missing}
    if in_a_row >= GIVEN_UP_IN_A_ROW:
        reason = f"not tried: {GIVEN_UP_IN_A_ROW} files in a row were given up before"
        left = (path for path, target in targets if path not in done and not target.exists())
        missing += [(path, False, reason) for path in left]
    print(f"fetched {len(paths) - len(missing):,d} files, {n_bytes / 1e9:.2f} GB")
    return missing


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a folder, since two runs would write to the same partial files."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".download.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"{folder}: another download is at work there, wait for it") from error
        except OSError as error:
            warn = (
                f"{folder}: this file system has no locks ({error}); start no second download there"
            )
            print(warn, file=sys.stderr)
        yield


def download(archive: Archive, options: argparse.Namespace) -> int:
    """Download everything; returns the number of failures."""
    catalogue = options.local_sas / CATALOGUE
    if not is_there(archive, CATALOGUE, catalogue, options.verify and not options.dry_run):
        if options.dry_run:
            print(f"catalogue: {archive.size(CATALOGUE) / 1e9:.2f} GB, not there yet")
            print("with the catalogue (--catalogue-only fetches it) the spectra can be counted")
            return 0
        fetch_catalogue(archive, catalogue)
    if options.catalogue_only:
        print(f"{catalogue} is there")
        return 0
    paths, wrong = wanted_files(options.local_sas, options.limit)
    verify = options.verify and not options.dry_run
    bar = tqdm(paths, unit=" files", desc="looking", disable=None)
    waiting = [p for p in bar if not is_there(archive, p, options.local_sas / p, verify)]
    size = estimate(archive, waiting) if waiting else 0
    print(
        f"{len(paths):,d} files of candidates, {len(paths) - len(waiting):,d} are there, "
        f"{len(waiting):,d} to fetch, about {size / 1e9:.3g} GB"
    )
    if options.dry_run:
        return 0
    check_room(options.local_sas, size)
    missing = [(name, False, reason) for name, reason in wrong]
    missing += fetch_stars(archive, options, waiting)
    table = options.local_sas / "missing.csv"
    write_missing(table, missing, {*paths, *(name for name, _ in wrong)})
    if archive.checked:
        print(f"the SHA-1 of {archive.checked:,d} files was compared with the archive's")
    elif not options.no_checksums and waiting:
        print("no list of checksums was found: length and structure of all files were checked")
    if missing:
        print(f"{len(missing):,d} files are missing, listed in {table}:")
        for reason, number in Counter(reason for *_, reason in missing).most_common(10):
            print(f"{number:10,d}  {reason}")
        print("run again to try those that the archive has")
    return len(missing)


def main(command_line: list[str] | None = None) -> None:
    """Download; print errors without a traceback; exit status 1 when files are missing."""
    options = arguments(command_line)
    manners = Manners(options.rate, options.timeout, options.attempts, options.wait)
    try:
        archive = Archive(options.base_url, manners, checksums=not options.no_checksums)
        with nullcontext() if options.dry_run else alone(options.local_sas):
            missing = download(archive, options)
    except KeyboardInterrupt:
        sys.exit("download_dr17.py: interrupted; run again to go on")
    except AbsentError as error:
        sys.exit(f"download_dr17.py: {CATALOGUE}: {error}: is {options.base_url} right?")
    except (DownloadError, StoppedError, OSError, ValueError) as error:
        sys.exit(f"download_dr17.py: {error}")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    run_script(main)
