"""
Labels of the grids: a seeded draw over the region that APOGEE DR17's stars fill, with margin.

The region is described by anchors: a few hundred cluster centres of the labels of DR17's stars,
drawn with weights proportional to the square root of their number of stars, so that rare stars have
more weight than in the survey. Half of the spectra are near anchors; the other half take [Fe/H]
from a uniform distribution over -2.5 to 0.6. Spectrum i depends on (seed, i) alone, so that the
first n spectra are a fair sample for any n, and a grid can be extended.

As a script, this file makes the anchors:

    python dataset/mock_survey/grid_labels.py --labels labels_train.npy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from synthesis import LABEL_NAMES

from stellarperceptron.data.mock.stellar_labels import CARBON_LIMIT
from stellarperceptron.labels import PUBLISHED_LABELS
from stellarperceptron.utils.arguments import output_file, run_script
from stellarperceptron.utils.data_utils import atomic_output

ANCHORS = Path(__file__).with_name("label_anchors.csv")
ANCHOR_COLUMNS = PUBLISHED_LABELS

# Hard limits of the labels. Cool dwarfs end earlier: below about 3500 K at high gravity the model
# atmospheres are some 250 K off.
LIMITS = {
    "TEFF": (3100.0, 7200.0),
    "LOGG": (-0.6, 5.15),
    "FE_H": (-2.5, 0.6),
    "ALPHA_M": (-0.2, 0.6),  # range of the model atmospheres
    "VMICRO": (0.3, 4.0),
    "C_FE": (-0.8, 0.5),
    "N_FE": (-0.4, 1.1),
    "O_FE": (-0.65, 0.9),
    "Mg_FE": (-0.65, 0.8),
}
# The package's `COOL_DWARF` follows this one: it says where the grids end.
COOL_DWARF = (4.0, 3350.0)  # log g above which Teff stays above
SPREAD = {  # dex; about the mean alpha for Si, S, Ca, Ti, about [Fe/H] for the rest
    "Si_FE": 0.10, "S_FE": 0.10, "Ca_FE": 0.10, "Ti_FE": 0.10,
    "Na_FE": 0.20, "Al_FE": 0.20, "K_FE": 0.15, "V_FE": 0.15, "Cr_FE": 0.10,
    "Mn_FE": 0.15, "Co_FE": 0.12, "Ni_FE": 0.08,
}  # fmt: skip


# Not `stellar_labels.microturbulence`, which holds log g within 0 and 5: the grids were drawn so.
def microturbulence(logg):
    """Microturbulence [km/s] of DR17's relation with log g."""
    return 10.0 ** (0.226 - 0.0228 * logg + 0.0297 * logg**2 - 0.0113 * logg**3)


def read_anchors(path: Path = ANCHORS) -> np.ndarray:
    """Return the anchors, (n, 6): columns `ANCHOR_COLUMNS` and the probability of each."""
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    table[:, -1] /= table[:, -1].sum()
    return table


def clip(name: str, value: float) -> float:
    """Clip a label to its limits."""
    low, high = LIMITS[name]
    return float(min(max(value, low), high))


def complete(labels: dict[str, float]) -> dict[str, float]:
    """Fill in absent labels: vmicro from log g, alpha elements from O and Mg, others solar.

    Parameters
    ----------
    labels : dict
        At least TEFF [K] and LOGG.

    Returns
    -------
    dict
        All of `LABEL_NAMES`, in order. ALPHA_M, which only the model atmosphere sees, is the
        mean of [O/Fe] and [Mg/Fe] in the atmospheres' range.
    """
    unknown = set(labels) - set(LABEL_NAMES)
    if unknown:
        raise ValueError(f"unknown labels {sorted(unknown)}; known: {', '.join(LABEL_NAMES)}")
    alpha = 0.5 * (labels.get("O_FE", 0.0) + labels.get("Mg_FE", 0.0))
    full = dict.fromkeys(LABEL_NAMES, 0.0)
    full["VMICRO"] = microturbulence(labels["LOGG"])
    full["ALPHA_M"] = clip("ALPHA_M", alpha)
    full.update(dict.fromkeys(("Si_FE", "S_FE", "Ca_FE", "Ti_FE"), alpha))
    full.update(labels)
    return full


def draw_labels(seed: int, index: int, anchors: np.ndarray) -> dict[str, float]:
    """Draw the labels of spectrum `index` of the grid `seed`."""
    rng = np.random.default_rng([seed, index])
    chosen = np.searchsorted(np.cumsum(anchors[:, -1]), rng.random() * (1 - 1e-12))
    teff, logg, o_fe, mg_fe, fe_h = anchors[chosen, :-1]
    wide = index % 2 == 0
    if wide:
        target = rng.uniform(*LIMITS["FE_H"])
        if logg < 3.8:  # the giant branch moves with metallicity
            teff -= 180.0 * (target - fe_h)
        fe_h = target
    else:
        fe_h += rng.normal(0.0, 0.2)
    logg = clip("LOGG", logg + rng.normal(0.0, 0.25))
    teff = clip("TEFF", teff + rng.normal(0.0, 150.0))
    if logg > COOL_DWARF[0]:
        teff = max(teff, COOL_DWARF[1])
    labels = {"TEFF": teff, "LOGG": logg, "FE_H": clip("FE_H", fe_h)}
    if wide and rng.random() < 0.5:
        o_fe = rng.uniform(-0.3, 0.65)
        mg_fe = o_fe + rng.normal(0.0, 0.1)
    labels["O_FE"] = clip("O_FE", o_fe + rng.normal(0.0, 0.12))
    labels["Mg_FE"] = clip("Mg_FE", mg_fe + rng.normal(0.0, 0.12))
    alpha = 0.5 * (labels["O_FE"] + labels["Mg_FE"])
    labels["ALPHA_M"] = clip("ALPHA_M", alpha)
    # C and N cover what giants' mixing does to them; both matter through CN, CO and OH.
    carbon = min(rng.uniform(*LIMITS["C_FE"]), labels["O_FE"] + CARBON_LIMIT)
    labels["C_FE"] = clip("C_FE", carbon)
    labels["N_FE"] = rng.uniform(*LIMITS["N_FE"])
    for name, spread in SPREAD.items():
        mean = alpha if name in ("Si_FE", "S_FE", "Ca_FE", "Ti_FE") else 0.0
        labels[name] = mean + rng.normal(0.0, spread)
    labels["VMICRO"] = clip("VMICRO", microturbulence(logg) * 10 ** rng.normal(0.0, 0.07))
    # Stored in single precision: use what is stored.
    return {name: float(np.float32(labels[name])) for name in LABEL_NAMES}


def fit_anchors(labels: np.ndarray, n_anchors: int = 384, seed: int = 1) -> np.ndarray:
    """Cluster survey labels; rows with NaN are left out.

    Returns
    -------
    ndarray, (n_anchors, 6)
        Centres sorted by Teff, and the square root of the number of stars nearest to each.
    """
    from scipy.cluster.vq import kmeans2
    from scipy.spatial import cKDTree

    labels = labels[np.isfinite(labels).all(axis=1)].astype(np.float64)
    rng = np.random.default_rng(seed)
    scale = np.array([250.0, 0.4, 0.15, 0.15, 0.25])
    # Two stars in three come from the metal-poor and the cool or hot ends, to keep those populated.
    rare = (labels[:, 4] < -0.8) | (labels[:, 0] < 3600) | (labels[:, 0] > 6300)
    some = rng.choice(np.flatnonzero(~rare), min(12000, (~rare).sum()), replace=False)
    chosen = np.concatenate([np.flatnonzero(rare), some])
    points = labels[chosen] / scale
    centres, _ = kmeans2(points, n_anchors, iter=30, minit="++", rng=seed)
    nearest = cKDTree(centres).query(labels / scale)[1]
    weight = np.sqrt(np.bincount(nearest, minlength=n_anchors))
    return np.column_stack([centres * scale, weight])[np.argsort(centres[:, 0])]


def main() -> None:
    """Make the anchors' file."""
    parser = argparse.ArgumentParser(description="Cluster survey labels into the grids' anchors.")
    parser.add_argument("--labels", type=Path, required=True, help=".npy, (stars, 5), DR17's order")
    parser.add_argument("--anchors", type=int, default=384, help="number (default: %(default)s)")
    parser.add_argument("--output", type=output_file, default=ANCHORS, help="default: %(default)s")
    args = parser.parse_args()
    centres = fit_anchors(np.load(args.labels), args.anchors)
    header = ",".join((*ANCHOR_COLUMNS, "WEIGHT"))
    form = "%.0f,%.2f,%.2f,%.2f,%.2f,%.1f"
    with atomic_output(args.output) as partial:
        np.savetxt(partial, centres, form, header=header, comments="")


if __name__ == "__main__":
    run_script(main)
