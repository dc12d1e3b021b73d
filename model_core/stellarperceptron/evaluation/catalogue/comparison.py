"""The emulator's spectrum beside an observed one, and the figures' lines and names."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stellarperceptron.data.apogee.continuum import pseudo_continuum
from stellarperceptron.data.mock.emulator import Emulator
from stellarperceptron.data.mock.observation import MACROTURBULENCE, ROTATION, SpectraBank
from stellarperceptron.data.mock.spectrographs import SPECTROGRAPHS
from stellarperceptron.data.mock.stellar_labels import standard_labels
from stellarperceptron.evaluation.metrics import GIANTS
from stellarperceptron.instruments import APOGEE
from stellarperceptron.instruments.spectrograph import Instrument

__all__ = [
    "LINES",
    "Comparison",
    "compare_with_emulator",
    "evolutionary_class",
    "picture_names",
]

LONGEST_NAME = 120  # characters of a picture's name

# Lines of the figures: vacuum wavelengths [A], name. Atoms: the strongest in the linemake lists;
# hydrogen: by Rydberg's formula; heads of CO bands and blends of OH: where the model has them.
LINES = (
    ((15167.2,), "K"),
    ((15222.0,), "Mn"),
    ((15298.7,), "Fe"),
    ((15339.0,), "Ti"),
    ((15482.7,), "S"),
    ((15582.0,), "CO"),
    ((15625.9,), "Fe"),
    ((15684.3,), "Cr"),
    ((15719.9,), "Ti"),
    ((15745.0, 15753.3, 15770.1), "Mg"),
    ((15892.8,), "Si"),
    ((15929.2,), "V"),
    ((15964.4,), "Si"),
    ((15982.2,), "CO"),
    ((16073.9,), "OH"),
    ((16113.7,), "Br13"),
    ((16155.2,), "Ca"),
    ((16189.3,), "CO"),
    ((16315.0,), "Ni"),
    ((16378.3, 16393.3), "Na"),
    ((16411.7,), "Br12"),
    ((16491.2,), "Fe"),
    ((16618.0,), "CO"),
    ((16685.3,), "Si"),
    ((16723.5, 16755.1, 16767.9), "Al"),
    ((16811.2,), "Br11"),
    ((16839.0,), "CO"),
    ((16876.7,), "OH"),
    ((16895.0,), "C"),
)


def picture_names(stars: Sequence[str], files: Sequence[str]) -> list[str]:
    """Names of files for pictures of stars, none twice, also where case does not count.

    A star that was there before gets the name of its file, too; what other systems do not allow
    in a name becomes an underscore.

    Examples
    --------
    >>> picture_names(["a", "a", "b/c"], ["x.fits", "y/x.fits.gz", "z.fits"])
    ['a', 'a_y_x', 'b_c']
    """
    names: list[str] = []
    taken: set[str] = set()
    for star, file in zip(stars, files, strict=True):
        stem = re.sub(r"\.fits?(\.gz)?$", "", file, flags=re.IGNORECASE)
        star, both = (
            re.sub(r"[^\w+-]+", "_", text)[:LONGEST_NAME] or "star"
            for text in (star, f"{star}_{stem}")
        )
        candidates = (star, both, *(f"{both}_{number}" for number in range(2, len(stars) + 3)))
        name = next(name for name in candidates if name.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names


def evolutionary_class(logg: float | None) -> str:
    """Whether a gravity is a giant's (below 3.5) or a dwarf's; nothing where it is not known.

    Examples
    --------
    >>> evolutionary_class(2.4), evolutionary_class(4.5), evolutionary_class(None)
    ('giant', 'dwarf', '')
    """
    if logg is None or not math.isfinite(logg):
        return ""
    return "giant" if logg < GIANTS[1] else "dwarf"


@dataclass(frozen=True, eq=False)
class Comparison:
    """An observed spectrum and the emulator's.

    Attributes
    ----------
    flux : (P,)
        The emulator's, over a pseudo-continuum through the pixels that are good in the observed
        spectrum.
    broadening : str
        What the lines were broadened with.
    rms : float
        Root mean square of observed less emulated flux, over the good pixels.
    """

    flux: np.ndarray
    broadening: str
    rms: float


@lru_cache(maxsize=4)
def _spectra_bank(name: str, instrument: Instrument) -> tuple[SpectraBank, slice] | None:
    """Emulated spectra of an instrument and its pixels; None where there are no emulators."""
    if instrument == APOGEE:
        return SpectraBank(Emulator.load(name)), slice(0, len(APOGEE))
    if instrument.name not in SPECTROGRAPHS:
        return None
    spectrograph = SPECTROGRAPHS[instrument.name]
    try:
        emulator = Emulator.load(name, spectrograph.emulator_file())
    except FileNotFoundError:
        return None
    return spectrograph.bank(emulator)


def compare_with_emulator(
    labels: Mapping[str, float],
    observed: np.ndarray,
    emulator: str = "nature",
    instrument: Instrument = APOGEE,
) -> Comparison:
    """Emulate a star with the given labels, to be drawn over its observed spectrum.

    Labels outside the emulator's range are moved to its edge. No network predicts how broad the
    lines are: of the survey's macroturbulences and rotations the one that fits best is taken.

    Parameters
    ----------
    labels
        Values of labels. What is missing takes its usual value; without TEFF, LOGG and FE_H, and
        without emulators of the instrument's wavelengths, there is no spectrum: flux and rms are
        NaN.
    observed
        (P,) normalized flux, NaN for bad pixels.
    emulator
        Its name, see `Emulator.load`.
    instrument
        Whose spectrum it is.
    """
    labels = {name: value for name, value in labels.items() if math.isfinite(value)}
    known = _spectra_bank(emulator, instrument)
    if known is None or not {"TEFF", "LOGG", "FE_H"} <= set(labels):
        return Comparison(np.full(observed.shape, np.nan), "", math.nan)
    bank, pixels = known
    coefficients = bank.emulator.coefficients(standard_labels(labels), "clip")
    names = [f"macroturbulence {v:g} km/s" for v in MACROTURBULENCE]
    names += [f"rotation {v:g} km/s" for v in ROTATION]
    seen = np.asarray(observed[pixels])
    bad, fibre = np.isnan(seen), len(bank.groups) // 2
    best = None
    for index, broadening in enumerate(names):
        flux = bank(coefficients, np.array([fibre]), np.array([index]))[0].numpy()
        # Through the very pixels that the observed polynomial went through.
        flux = flux / pseudo_continuum(
            np.where(bad, np.nan, flux),
            chips=instrument.chips_of(pixels),
            order=0 if instrument.continuum is None else instrument.continuum.order,
            clip_high=math.inf,
        )
        rms = float(np.sqrt(np.nanmean((seen - flux) ** 2)))
        if best is None or rms < best.rms:
            whole = np.full(observed.shape, np.nan)
            whole[pixels] = flux
            best = Comparison(whole, broadening, rms)
    return best
