"""The last step of a stage: predicted errors are calibrated, and flags get their limits."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.flags import Reference
from stellarperceptron.model import StellarPerceptron
from stellarperceptron.training.profiles import Profile
from stellarperceptron.training.stages import label_names, read_stars
from stellarperceptron.training.stars.labelled import survey_stars

__all__ = ["calibrate_stage", "describe_training"]

CALIBRATION_STARS = 1000  # enough for a scale to 3 %
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
