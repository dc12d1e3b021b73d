"""Small surveys of two made-up instruments, and the stages that are trained on both."""

import numpy as np
from chain import STAGES, run_here

from stellarperceptron.data.survey_file import SurveyWriter
from stellarperceptron.instruments.spectrograph import Instrument

BLUE = Instrument(
    "BLUE",
    5000 * np.exp(3e-5 * np.arange(600)),
    chips={"one": (0, 300), "two": (300, 600)},
    resolving_power=12_000.0,
)
RED = Instrument("RED", np.linspace(8000.0, 8100.0, 400), resolving_power=20_000.0)
LABELS = {"BLUE": ("TEFF", "FE_H"), "RED": ("TEFF", "LOGG", "FE_H")}
COUNTS = {"train": 160, "test": 40}


def spectra(one, labels, random):
    """Spectra (N, P) in which every label (N, 3) has lines of its own, and noise."""
    place, flux = np.linspace(0, 1, len(one)), np.ones((len(labels), len(one)))
    for number in range(12):
        depth = 0.3 + 0.2 * labels[:, number % 3, None]
        flux -= depth * np.exp(-0.5 * ((place - (number + 0.5) / 12) / 0.01) ** 2)
    return flux + 0.01 * random.standard_normal(flux.shape)


def write(path, one, names, first):
    """A survey; the stars of both have names in common."""
    random, stars = np.random.default_rng(first), np.random.default_rng(0)
    columns = [("TEFF", "LOGG", "FE_H").index(name) for name in names]
    about = {"provenance": {"seed": first}, "instrument": one, "label_names": names}
    with SurveyWriter(path, counts=COUNTS, **about) as writer:
        for split, number in COUNTS.items():
            z = stars.uniform(-1, 1, (number + 50, 3))[first : first + number]
            labels = z * [600, 1, 0.5] + [4800, 2.5, -0.2]
            writer.append(
                split,
                ids=[f"{split}-{i}" for i in range(first, first + number)],
                synthetic=spectra(one, z, random),
                observed=spectra(one, z, random),
                labels=labels[:, columns],
                label_errors=np.full((number, len(columns)), 0.01),
            )
    return path


def train(which, surveys, output, *entries, checkpoint=None):
    """Run a stage; its exit message or status."""
    given = ["data.labels='all'", "data.combined_share=0.3", "data.pixels=full"]
    given += [f"training.{entry}" for entry in ("epochs=3", "batch_size=16")]
    given += ["training.checkpoint_every_n_epochs=1", "model.pixels_per_token=16"]
    # What tokens are told is tested elsewhere; a toy learns faster without.
    given += ["model.conditions=false", "data.regression=false"]
    given += ["training.learning_rate=5e-3", *entries]
    start = () if checkpoint is None else ("--checkpoint", checkpoint)
    return run_here(
        f"training/{STAGES[which]}",
        *("--profile", "smoke", "--data", *surveys, "--output", output, *start),
        *(word for entry in given for word in ("--set", entry)),
    )
