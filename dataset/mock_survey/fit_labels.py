"""
Fit the label distribution of the package to the labels of a survey.

It consists of a mixture of Gaussians for the five true labels, a quadratic for the logarithm of
their errors, and the fraction of stars without abundances. The fit needs SciPy and scikit-learn.

    python dataset/mock_survey/fit_labels.py --labels labels_train.npy --errors label_errs_train.npy
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree
from sklearn.mixture import GaussianMixture

from stellarperceptron.data.mock.population import (
    COOL_DWARF,
    FORMAT_VERSION,
    POPULATION_FILE,
    error_features,
)
from stellarperceptron.labels import PUBLISHED_LABELS
from stellarperceptron.utils.arguments import output_file, run_script
from stellarperceptron.utils.data_utils import atomic_output

NEIGHBOURS = 100
COOL = {"cool_teff": 3700.0, "cool_logg": 4.0}  # where abundances are missing


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--labels", type=Path, required=True, help="(N, 5): TEFF, LOGG, O_FE, MG_FE, FE_H"
    )
    parser.add_argument("--errors", type=Path, required=True, help="(N, 5): their errors")
    parser.add_argument("--components", type=int, default=64, help="Gaussians (64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=output_file, default=POPULATION_FILE)
    args = parser.parse_args()
    labels = np.load(args.labels).astype(np.float64)
    errors = np.load(args.errors).astype(np.float64)

    missing = np.isnan(labels[:, 4])
    cool = (labels[:, 0] < COOL["cool_teff"]) & (labels[:, 1] > COOL["cool_logg"])
    # The coldest dwarfs, which the grids leave out, all lack abundances. The other cool dwarfs
    # replace them, so that the total and the fraction among warmer stars are right.
    within = cool & (labels[:, 0] >= COOL_DWARF[1])
    shares = {
        "cool_share": min(missing[cool].sum() / within.sum(), 1.0),
        "other_share": missing[~cool].mean(),
    }
    # Stars without abundances count too: with those of a complete star near in Teff and logg.
    complete = np.isfinite(labels).all(1) & np.isfinite(errors).all(1)
    tree = KDTree(labels[complete][:, :2] / (50.0, 0.1))
    neighbours = tree.query(labels[~complete][:, :2] / (50.0, 0.1), k=NEIGHBOURS)[1]
    chosen = np.random.default_rng(args.seed).integers(0, NEIGHBOURS, len(neighbours))
    nearest = neighbours[np.arange(len(neighbours)), chosen]
    filled = np.where(np.isnan(labels[~complete]), labels[complete][nearest], labels[~complete])
    population = np.concatenate([labels[complete], filled])
    labels, errors = labels[complete], errors[complete]

    x = population.copy()
    x[:, 0] = 5040.0 / x[:, 0]
    centre, scale = x.mean(0), x.std(0)
    mixture = GaussianMixture(
        args.components,
        reg_covar=1e-5,
        max_iter=200,
        init_params="k-means++",
        tol=1e-4,
        random_state=args.seed,
    ).fit((x - centre) / scale)

    # A mock star's labels get errors again: take their variance out of the Gaussians.
    share = mixture.predict_proba((x[: len(labels)] - centre) / scale)
    variance = errors**2
    variance[:, 0] *= (5040.0 / labels[:, 0] ** 2) ** 2  # of 5040 K / Teff
    variance = share.T @ (variance / scale**2) / share.sum(0)[:, None]
    covariances = mixture.covariances_ - variance[:, :, None] * np.eye(5)
    size, axes = np.linalg.eigh(covariances)
    floor = 0.1 * np.linalg.eigvalsh(mixture.covariances_)[:, :1]
    covariances = np.einsum("cij,cj,ckj->cik", axes, np.maximum(size, floor), axes)

    features = error_features(labels)
    coefficients, *_ = np.linalg.lstsq(features, np.log10(errors), rcond=None)
    residual = np.log10(errors) - features @ coefficients

    def figures(array: np.ndarray, digits: int) -> list:
        return np.round(array, digits).tolist()

    weights = np.round(mixture.weights_, 6)
    values = {
        "format_version": FORMAT_VERSION,
        "info": {
            "labels": list(PUBLISHED_LABELS),
            "stars": len(population),
            "log_likelihood_per_star": round(float(mixture.score((x - centre) / scale)), 4),
        },
        "weights": (weights / weights.sum()).tolist(),
        "means": figures(mixture.means_, 5),
        "factors": figures(np.linalg.cholesky(covariances), 5),
        "centre": figures(centre, 6),
        "scale": figures(scale, 6),
        "low": figures(labels.min(0), 3),
        "high": figures(labels.max(0), 3),
        "error_coefficients": figures(coefficients, 5),
        "error_scatter": figures(residual.std(0), 4),
        "error_low": figures(errors.min(0), 4),
        "error_high": figures(np.percentile(errors, 99.9, axis=0), 4),
        "missing": {**COOL, **{k: round(float(v), 5) for k, v in shares.items()}},
    }
    with atomic_output(args.output) as temporary:
        temporary.write_text(json.dumps(values, indent=None, separators=(",", ":")) + "\n")
    print(
        f"{args.output}: {args.components} Gaussians for {len(population)} stars, {values['info']}"
    )


if __name__ == "__main__":
    run_script(main)
