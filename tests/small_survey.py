"""A small survey of random numbers, for the tests of reading and of writing."""

import numpy as np

from stellarperceptron.data.apogee.grid import APOGEE_WAVELENGTH
from stellarperceptron.data.survey_file import SurveyWriter

COUNTS = {"train": 40, "test": 12}
N_PIXELS = 50


def make_arrays(split, n_pixels=N_PIXELS, dtype=np.float32):
    """Everything that is stored of the stars of a split: spectra (N, P), labels (N, 5)."""
    count = COUNTS[split]
    rng = np.random.default_rng(count)
    labels = rng.normal(size=(count, 5)).astype(dtype)
    labels[:, 1] += 2
    labels[3, 2] = np.nan
    observed = rng.normal(1, 0.1, (count, n_pixels)).astype(dtype)
    observed[5, 7] = np.nan
    return {
        "synthetic": rng.normal(1, 0.1, (count, n_pixels)).astype(dtype),
        "observed": observed,
        "labels": labels,
        "label_errors": np.abs(labels) / 10,
    }


def write_survey(path, *, true_labels=True, block=7, **options):
    """Write a survey file in blocks of stars; `options` are those of `SurveyWriter`."""
    options = {"wavelength": APOGEE_WAVELENGTH[:N_PIXELS], "provenance": {"seed": 3}, **options}
    with SurveyWriter(path, counts=COUNTS, true_labels=true_labels, **options) as writer:
        for split in COUNTS:
            arrays = make_arrays(split)
            if true_labels:
                arrays["true_labels"] = arrays["labels"] + 1
            if options.get("errors"):
                shape = arrays["observed"].shape
                arrays["observed_errors"] = np.random.default_rng(1).uniform(0.01, 0.03, shape)
            for first in range(0, COUNTS[split], block):
                part = {name: array[first : first + block] for name, array in arrays.items()}
                ids = [f"2Mé{first + i:04d}" for i in range(len(part["labels"]))]
                writer.append(split, ids=ids, **part)
    return path


def write_folder(path, dtype=np.float64, n_pixels=N_PIXELS):
    """Write the published arrays: a folder with a file for each kind of data."""
    path.mkdir()
    for split in COUNTS:
        arrays = make_arrays(split, n_pixels, dtype)
        np.save(path / f"synspec_{split}.npy", arrays["synthetic"])
        np.save(path / f"aspcap_spectra_{split}.npy", arrays["observed"])
        np.save(path / f"labels_{split}.npy", arrays["labels"])
        np.save(path / f"label_errs_{split}.npy", arrays["label_errors"])
    np.savetxt(path / "apogee_wavelength_sol.csv", APOGEE_WAVELENGTH[:n_pixels])
    return path
