"""
Download the published training arrays and checkpoints of Koblischke & Bovy (2024).

They are record 14041360 of Zenodo (https://doi.org/10.5281/zenodo.14041360), to which the published
code refers (https://github.com/NolanKoblischke/SpectraFM_NeurIPS_FM4Science). This is the shortest
way to the paper's real spectra. Files are checked against Zenodo's checksums; those that are
complete are not downloaded again. Archives are unpacked beside themselves. At the end the script
says which folders hold training arrays and which are checkpoints. OUTPUT/published.lock records the
checksums of what was downloaded first; commit it, and later downloads must agree.

    python dataset/fetch_published.py --list
    python dataset/fetch_published.py --output runs/published [--only '*_train.npy']
    python dataset/import_published.py FOLDER_OF_ARRAYS runs/published.h5
"""

import argparse
import fnmatch
import hashlib
import json
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stellarperceptron.utils.arguments import HelpFormatter, run_script
from stellarperceptron.utils.data_utils import atomic_output, check_output_folder
from stellarperceptron.utils.locks import FileLock
from stellarperceptron.utils.server import AbsentError, DownloadError, Manners, Server

RECORD = "14041360"
ADDRESS = "https://zenodo.org/api"
LOCK = "published.lock"
ARRAYS = "labels_train.npy"  # in every folder that import_published.py takes
CHUNK = 1 << 20  # bytes


class RemoteFile(NamedTuple):
    """A file of the record: name, length [bytes], checksum such as "md5:0123", address."""

    name: str
    size: int
    checksum: str
    url: str


def arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/published"), help="folder of the files"
    )
    parser.add_argument("--list", action="store_true", help="only list the files and their sizes")
    parser.add_argument(
        "--only", nargs="+", metavar="PATTERN", default=["*"], help="names or patterns of files"
    )
    parser.add_argument("--record", default=RECORD, help="number of the record")
    parser.add_argument("--address", default=ADDRESS, help="of the API that has the record")
    return parser.parse_args(command_line)


def list_files(address: str, record: str) -> list[RemoteFile]:
    """Files of a record, as the API describes them.

    Raises
    ------
    DownloadError
        The server cannot be reached or does not have the record.
    ValueError
        Its answer does not describe files.
    """
    server = Server(address, Manners(attempts=3))
    where = f"{address}/records/{record}"
    try:
        files = json.loads(server.text(f"records/{record}"))["files"]
        found = [
            RemoteFile(file["key"], int(file["size"]), file["checksum"], file["links"]["self"])
            for file in files
        ]
    except AbsentError as error:
        raise DownloadError(f"{where}: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{where} does not describe files ({error!r})") from error
    for file in found:
        if Path(file.name).name != file.name or file.name.startswith("."):
            raise ValueError(f"{where} has a file with the name {file.name!r}, which is refused")
    return found


def choose(files: Sequence[RemoteFile], patterns: Sequence[str]) -> list[RemoteFile]:
    """Files whose name matches a pattern.

    Raises
    ------
    ValueError
        A pattern matches none.
    """
    names = ", ".join(file.name for file in files)
    for pattern in patterns:
        if not any(fnmatch.fnmatch(file.name, pattern) for file in files):
            raise ValueError(f"--only {pattern}: no such file; the record has {names}")
    return [file for file in files if any(fnmatch.fnmatch(file.name, p) for p in patterns)]


def read_lock(path: Path) -> dict[str, dict[str, Any]]:
    """Size, checksum and SHA-256 of earlier downloads, by name."""
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        whole = all({"size", "checksum", "sha256"} <= set(entry) for entry in entries.values())
    except (ValueError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged: restore it, or remove it")
    return entries


def check_against_lock(
    files: Sequence[RemoteFile], lock: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """Refuse a record whose files are not those that were downloaded first.

    Raises
    ------
    ValueError
        One has another checksum.
    """
    for file in files:
        before = lock.get(file.name)
        if before and (before["size"], before["checksum"]) != (file.size, file.checksum):
            raise ValueError(
                f"{file.name} is not what {path} says: {file.checksum}, {file.size} bytes, "
                f"instead of {before['checksum']}, {before['size']} bytes"
            )


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(file: RemoteFile, folder: Path, expected: str | None) -> None:
    """Download a file unless it is there, and check it.

    Raises
    ------
    ModuleNotFoundError
        pooch is not installed.
    OSError, ValueError
        It cannot be downloaded, or is not what it should be; nothing is left behind.
    """
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "files are downloaded with pooch: pip install 'stellarperceptron[download]'"
        ) from error
    known = f"sha256:{expected}" if expected else file.checksum
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=CHUNK)
    try:
        pooch.retrieve(file.url, known, file.name, folder, downloader=downloader)
    except OSError as error:
        raise OSError(f"{file.name} could not be downloaded: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file.name} is not what it should be: {error}") from error


def unpack(path: Path) -> None:
    """Unpack an archive into a folder beside it, unless that is there."""
    name = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".zip")
    folder = path.with_name(name)
    if name == path.name or folder.exists():
        return
    with atomic_output(folder) as temporary:
        try:
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(temporary)
            else:
                with tarfile.open(path) as archive:
                    archive.extractall(temporary, filter="data")
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise ValueError(f"{path} cannot be unpacked: {error}") from error
    print(f"{path.name} is unpacked to {folder}")


def report(folder: Path) -> None:
    """Say what can be done with what is there."""
    for path in sorted(folder.rglob(ARRAYS)):
        print(f"training arrays: python dataset/import_published.py {path.parent} OUTPUT.h5")
    for path in sorted(folder.rglob("weights.pt")):
        if (path.parent / "config.json").is_file():
            print(f'checkpoint: StellarPerceptron.load("{path.parent}")')


def fetch_all(options: argparse.Namespace) -> None:
    """List the record; download, check, unpack and record its files."""
    files = list_files(options.address.rstrip("/"), options.record)
    if options.list:
        for file in files:
            print(f"{file.size / 1e6:12.3f} MB  {file.name}")
        return
    folder = options.output
    check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".fetch.lock", f"{folder}, which is being filled,"):
        lock = read_lock(folder / LOCK)
        chosen = choose(files, options.only)
        check_against_lock(chosen, lock, folder / LOCK)
        for file in chosen:
            fetch(file, folder, lock.get(file.name, {}).get("sha256"))
            if file.name not in lock:
                digest = sha256(folder / file.name)
                lock[file.name] = {"size": file.size, "checksum": file.checksum, "sha256": digest}
                with atomic_output(folder / LOCK) as temporary:
                    temporary.write_text(json.dumps(lock, indent=1) + "\n", encoding="utf-8")
            unpack(folder / file.name)
    report(folder)


def main(command_line: Sequence[str] | None = None) -> None:
    """Download what the command line asks for."""
    fetch_all(arguments(command_line))


if __name__ == "__main__":
    run_script(main, errors=(ModuleNotFoundError, DownloadError))
