"""A small archive in the layout of data release 17: its files are written by astropy."""

import io
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from astropy.io import fits

from stellarperceptron.data.apogee.dr17 import CATALOGUE, FOLDER, STAR_BAD
from stellarperceptron.data.apogee.grid import VALID_PIXELS

LABELS = ("TEFF", "LOGG", "O_FE", "MG_FE", "FE_H")
N_PIXELS = 8575


def aspcap_hdus(images):
    """HDUs of an aspcapStar file: no image, flux, error, best fit, table of parameters."""
    grid = {"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1, "CTYPE1": "LOG-LINEAR", "DC-FLAG": 1}
    hdus = [fits.PrimaryHDU()]
    hdus[0].header["HISTORY"] = "aspcapStar file of a test"
    for image in images:
        hdus.append(fits.ImageHDU(image))
        hdus[-1].header.update(grid)
    columns = [
        fits.Column("APOGEE_ID", "30A", array=["2M00000000+0000000"]),
        fits.Column("PARAM", "9E", array=np.ones((1, 9), np.float32)),
        fits.Column("PARAM_COV", "81E", array=np.ones((1, 81), np.float32)),
    ]
    return fits.HDUList([*hdus, fits.BinTableHDU.from_columns(columns)])


@cache
def _template():
    """Bytes of an aspcapStar file, and where its three images are."""
    buffer = io.BytesIO()
    hdus = aspcap_hdus([np.zeros(N_PIXELS, np.float32)] * 3)
    hdus.writeto(buffer)
    with fits.open(io.BytesIO(buffer.getvalue())) as written:
        return buffer.getvalue(), [hdu.fileinfo()["datLoc"] for hdu in written[1:4]]


def aspcap_bytes(spectra):
    """Bytes of an aspcapStar file with flux, error and best fit (3, 8575): astropy's, a hundred
    times faster than writing each anew."""
    data, places = _template()
    data = bytearray(data)
    for place, image in zip(places, spectra, strict=True):
        data[place : place + 4 * N_PIXELS] = image.astype(">f4").tobytes()
    return bytes(data)


def make_spectra(rng):
    """Flux, error and best fit (3, 8575) of a star; zero between the chips, as in the archive."""
    spectra = np.zeros((3, N_PIXELS), np.float32)
    spectra[:, VALID_PIXELS] = rng.uniform(0.7, 1.15, (3, len(VALID_PIXELS)))
    spectra[1] *= 0.01
    spectra[0, 300:304] = 0.0, 1.5, np.nan, 0.04  # no measurements
    return spectra


@dataclass
class SmallArchive:
    """What was put into an archive.

    `fate` says of every row what it is: "good", a cut, or what is wrong with its file.
    """

    rows: dict = field(default_factory=dict)
    fate: list = field(default_factory=list)
    spectra: dict = field(default_factory=dict)  # of the rows with a sound file (3, 8575)
    paths: list = field(default_factory=list)


def _spoil(fate, data, spectra):
    """Bytes of a file that something is wrong with; None for none."""
    if fate == "missing":
        return None
    if fate == "zero":
        return aspcap_bytes(np.zeros_like(spectra))
    if fate == "NaN":
        return aspcap_bytes(np.full_like(spectra, np.nan))
    if fate == "truncated":
        return data[: len(data) * 2 // 3]
    if fate == "no FITS":
        return b"<html><body>busy</body></html>"
    if fate == "empty":
        return b""
    if fate == "wrong length":
        buffer = io.BytesIO()
        aspcap_hdus([np.ones(8000, np.float32)] * 3).writeto(buffer)
        return buffer.getvalue()
    return data


FILE_FATES = ("missing", "zero", "NaN", "truncated", "no FITS", "empty", "wrong length")
CUT_FATES = ("STAR_BAD", "STARFLAG", "SNR", "VSCATTER")


def write_archive(root, n_rows=2000, seed=0, keep_spectra=True):
    """Write catalogue and files of `n_rows` rows below `root`; what can go wrong does."""
    rng = np.random.default_rng(seed)
    n_each = max(n_rows // 100, 2)
    fate = [name for name in FILE_FATES for _ in range(n_each)]
    fate += [name for name in CUT_FATES for _ in range(3 * n_each)]
    fate += ["no label"] * n_each + ["duplicate"] * (4 * n_each)
    fate += ["good"] * (n_rows - len(fate))
    fate = [fate[i] for i in rng.permutation(n_rows)]
    names = np.array([f"2M{i:08d}+{rng.integers(1e7):07d}" for i in range(n_rows)])
    duplicates = np.flatnonzero(np.array(fate) == "duplicate")
    # Half of the duplicates are of sound stars, the others of stars with a bad file.
    for kind, some in (("good", duplicates[::2]), ("bad", duplicates[1::2])):
        bad = np.isin(fate, FILE_FATES)
        pool = np.flatnonzero(bad if kind == "bad" else np.array(fate) == "good")
        names[some] = names[rng.choice(pool, len(some), replace=False)]
    is_duplicate = np.isin(np.arange(n_rows), duplicates)
    fields = rng.choice(["000+02", "N7789", "120-08-RV"], n_rows)
    is_fate = {name: np.array(fate) == name for name in CUT_FATES}
    flags = np.where(is_fate["STAR_BAD"], STAR_BAD | 4, rng.choice([0, 4, 1 << 22], n_rows))
    starflag = np.where(is_fate["STARFLAG"], rng.choice([1, 1 << 9, 1 << 31], n_rows), 0)
    # Some rows fail a second cut, which must not be counted twice.
    starflag[np.flatnonzero(is_fate["STAR_BAD"])[::3]] = 16
    snr = np.where(is_fate["SNR"], rng.choice([50.0, 200.0, np.nan], n_rows), 0)
    snr = np.where(is_fate["SNR"], snr, rng.uniform(201, 900, n_rows))
    vscatter = np.where(
        is_fate["VSCATTER"], rng.choice([1.0, 7.0, np.nan], n_rows), rng.uniform(0, 0.9, n_rows)
    )
    columns = {
        "FILE": ("64A", [f"aspcapStar-dr17-{name}.fits" for name in names]),
        "APOGEE_ID": ("18A", names),
        "TELESCOPE": ("8A", rng.choice(["apo25m", "lco25m", "apo1m"], n_rows)),
        "FIELD": ("16A", np.where(is_duplicate, "K21_074+12", fields)),
        "SNR": ("E", snr),
        "STARFLAG": ("K", starflag),
        "VSCATTER": ("E", vscatter),
        "ASPCAPFLAG": ("K", flags),
        "PARAM": ("9E", rng.normal(size=(n_rows, 9))),
    }
    centres = np.array([4800.0, 2.5, 0.1, 0.1, -0.2])
    for label, centre in zip(LABELS, centres, strict=True):
        values = (centre + rng.normal(size=n_rows) * centre / 10).astype(np.float32)
        values[np.array(fate) == "no label"] = -9999.0 if label == "TEFF" else np.nan
        if label == "O_FE":
            values[::50] = np.nan
        columns[label] = ("E", values)
        columns[f"{label}_ERR"] = ("E", np.abs(values) / 100)
    table = fits.BinTableHDU.from_columns(
        [fits.Column(name, code, array=array) for name, (code, array) in columns.items()]
    )
    (root / FOLDER).mkdir(parents=True)
    notes = fits.BinTableHDU.from_columns([fits.Column("NOTE", "8A", array=["none"])])
    fits.HDUList([fits.PrimaryHDU(), table, notes]).writeto(root / CATALOGUE)

    archive = SmallArchive({name: array for name, (_, array) in columns.items()}, fate)
    for i in range(n_rows):
        path = f"{FOLDER}/{columns['TELESCOPE'][1][i]}/{columns['FIELD'][1][i]}"
        archive.paths.append(f"{path}/aspcapStar-dr17-{names[i]}.fits")
        if fate[i] in CUT_FATES:
            continue
        spectra = make_spectra(rng)
        data = _spoil(fate[i], aspcap_bytes(spectra), spectra)
        if data is None:
            continue
        file = root / archive.paths[i]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        if keep_spectra and fate[i] in ("good", "duplicate", "no label"):
            archive.spectra[i] = spectra
    return archive
