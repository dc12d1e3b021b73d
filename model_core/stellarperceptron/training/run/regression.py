"""A quadratic regression beside the network, as the last step of stage 2."""

import dataclasses
import math
import warnings

import numpy as np
from astropy.stats import mad_std

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.mock.spectrographs import noise_correlation
from stellarperceptron.model import StellarPerceptron
from stellarperceptron.model_core import error_scale
from stellarperceptron.network.baselines.averaged import DISAGREEMENT, AveragedRegression
from stellarperceptron.network.baselines.quadratic import FEWEST_STARS, fit_quadratic
from stellarperceptron.network.interface.calibration import with_noise
from stellarperceptron.training.profiles import Profile
from stellarperceptron.training.run.calibration import ADDED_NOISE, calibration_rows
from stellarperceptron.training.stages import read_stars
from stellarperceptron.training.stars.labelled import Stars
from stellarperceptron.utils.arrays import sentinels_to_nan

__all__ = ["add_regression", "require_regression_possible"]

MOST_STARS = 40_000  # whose spectra are in the memory at once


def require_regression_possible(model: StellarPerceptron, profile: Profile, surveys: int) -> None:
    """Refuse `data.regression` where nothing could tell its share in the answers.

    Raises
    ------
    ValueError
        There are several surveys or no validation stars, or the model takes no conditions.
    """
    if not profile.data.regression:
        return
    if surveys > 1:
        raise ValueError("data.regression is for one survey: set it to false")
    if not profile.data.validation_split:
        raise ValueError("data.regression needs validation stars: data.validation_split is 0")
    if not model.config.conditions:
        raise ValueError(
            "data.regression needs a model that is told the signal-to-noise ratio: train stage 1 "
            "with model.conditions = true"
        )


def add_regression(
    model: StellarPerceptron,
    dataset: SpectraDataset,
    profile: Profile,
    training_rows: np.ndarray,
    validation_rows: np.ndarray,
) -> None:
    """Fit a quadratic regression, and measure its share in the answers on validation stars.

    The share of each label is that with the least mean absolute residual, for the spectra as they
    are and with added noise. Spectra whose signal-to-noise ratio is unknown get the share of the
    noisiest, since they may be like those. The errors of the mean are calibrated in all of these
    cases. A survey without errors of the spectra gets no regression, since the noise of its spectra
    is unknown; nor does one of fewer than ten training or validation stars.

    Parameters
    ----------
    model
        The trained model with calibrated errors, whose `regression` is replaced.
    dataset, profile
        The survey and the profile of the stage.
    training_rows, validation_rows
        Rows of the training stars, which the regression learns from, and of the validation stars.
    """
    model.regression = None
    rows = calibration_rows(profile, validation_rows)
    held = read_stars(dataset, profile, rows, model.instrument)
    if held.read_errors is None or min(len(held), len(training_rows)) < FEWEST_STARS:
        warnings.warn(
            f"{dataset.path}: without errors of the spectra, or with fewer than {FEWEST_STARS} "
            "training or validation stars, the network is averaged with no regression",
            stacklevel=2,
        )
        return
    seed = profile.training.seed
    rows = np.unique(training_rows)  # metal-poor stars are there several times
    if len(rows) > MOST_STARS:
        rows = np.sort(np.random.RandomState(seed).permutation(rows)[:MOST_STARS])
    alone = fitted_regression(model, read_stars(dataset, profile, rows, model.instrument), seed)
    ratios = [math.inf, *(r for r in ADDED_NOISE if r >= profile.augmentation.snr[0]), math.nan]
    correlation = noise_correlation(dataset.instrument)
    model.regression = _with_shares(model, alone, held, ratios, correlation, seed)


def fitted_regression(model: StellarPerceptron, stars: Stars, seed: int) -> AveragedRegression:
    """Fit a regression, which has no share in the answers yet."""
    tokens, label_tokens = model.tokenize(stars.names), model.tokenize(stars.label_names)
    flux = sentinels_to_nan(stars.read(slice(0, len(stars))))
    labels = model.standardizer.standardize(np.asarray(stars.labels, dtype=float), label_tokens)
    valid = np.isfinite(flux)
    mean = np.where(valid, flux, 0).sum(axis=0) / valid.sum(axis=0).clip(1)
    usable = valid.any(axis=1) & np.isfinite(labels).any(axis=1)
    centred = np.where(valid, flux - mean, 0).astype(np.float32)[usable]
    form, _, _ = fit_quadratic(centred, labels[usable], seed=seed)
    none, mean, snr = np.zeros((2, len(label_tokens))), mean.astype(np.float32), (1.0, 0.0)
    return AveragedRegression(tokens, label_tokens, mean, form, np.array(snr), none, none + 1, none)


def _with_shares(
    model: StellarPerceptron,
    alone: AveragedRegression,
    stars: Stars,
    ratios: list[float],
    correlation: float,
    seed: int,
) -> AveragedRegression:
    """The regression with its shares, measured with noise added at these ratios, descending.

    With NaN, the last, the shares are those before, no noise is added, and the network is not told
    the signal-to-noise ratio.
    """
    random = np.random.default_rng(seed)
    everything, labels = slice(0, len(stars)), list(stars.label_names)
    flux, errors = stars.read(everything), stars.read_errors(everything)
    known = np.zeros_like(stars.labels) if stars.label_errors is None else stars.label_errors
    columns = np.arange(len(alone.tokens))
    measured: list[tuple] = []
    for ratio in ratios:
        seen, sigma = flux, errors
        if ratio < math.inf:
            seen, sigma = with_noise(flux, errors, ratio, correlation, random)
        with warnings.catch_warnings():  # the calibration has warned of these stars
            warnings.simplefilter("ignore")
            network = model.predict(
                seen,
                stars.wavelengths,
                labels,
                errors=sigma,
                snr=math.nan if math.isnan(ratio) else None,
                progress=False,
            )
        value = network[labels].to_numpy()
        error = network[[f"{name}_error" for name in labels]].to_numpy()
        answers = alone.answers(seen, columns)
        answers = model.standardizer.inverse_standardize(answers, alone.label_tokens)
        answers[network["flags"] != 0] = np.nan  # they are left to the network
        given = measured[-1][1] if math.isnan(ratio) else np.full(len(labels), np.nan)
        arrays = (stars.labels, known, value, error, answers)
        rows = [_measured(*(x[:, i] for x in arrays), share=given[i]) for i in range(len(labels))]
        good = sigma > 0
        told = 0.0 if math.isnan(ratio) else float(np.nanmedian(seen[good] / sigma[good]))
        measured.append((told, *np.transpose(rows)))
    snr, shares, scales, differences = map(np.array, zip(*measured, strict=True))
    differences = model.standardizer.standardize_error(differences, alone.label_tokens)
    return dataclasses.replace(
        alone, snr=snr, shares=shares, scales=scales, differences=differences
    )


def _measured(
    labels: np.ndarray,
    label_errors: np.ndarray,
    value: np.ndarray,
    error: np.ndarray,
    answers: np.ndarray,
    share: float = math.nan,
) -> tuple[float, float, float]:
    """Share of the answers (N,) in the best mean with the values (N,), and what comes of it.

    Parameters
    ----------
    labels, label_errors, value, error, answers
        (N,) catalogue labels with their errors, those of the network, and labels of the regression.
    share
        A share that is given; NaN: none.

    Returns
    -------
    share : float
    scale : float
        Error of the mean over that of the values, whose errors are calibrated.
    difference : float
        Scatter of answers less values.
    """
    difference, residual = answers - value, labels - value
    known = np.isfinite(difference * residual)
    difference, residual = difference[known], residual[known]
    if len(residual) < FEWEST_STARS:
        return 0.0, 1.0, 0.0
    usual = float(mad_std(difference))
    agree = np.abs(difference) < DISAGREEMENT * np.hypot(usual, error[known])
    difference = np.where(agree, difference, 0.0)
    # Outliers hardly move the mean absolute residual.
    shares = np.linspace(0.0, 1.0, 101) if math.isnan(share) else np.array([share])
    share = min(shares, key=lambda share: np.abs(residual - share * difference).mean())
    scale = error_scale(residual - share * difference, error[known], label_errors[known])
    return float(share), scale if scale > 0 else 1.0, usual
