"""The paper's cuts and split, which select training and test stars from the catalogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stellarperceptron.data.apogee.dr17 import (
    MAX_VSCATTER,
    MIN_SNR,
    SPLIT_SEED,
    STAR_BAD,
    TEST_SHARE,
    Catalogue,
    aspcap_path,
)

__all__ = [
    "ALL_ZERO",
    "MISSING",
    "NO_LABEL",
    "Cut",
    "Selection",
    "catalogue_cuts",
    "cut_table",
    "highest_snr",
    "published_split",
    "select",
]

# Reasons why a star has no spectrum; those of damaged files have other wordings.
MISSING = "the file is missing"
ALL_ZERO = "the spectrum is all zero"
NO_LABEL = "the star has no label"


@dataclass(frozen=True)
class Cut:
    """A line of the table of cuts: the condition, the rows that fail it, and the rows left."""

    name: str
    removed: int
    left: int


def catalogue_cuts(catalogue: Catalogue) -> tuple[Catalogue, list[Cut]]:
    """Apply the cuts that need no spectrum, one after the other.

    A value that is NaN fails its cut.

    Returns
    -------
    Catalogue
        The rows left, in the order of the catalogue; a star may have several.
    list of Cut
        How many rows each cut removes.
    """
    conditions = {
        "ASPCAPFLAG without STAR_BAD (bit 23)": catalogue.aspcapflag & STAR_BAD == 0,
        "STARFLAG = 0": catalogue.starflag == 0,
        f"SNR > {MIN_SNR:g}": catalogue.snr > MIN_SNR,
        f"VSCATTER < {MAX_VSCATTER:g} km/s": catalogue.vscatter < MAX_VSCATTER,
    }
    left = np.ones(len(catalogue), dtype=bool)
    cuts = []
    for name, condition in conditions.items():
        before = int(left.sum())
        left &= condition
        after = int(left.sum())
        cuts.append(Cut(name, before - after, after))
    return catalogue[left], cuts


def highest_snr(apogee_id: np.ndarray, snr: np.ndarray) -> np.ndarray:
    """Mark the row (N,) of each star that has its highest signal-to-noise ratio.

    Of rows with equal ratios, the first is taken.
    """
    order = np.lexsort((np.arange(len(snr)), -snr, apogee_id))
    first = np.ones(len(order), dtype=bool)
    first[1:] = apogee_id[order][1:] != apogee_id[order][:-1]
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[first]] = True
    return chosen


def published_split(n_stars: int) -> tuple[np.ndarray, np.ndarray]:
    """Split stars as scikit-learn does: `train_test_split(test_size=0.2, random_state=42)`.

    scikit-learn permutes the rows with NumPy's frozen generator; the first ceil(0.2 N) of them
    are the test stars. The published arrays have their stars in this order.

    Returns
    -------
    train, test : (n,) int64
        Row numbers in the order of the permutation.

    Raises
    ------
    ValueError
        For fewer than two stars.
    """
    if n_stars < 2:
        raise ValueError(f"{n_stars} stars cannot be split: two or more are needed")
    # The stream of the legacy generator never changes (NumPy's NEP 19).
    order = np.random.RandomState(SPLIT_SEED).permutation(n_stars)
    n_test = int(np.ceil(TEST_SHARE * n_stars))
    return order[n_test:], order[:n_test]


def cut_table(start: int, cuts: Sequence[Cut]) -> str:
    """Table of cuts as text, a line each."""
    lines = [f"{'':44s}{'removed':>10s}{'left':>10s}", f"{'rows of the catalogue':54s}{start:10,d}"]
    lines += [f"{cut.name:44s}{cut.removed:10,d}{cut.left:10,d}" for cut in cuts]
    return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Selection:
    """The candidates that become stars of a survey, and the reasons why others do not.

    Attributes
    ----------
    train, test : (n,) int64
        Candidates in the order of the published split.
    cuts : list of Cut
        The cuts that need the spectra.
    selected : int
        Stars that were split.
    reasons : dict
        Why candidates are not in the survey, except for further spectra of a star.
    no_spectrum : (N,) bool
        Candidates whose spectrum is all zero, missing or damaged.
    """

    train: np.ndarray
    test: np.ndarray
    cuts: list[Cut]
    selected: int
    reasons: Mapping[int, str]
    no_spectrum: np.ndarray


def select(
    stars: Catalogue, reasons: Sequence[str], absent: frozenset[str] = frozenset()
) -> Selection:
    """Apply the cuts that need the spectra, and split the remaining stars as published.

    A spectrum of zeros is cut before the split, as in the paper, and so is a file that the archive
    itself does not have. A file that is missing or damaged here keeps its place in the split and
    is left out afterwards; otherwise a missing file would change the shuffle and move other stars
    between training and test set. Stars without any label are left out afterwards, as in the paper.

    Parameters
    ----------
    stars
        The N candidates.
    reasons
        Reason why each candidate has no spectrum; empty if it has one.
    absent
        Paths of files that the archive does not have.

    Returns
    -------
    Selection

    Raises
    ------
    ValueError
        When no stars are left to train or to test.
    """
    no_spectrum = np.array([bool(reason) for reason in reasons])
    zero = np.array([reason == ALL_ZERO for reason in reasons])
    for i, reason in enumerate(reasons):
        if reason == MISSING:
            zero[i] = aspcap_path(stars.telescope[i], stars.field[i], stars.apogee_id[i]) in absent
    left = np.flatnonzero(~zero)
    cuts = [Cut("spectrum not all zero", int(zero.sum()), len(left))]
    best = left[highest_snr(stars.apogee_id[left], stars.snr[left])]
    cuts.append(Cut("highest SNR of its APOGEE_ID", len(left) - len(best), len(best)))
    unlabelled = np.isnan(stars.labels).all(axis=1)
    chosen_reasons = {i: reason for i, reason in enumerate(reasons) if reason}
    chosen_reasons |= {int(i): NO_LABEL for i in best[unlabelled[best] & ~no_spectrum[best]]}
    if len(best) < 2:
        raise ValueError(f"{len(best)} stars are left after the cuts: two or more are needed")
    parts = [best[rows] for rows in published_split(len(best))]
    parts = [part[~(unlabelled | no_spectrum)[part]] for part in parts]
    if not all(map(len, parts)):
        raise ValueError(
            f"{len(parts[0])} training and {len(parts[1])} test stars have a spectrum and a label: "
            "neither may be none"
        )
    return Selection(*parts, cuts, len(best), chosen_reasons, no_spectrum)
