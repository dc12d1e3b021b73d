"""Stars of the mock survey: labels, abundances, and their errors in a catalogue.

The joint distribution of (Teff, logg, [O/Fe], [Mg/Fe], [Fe/H]) is a mixture of Gaussians in
(5040 K / Teff, logg, [O/Fe], [Mg/Fe], [Fe/H]), fitted to the labels of APOGEE DR17's stars by
``dataset/mock_survey/fit_labels.py``. It holds the giant branch and the red clump, the dwarfs,
both alpha sequences and the metal-poor tail. The package contains its parameters, not the stars.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stellarperceptron.data.mock.stellar_labels import CARBON_LIMIT, LABELS, microturbulence
from stellarperceptron.labels import PUBLISHED_LABELS, label

__all__ = ["COOL_DWARF", "POPULATION_FILE", "LabelDistribution", "all_labels", "error_features"]

POPULATION_FILE = Path(__file__).parent / "files" / "label_distribution.json"
FORMAT_VERSION = 1
COOL_DWARF = (4.0, 3350.0)  # [log10 cm/s2, K]: above this gravity the grids end at this Teff


def error_features(labels: np.ndarray) -> np.ndarray:
    """
    Quadratic in (5040 K / Teff, logg, [Fe/H], [O/Fe], [Mg/Fe]), roughly standardised: (N, 21).

    Parameters
    ----------
    labels : (N, 5)
        In the order of `PUBLISHED_LABELS`.
    """
    teff, logg, o_fe, mg_fe, fe_h = labels.T
    centred = (5040.0 / teff - 1.07, logg - 2.8, fe_h + 0.2, o_fe - 0.1, mg_fe - 0.1)
    z = [c / s for c, s in zip(centred, (0.15, 1.3, 0.35, 0.12, 0.12), strict=True)]
    products = [z[i] * z[j] for i in range(5) for j in range(i, 5)]
    return np.stack([np.ones_like(teff), *z, *products], axis=1)


@dataclass
class LabelDistribution:
    """
    Distributions of the labels of DR17's stars, their errors, and missing abundances.

    Attributes
    ----------
    weights : (C,), means : (C, 5), factors : (C, 5, 5)
        Mixture of C Gaussians in the standardised coordinates; factors are Cholesky factors.
    centre, scale : (5,)
        Of the standardisation of (5040 K / Teff, logg, [O/Fe], [Mg/Fe], [Fe/H]).
    low, high : (5,)
        Range of the labels; draws outside it are drawn again.
    error_coefficients : (21, 5), error_scatter : (5,)
        log10 of a label's error: a quadratic in the labels (`error_features`), and the scatter
        about it [dex].
    error_low, error_high : (5,)
        Range of the errors.
    missing
        Share of stars without abundances among cool dwarfs (Teff below `cool_teff` [K], logg above
        `cool_logg`) and among the others.
    """

    weights: np.ndarray
    means: np.ndarray
    factors: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error_coefficients: np.ndarray
    error_scatter: np.ndarray
    error_low: np.ndarray
    error_high: np.ndarray
    missing: dict[str, float]

    @staticmethod
    def load(path: Path = POPULATION_FILE) -> "LabelDistribution":
        """Read the parameters, by default those in the package."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
            if values.pop("format_version") != FORMAT_VERSION:
                raise ValueError("another format version")
            values.pop("info")
            missing = values.pop("missing")
            arrays = {name: np.array(value, dtype=np.float64) for name, value in values.items()}
            return LabelDistribution(**arrays, missing=missing)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged or no label distribution: {error}") from error

    def draw(self, number: int, rng: np.random.Generator, low=None, high=None) -> np.ndarray:
        """
        Labels (number, 5) of random stars, in the order of `PUBLISHED_LABELS`.

        `low` and `high` (5,) narrow the range further.
        """
        low = self.low if low is None else np.maximum(low, self.low)
        high = self.high if high is None else np.minimum(high, self.high)
        out, have = np.empty((number, 5)), 0
        while have < number:
            component = rng.choice(len(self.weights), size=number, p=self.weights)
            normal = rng.standard_normal((number, 5))
            z = self.means[component] + np.einsum("nij,nj->ni", self.factors[component], normal)
            x = z * self.scale + self.centre
            x[:, 0] = 5040.0 / np.maximum(x[:, 0], 0.1)
            x = x[((x >= low) & (x <= high)).all(1)][: number - have]
            out[have : have + len(x)] = x
            have += len(x)
        return out

    def errors(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Standard deviations (N, 5) that a catalogue gives the labels (N, 5)."""
        scatter = self.error_scatter * rng.standard_normal(labels.shape)
        log = error_features(labels) @ self.error_coefficients + scatter
        return np.clip(10.0**log, self.error_low, self.error_high)

    def errors_of(self, name: str, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        Standard deviations (N,) that a catalogue gives another label than the published five.

        They vary from star to star as those of [Mg/Fe] do, the best measured abundance, and are
        scaled to the typical error of the label (`stellarperceptron.labels`).

        Parameters
        ----------
        name
            Name of the label.
        labels : (N, 5)
            True labels in the order of `PUBLISHED_LABELS`.
        """
        magnesium = PUBLISHED_LABELS.index("MG_FE")
        scale = label(name).typical_error / label("MG_FE").typical_error
        return scale * self.errors(labels, rng)[:, magnesium]

    def without_abundances(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Mask (N,) of the stars without abundances in the catalogue: mostly cool dwarfs."""
        cool = (labels[:, 0] < self.missing["cool_teff"]) & (
            labels[:, 1] > self.missing["cool_logg"]
        )
        share = np.where(cool, self.missing["cool_share"], self.missing["other_share"])
        return rng.random(len(labels)) < share


def _ramp(x: np.ndarray, start: float, stop: float) -> np.ndarray:
    """0 before `start`, 1 after `stop`, straight between them."""
    return np.clip((x - start) / (stop - start), 0.0, 1.0)


def all_labels(
    labels: np.ndarray, rng: np.random.Generator, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """
    The 20 labels of the emulator (N, 20) for stars with labels (N, 5).

    Carbon and nitrogen follow the mixing of giants: the first dredge-up near logg 3.4 lowers
    [C/Fe] and raises [N/Fe], more so in the younger, alpha-poor stars; past the bump of the giant
    branch, logg 2.2, metal-poor stars mix further (Gratton et al. 2000, A&A 354, 169; Masseron &
    Gilmore 2015, MNRAS 453, 1855; Shetrone et al. 2019, ApJ 872, 137). The other elements follow
    the trends of the solar neighbourhood with a scatter of 0.03 to 0.06 dex (Bensby et al. 2014,
    A&A 562, A71).

    Parameters
    ----------
    labels : (N, 5)
        In the order of `PUBLISHED_LABELS`.
    low, high : (20,)
        Range of the emulator; what leaves it is moved to its edge.
    """
    teff, logg, o_fe, mg_fe, fe_h = labels.T
    alpha = 0.5 * (o_fe + mg_fe)
    old = _ramp(mg_fe, 0.05, 0.25)  # alpha-rich stars are old: less massive, less dredge-up
    dredged = 1.0 / (1.0 + np.exp((logg - 3.4) / 0.1))
    extra = np.clip(-fe_h - 0.4, 0.0, 1.5) / (1.0 + np.exp((logg - 2.2) / 0.2))

    def scatter(width: float) -> np.ndarray:
        return width * rng.standard_normal(len(labels))

    carbon = 0.35 * alpha - (0.16 - 0.06 * old) * dredged - 0.25 * extra + scatter(0.04)
    values = {
        "TEFF": teff,
        "LOGG": logg,
        "FE_H": fe_h,
        "VMICRO": microturbulence(logg).numpy() * 10.0 ** scatter(0.02),
        "C_FE": np.minimum(carbon, o_fe + 0.8 * CARBON_LIMIT),
        "N_FE": (0.25 - 0.1 * old) * dredged + 0.3 * extra + scatter(0.06),
        "O_FE": o_fe,
        "MG_FE": mg_fe,
        "SI_FE": 0.75 * mg_fe + scatter(0.03),
        "S_FE": 0.9 * alpha + scatter(0.05),
        "CA_FE": 0.65 * alpha + scatter(0.03),
        "TI_FE": 0.8 * alpha + scatter(0.05),
        "NA_FE": 0.1 * _ramp(fe_h, 0.0, 0.4) - 0.2 * (1 - _ramp(fe_h, -2, -1)) + scatter(0.06),
        "AL_FE": 0.7 * alpha - 0.4 * (1 - _ramp(fe_h, -2, -1)) + scatter(0.06),
        "K_FE": 0.5 * alpha + scatter(0.05),
        "V_FE": 0.3 * alpha + scatter(0.06),
        "CR_FE": 0.1 * (_ramp(fe_h, -2.5, -0.5) - 1) + scatter(0.04),
        "MN_FE": np.clip(0.25 * fe_h, -0.35, 0.08) + scatter(0.05),
        "CO_FE": 0.25 * alpha + scatter(0.05),
        "NI_FE": 0.05 * alpha + 0.06 * _ramp(fe_h, 0.0, 0.4) + scatter(0.03),
    }
    full = np.stack([values[name] for name in LABELS], axis=1)
    return np.clip(full, low, high)


MAIN = tuple(LABELS.index(name) for name in PUBLISHED_LABELS)
"""Columns of the catalogue's labels among those of the emulator."""
