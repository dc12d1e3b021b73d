"""The last step of a stage: predicted errors are calibrated, and flags get their limits."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.flags import Reference
from stellarperceptron.data.mock.spectrographs import noise_correlation
from stellarperceptron.instruments.drawn import SHORTEST_CHIP
from stellarperceptron.instruments.rows import between_rows
from stellarperceptron.model import StellarPerceptron
from stellarperceptron.model_core import Calibration, error_scale
from stellarperceptron.training.batches import HIDDEN
from stellarperceptron.training.profiles import Profile
from stellarperceptron.training.stages import label_names, read_stars
from stellarperceptron.training.stars.drawn import DrawnSpectra
from stellarperceptron.training.stars.labelled import Stars, survey_stars

__all__ = [
    "ADDED_NOISE",
    "calibrate_over_drawn",
    "calibrate_stage",
    "calibrate_surveys",
    "calibration_rows",
    "describe_training",
]

CALIBRATION_STARS = 1000  # enough for a scale to 3 %
DRAWS = 64  # of instrument, window and signal-to-noise ratio
STARS_A_DRAW = 128  # their scale is known to 8 %, about as much as it differs between draws
ADDED_NOISE = (140.0, 70.0, 35.0)  # signal-to-noise ratios, of those that training has shown
REFERENCE_STARS = 4000  # enough for limits outside of which one star in 400 lies


def calibrate_surveys(
    model: StellarPerceptron, surveys: Sequence[tuple[SpectraDataset, Profile, np.ndarray]]
) -> None:
    """Describe and calibrate several surveys, or a single one; see `calibrate_stage`.

    A model of several instruments has a calibration for each of them.
    """
    found = {}
    for survey in surveys:
        model.calibration = Calibration()
        calibrate_stage(model, *survey)
        found[survey[0].instrument.name] = model.calibration.factors
    if model.instrument is not None and model.instrument.parts:
        model.calibration = Calibration(found)


def calibrate_stage(
    model: StellarPerceptron, dataset: SpectraDataset, profile: Profile, rows: np.ndarray
) -> None:
    """Describe the training spectra and calibrate the predicted errors, as a stage's last step.

    Parameters
    ----------
    model, dataset, profile
        The trained model, and the survey and profile of the stage.
    rows
        Rows of the validation stars. Without any, no errors are calibrated.
    """
    data, seed = profile.data, profile.training.seed
    labels = label_names(dataset, profile)
    describe_training(model, dataset, data.kind, data.pixels, labels, seed)
    if not len(rows):
        return
    if profile.instruments.share:
        calibrate_over_drawn(model, read_stars(dataset, profile, rows), profile)
        return
    stars = read_stars(dataset, profile, calibration_rows(profile, rows), model.instrument)
    names = list(stars.label_names)
    everything, label_errors = slice(0, len(stars)), stars.label_errors
    told = model.config.conditions and stars.read_errors is not None
    noise = [ratio for ratio in ADDED_NOISE if ratio >= profile.augmentation.snr[0]]
    model.calibrate(
        stars.read(everything),
        stars.wavelengths,
        pd.DataFrame(stars.labels, columns=names),
        None if label_errors is None else pd.DataFrame(label_errors, columns=names),
        errors=stars.read_errors(everything) if told else None,
        snr=noise if told and data.augment else (),
        correlation=noise_correlation(dataset.instrument),
        seed=seed,
    )


def calibration_rows(profile: Profile, rows: np.ndarray) -> np.ndarray:
    """As many of the validation stars (n,) as calibration needs, in ascending order."""
    order = np.random.RandomState(profile.training.seed).permutation(rows)
    return np.sort(order[:CALIBRATION_STARS])


def calibrate_over_drawn(model: StellarPerceptron, stars: Stars, profile: Profile) -> None:
    """Calibrate the predicted errors over all instruments that stage 1 draws.

    The factor of each label is measured as in `StellarPerceptron.calibrate`, on stars as stage 1
    shows them: each draw has an instrument, a signal-to-noise ratio, and, every other time, a
    window. A power law of the number of valid pixels and of the ratio is fitted to the factors.
    With another one of the resolving power, errors of other stars were no better. No draw shows two
    instruments in one context.

    Parameters
    ----------
    model
        The trained model, whose `calibration` is replaced.
    stars
        Validation stars, which any instrument can see.
    profile
        The profile of stage 1, with the seed.
    """
    seed, names = profile.training.seed, list(stars.label_names)
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    model.calibration = Calibration()
    draws = [_scales_in_a_draw(model, stars, profile, random, generator) for _ in range(DRAWS)]
    pixels, snr, scales = (np.array(column) for column in zip(*draws, strict=True))
    for name, measured in zip(names, scales.T, strict=True):
        found = np.isfinite(measured)
        model.calibration.fit(name, pixels[found], measured[found], snr[found])


def _scales_in_a_draw(
    model: StellarPerceptron,
    stars: Stars,
    profile: Profile,
    random: np.random.Generator,
    generator: torch.Generator,
) -> tuple[float, float, list[float]]:
    """Show some stars to the model as one instrument sees them, and compare errors and scatter.

    Returns
    -------
    pixels : float
        Median number of valid pixels, in pixels of the model's instrument.
    snr : float
        Signal-to-noise ratio a pixel that the model was told; NaN: none.
    scales : list of float
        Factor of the errors of each label; see `error_scale`.
    """
    rows = np.sort(random.choice(len(stars), min(STARS_A_DRAW, len(stars)), replace=False))
    snr, errors = math.nan, None
    if profile.data.augment:
        snr = math.exp(random.uniform(*np.log(profile.augmentation.snr)))
        errors = dataclasses.replace(profile.augmentation, snr=(snr, snr))
    spectra = DrawnSpectra(profile.instruments, model.instrument, stars, errors)
    coefficients = stars.coefficients[torch.from_numpy(rows)]
    if spectra.applies(random):
        seen_by = profile.instruments.draw(random, spectra.windows, model.instrument)
        flux = stars.see(coefficients, seen_by)
    else:
        seen_by, flux = model.instrument, stars.decode(coefficients)
    flux, noise = spectra.with_errors(flux, seen_by, random, generator)
    if random.random() < HIDDEN:
        snr, noise = math.nan, None
    places = between_rows(model.instrument, seen_by.wavelength)
    shown, width = places.pixels, places.width
    if random.random() < 0.5:
        length = round(len(shown) * 2.0 ** random.uniform(-5, 0))
        length = min(max(length, SHORTEST_CHIP), len(shown))
        start = int(random.integers(len(shown) - length + 1))
        shown, width = shown[start : start + length], width[start : start + length]
    seen = flux.numpy()[:, shown]
    told: dict[str, Any] = {} if math.isnan(snr) else {"snr": snr}
    if noise is not None and noise.dim() == 2:  # it differs from pixel to pixel
        told = {"errors": noise.numpy()[:, shown]}
        snr = float(1 / np.median(told["errors"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(flagged|bad, by their errors)")
        predicted = model.predict(
            seen,
            seen_by.wavelength[shown],
            list(stars.label_names),
            resolving_power=np.broadcast_to(seen_by.resolving_power, len(seen_by))[shown],
            progress=False,
            **told,
        )
    true, true_errors = stars.labels[rows], stars.label_errors
    true_errors = np.zeros_like(true) if true_errors is None else true_errors[rows]
    scales = [
        error_scale(
            predicted[name].to_numpy() - true[:, i],
            predicted[f"{name}_error"].to_numpy(),
            true_errors[:, i],
        )
        for i, name in enumerate(stars.label_names)
    ]
    return max(1.0, float(np.median(np.isfinite(seen) @ width))), snr, scales


def describe_training(
    model: StellarPerceptron,
    dataset: SpectraDataset,
    kind: str,
    pixels: str | slice,
    label_names: Sequence[str],
    seed: int = 0,
) -> None:
    """Describe spectra and labels of a survey's training stars, for the flags of `predict`.

    Parameters
    ----------
    model
        The model, whose reference of the survey's instrument is replaced.
    dataset, kind, pixels, label_names
        The stars; see `survey_stars`.
    seed
        Seed of the choice of stars whose spectra are read, and of noise and windows.
    """
    stars = survey_stars(dataset, kind, pixels, label_names, instrument=model.instrument)
    rows = np.random.RandomState(seed).permutation(len(stars))[:REFERENCE_STARS]
    some = survey_stars(dataset, kind, pixels, label_names, np.sort(rows), model.instrument)
    model.references[dataset.instrument.name] = Reference.fit(
        some.read(slice(0, len(some))),
        model.tokenize(stars.names),
        pd.DataFrame(stars.labels, columns=list(stars.label_names)),
        model.tokenize(list(stars.label_names)),
        seed,
    )
