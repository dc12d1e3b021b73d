"""The last step of a stage: predicted errors are calibrated, and flags get their limits."""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.flags import Reference
from stellarperceptron.instruments.drawn import SHORTEST_CHIP
from stellarperceptron.instruments.rows import between_rows
from stellarperceptron.model import StellarPerceptron
from stellarperceptron.model_core import Calibration, error_scale
from stellarperceptron.training.batches import HIDDEN
from stellarperceptron.training.profiles import Profile
from stellarperceptron.training.stages import label_names, read_stars
from stellarperceptron.training.stars.drawn import DrawnSpectra
from stellarperceptron.training.stars.labelled import Stars, survey_stars

__all__ = ["calibrate_over_drawn", "calibrate_stage", "describe_training"]

CALIBRATION_STARS = 1000  # enough for a scale to 3 %
DRAWS = 64  # of instrument, window and signal-to-noise ratio
STARS_A_DRAW = 128  # their scale is known to 8 %, about as much as it differs between draws
REFERENCE_STARS = 4000  # enough for limits outside of which one star in 400 lies


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
    random = np.random.RandomState(seed)
    if profile.instruments.share:
        calibrate_over_drawn(model, read_stars(dataset, profile, np.sort(rows)), profile)
        return
    rows = np.sort(random.permutation(rows)[:CALIBRATION_STARS])
    stars = read_stars(dataset, profile, rows)
    names = list(stars.label_names)
    everything, label_errors = slice(0, len(stars)), stars.label_errors
    told = model.config.conditions and stars.read_errors is not None
    model.calibrate(
        stars.read(everything),
        stars.wavelengths,
        pd.DataFrame(stars.labels, columns=names),
        None if label_errors is None else pd.DataFrame(label_errors, columns=names),
        errors=stars.read_errors(everything) if told else None,
        seed=seed,
    )


def calibrate_over_drawn(model: StellarPerceptron, stars: Stars, profile: Profile) -> None:
    """Calibrate the predicted errors over all instruments that stage 1 has drawn.

    In every draw, some stars are seen by a drawn instrument or by the model's own, as often as in
    training, completely or, in half of the draws, in a window of them. Signal-to-noise ratio and
    other errors are those of the profile's augmentation; the ratio is hidden in some draws, as in
    training. The factor is measured as in `StellarPerceptron.calibrate`; it is fitted as a power
    law of the number of valid pixels and of the ratio. It hardly depends on the resolving power
    otherwise.

    Parameters
    ----------
    model
        The trained model, whose `calibration` is replaced.
    stars
        Validation stars, which any instrument can see.
    profile
        The profile of stage 1.
    """
    drawn, instrument, seed = profile.instruments, model.instrument, profile.training.seed
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    names = list(stars.label_names)
    model.calibration = Calibration()
    pixels: list[float] = []
    ratios: list[float] = []
    scales: list[list[float]] = []
    for _ in range(DRAWS):
        number = min(STARS_A_DRAW, len(stars))
        rows = np.sort(random.choice(len(stars), number, replace=False))
        snr, errors = math.nan, None
        if profile.data.augment:
            low, high = np.log(profile.augmentation.snr)
            snr = math.exp(random.uniform(low, high))
            errors = dataclasses.replace(profile.augmentation, snr=(snr, snr))
        spectra = DrawnSpectra(drawn, instrument, stars, errors)
        coefficients = stars.coefficients[torch.from_numpy(rows)]
        if spectra.applies(random):
            seen_by = drawn.draw(random, spectra.windows)
            flux = stars.see(coefficients, seen_by)
        else:
            seen_by, flux = instrument, stars.decode(coefficients)
        flux, _ = spectra.with_errors(flux, seen_by, random, generator)
        if random.random() < HIDDEN:
            snr = math.nan
        places = between_rows(instrument, seen_by.wavelength)
        length = len(places.pixels)
        if random.random() < 0.5:  # a window, of any length
            length = round(length * 2.0 ** random.uniform(-5, 0))
            length = min(max(SHORTEST_CHIP, length), len(places.pixels))
        start = int(random.integers(len(places.pixels) - length + 1))
        part = places.pixels[start : start + length]
        shown = flux[:, torch.from_numpy(part)].numpy()
        power = np.broadcast_to(seen_by.resolving_power, len(seen_by))[part]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*flagged")
            predicted = model.predict(
                shown,
                seen_by.wavelength[part],
                names,
                snr=None if math.isnan(snr) else snr,
                resolving_power=power,
                progress=False,
            )
        counts = np.isfinite(shown) @ places.width[start : start + length]
        pixels.append(max(1.0, float(np.median(counts))))
        ratios.append(snr)
        scales.append(
            [
                error_scale(
                    (predicted[name] - stars.labels[rows, i]).to_numpy(),
                    predicted[f"{name}_error"].to_numpy(),
                    0.0 if stars.label_errors is None else stars.label_errors[rows, i],
                )
                for i, name in enumerate(names)
            ]
        )
    for name, measured in zip(names, np.array(scales).T, strict=True):
        found = np.isfinite(measured)
        model.calibration.fit(
            name, np.array(pixels)[found], measured[found], np.array(ratios)[found]
        )


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
        The model, whose `reference` is replaced.
    dataset, kind, pixels, label_names
        The stars; see `survey_stars`.
    seed
        Seed of the choice of stars whose spectra are read, and of noise and windows.
    """
    stars = survey_stars(dataset, kind, pixels, label_names)
    rows = np.random.RandomState(seed).permutation(len(stars))[:REFERENCE_STARS]
    some = survey_stars(dataset, kind, pixels, label_names, np.sort(rows))
    model.reference = Reference.fit(
        some.read(slice(0, len(some))),
        model.tokenize(stars.names),
        pd.DataFrame(stars.labels, columns=list(stars.label_names)),
        model.tokenize(list(stars.label_names)),
        seed,
    )
