"""
Synspec 54 (Hubeny & Lanz 2017): compile it, write its inputs, run it, read its outputs.

Abundances are on the scale of Asplund, Grevesse & Sauval (2005) = Grevesse, Asplund & Sauval
(2007), the scale of APOGEE's ASPCAP grids.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from packages import PACKAGES
from spectral_ranges import Window

# fmt: off
SYMBOLS = [
    "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl",
    "Ar", "K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As",
    "Se", "Br", "Kr", "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In",
    "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb",
    "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl",
    "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U", "Np", "Pu", "Am", "Cm", "Bk",
    "Cf", "Es",
]
# fmt: on
_ = np.nan  # no stable isotope
# log10(N_X / N_H) + 12.
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

HYDROGEN_THINNING = 4


class SynthesisError(RuntimeError):
    """A spectrum that could not be computed; the message says why."""


REPAIRS = (
    # HYDLIN fills the populations of 50 hydrogen levels in an array of 40: from -O1 on every
    # flux is NaN. (The caller GHYDOP declares the same length.)
    ("      DIMENSION PJ(40),PRF0(54),OSCH(4,22),", "      DIMENSION PJ(60),PRF0(54),OSCH(4,22),"),
    ("pj(40)", "pj(60)"),
    # Hydrogen opacity, half of the run, at every 4th frequency, interpolated between.
    ("      CALL HYDLIN(ID,M,NFREQ,ABLIN,EMLIN)", "      CALL HYTHIN(ID,M,NFREQ,ABLIN,EMLIN)"),
)
# For the ranges beside APOGEE's, whose grids were made without:
FURTHER_REPAIRS = (
    *REPAIRS,
    # The molecular equilibrium, half of what a run takes before its first wavelength: an element is
    # its own index, and logarithms of pressures are taken once. Results are the same.
    (
        """              DO I=1,NMETAL
                 NELEMI=NELEMX(I)
                 IF(NELEMJ.EQ.NELEMI) THEN
                    FX(NELEMI)=FX(NELEMI)+ATOMJ*PMOLJ
                    DFX(NELEMI)=DFX(NELEMI)+ATOMJ**2*
     *                          PMOLJ/P(NELEMI)
                 END IF
              END DO
""",
        """              IF(NELEMJ.LE.NMETAL) THEN
                 FX(NELEMJ)=FX(NELEMJ)+ATOMJ*PMOLJ
                 DFX(NELEMJ)=DFX(NELEMJ)+ATOMJ**2*PMOLJ/P(NELEMJ)
              END IF
""",
    ),
    (
        """        SPNION=0.0
        spnplu=0.
""",
        """        SPNION=0.0
        spnplu=0.
        DO I=1,100
           PLOGS(I)=LOG10(P(I))
        END DO
""",
    ),
    ("+DFLOAT(NATOMJ)*log10(P(NELEMJ))", "+DFLOAT(NATOMJ)*PLOGS(NELEMJ)"),
    ("     *          UIIDU2(100)  \n", "     *          UIIDU2(100),PLOGS(100)\n"),
    # Reading tables as text takes a third of a run: they are binary (`make_tables_binary`).
    ("file=fil5,status='old')", "file=fil5,status='old',\n     *           form='unformatted')"),
    (
        "file='data/EXOMOL/'//fil6,status='old')",
        "file='data/EXOMOL/'//fil6,\n     *           status='old',form='unformatted')",
    ),
    (
        """            do j=1,ntemp(i)
               read(67,*) tt,pf(i,j)
            end do
""",
        "            read(67) (pf(i,j),j=1,ntemp(i))\n",
    ),
    (
        "      ILEMKE=1\n      READ(IHYDPR,*) NTAB\n",
        "      ILEMKE=1\n      READ(IHYDPR,*) NTAB\n"
        "      open(unit=68,file='./data/tremblay.bin',status='old',\n"
        "     *     form='unformatted')\n",
    ),
    (
        """            READ(IHYDPR,500)
            DO INE=1,NEH(ILNE)
               DO IT=1,NTH(ILNE)
                  READ(IHYDPR,*) QLT,""",
        """            DO INE=1,NEH(ILNE)
               DO IT=1,NTH(ILNE)
                  READ(68) QLT,""",
    ),
    # Balmer lines are broadened by collisions with hydrogen atoms, too.
    (
        "               sg0=EXP(PRFF*AL10)\n"
        "               IF(ILEMKE.EQ.1) SG=SG*WLINE(I,J)**2*CINV/F00\n",
        "               sg0=EXP(PRFF*AL10)\n"
        "               IF(ILEMKE.EQ.1) SG=SG*WLINE(I,J)**2*CINV/F00\n"
        "               IF(I.EQ.2) SG=SG+FID*HYSELF(J,T,PJ(1),WLAM(IJ),\n"
        "     *            WLINE(I,J),DOP0)\n",
    ),
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

# Appended to the source: far wing of the Lorentz profile [1/Hz] of Balmer line 2-J that collisions
# with PH hydrogen atoms per cm3 make, from the cross-sections SI [atomic units] at 10 km/s and
# their exponents AL of Barklem, Piskunov & O'Mara (2000, A&A 363, 1091). Three Doppler widths from
# the centre it gives way to the Stark profile's core.
HYSELF = """
      FUNCTION HYSELF(J,T,PH,WL,WL0,DOP0)
      IMPLICIT REAL*8 (A-H,O-Z)
      PARAMETER (A02=2.80028E-17,VREF=1.E6,BK=1.380649E-16)
      PARAMETER (RMASS=8.3688E-25,PI=3.14159265,CA=2.997925E18)
      DIMENSION SI(3:5),AL(3:5)
      DATA SI/1180.,2320.,4208./
      DATA AL/0.677,0.455,0.380/
      HYSELF=0.
      IF(J.LT.3.OR.J.GT.5) RETURN
      V=SQRT(8.*BK*T/(PI*RMASS))
      G=2.*(4./PI)**(AL(J)/2.)*GAMMA(2.-AL(J)/2.)
      G=G*SI(J)*A02*V*(V/VREF)**(-AL(J))*PH
      DNU=CA/WL-CA/WL0
      DNUD=DOP0/WL0
      HYSELF=G/(4.*PI*PI)/(DNU*DNU+9.*DNUD*DNUD)
      RETURN
      END
"""


def apply_repairs(source: str, repairs=REPAIRS) -> str:
    """Return the Fortran source with each text replaced; a text that is absent is an error."""
    for old, new in repairs:
        if old not in source:
            raise ValueError(f"Synspec's source lacks the text to repair: {old.strip()!r}")
        source = source.replace(old, new)
    added = HYTHIN.replace("@", str(HYDROGEN_THINNING))
    return source + added + (HYSELF if repairs is FURTHER_REPAIRS else "")


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


def build_synspec(archive: Path, cache: Path, flags=FLAGS, repairs=REPAIRS) -> Path:
    """Compile Synspec 54 and unpack its atomic data; nothing is done twice.

    Parameters
    ----------
    archive : Path
        The ``synspec`` source distribution.
    cache : Path
        Where a folder with ``synspec54`` and ``data/`` is made, named after the recipe.

    Returns
    -------
    Path
        That folder.
    """
    gfortran = compiler()
    version = subprocess.run([gfortran, "--version"], capture_output=True, text=True, check=True)
    recipe = [PACKAGES[archive.name][1], flags, repairs, HYTHIN, HYDROGEN_THINNING]
    recipe += [HYSELF, "binary tables"] if repairs is FURTHER_REPAIRS else []
    recipe.append(version.stdout.split("\n")[0])
    folder = cache / f"synspec54_{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        made = Path(name) / "build"
        unpack(archive, made)
        source = made / "synspec54.f"
        text = apply_repairs(source.read_text(encoding="latin-1"), repairs)
        source.write_text(text, encoding="latin-1")
        command = [gfortran, *flags, source.name, "-o", "synspec54"]
        done = subprocess.run(command, cwd=made, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"Synspec did not compile: {done.stderr[-500:]}")
        if repairs is FURTHER_REPAIRS:
            make_tables_binary(made / "data")
        if not folder.exists():  # another process may have been faster
            made.rename(folder)
    return folder


def fortran_record(values) -> bytes:
    """Numbers as one of Fortran's unformatted records."""
    data = np.asarray(values, dtype="<f8").tobytes()
    length = len(data).to_bytes(4, "little")
    return length + data + length


def make_tables_binary(data: Path) -> None:
    """
    Write the partition functions and the hydrogen profiles as Fortran's unformatted records.

    The files of partition functions (second column) are replaced. `tremblay.dat` keeps the headers
    of its tables, whose numbers go to `tremblay.bin`: a record for each temperature and density.
    """
    for path in (data / "EXOMOL").glob("*.pf"):
        path.write_bytes(fortran_record(np.loadtxt(path, usecols=1)))
    lines = iter((data / "tremblay.dat").read_text().splitlines())

    def read(number: int) -> list[str]:
        """So many numbers from as many lines as they fill, as a Fortran READ does it."""
        words: list[str] = []
        while len(words) < number:
            words += next(lines).split()
        return words[:number]

    header, records = [read(1)], []
    for _ in range(int(header[0][0])):
        header.append(read(1))
        profiles = [read(11) for _ in range(int(header[-1][0]))]
        header += profiles
        for profile in profiles:
            next(lines)  # a title
            wavelengths, densities, temperatures = (int(n) for n in profile[-3:])
            for _ in range(densities * temperatures):
                records.append(fortran_record(read(1 + wavelengths)))
    (data / "tremblay.bin").write_bytes(b"".join(records))
    (data / "tremblay.dat").write_text("".join(" ".join(row) + "\n" for row in header))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the Fortran source and the atomic data of the ``synspec`` source distribution."""
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


def abundances(labels: dict[str, float]) -> np.ndarray:
    """Return N(X)/N(H) of the 99 elements for labels [Fe/H] and [X/Fe]."""
    log_eps = SOLAR_LOG_EPS.copy()
    log_eps[2:] += labels["FE_H"]
    for name, value in labels.items():
        if name.endswith("_FE"):
            log_eps[SYMBOLS.index(name[:-3])] += value
    log_eps = np.fmax(log_eps, LOG_EPS_FLOOR)
    return 10.0 ** (log_eps - 12.0)


def write_inputs(
    folder: Path,
    labels: dict[str, float],
    atmosphere: np.ndarray,
    window: Window,
    frequencies: int | None = None,
    least_opacity: float = 1e-4,
):
    """Write Synspec's input files fort.5, fort.8, fort.55 and tas."""
    lines = [f" {labels['TEFF']:.2f} {labels['LOGG']:.4f}", " T F", " 'tas'", " 50", " 99"]
    for z, abundance in enumerate(abundances(labels), start=1):
        lines.append(f" {2 if z in EXPLICIT else 1} {abundance:.5e} 0")
    lines += ["*"] * 4
    lines += [*MODEL_ATOMS.strip("\n").split("\n"), "*", "* end"]
    (folder / "fort.5").write_text("\n".join(lines) + "\n")

    n = len(atmosphere)
    lines = [f"TEFF {labels['TEFF']:7.0f}  GRAVITY {labels['LOGG']:7.5f}  LTE"] + [""] * 21
    lines.append(f"READ DECK6{n:3d} RHOX,T,P,XNE")
    lines += [f"{m:.8e} {t:.4f} {p:.6e} {x:.6e}" for m, t, p, x in atmosphere]
    (folder / "fort.8").write_text("\n".join(lines) + "\n")

    low, high = window.synthesis
    # The negative end makes Synspec give wavelengths in vacuum; lines weaker than `least_opacity`
    # of the continuum are left out.
    (folder / "fort.55").write_text(
        "0 0 0\n0 0 0 0\n0 0 0 0 0\n1 0 0 10 0\n2 0 0\n"
        f"{low:.1f} {-high:.1f} 250. 20 {least_opacity} {window.step}\n"
        f"1 20\n{labels['VMICRO']:.4f}\n"
    )
    settings = f"ND= {n}\nIFMOL= 1\nTMOLIM= 8000.\n"
    if frequencies is not None:
        settings += f"NFREQS= {frequencies}\n"
    (folder / "tas").write_text(settings)


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
